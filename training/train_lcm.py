"""Distils a base into a few-step one: a small LoRA that takes the guided model's steps in leaps.

    python -m training.train_lcm --minutes 10 --rank 6 --save models/diorama/lcm.safetensors

Beside the base it was made for, as `lcm.safetensors`, it is what the mode preview merges in; a base
that was trained further needs a new one.

The student is the base with the LoRA, sampled with `lcm` at guidance 1; the teacher is the base
without it, guided. The student's answer at a step must equal its own answer at the teacher's next
step of 50, so that it learns to see the end from anywhere. In half of the batches frozen
ControlNets speak to both, so that their say survives the leaps.

Sources: Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378) and "LCM-LoRA" (arXiv
2311.05556); as there the guidance is part of what is learnt, and the loss is pseudo-Huber (Song and
Dhariwal 2023, arXiv 2310.14189).
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, ControlNetModel, LCMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from annotators import find_annotator
from core.sampling import denoise, seeded_noise
from training.diffusion import make_scheduler
from training.diorama.dataset import Pictures
from training.diorama.maps import DrawnExamples
from training.loop import add_run_options, run_from, train
from training.train_base import cached_latents, contact_sheet, tokens
from training.train_control import hint
from training.weights import commit

TEACHER_STEPS = 50  # what diffusers' LCMScheduler takes its few steps from
SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the boundary condition, as in diffusers' LCMScheduler
CONTROLLED = 0.5  # share of the batches in which a ControlNet speaks
EMPTY_PROMPTS = 0.1
HUBER = 0.001  # below this an error counts squared
SHEET_STEPS = 4

# Attention, and what brings pictures and time to it, in full rank; the convolutions, which are
# many times larger, in a quarter of it. Feed-forward layers would cost as much as all attention.
FULL_RANK = ("attn", "proj_in", "proj_out", "time_emb_proj")
QUARTER_RANK = ("conv1", "conv2", "conv_shortcut", "samplers.0.conv")


class Adapted(nn.Module):
    """A frozen layer with a change of low rank beside it; at first the change is nothing."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        self.layer, self.active = layer, True
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            shape: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
            size: Any = layer.kernel_size
            self.down = nn.Conv2d(layer.in_channels, rank, size, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, with the change where it is active."""
        found: Tensor = self.layer(x)
        return found + self.up(self.down(x)) if self.active else found


def adapt(unet: nn.Module, rank: int) -> dict[str, Adapted]:
    """Freezes a UNet and puts changes of low rank beside its layers; returns them by layer name."""
    unet.requires_grad_(False)
    found: dict[str, Adapted] = {}
    for name, layer in list(unet.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        full = any(part in name for part in FULL_RANK) and ".ff." not in name
        if full or name.endswith(QUARTER_RANK):
            found[name] = Adapted(layer, rank if full else max(1, rank // 4))
            parent, _, last = name.rpartition(".")
            setattr(unet.get_submodule(parent), last, found[name])
    return found


@contextmanager
def silenced(changes: Mapping[str, Adapted]) -> Iterator[None]:
    """The base as it was, for the while."""
    for one in changes.values():
        one.active = False
    try:
        yield
    finally:
        for one in changes.values():
            one.active = True


def save_lora(changes: Mapping[str, Adapted], path: Path, recipe: dict[str, Any]) -> None:
    """Writes the changes in bfloat16 under kohya's names, the recipe in the metadata.

    No alpha is said, which means the rank: the change is up times down as it is.
    """
    tensors: dict[str, Tensor] = {}
    for name, one in changes.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        for kind, factor in (("lora_down", one.down), ("lora_up", one.up)):
            weight = factor.weight.detach().to("cpu", torch.bfloat16)  # type: ignore[operator]
            tensors[f"{key}.{kind}.weight"] = weight.contiguous()
    described = {
        key: str(value) if isinstance(value, Path) else value for key, value in recipe.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = json.dumps({"recipe": described, "commit": commit()})
    save_file(tensors, path, {"format": "pt", "controlloop": facts})


class Leaps:
    """The arithmetic of consistency between two neighbouring steps of the teacher."""

    def __init__(self, device: str) -> None:
        scheduler = make_scheduler()
        self._alphas = scheduler.alphas_cumprod.to(device)
        self._stride = scheduler.config.num_train_timesteps // TEACHER_STEPS
        self.device = device

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(count,) timesteps from those LCM samples at, and the teacher's next of each."""
        # One from each of `count` equal stretches, as training.diffusion draws them.
        stretch = torch.rand(count, generator=generator) + torch.arange(count)
        chosen = (stretch / count * TEACHER_STEPS).long() + 1
        now = chosen * self._stride - 1
        return now.to(self.device), (now - self._stride).clamp(min=0).to(self.device)

    def _shares(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The picture's and the noise's share, (B, 1, 1, 1) each."""
        alpha = self._alphas[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with noise as at these timesteps."""
        signal, rest = self._shares(timesteps)
        return signal * latents + rest * noise

    def step(self, noisy: Tensor, velocity: Tensor, now: Tensor, later: Tensor) -> Tensor:
        """DDIM's step from one timestep to another."""
        signal, rest = self._shares(now)
        clean, noise = signal * noisy - rest * velocity, rest * noisy + signal * velocity
        return self.noisy(clean, noise, later)

    def end(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """What a consistency model says: nearly its clean latents, at timestep 0 its input."""
        signal, rest = self._shares(timesteps)
        scaled = timesteps.reshape(-1, 1, 1, 1).float() * TIME_SCALE
        skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
        out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
        return skip * noisy + out * (signal * noisy - rest * velocity)


def huber(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean pseudo-Huber distance."""
    error = found.float() - wanted.float()
    return ((error.square() + HUBER**2).sqrt() - HUBER).mean()


class Controls:
    """Frozen ControlNets, of which one at a time speaks."""

    def __init__(self, options: argparse.Namespace, size: int) -> None:
        self.examples: dict[str, DrawnExamples] = {}
        self._networks: dict[str, ControlNetModel] = {}
        for control in filter(None, options.controls.split(",")):
            name, _, weights = control.partition("=")
            folder = options.base / "controlnet" / (weights or name)
            network = ControlNetModel.from_pretrained(folder, torch_dtype=torch.float32)
            network = network.to(options.device, memory_format=torch.channels_last)
            self._networks[name] = network.requires_grad_(False)
            self.examples[name] = DrawnExamples(options.data, find_annotator(name), size)
        self._device = options.device

    def maps(self, name: str, rows: list[int]) -> Tensor:
        """The maps of pictures by number, (B, 3, H, W) in [0, 1]."""
        return hint(self.examples[name].maps(rows), self._device)

    def said(
        self, name: str | None, noisy: Tensor, timesteps: Tensor, text: Tensor, maps: Tensor | None
    ) -> dict[str, Any]:
        """The UNet's arguments with which a ControlNet speaks; none for None."""
        if name is None:
            return {}
        down, middle = self._networks[name](noisy, timesteps, text, maps, return_dict=False)
        return {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": middle,
        }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_options(parser, "runs/lcm", steps=20_000, learning_rate=5e-4)
    parser.add_argument("--data", type=Path, default=Path("runs/scenes"), help="rendered scenes")
    parser.add_argument("--base", type=Path, default=Path("models/diorama"))
    parser.add_argument(
        "--controls",
        default="canny,mlsd,lineart",
        help="of the base, which speak in half of the batches, as condition or condition=weights",
    )
    parser.add_argument("--size", type=int, default=None, help="default: what the base has")
    parser.add_argument("--rank", type=int, default=8, help="of the changes to attention")
    parser.add_argument("--guidance", type=float, default=2.0, help="the teacher's")
    parser.add_argument("--save", type=Path, default=None, help="file to write the LoRA to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    device, base = options.device, options.base
    unet = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    changes = adapt(unet, options.rank)
    unet = unet.to(device, memory_format=torch.channels_last)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    print(f"LoRA {trained / 1e3:.0f} thousand weights in {len(changes)} layers", flush=True)
    data = Pictures(options.data, options.size or unet.config.sample_size * 8)
    latents = cached_latents(options.data, data, base / "vae", device)
    controls = Controls(options, data.size)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    text_encoder = text_encoder.to(device).requires_grad_(False)
    ids, empty = tokens(tokenizer, data.captions), tokens(tokenizer, [""])
    leaps, batch = Leaps(device), options.batch or 24

    def velocity(
        noisy: Tensor, at: Tensor, text: Tensor, name: str | None, maps: Tensor | None
    ) -> Tensor:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                more = controls.said(name, noisy, at, text, maps)
            found: Tensor = unet(noisy, at, text, **more).sample
        return found.float()

    def encoded(words: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            found: Tensor = text_encoder(words.to(device)).last_hidden_state
        return found

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        emptied = torch.rand(batch, 1, generator=rng) < EMPTY_PROMPTS
        text = encoded(torch.where(emptied, empty, ids[rows]))
        none = encoded(empty).expand_as(text)
        clean = latents[rows].to(device).float()
        noise = torch.randn(clean.shape, generator=rng).to(device)
        now, later = leaps.draw(batch, rng)
        noisy = leaps.noisy(clean, noise, now)
        name, maps = None, None
        if controls.examples and torch.rand((), generator=rng) < CONTROLLED:
            names = list(controls.examples)
            name = names[int(torch.randint(len(names), (), generator=rng))]
            maps = controls.maps(name, rows.tolist())
        found = leaps.end(noisy, velocity(noisy, now, text, name, maps), now)
        with torch.no_grad():
            with silenced(changes):
                both = torch.cat([noisy, noisy]), torch.cat([now, now]), torch.cat([none, text])
                twice = None if maps is None else torch.cat([maps, maps])
                low, high = velocity(*both, name, twice).chunk(2)
            guided = low + options.guidance * (high - low)
            nearer = leaps.step(noisy, guided, now, later)
            wanted = leaps.end(nearer, velocity(nearer, later, text, name, maps), later)
        return {"loss": huber(found, wanted)}

    vae = AutoencoderTiny.from_pretrained(base / "vae", torch_dtype=torch.float32).to(device)

    @torch.no_grad()
    def drawn(chosen: list[int], name: str | None) -> Any:
        """Pictures of the student in a few steps, (B, H, W, 3) uint8."""
        text = encoded(ids[chosen])
        maps = None if name is None else controls.maps(name, chosen)
        scheduler = LCMScheduler.from_config(make_scheduler().config)
        scheduler.set_timesteps(SHEET_STEPS)
        channels, height, width = latents.shape[1:]
        noise, generators = seeded_noise(chosen, (channels, height, width))

        def predict(now: Tensor, at: Tensor, _: int) -> Tensor:
            return velocity(now, at.expand(len(now)).to(device), text, name, maps)

        made = denoise(predict, scheduler, noise.to(device), generators, 0.0, lambda *_: None)
        pictures = vae.decode(made).sample.clamp(-1, 1)
        return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        chosen = list(range(min(8, len(data))))
        rows = [data.batch(chosen), drawn(chosen, None)]
        for name, examples in controls.examples.items():
            rows += [examples.maps(chosen), drawn(chosen, name)]
        contact_sheet(rows).save(path)

    train(run_from(options), {"unet": unet}, loss_at, sheet)
    if options.save:
        save_lora(changes, options.save, vars(options))


if __name__ == "__main__":
    main()
