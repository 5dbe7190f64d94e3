"""What the hub has comes with its progress, stops, goes on, and fails in one sentence."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session

from core.errors import WeightsMissing
from models.catalog import download
from models.catalog.cards import Source
from tests.fake_hub import REVISION, FakeHub, serving

SOURCE = Source("someone/depth", "0" * 40, {"depth.safetensors": 700_000_000})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The repositories that were asked for, of a hub that does not answer; the cache is empty."""
    names: list[str] = []

    def ask(_: object, name: str, **given: object) -> None:
        names.append(name)
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(download.HfApi, "model_info", ask)
    monkeypatch.setattr(download, "_last_silence", {"at": -float("inf")})
    return names


def test_a_hub_that_did_not_answer_is_not_asked_again_at_once(
    asked: list[str], tmp_path: Path
) -> None:
    for seconds_later, questions in ((0, 1), (1, 1), (download.SILENT_SECONDS, 2), (1, 2)):
        download._last_silence["at"] -= seconds_later
        with pytest.raises(WeightsMissing, match="but the hub cannot be reached: connect and"):
            download.fetch(SOURCE, "Depth", tmp_path)
        assert len(asked) == questions


def test_a_bug_is_not_taken_for_a_hub_that_does_not_answer(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download.HfApi, "model_info", lambda *_, **__: {}["our mistake"])
    with pytest.raises(KeyError, match="our mistake"):
        download.fetch(SOURCE, "Depth", tmp_path)


BIG, SMALL = bytes(range(256)) * 4096 * 5 + b"end", b"{}"
"""Five pieces and a bit; and less than one."""
WHOLE = len(BIG) + len(SMALL)
FILES = {"someone/far/unet/big.safetensors": BIG, "someone/far/unet/config.json": SMALL}
SIZES = {"big.safetensors": 5_000_000, "config.json": 0}
"""As a card knows them: roughly, or not at all."""
FAR = Source("someone/far", REVISION, SIZES, subfolder="unet")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeHub]:
    with serving(FILES, tmp_path / "cache") as fake:
        yield fake


class Enough(Exception):
    """What the watch raises to stop."""


def _fetch(tmp_path: Path, watch: download.Watch | None = None) -> Path:
    return download.fetch(FAR, "Far", tmp_path / "by hand", watch)


def test_what_comes_is_reported_to_the_last_byte(fake: FakeHub, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = _fetch(tmp_path, lambda *now: told.append(now))
    assert (folder / "big.safetensors").read_bytes() == BIG
    assert (folder / "config.json").read_bytes() == SMALL
    assert [here for here, _ in told] == sorted(here for here, _ in told)
    assert len(told) > 6 and told[-1] == (WHOLE, WHOLE)
    assert download.to_download(FAR) == {}
    told.clear()
    assert _fetch(tmp_path, lambda *now: told.append(now)) == folder
    assert told == [] and len(fake.ranges) == 2  # what is here is not asked for
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_stop_within_a_file_keeps_what_has_come(fake: FakeHub, tmp_path: Path) -> None:
    def stop(here: int, whole: int) -> None:
        if here > 2 * download.PIECE:
            raise Enough

    with pytest.raises(Enough):
        _fetch(tmp_path, stop)
    assert set(download.to_download(FAR)) == {"big.safetensors"}
    (part,) = (tmp_path / "cache").rglob("*.part")
    here = part.stat().st_size
    assert 2 * download.PIECE <= here < len(BIG)
    first: list[int] = []
    folder = _fetch(tmp_path, lambda here, whole: first.append(here))
    assert first[0] == here and fake.ranges[-1] == f"bytes={here}-"
    assert (folder / "big.safetensors").read_bytes() == BIG


def test_a_lost_connection_is_taken_up_again(fake: FakeHub, tmp_path: Path) -> None:
    breaks = [3 * download.PIECE]
    fake.before_piece = lambda sent: sent not in breaks or bool(breaks.clear())
    assert (_fetch(tmp_path) / "big.safetensors").read_bytes() == BIG
    assert fake.ranges == ["", "", f"bytes={3 * download.PIECE}-"]


def test_a_connection_that_stays_lost_is_one_sentence(
    fake: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.before_piece = lambda sent: sent < download.PIECE
    with pytest.raises(WeightsMissing) as caught:
        _fetch(tmp_path)
    assert str(caught.value) == (
        "Far needs unet/big.safetensors (5 MB) of huggingface.co/someone/far, "
        "but the connection was lost: what has come is kept, so connect and try again, or put "
        f"them into {tmp_path / 'by hand'}."
    )
    assert "broke off" in caplog.text and "someone/far was not fetched" in caplog.text
    fake.before_piece = lambda sent: True
    assert (_fetch(tmp_path) / "big.safetensors").read_bytes() == BIG
    assert fake.ranges[-1] == f"bytes={download.PIECE}-"


def test_a_connection_that_stalls_is_taken_up_again(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open, and no byte comes: nobody waits for longer than the timeout."""
    monkeypatch.setattr(download, "HUB_SECONDS", 0.5)
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    stalled: list[int] = []

    def stall_once(sent: int) -> bool:
        if sent == 3 * download.PIECE and not stalled:
            stalled.append(sent)
            fake.go_on.wait(60)
        return True

    fake.before_piece = stall_once
    folder = _fetch(tmp_path)
    fake.go_on.set()
    assert (folder / "big.safetensors").read_bytes() == BIG
    assert stalled and fake.ranges == ["", "", f"bytes={3 * download.PIECE}-"]


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_full_disk_is_one_sentence(
    when: str, fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "before":
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=-1))
    else:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(download, "_stream", full)
    with pytest.raises(WeightsMissing) as caught:
        _fetch(tmp_path)
    cache = tmp_path / "cache"
    assert f"but the disk is full: make room where {cache} is and try again" in str(caught.value)
    assert fake.ranges == []


def test_a_cache_that_cannot_be_written_is_one_sentence(
    fake: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(WeightsMissing) as caught:
        _fetch(tmp_path)
    assert f"but {tmp_path}/file/hub/" in str(caught.value) and fake.ranges == []
    assert "cannot be written to or read: set HF_HOME to a folder of your own" in str(caught.value)


def test_another_users_cache_is_as_good_as_none(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root, who may run this, may read everything, so the refusal is made up."""

    def stat(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        missing = download.to_download(SOURCE)
    assert missing == SOURCE.files


def test_a_token_that_cannot_be_read_is_not_taken_for_a_silent_hub(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/else/token")

    monkeypatch.setattr(download.HfApi, "model_info", refuse)
    for _ in range(2):
        with pytest.raises(WeightsMissing, match="but /home/else/token cannot be written to or"):
            download.fetch(SOURCE, "Depth", tmp_path)


def test_a_proxy_that_cannot_be_used_is_one_sentence(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads the variables once, when its session is made."""
    monkeypatch.setenv("HTTPS_PROXY", "ftp://127.0.0.1:9")
    close_session()
    try:
        with pytest.raises(
            WeightsMissing, match=r"the proxy in .* cannot be used \(Unknown scheme"
        ):
            download.fetch(SOURCE, "Depth", tmp_path)
    finally:
        monkeypatch.undo()
        close_session()
    assert asked == []


def test_without_a_hub_several_models_wait_for_one_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real client, and a port on which nothing listens: it would wait 23 s for each file."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "_last_silence", {"at": -float("inf")})
    files = {f"{name}.safetensors": 1000 for name in "abc"}
    started = time.monotonic()
    for name in ("canny", "depth", "pose"):
        with pytest.raises(WeightsMissing, match="but the hub cannot be reached: connect and"):
            download.fetch(Source(f"someone/{name}", "0" * 40, files), name, tmp_path)
    assert time.monotonic() - started < 5


def test_a_file_that_the_hub_does_not_have_is_one_sentence(fake: FakeHub, tmp_path: Path) -> None:
    del fake.files["someone/far/unet/big.safetensors"]
    with pytest.raises(
        WeightsMissing, match=r"^Far needs .* hub does not have it.*404\): log in [^\n]*\.$"
    ):
        _fetch(tmp_path)
    assert set(download.to_download(FAR)) == {"big.safetensors"}


@pytest.mark.parametrize("status", download.BUSY)
def test_a_busy_hub_is_asked_again(
    status: int, fake: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its questions: for the repository, for a file's facts, for its bytes."""
    for answered in (0, 1, 2):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        fake.refusals = [200] * answered + [status] * 2
        told: list[int] = []
        assert _fetch(tmp_path, lambda here, _, told=told: told.append(here)).is_dir()
        assert fake.refusals == [] and told
    assert "too busy" in caplog.text


def test_a_hub_that_stays_busy_is_one_sentence_and_can_be_left(
    fake: FakeHub, tmp_path: Path
) -> None:
    fake.refusals = [503] * download.MAX_BUSY
    with pytest.raises(
        WeightsMissing, match=r"hub is too busy \(HTTP 503\): try again in a few min"
    ):
        _fetch(tmp_path)
    assert fake.refusals == []
    fake.refusals = [503] * download.MAX_BUSY

    def stop(*_: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        _fetch(tmp_path, stop)
    assert len(fake.refusals) == download.MAX_BUSY - 1


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (
            401,
            r"does not accept this machine's token \(HTTP 401\): log in again with `hf auth login`",
        ),
        (403, r"not give it to everybody \(HTTP 403\): accept its terms on its page there, log in"),
        (404, r"does not have it, or not for everybody \(HTTP 404\): log in"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, told: str, fake: FakeHub, tmp_path: Path) -> None:
    fake.refusals = [status]
    with pytest.raises(WeightsMissing, match=told):
        _fetch(tmp_path)


def test_what_came_damaged_is_thrown_away(fake: FakeHub, tmp_path: Path) -> None:
    """The part on this disk is not how the file begins."""

    def stop(here: int, whole: int) -> None:
        if here > 2 * download.PIECE:
            raise Enough

    with pytest.raises(Enough):
        _fetch(tmp_path, stop)
    (part,) = (tmp_path / "cache").rglob("*.part")
    part.write_bytes(b"?" * part.stat().st_size)
    with pytest.raises(WeightsMissing, match="the download was damaged, and deleted: connect"):
        _fetch(tmp_path)
    assert (_fetch(tmp_path) / "big.safetensors").read_bytes() == BIG


def test_two_who_want_the_same_get_it_once_and_both_see_it_come(
    fake: FakeHub, tmp_path: Path
) -> None:
    go_on, seen = threading.Event(), []
    fake.before_piece = lambda sent: sent < 2 * download.PIECE or go_on.wait(10)
    first = threading.Thread(target=_fetch, args=(tmp_path,))
    first.start()
    while not list((tmp_path / "cache").rglob("*.part")):
        time.sleep(0.01)

    def watch(here: int, whole: int) -> None:
        seen.append(here)
        if here >= download.PIECE:
            go_on.set()

    assert (_fetch(tmp_path, watch) / "big.safetensors").read_bytes() == BIG
    first.join(10)
    assert go_on.is_set() and len(fake.ranges) == 2  # each file once
