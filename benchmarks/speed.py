"""How fast the pipeline and the server are, against diffusers' own pipeline on the same weights.

    python -m benchmarks.speed --model diorama [--json]

Both sides run in one process, in turns (A B A B), on the same weights, seed, prompt, map and number
of threads, so that a busy machine slows both alike: the ratios travel, the seconds do not. `rho` is
the distance of the final latents from a float32 run of diffusers, divided by the distance of
diffusers' own run in the same format (1 or less: no worse).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from annotators import find_annotator
from core.condition import ALREADY_A_MAP, Condition
from core.errors import SuiteError
from core.pipeline import Pipeline
from core.request import GenerationRequest
from core.sampling import seeded_noise
from models.store import Store
from training.dataset import HELD_OUT
from training.renderer import render
from training.world import make_scene

ROOT = Path(__file__).resolve().parent.parent
GEMM_SIDE = 2048


class _Watched:
    """Networks that remember the last latents they were asked to decode."""

    def __init__(self, networks: Any) -> None:
        self._networks = networks
        self.latents: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents (B, C, h, w), and keeps a float32 copy of them."""
        self.latents = latents.detach().float().cpu()
        pictures: Tensor = self._networks.decode(latents)
        return pictures


class _PeakMemory:
    """The largest resident set of this process in MB while the block runs, seen every 20 ms."""

    def __enter__(self) -> "_PeakMemory":
        self.megabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._done.is_set():
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
            self.megabytes = max(self.megabytes, resident)
            self._done.wait(0.02)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the best of five products of two square matrices."""
    a, b = (torch.randn(GEMM_SIDE, GEMM_SIDE, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ b).flatten()[0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * GEMM_SIDE**3 / best / 1e9


def diffusers_pipeline(networks: Any, control: str) -> Any:
    """StableDiffusionControlNetPipeline on the very modules of `networks`."""
    from diffusers import StableDiffusionControlNetPipeline  # noqa: PLC0415 - seconds to import

    pipeline = StableDiffusionControlNetPipeline(
        vae=networks.vae,
        text_encoder=networks.text_encoder,
        tokenizer=networks.tokenizer,
        unet=networks.unet,
        controlnet=networks.controlnets[control],
        scheduler=networks.make_scheduler("ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class _Ours:
    """The pipeline of this project, run once a call."""

    def __init__(self, networks: Any, condition: Condition, request: GenerationRequest) -> None:
        self._watched = _Watched(networks)
        self._pipeline = Pipeline(lambda _model, _control: self._watched)
        self._condition, self._request = condition, request
        self.latents = torch.zeros(0)
        """The final latents of the last run, float32."""

    def __call__(self) -> None:
        self._pipeline.generate(self._condition, self._request)
        if self._watched.latents is not None:
            self.latents = self._watched.latents


class _Theirs:
    """diffusers' own pipeline on the same weights and request, run once a call."""

    def __init__(self, networks: Any, control: str, request: GenerationRequest) -> None:
        self._peer = diffusers_pipeline(networks, control)
        self._request = request
        # The noise is handed in: drawn by diffusers in half precision, it would be another noise.
        height, width = (side // networks.downscale for side in request.image.shape[:2])
        noise, _ = seeded_noise([request.seed], (networks.latent_channels, height, width))
        self._noise = noise.to(networks.device, networks.dtype)
        self.latents = torch.zeros(0)
        """The final latents of the last run, float32."""

    def __call__(self) -> None:
        request = self._request
        self._peer(
            request.prompt,
            image=Image.fromarray(request.image),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            negative_prompt="",
            latents=self._noise,
            callback_on_step_end=self._remember,
            callback_on_step_end_tensor_inputs=["latents"],
        )

    def _remember(
        self, _pipe: Any, step: int, _t: Any, values: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if step == self._request.steps - 1:
            self.latents = values["latents"].detach().float().cpu()
        return values


def compare(
    store: Store, model: str, control: str, size: int, steps: int, repeats: int
) -> dict[str, Any]:
    """Times ours, diffusers in the same format and diffusers in float32, in turns.

    `size` is the picture's side in pixels. Returns a row of figures for each, and the ratios of
    theirs to ours.
    """
    scene = make_scene(HELD_OUT)
    annotator = find_annotator(control)
    picture = render([scene], size).image[0].numpy()
    request = GenerationRequest(
        image=annotator.preprocessors[0].draw(picture, annotator.params()),
        prompt=scene.caption,
        added_prompt="",
        negative_prompt="",
        preprocessor=ALREADY_A_MAP,
        image_resolution=size,
        steps=steps,
        guidance_scale=float(store.card(model).defaults.get("guidance_scale", 9.0)),
        seed=1,
        model=model,
    )
    networks = store.load(model, control)
    runs: dict[str, _Ours | _Theirs] = {
        "ours": _Ours(networks, Condition(control, control, "", annotator, control), request),
        "diffusers": _Theirs(networks, control, request),
        "diffusers_float32": _Theirs(networks.in_float32(), control, request),
    }
    seconds, memory = _in_turns(runs, repeats)

    reference = runs["diffusers_float32"].latents
    own = (runs["diffusers"].latents - reference).norm()
    table: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        distance = (runs[name].latents - reference).norm()
        table[name] = {
            "seconds_per_image": {
                "median": float(np.median(times)),
                "p95": float(np.percentile(times, 95)),
            },
            "seconds_per_step": float(np.median(times)) / steps,
            "peak_memory_mb": round(memory[name]),
            "rho": float(distance / own) if own > 0 else None,
        }
    base = table["ours"]["seconds_per_image"]["median"]
    ratios = {n: t["seconds_per_image"]["median"] / base for n, t in table.items() if n != "ours"}
    return {"runs": table, "ratios": ratios}


def _in_turns(
    runs: Mapping[str, Callable[[], None]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Runs all in turns: the seconds of each turn, and the peak memory in MB."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    memory = dict.fromkeys(runs, 0.0)
    for turn in range(repeats + 1):
        for name, run in runs.items():
            with _PeakMemory() as peak:
                began = time.perf_counter()
                run()
                passed = time.perf_counter() - began
            if turn:  # the first turn warms up
                seconds[name].append(passed)
                memory[name] = max(memory[name], peak.megabytes)
    return seconds, memory


def server_times(model: str) -> dict[str, float]:
    """Seconds from the command to an answering server, and from Run to an image.

    The first image is timed cold, as the server's first run, and once the model is loaded.
    """
    # Only this measure needs it.
    from gradio_client import Client, handle_file  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    command = [
        sys.executable,
        str(ROOT / "apps" / "canny2image.py"),
        "--port",
        str(port),
        "--model",
        model,
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).read()
                break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit("the server ended before it answered") from None
                time.sleep(0.05)
        answered = time.perf_counter() - began
        client = Client(address, verbose=False)
        picture = handle_file(str(ROOT / "test_imgs" / "chelsea.jpg"))
        times = []
        for _ in range(2):  # the first run may still wait for the weights
            began = time.perf_counter()
            client.predict(
                image=picture, prompt="a red ball on grass", seed=1, api_name="/canny2image"
            )
            times.append(time.perf_counter() - began)
        return {
            "seconds_to_answer": answered,
            "seconds_to_first_image_cold": times[0],
            "seconds_to_first_image": times[1],
        }
    finally:
        server.terminate()
        server.wait()


def _machine(store: Store) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("torch", "diffusers", "transformers")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(store.device),
        "dtype": str(store.dtype),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def _print(result: dict[str, Any]) -> None:
    for name, row in result["runs"].items():
        times = row["seconds_per_image"]
        rho = "-" if row["rho"] is None else f"{row['rho']:.2f}"
        print(
            f"{name:18} {times['median']:.2f} s an image (p95 {times['p95']:.2f}), "
            f"{row['seconds_per_step']:.3f} s a step, {row['peak_memory_mb']} MB, rho {rho}"
        )
    print("  ".join(f"{name} / ours = {ratio:.2f}" for name, ratio in result["ratios"].items()))
    if result["server"]:
        print("  ".join(f"{name} {value:.1f}" for name, value in result["server"].items()))


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="diorama")
    parser.add_argument("--control", default="canny")
    parser.add_argument("--size", type=int, default=None, help="default: the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--no-server", action="store_true", help="leave the server's times out")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    try:
        server = None if options.no_server else server_times(options.model)
        store = Store(options.device, options.dtype)
        size = options.size or int(store.card(options.model).defaults.get("image_resolution", 512))
        found = compare(store, options.model, options.control, size, options.steps, options.repeats)
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    result = {
        "machine": _machine(store),
        "gemm_peak_gflops": {
            "fp32": round(gemm_peak(torch.float32, store.device)),
            "bf16": round(gemm_peak(torch.bfloat16, store.device)),
        },
        "workload": {
            "model": options.model,
            "control": options.control,
            "size": size,
            "steps": options.steps,
            "images": 1,
            "repeats": options.repeats,
        },
        **found,
        "server": server,
    }
    _print(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
