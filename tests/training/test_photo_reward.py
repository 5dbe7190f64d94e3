"""A reward on photographs, beside a small base of Stable Diffusion's shape."""

from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from annotators import _pretrained
from training import photo_annotators, train_control
from training.train_control import trained


def options(sd_base, folder, out, *more):
    few = ["--batch", "4", "--size", "64", "--device", "cpu", "--steps", "1", "--sheet-every", "0"]
    places = ["--base", f"{sd_base}", "--folder", f"{folder}", "--out", f"{out}"]
    return [*few, *places, "--mixed-precision", "no", *more]


class Edges(nn.Module):
    """Five scales of edges, each of half the size, as HED's network gives them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, pictures):
        pictures = pictures / 255
        return [self.layer(nn.functional.avg_pool2d(pictures, 2**k)) for k in range(5)]


@pytest.fixture
def edges(monkeypatch):
    """A small network in place of HED's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Edges()
    detector = SimpleNamespace(netNetwork=network)
    monkeypatch.setattr(photo_annotators, "load_detector", lambda *_: detector)
    return network


def gradients(training, name):
    """The largest gradient of one loss in each of the ControlNet's weights."""
    training.control.zero_grad(set_to_none=True)
    training.loss_at(0)[name].backward()
    found = {name: one.grad for name, one in training.control.named_parameters()}
    return {name: 0.0 if grad is None else float(grad.abs().max()) for name, grad in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--condition", "canny", "--reward", "Kornia"),
        ("--condition", "canny", "--reward", "Kornia", "--gradient-checkpointing"),
        ("--condition", "canny", "--reward", "Kornia", "--mixed-precision", "bf16"),
        ("--condition", "canny", "--reward", "Kornia", "--method", "uncertainty"),
        ("--condition", "canny", "--reward", "Kornia", "--adapter"),
        ("--condition", "canny", "--reward", "edges"),
        ("--condition", "hed", "--reward", "HED"),
    ],
)
def test_a_reward_tunes_beside_a_kl_autoencoder(sd_base, folder, tmp_path, edges, more):
    training = trained(options(sd_base, folder, tmp_path, "--reward-weight", "1", *more))
    found = training.loss_at(0)
    assert torch.equal(found["loss"], found["diffusion"] + found["reward"])
    largest = gradients(training, "reward")
    outputs = ("controlnet_down", "controlnet_mid", "adapter.body")  # before them it still is zero
    learning = [one for name, one in largest.items() if name.startswith(outputs)]
    assert len(learning) > 20 and all(0 < one < 1e6 for one in learning)
    frozen = [training._vae, training._unet, edges]
    assert all(one.grad is None for part in frozen for one in part.parameters())


@pytest.mark.slow
def test_checkpointing_changes_no_gradient(sd_base, folder, tmp_path):
    reward = ("--condition", "canny", "--reward", "Kornia")
    plain, checked = (
        gradients(trained(options(sd_base, folder, tmp_path / f"{k}", *reward, *more)), "reward")
        for k, more in enumerate(((), ("--gradient-checkpointing",)))
    )
    assert plain.keys() == checked.keys()
    for name, one in plain.items():
        assert checked[name] == pytest.approx(one, rel=1e-3, abs=1e-9), name


@pytest.mark.slow
def test_photographs_are_rewarded_up_to_the_published_timestep(sd_base, folder, tmp_path):
    more = ("--condition", "canny", "--reward", "Kornia")
    training = trained(options(sd_base, folder, tmp_path, *more))
    timesteps = torch.tensor([0, 200, 201, 999])
    assert training._rewarded(timesteps, 0).tolist() == [0, 1]
    seen, loss = [], training._reward.loss
    training._reward.loss = lambda latents, pictures: (
        seen.append(latents) or loss(latents, pictures)
    )
    rewards = {}
    for step in range(8):
        seen.clear()
        rewards[step] = float(training.loss_at(step)["reward"].detach())
        assert sum(map(len, seen)) <= 1, "one of four samples is below 250"
        assert (rewards[step] > 0) == bool(seen)
    assert any(rewards.values())
    asked = train_control._options([*more, "--reward-threshold", "400"])
    assert asked.reward_threshold == 400
    assert train_control._options(["--reward", "edges"]).reward_threshold is None


def test_missing_weights_end_the_run_before_any_work(sd_base, folder, tmp_path, monkeypatch):
    def no_hub(*_):
        raise LocalEntryNotFoundError("no network in tests")

    monkeypatch.setattr("models.catalog.download._reach_hub", no_hub)
    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path / "none")
    _pretrained._detector.cache_clear()
    for name in ("PiDiNet", "HED"):
        with pytest.raises(SystemExit, match=rf"^{name} needs .*put them into"):
            out = tmp_path / "run"
            more = ("--condition", "hed", "--reward", name)
            train_control.main(options(sd_base, folder, out, *more))
    assert not (tmp_path / "run").exists()
