"""The hub is asked once, and not again at once where it did not answer."""

from pathlib import Path

import pytest

from core.errors import WeightsMissing
from models import hub
from models.cards import Source

SOURCE = Source("someone/depth", "0" * 40, {"depth.safetensors": 700_000_000})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The repositories that were asked for, of a hub that does not answer; the cache is empty."""
    names: list[str] = []

    def ask(_: object, name: str, **given: object) -> None:
        names.append(name)
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.HfApi, "model_info", ask)
    monkeypatch.setattr(hub, "_asked_in_vain", {"at": -float("inf")})
    return names


def test_a_hub_that_did_not_answer_is_not_asked_again_at_once(
    asked: list[str], tmp_path: Path
) -> None:
    for seconds_later, questions in ((0, 1), (1, 1), (hub.SILENT_SECONDS, 2), (1, 2)):
        hub._asked_in_vain["at"] -= seconds_later
        with pytest.raises(WeightsMissing, match="but the hub cannot be reached: connect and"):
            hub.fetch(SOURCE, "Depth", tmp_path)
        assert len(asked) == questions
