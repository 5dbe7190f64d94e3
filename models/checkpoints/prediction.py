"""Finds out how a single-file checkpoint is to be sampled: what it predicts, and from which noise.

Stable Diffusion 1.x predicts the noise. A checkpoint that predicts the velocity, or was trained
down to pure noise (zero terminal SNR), says so in one of the ways below; a diffusers folder says it
in its scheduler_config.json.

Sources: Salimans and Ho 2022 (arXiv 2202.00512), v-prediction; Lin et al. 2023 (arXiv 2305.08891),
zero terminal SNR, which needs v-prediction and steps that start at the last timestep; ComfyUI and
AUTOMATIC1111 for the keys and the YAML file; Stability AI's ModelSpec for the metadata.
"""

import re
from pathlib import Path
from typing import Any

from models.checkpoints.detect import read_metadata, read_shapes
from models.checkpoints.folders import read_json

VELOCITY_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
"""Names of empty tensors among the weights."""
VELOCITY_METADATA = {
    "modelspec.prediction_type": ("v", "v_prediction"),
    "modelspec.predict_key": ("v",),
    "ss_v_parameterization": ("true",),
}
"""ModelSpec's, ComfyUI's and kohya-ss's, with the values that mean velocity, in lower case."""
ZERO_SNR_METADATA = "ss_zero_terminal_snr"
"""kohya-ss's; True or False."""
PARAMETERIZATION = re.compile(r"^\s*parameterization\s*:\s*[\"']?v[\"']?\s*(#.*)?$", re.MULTILINE)
"""In the YAML file beside a checkpoint that has its name, as Stable Diffusion 2's."""
LONGEST_YAML = 100_000
"""Bytes that are read of it."""


def scheduler_changes(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of diffusers' scheduler that a file changes; empty for noise prediction.

    Raises:
        WeightsMissing, WeightsMismatch: as read_shapes.
    """
    keys = read_shapes(checkpoint).keys()
    metadata = {key: str(value).lower() for key, value in read_metadata(checkpoint).items()}
    said = (metadata.get(key) in values for key, values in VELOCITY_METADATA.items())
    if VELOCITY_KEY not in keys and not any(said) and not _yaml_says(checkpoint):
        return {}
    changes: dict[str, Any] = {"prediction_type": "v_prediction"}
    if ZERO_SNR_KEY in keys or metadata.get(ZERO_SNR_METADATA) == "true":
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes


def describe_prediction(checkpoint: Path) -> str:
    """Return a sentence on how a file or folder is sampled; "" for noise prediction.

    Raises:
        WeightsMissing, WeightsMismatch: as read_shapes, or the folder has no scheduler.
    """
    if checkpoint.is_dir():
        config = read_json(checkpoint / "scheduler" / "scheduler_config.json")
    else:
        config = scheduler_changes(checkpoint)
    if config.get("prediction_type") != "v_prediction":
        return ""
    zero = " with zero terminal SNR" if config.get("rescale_betas_zero_snr") else ""
    return f"It is sampled by v-prediction{zero}."


def _yaml_says(checkpoint: Path) -> bool:
    """Tell whether the YAML file beside a checkpoint asks for v-prediction."""
    beside = checkpoint.with_suffix(".yaml")
    if not beside.is_file():
        return False
    with beside.open("rb") as file:
        text = file.read(LONGEST_YAML).decode("utf-8", errors="replace")
    return PARAMETERIZATION.search(text) is not None
