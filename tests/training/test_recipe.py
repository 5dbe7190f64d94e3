"""The whole recipe, from rendered scenes to a measured model, at a tiny size."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from annotators import find_annotator
from benchmarks import controllability
from models.store import Store
from training import examples, train_annotator, train_autoencoder, train_base, train_control
from training.diorama import maps as scene_maps
from training.diorama.dataset import Pictures, render_scenes
from training.preference import DIORAMA

CARD = """
title = "Diorama"
blurb = "A few steps old."
licence = "none"
prompts = ["a red ball"]
min_resolution = 64
max_resolution = 512
[defaults]
image_resolution = 256
added_prompt = ""
negative_prompt = ""
guidance_scale = 3.0
steps = 2
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """Sheets and own pictures in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_base, "sample_latents", partial(train_base.sample_latents, steps=2))
        patch.setattr(train_control, "SAMPLE_STEPS", 2)
        patch.setattr(train_control, "SHEET_STEPS", 2)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `scenes`, and `models/diorama` with each network trained for two steps."""
    root = tmp_path_factory.mktemp("recipe")
    scenes, model = root / "scenes", root / "models" / "diorama"
    render_scenes(8, 64, scenes)
    few = ["--steps", "2", "--batch", "2", "--device", "cpu", "--data", str(scenes)]
    small = ["--size", "64"]
    train_autoencoder.main(
        [*few, "--crop", "32", "--out", str(root / "a"), "--save", str(model / "vae")]
    )
    base = ["--autoencoder", str(model / "vae"), "--out", str(root / "b"), "--save", str(model)]
    train_base.main([*few, *small, *base])
    control = [
        "--base",
        str(model),
        "--out",
        str(root / "c"),
        "--save",
        str(model / "controlnet" / "canny"),
    ]
    train_control.main([*few, *small, *control])
    annotator = ["--out", str(root / "d"), "--save", str(model / "annotator")]
    train_annotator.main([*few, *annotator])
    (root / "models" / "diorama.toml").write_text(CARD)
    return root


def test_pictures_are_rendered_once(trained):
    files = {path: path.stat().st_mtime_ns for path in (trained / "scenes").glob("*.npy")}
    render_scenes(8, 64, trained / "scenes")
    assert files == {path: path.stat().st_mtime_ns for path in (trained / "scenes").glob("*.npy")}
    pictures = Pictures(trained / "scenes")
    assert pictures.batch([0, 5]).shape == (2, 64, 64, 3)
    assert Pictures(trained / "scenes", 32).batch([0]).shape == (1, 32, 32, 3)
    assert len(pictures) == len(pictures.captions) == 8


def test_half_the_maps_are_drawn_with_random_settings(trained):
    canny = find_annotator("canny")
    examples = scene_maps.SceneExamples(trained / "scenes", canny, 64)
    draw = canny.preprocessors[0].draw
    pictures, maps = examples.batch(range(8)), examples.maps(range(8))
    default = [
        np.array_equal(draw(p, canny.params()), m) for p, m in zip(pictures, maps, strict=True)
    ]
    assert all(default[::2]) and not all(default[1::2])
    assert np.array_equal(maps, examples.maps(range(8)))
    values = [scene_maps.random_params(canny.params, seed).low_threshold for seed in range(50)]
    assert min(values) < 40 and max(values) > 180 and len(set(values)) > 30


def test_cached_maps_equal_those_drawn_on_the_fly(trained, monkeypatch):
    canny, folder = find_annotator("canny"), trained / "scenes"
    on_the_fly = scene_maps.SceneExamples(folder, canny, 64).maps(range(8))
    monkeypatch.setattr(scene_maps.os, "cpu_count", lambda: 1)  # each process loads torch anew
    scene_maps.main(["--conditions", "canny", "--data", str(folder), "--size", "64"])
    cached = scene_maps.SceneExamples(folder, canny, 64)
    monkeypatch.setattr(scene_maps, "batched_prediction", None)  # nothing is drawn any more
    assert np.array_equal(cached.maps(range(8)), on_the_fly)
    assert np.array_equal(cached.maps([5, 2]), on_the_fly[[5, 2]])


@pytest.mark.parametrize(("every", "expected"), [(1, 300), (5, 60), (1000, 1), (0, 300)])
def test_rows_with_a_map_are_selected_if_many_are_empty(every, expected):
    class Examples:
        def __len__(self):
            return 300

        def maps(self, rows):
            maps = np.zeros((len(rows), 4, 4, 3), np.uint8)
            for k, row in enumerate(rows):
                maps[k, 0] = 255 * (every > 0 and row % every == 0)
            return maps

    rows = examples.rows_with_maps(Examples(), find_annotator("pose").is_empty, 16)
    assert len(rows) == expected
    assert not every or all(row % every == 0 for row in rows.tolist())


def test_weights_are_small_and_contain_their_recipe(trained):
    files = sorted((trained / "models").rglob("*.safetensors"))
    assert {path.parent.name for path in files} == {
        "vae",
        "unet",
        "text_encoder",
        "canny",
        "annotator",
    }
    for path in files:
        assert path.stat().st_size < 10_000_000
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["controlloop"])
            assert file.get_tensor(next(iter(file.keys()))).dtype == torch.float16
        recipe = metadata["recipe"]
        assert recipe["steps"] == 2 and recipe["seed"] == 0 and metadata["commit"]


def test_training_resumes(trained, capsys):
    model = trained / "models" / "diorama"
    short = ["--steps", "3", "--batch", "2", "--size", "64", "--device", "cpu"]
    places = ["--data", str(trained / "scenes"), "--base", str(model), "--out", str(trained / "c")]
    train_control.main([*short, *places])
    assert "resumed at step 2" in capsys.readouterr().out


def test_a_reward_tunes_a_trained_controlnet(trained, tmp_path):
    model = trained / "models" / "diorama"
    before, saved = model / "controlnet" / "canny", tmp_path / "tuned"
    short = ["--steps", "2", "--batch", "4", "--size", "64", "--device", "cpu"]
    places = ["--data", str(trained / "scenes"), "--base", str(model), "--out", str(tmp_path)]
    tuning = ["--start", str(before), "--reward", "edges", "classes", "--save", str(saved)]
    train_control.main([*short, *places, *tuning])
    file = "diffusion_pytorch_model.safetensors"
    first, then = load_file(before / file), load_file(saved / file)
    assert any(not torch.equal(first[name], then[name]) for name in first)
    with pytest.raises(SystemExit):
        train_control.main([*short, *places, "--reward", "colour"])


def test_an_adapter_learns_from_scenes(trained, tmp_path):
    """The words that name each place act on it through the UNet's encoder too."""
    few = ["--steps", "1", "--batch", "4", "--size", "64", "--device", "cpu", "--reward", "edges"]
    places = ["--data", str(trained / "scenes"), "--base", str(trained / "models" / "diorama")]
    training = train_control.trained([*few, *places, "--out", str(tmp_path), "--adapter"])
    for name in ("diffusion", "reward", "grounding"):
        training.control.zero_grad(set_to_none=True)
        training.loss_at(0)[name].backward()
        gradients = [one.grad for one in training.control.parameters()]
        assert all(one is not None and bool(one.any()) for one in gradients), name
    attention = [name for name, _ in training._unet.named_modules() if name.endswith("attn2")]
    training.loss_at(0)
    layers = len(training._attention._heads)
    assert layers == len(attention) > sum(name.startswith("up_blocks") for name in attention)


def test_only_samples_up_to_a_timestep_are_rewarded(trained, tmp_path):
    model = trained / "models" / "diorama"
    few = ["--steps", "1", "--batch", "4", "--size", "64", "--device", "cpu", "--reward", "edges"]
    places = ["--data", str(trained / "scenes"), "--base", str(model), "--out", str(tmp_path)]
    training = train_control.trained([*few, *places])
    rewards = []
    for threshold in (-1, 249, 999, None):
        training._options.reward_threshold = threshold
        rewards.append(training.loss_at(0)["reward"].item())
    assert rewards[0] == 0 < rewards[1] != rewards[2] > 0, "of four samples none, one and all"
    assert rewards[3] != rewards[2], "without a threshold a third of them"


def test_own_samples_are_rewarded(trained, tmp_path, capsys):
    model, out = trained / "models" / "diorama", tmp_path / "run"
    few = ["--batch", "2", "--size", "64", "--device", "cpu", "--data", str(trained / "scenes")]
    start = ["--base", str(model), "--start", str(model / "controlnet" / "canny")]
    tuning = ["--reward", "edges", "--own", "5", "--out", str(out)]
    train_control.main([*few, *start, *tuning, "--steps", "1"])
    own = torch.load(out / "own.pt", weights_only=True)
    assert own.shape == (5, 4, 8, 8) and bool(own.isfinite().all())
    assert float(own.std()) > 0 and not torch.equal(own[0], own[1])
    assert "batches of own samples" in capsys.readouterr().out
    train_control.main([*few, *start, *tuning, "--steps", "2"])  # resumes, with the same samples
    output = capsys.readouterr().out
    assert "resumed at step 1" in output and "own samples" not in output
    training = train_control.trained([*few, *start, *tuning, "--steps", "2"])
    before = training.loss_at(0)
    training._own_latents = training._own_latents + 1
    after = training.loss_at(0)
    assert after["diffusion"] == before["diffusion"], "the scenes' own latents are the same"
    assert after["reward"] != before["reward"], "it is the own samples that are rewarded"
    timesteps = torch.tensor([10, 700])
    assert training._rewarded(timesteps, 0).tolist() == [0, 1]
    training._options.reward_threshold = 200
    assert training._rewarded(timesteps, 0).tolist() == [0]


def test_uncertainty_rewards_the_same_samples_and_a_step_later(trained, tmp_path):
    model = trained / "models" / "diorama"
    few = ["--steps", "1", "--batch", "4", "--size", "64", "--device", "cpu", "--reward", "edges"]
    places = ["--data", str(trained / "scenes"), "--base", str(model), "--out", str(tmp_path)]
    training = train_control.trained([*few, *places, "--method", "uncertainty"])
    seen, loss = [], training._reward.uncertain_loss
    training._reward.uncertain_loss = lambda first, second, pictures: (
        seen.append((first, second)) or loss(first, second, pictures)
    )
    found = training.loss_at(0)
    ((first, second),) = seen
    assert first.shape == second.shape and 0 < (first - second).abs().max().item() < 1
    found["loss"].backward()
    training._options.method = "reward"
    assert training.loss_at(0)["diffusion"] == found["diffusion"]


def test_a_preference_is_learned_between_a_map_and_one_of_an_own_sample(
    trained, tmp_path, monkeypatch
):
    model = trained / "models" / "diorama"
    start = ["--base", str(model), "--start", str(model / "controlnet" / "canny")]
    few = ["--steps", "1", "--batch", "4", "--size", "64", "--device", "cpu", *start]
    places = ["--data", str(trained / "scenes"), "--out", str(tmp_path)]
    monkeypatch.setattr(train_control, "PREFERENCE_SAMPLES", 3)
    training = train_control.trained([*few, *places, "--method", "cpo"])
    rows = training._own_rows.tolist()
    winning = training._data.maps(rows)
    assert training._losing_maps.shape == winning.shape == (3, 64, 64, 3) and winning.any()
    assert not np.array_equal(training._losing_maps, winning)
    with monkeypatch.context() as patch:  # of the scenes themselves, the maps would be their own
        patch.setattr(train_control, "to_images", lambda _: list(training._data.batch(rows)))
        assert np.array_equal(training._maps_of_own(), winning)
    found = training.loss_at(0)
    assert set(found) == {"loss", "diffusion", "grounding", "preference"}
    training.control.zero_grad()
    found["preference"].backward()
    assert any(
        bool(p.grad.abs().any()) for p in training.control.parameters() if p.grad is not None
    )
    first = load_file(model / "controlnet" / "canny" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(p, first[name]) for name, p in training._reference.named_parameters())
    # With the same map on both sides nothing can be preferred: only the margin is left.
    training._losing_maps = winning
    assert training.loss_at(0)["preference"].item() == pytest.approx(DIORAMA.margin / 2, rel=1e-3)


def test_a_users_folder_trains(trained, tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for k in range(3):
        for name in ("source", "target"):
            picture = rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / f"{name}{k}.png")
        lines.append(
            json.dumps({"source": f"source{k}.png", "target": f"target{k}.png", "prompt": "a ball"})
        )
    (tmp_path / "prompt.json").write_text("\n".join(lines))
    short = ["--steps", "1", "--batch", "2", "--size", "64", "--device", "cpu"]
    source = ["--folder", str(tmp_path), "--base", str(trained / "models" / "diorama")]
    goal = ["--out", str(tmp_path / "run"), "--save", str(tmp_path / "saved")]
    train_control.main([*short, *source, *goal])
    assert (tmp_path / "saved" / "diffusion_pytorch_model.safetensors").exists()


def test_thin_lines_of_a_users_maps_survive_shrinking(tmp_path):
    line = np.zeros((96, 128, 3), np.uint8)
    line[:, 65] = 255
    Image.fromarray(line).save(tmp_path / "a.png")
    row = {"source": "a.png", "target": "a.png", "prompt": "a line"}
    (tmp_path / "prompt.json").write_text(json.dumps(row))
    data = examples.FolderExamples(tmp_path, find_annotator("canny"), 24)
    (small,) = data.maps([0])
    assert small.shape == (24, 24, 3) and (small.max(1) == 255).all() and (small == 255).sum() == 72
    (picture,) = data.batch([0])
    assert picture.shape == small.shape and 0 < picture.max() < 255


def test_the_trained_model_is_measured(trained, tmp_path):
    store = Store("cpu", "float32", trained / "models")
    conditions = controllability.select_conditions(store, "diorama", ["canny"])
    sheet = tmp_path / "sheet.png"
    result = controllability.measure(store, "diorama", conditions, 2, (0.0, 1.0), sheet)
    canny = result["conditions"]["canny"]
    assert canny["metric"] == "F1" and set(canny["strength"]) == {"0", "1"}
    assert set(canny["headline"]) == {"oracle", "0", "1"}
    assert 0 <= canny["oracle"] <= 1 and result["autoencoder_psnr"] > 3
    assert (tmp_path / "sheet-canny.png").exists()


def test_a_decoder_trains_alone(trained, tmp_path):
    before = trained / "models" / "diorama" / "vae"
    train_autoencoder.main(
        ["--steps", "2", "--batch", "2", "--device", "cpu", "--data", str(trained / "scenes"),
         "--crop", "32", "--start", str(before), "--decoder-only",
         "--out", str(tmp_path / "run"), "--save", str(tmp_path / "after")]
    )  # fmt: skip
    old, new = (
        load_file(f / "diffusion_pytorch_model.safetensors") for f in (before, tmp_path / "after")
    )
    same = {name: torch.equal(old[name], new[name]) for name in old}
    assert all(equal for name, equal in same.items() if name.startswith("encoder."))
    assert not all(equal for name, equal in same.items() if name.startswith("decoder."))


def test_every_second_picture_is_blurred_for_the_annotator():
    pictures = torch.rand(4, 3, 32, 32)
    blurred = train_annotator.blurred(pictures, 0.25)
    assert torch.equal(blurred[1::2], pictures[1::2])
    gradients = [part.diff(dim=3).abs().mean() for part in (blurred[::2], pictures[::2])]
    assert gradients[0] < 0.3 * gradients[1]
    assert torch.allclose(train_annotator.blurred(pictures, 1.0), pictures, atol=1e-6)
