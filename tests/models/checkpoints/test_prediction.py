"""A checkpoint that predicts the velocity is sampled so, in whatever way it says it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import Tensor

from benchmarks._ldm_layout import base_state
from core.sampling import denoise, seeded_noise
from models.__main__ import main
from models.checkpoints.prediction import scheduler_changes
from models.networks import DiffusersNetworks
from models.store import Store
from tests.tiny_networks import save_networks, tiny_scheduler

VELOCITY = {"prediction_type": "v_prediction"}
ZERO_SNR = VELOCITY | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
NOTHING = torch.zeros(0)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize(
    ("keys", "changes"),
    [
        ((), {}),
        (("v_pred",), VELOCITY),
        (("v_pred", "ztsnr"), ZERO_SNR),
        (("ztsnr",), {}),  # as ComfyUI, which defines both
    ],
)
def test_keys(
    keys: tuple[str, ...], changes: dict[str, object], suffix: str, tmp_path: Path
) -> None:
    state = {"w": torch.zeros(1), **{key: NOTHING.clone() for key in keys}}
    path = tmp_path / f"x.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    assert scheduler_changes(path) == changes


@pytest.mark.parametrize(
    ("metadata", "changes"),
    [
        ({"modelspec.prediction_type": "v"}, VELOCITY),
        ({"modelspec.prediction_type": "epsilon"}, {}),
        ({"modelspec.predict_key": "v"}, VELOCITY),
        ({"modelspec.title": "v"}, {}),
        ({"ss_v_parameterization": "True"}, VELOCITY),
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ZERO_SNR),
        ({"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, {}),
    ],
)
def test_metadata(metadata: dict[str, str], changes: dict[str, object], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    assert scheduler_changes(tmp_path / "x.safetensors") == changes


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ('model:\n  params:\n    parameterization: "v"\n    beta: 1', VELOCITY),
        ("    parameterization: v  # velocity\n", VELOCITY),
        ('    parameterization: "eps"\n', {}),
        ("# parameterization: v\n", {}),
        ("\xff", {}),
    ],
)
def test_the_file_beside_it(text: str, changes: dict[str, object], tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_bytes(text.encode("latin-1"))
    assert scheduler_changes(tmp_path / "x.safetensors") == changes


def _sample(networks: DiffusersNetworks, scheduler: DDIMScheduler) -> Tensor:
    noise, generators = seeded_noise([3], (4, 8, 8))
    text = networks.encode_text(["the red ball"])
    scheduler.set_timesteps(5)

    @torch.no_grad()
    def predict(latents: Tensor, timestep: int, _: int) -> Tensor:
        output: Tensor = networks.unet(latents, timestep, text).sample
        return output

    return denoise(predict, scheduler, noise, generators, 0.0, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [("v_pred",), ("v_pred", "ztsnr")])
def test_a_loaded_checkpoint_is_sampled_as_diffusers_samples_it(
    keys: tuple[str, ...],
    store: Store,
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = (networks.unet, networks.vae, networks.text_encoder)
    state = base_state(*(part.state_dict() for part in parts))
    path = tmp_path / "x.safetensors"
    save_file(state | {key: NOTHING.clone() for key in keys}, path)
    loaded = store.load(str(path))
    usual = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    changes = ZERO_SNR if "ztsnr" in keys else VELOCITY
    wanted = _sample(networks, tiny_scheduler(**usual, **changes))
    found = _sample(loaded, loaded.make_scheduler("ddim"))
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    plain = _sample(networks, networks.make_scheduler("ddim"))
    assert (plain - wanted).norm() > 1e-2 * wanted.norm()
    assert main(["check", str(path)], store.registry) == 0
    note = "It is sampled by v-prediction" + (
        " with zero terminal SNR." if "ztsnr" in keys else "."
    )
    assert note in capsys.readouterr().out.splitlines()
    assert store.registry.card(str(path)).blurb.endswith(note)


def test_a_folder_says_it_in_its_schedulers_config(
    store: Store,
    networks: DiffusersNetworks,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_networks(networks, tmp_path / "mine")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | ZERO_SNR), encoding="utf-8")
    assert main(["check", str(folder)], store.registry) == 0
    note = "It is sampled by v-prediction with zero terminal SNR."
    assert note in capsys.readouterr().out.splitlines()
    assert store.registry.card(str(folder)).blurb.endswith(note)
    loaded = store.load(str(folder))
    wanted = _sample(networks, tiny_scheduler(**json.loads(config.read_text())))
    found = _sample(loaded, loaded.make_scheduler("ddim"))
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
