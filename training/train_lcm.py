"""Distils a base into an LCM-LoRA: a small LoRA that samples in a few steps.

    python -m training.train_lcm --minutes 10 --rank 6 --save models/diorama/lcm.safetensors

The mode preview merges it in, as `lcm.safetensors` beside its base; a base that was trained further
needs a new one.

The student is the base with the LoRA, sampled with `lcm` at guidance 1; the teacher is the base
without it, with guidance. The student's prediction of the clean latents at one timestep must equal
its own at the teacher's next of 50. In half of the batches student and teacher are controlled by a
frozen ControlNet, so that ControlNets still work in few steps.

Sources: Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378) and "LCM-LoRA" (arXiv
2311.05556), which also distil the guidance; pseudo-Huber loss from Song and Dhariwal 2023 (arXiv
2310.14189).
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
from training.diorama.maps import SceneExamples
from training.examples import map_tensor
from training.loop import add_run_options, run_config, train
from training.train_base import cached_latents, contact_sheet, tokens
from training.weights import git_commit, json_recipe

TEACHER_STEPS = 50  # diffusers' LCMScheduler picks its few steps from these
SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the boundary condition, as in diffusers' LCMScheduler
CONTROLLED = 0.5  # share of the batches with a ControlNet
EMPTY_PROMPTS = 0.1
HUBER_C = 0.001  # errors below this are squared, above it absolute
SHEET_STEPS = 4

# Attention and its inputs get the full rank; convolutions, many times larger, a quarter of it.
# Feed-forward layers get none: they would cost as much as all attention.
FULL_RANK = ("attn", "proj_in", "proj_out", "time_emb_proj")
QUARTER_RANK = ("conv1", "conv2", "conv_shortcut", "samplers.0.conv")


class LoRALayer(nn.Module):
    """A frozen layer plus a low-rank update, initially zero."""

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
        """The layer's output, plus the update if it is active."""
        output: Tensor = self.layer(x)
        return output + self.up(self.down(x)) if self.active else output


def add_lora(unet: nn.Module, rank: int) -> dict[str, LoRALayer]:
    """Freeze a UNet and add LoRA to its layers; return the LoRA layers by name."""
    unet.requires_grad_(False)
    layers: dict[str, LoRALayer] = {}
    for name, layer in list(unet.named_modules()):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        full = any(part in name for part in FULL_RANK) and ".ff." not in name
        if full or name.endswith(QUARTER_RANK):
            layers[name] = LoRALayer(layer, rank if full else max(1, rank // 4))
            parent, _, last = name.rpartition(".")
            setattr(unet.get_submodule(parent), last, layers[name])
    return layers


@contextmanager
def lora_disabled(layers: Mapping[str, LoRALayer]) -> Iterator[None]:
    """Use the base without its LoRA inside the block."""
    for layer in layers.values():
        layer.active = False
    try:
        yield
    finally:
        for layer in layers.values():
            layer.active = True


def save_lora(layers: Mapping[str, LoRALayer], path: Path, recipe: dict[str, Any]) -> None:
    """Save the LoRA in bfloat16 under kohya's names, the recipe in its metadata.

    Without an alpha, which means alpha = rank: the update is up @ down, unscaled.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        for kind, factor in (("lora_down", layer.down), ("lora_up", layer.up)):
            weight = factor.weight.detach().to("cpu", torch.bfloat16)  # type: ignore[operator]
            tensors[f"{key}.{kind}.weight"] = weight.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = json.dumps({"recipe": json_recipe(recipe), "commit": git_commit()})
    save_file(tensors, path, {"format": "pt", "controlloop": metadata})


class Consistency:
    """The teacher's timesteps, its DDIM step, and the student's consistency function."""

    def __init__(self, device: str) -> None:
        scheduler = make_scheduler()
        self._alphas = scheduler.alphas_cumprod.to(device)
        self._stride = scheduler.config.num_train_timesteps // TEACHER_STEPS
        self.device = device

    def timesteps(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random timesteps (count,) that LCM samples at, and the teacher's next after each."""
        # Stratified, as in training.diffusion.
        strata = torch.rand(count, generator=generator) + torch.arange(count)
        step = (strata / count * TEACHER_STEPS).long() + 1
        now = step * self._stride - 1
        return now.to(self.device), (now - self._stride).clamp(min=0).to(self.device)

    def _coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of clean latents and of noise, (B, 1, 1, 1) each."""
        alpha = self._alphas[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents with the noise of these timesteps."""
        signal, sigma = self._coefficients(timesteps)
        return signal * latents + sigma * noise

    def ddim_step(self, noisy: Tensor, velocity: Tensor, now: Tensor, later: Tensor) -> Tensor:
        """DDIM's step from the timesteps `now` to `later`."""
        signal, sigma = self._coefficients(now)
        clean, noise = signal * noisy - sigma * velocity, sigma * noisy + signal * velocity
        return self.noisy(clean, noise, later)

    def clean(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """The consistency function: nearly the clean latents; at timestep 0, `noisy` itself."""
        signal, sigma = self._coefficients(timesteps)
        scaled = timesteps.reshape(-1, 1, 1, 1).float() * TIME_SCALE
        skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
        out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
        return skip * noisy + out * (signal * noisy - sigma * velocity)


def pseudo_huber(output: Tensor, target: Tensor) -> Tensor:
    """The mean pseudo-Huber loss."""
    error = output.float() - target.float()
    return ((error.square() + HUBER_C**2).sqrt() - HUBER_C).mean()


class FrozenControlNets:
    """The base's frozen ControlNets, used one at a time, and their maps."""

    def __init__(self, options: argparse.Namespace, size: int) -> None:
        self.examples: dict[str, SceneExamples] = {}
        self._networks: dict[str, ControlNetModel] = {}
        for control in filter(None, options.controls.split(",")):
            name, _, weights = control.partition("=")
            folder = options.base / "controlnet" / (weights or name)
            network = ControlNetModel.from_pretrained(folder, torch_dtype=torch.float32)
            network = network.to(options.device, memory_format=torch.channels_last)
            self._networks[name] = network.requires_grad_(False)
            self.examples[name] = SceneExamples(options.data, find_annotator(name), size)
        self._device = options.device

    def maps(self, name: str, rows: list[int]) -> Tensor:
        """The maps of these rows, (B, 3, H, W) in [0, 1]."""
        return map_tensor(self.examples[name].maps(rows), self._device)

    def residuals(
        self, name: str | None, noisy: Tensor, timesteps: Tensor, text: Tensor, maps: Tensor | None
    ) -> dict[str, Any]:
        """A ControlNet's residuals as arguments of the UNet; empty without a name."""
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
        help="ControlNets of the base used in half of the batches: condition or condition=weights",
    )
    parser.add_argument(
        "--size", type=int, default=None, help="side of the pictures; default: the base's"
    )
    parser.add_argument("--rank", type=int, default=8, help="of attention; convolutions a quarter")
    parser.add_argument("--guidance", type=float, default=2.0, help="the teacher's")
    parser.add_argument("--save", type=Path, default=None, help="file to write the LoRA to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` replace sys.argv."""
    options = _options(arguments)
    torch.manual_seed(options.seed)
    device, base = options.device, options.base
    unet = UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=torch.float32)
    lora = add_lora(unet, options.rank)
    unet = unet.to(device, memory_format=torch.channels_last)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    print(f"LoRA {trained / 1e3:.0f} thousand weights in {len(lora)} layers", flush=True)
    data = Pictures(options.data, options.size or unet.config.sample_size * 8)
    vae = AutoencoderTiny.from_pretrained(base / "vae", torch_dtype=torch.float32).to(device)
    latents = torch.stack(cached_latents(options.data, data, vae, device))
    controls = FrozenControlNets(options, data.size)
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    text_encoder = text_encoder.to(device).requires_grad_(False)
    ids, empty = tokens(tokenizer, data.captions), tokens(tokenizer, [""])
    consistency, batch = Consistency(device), options.batch or 24

    def velocity(
        noisy: Tensor, timesteps: Tensor, text: Tensor, name: str | None, maps: Tensor | None
    ) -> Tensor:
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                residuals = controls.residuals(name, noisy, timesteps, text, maps)
            prediction: Tensor = unet(noisy, timesteps, text, **residuals).sample
        return prediction.float()

    def encode(words: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            text: Tensor = text_encoder(words.to(device)).last_hidden_state
        return text

    def loss_at(step: int) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        emptied = torch.rand(batch, 1, generator=rng) < EMPTY_PROMPTS
        text = encode(torch.where(emptied, empty, ids[rows]))
        uncond = encode(empty).expand_as(text)
        clean = latents[rows].to(device).float()
        noise = torch.randn(clean.shape, generator=rng).to(device)
        now, later = consistency.timesteps(batch, rng)
        noisy = consistency.noisy(clean, noise, now)
        name, maps = None, None
        if controls.examples and torch.rand((), generator=rng) < CONTROLLED:
            names = list(controls.examples)
            name = names[int(torch.randint(len(names), (), generator=rng))]
            maps = controls.maps(name, rows.tolist())
        output = consistency.clean(noisy, velocity(noisy, now, text, name, maps), now)
        with torch.no_grad():
            with lora_disabled(lora):
                both = torch.cat([noisy, noisy]), torch.cat([now, now]), torch.cat([uncond, text])
                twice = None if maps is None else torch.cat([maps, maps])
                low, high = velocity(*both, name, twice).chunk(2)
            guided = low + options.guidance * (high - low)
            nearer = consistency.ddim_step(noisy, guided, now, later)
            target = consistency.clean(nearer, velocity(nearer, later, text, name, maps), later)
        return {"loss": pseudo_huber(output, target)}

    @torch.no_grad()
    def sample(rows: list[int], name: str | None) -> Any:
        """The student's pictures in a few steps, (B, H, W, 3) uint8."""
        text = encode(ids[rows])
        maps = None if name is None else controls.maps(name, rows)
        scheduler = LCMScheduler.from_config(make_scheduler().config)
        scheduler.set_timesteps(SHEET_STEPS)
        channels, height, width = latents.shape[1:]
        noise, generators = seeded_noise(rows, (channels, height, width))

        def predict(noisy: Tensor, timestep: Tensor, _: int) -> Tensor:
            return velocity(noisy, timestep.expand(len(noisy)).to(device), text, name, maps)

        samples = denoise(predict, scheduler, noise.to(device), generators, 0.0, lambda *_: None)
        pictures = vae.decode(samples).sample.clamp(-1, 1)
        return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    def sheet(_: dict[str, nn.Module], path: Path) -> None:
        rows = list(range(min(8, len(data))))
        pictures = [data.batch(rows), sample(rows, None)]
        for name, examples in controls.examples.items():
            pictures += [examples.maps(rows), sample(rows, name)]
        contact_sheet(pictures).save(path)

    train(run_config(options), {"unet": unet}, loss_at, sheet)
    if options.save:
        save_lora(lora, options.save, vars(options))


if __name__ == "__main__":
    main()
