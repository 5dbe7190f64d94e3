"""How fast the pipeline and the server are, against diffusers' own pipeline on the same weights.

    python -m benchmarks.speed --model diorama [--json]
    python -m benchmarks.speed --model sd15-random --steps 4 --rounds 3 [--compile] [--growth]
    python -m benchmarks.speed --model sd15-random --dtype bfloat16 --device cuda

All take part in one process, in turns (A B A B), on the same weights and number of threads, so that
a busy machine slows all alike: the ratios travel, the seconds do not. Each round has a scene and a
seed of its own, so prompt and map are new to all. `rho` is the distance of the final latents from a
float32 run of diffusers, divided by the distance of diffusers' own run in the same format (1 or
less: no worse). The share of the peak is what the machine's best matrix product would need for the
operations that diffusers executes, as a part of the seconds: more than 1 is possible for whoever
executes fewer. Memory is a peer's weights and what a run adds at its peak, without Python and the
libraries, which all have in common; on a GPU it includes what CUDA graphs keep for themselves.

sd15-random is Stable Diffusion 1.5 at full size with random weights. It keeps each peer's weights
in memory: 2.9 GB twice in bfloat16, and 5.7 GB for float32, which `--peers diffusers` leaves out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from annotators import find_annotator
from benchmarks._peers import (
    COMPILED,
    Diffusers,
    Made,
    Ours,
    PeakMemory,
    Peer,
    weights_mb,
    why_not_compiled,
    why_not_openvino,
)
from benchmarks._random_sd15 import random_networks
from benchmarks._shared import ROOT, command, machine, served
from core.condition import ALREADY_A_MAP, Condition
from core.errors import BadInput, SuiteError
from core.request import GenerationRequest
from models.devices import choose_device
from models.registry import Registry
from models.store import Store
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

GEMM_SIDE, GPU_GEMM_SIDE = 2048, 8192
RANDOM = "sd15-random"
ROUNDS = 5
SLOW_ROUNDS, SLOW_SEEDS = 3, 1
"""Where a picture takes minutes."""
WARM_UP_STEPS = 2
PEERS = ("diffusers", "diffusers_float32")
CONTROLS = ("canny", "depth", "hed")
"""Of the growth with several controls."""
GROWTH_IMAGES, GROWTH_SIZES, GROWTH_STEPS = (1, 2, 4, 8), (256, 384, 512, 640, 768), (1, 2, 4)
"""Images at once, sides in pixels, and factors of the steps."""


@dataclass(frozen=True)
class Workload:
    """What everybody is asked to do."""

    load: Callable[..., Any]
    """(*control names) -> networks of their own, with weights that are the same each time."""
    model: str
    control: str
    size: int
    steps: int
    images: int
    guidance_scale: float

    def request(self, round_: int) -> GenerationRequest:
        """Return the request of one round: its own scene, and its number as the seed."""
        scene = make_scene(HELD_OUT + round_)
        annotator = find_annotator(self.control)
        picture = render([scene], self.size).image[0].numpy()
        return GenerationRequest.single(
            condition(self.control),
            annotator.preprocessors[0].draw(picture, annotator.params()),
            prompt=scene.caption,
            added_prompt="",
            negative_prompt="",
            preprocessor=ALREADY_A_MAP,
            image_resolution=self.size,
            steps=self.steps,
            num_samples=self.images,
            guidance_scale=self.guidance_scale,
            seed=round_,
            model=self.model,
        )


def condition(control: str) -> Condition:
    """A condition of this control, as an app would have it."""
    return Condition(control, control, "", find_annotator(control), control)


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the best of five products of two square matrices."""
    side = GPU_GEMM_SIDE if device.type == "cuda" else GEMM_SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ b).flatten()[0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e9


def compare(work: Workload, names: Sequence[str], rounds: int, seeds: int) -> dict[str, Any]:
    """Run ours and the named peers in turns.

    Float32 takes part in the first `seeds` rounds only, over which rho is taken. Returns a row of
    figures for each, the ratios of theirs to ours, the peak and diffusers' operations.
    """
    peers, weights = _peers(work, names)
    made: dict[str, list[Made]] = {name: [] for name in peers}
    memory: dict[str, float] = {}
    for name, peer in peers.items():
        warming = replace(work.request(0), steps=min(WARM_UP_STEPS, work.steps))
        first = _run(peer, warming)
        memory[name] = first.peak_memory_mb
        _say(f"{name}: warmed up in {first.seconds:.1f} s")
    for round_ in range(1, max(rounds, seeds) + 1):
        request = work.request(round_)
        for name, peer in peers.items():
            if name == "diffusers_float32" and round_ > seeds:
                continue
            found = _run(peer, request)
            made[name].append(found)
            memory[name] = max(memory[name], found.peak_memory_mb)
            _say(f"round {round_}, {name}: {found.seconds / work.images:.2f} s an image")
    device, dtype = peers["ours"].networks.device, peers["ours"].networks.dtype
    peak = {
        "fp32": round(gemm_peak(torch.float32, device)),
        "bf16": round(gemm_peak(torch.bfloat16, device)),
    }
    flops: dict[str, float] = {}
    eager = peers.get("diffusers")
    if isinstance(eager, Diffusers):
        step, rest = eager.flops(work.request(0))
        flops = {"step": step, "rest": rest, "image": work.steps * step + rest}
    table = {}
    for name, runs in made.items():
        row = _figures(runs, work)
        row["peak_memory_mb"] = round(weights[name] + memory[name])
        row |= _rho(runs, made.get("diffusers", []), made.get("diffusers_float32", []))
        if flops:
            narrow = dtype != torch.float32 and name != "diffusers_float32"
            best = peak["bf16" if narrow else "fp32"] * 1e9
            row["share_of_peak"] = flops["image"] / best / row["seconds_per_image"]["median"]
        table[name] = row
    base = table["ours"]["seconds_per_image"]["median"]
    ratios = {n: t["seconds_per_image"]["median"] / base for n, t in table.items() if n != "ours"}
    return {"gemm_peak_gflops": peak, "flops": flops, "runs": table, "ratios": ratios}


def _peers(work: Workload, names: Sequence[str]) -> tuple[dict[str, Peer], dict[str, float]]:
    """Return those who take part, and the memory of each one's weights in MB.

    Each has weights of its own, but the compiled ones share those of diffusers.
    """
    peers: dict[str, Peer] = {"ours": Ours(work.load(work.control))}
    theirs: Any = work.load(work.control) if names else None
    for name in names:
        if name == "diffusers":
            peers[name] = Diffusers(theirs, work.control)
        elif name == "diffusers_float32":
            # On weights that are float32 already this is the same run again, and rho is open.
            peers[name] = Diffusers(theirs.in_float32(), work.control)
        else:
            peers[name] = Diffusers(replace(theirs), work.control, name)
    return peers, {name: weights_mb(peer.networks) for name, peer in peers.items()}


def _run(peer: Peer, request: GenerationRequest) -> Made:
    device = peer.networks.device
    made = Made(on_gpu=device.type == "cuda")
    with PeakMemory(device) as peak:
        began = time.perf_counter()
        peer(request, made)
        if made.on_gpu:
            torch.cuda.synchronize(device)
        made.seconds = time.perf_counter() - began
    made.peak_memory_mb = peak.megabytes
    return made


def _figures(runs: Sequence[Made], work: Workload) -> dict[str, Any]:
    seconds = [run.seconds / work.images for run in runs]
    # Of a single step nobody sees the beginning.
    steps = [one for run in runs for one in run.step_seconds] or [s / work.steps for s in seconds]
    return {
        "seconds_per_image": _spread(seconds),
        "seconds_per_step": float(np.median(steps)),
        "seconds_per_step_p95": float(np.percentile(steps, 95)),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def _rho(
    runs: Sequence[Made], same_format: Sequence[Made], references: Sequence[Made]
) -> dict[str, float | None]:
    """Return the median and 95th percentile over the rounds that have all three."""
    found = []
    for run, other, exact in zip(runs, same_format, references, strict=False):
        latents, theirs, reference = (torch.cat(made.latents) for made in (run, other, exact))
        own = (theirs - reference).norm()
        if own > 0:
            found.append(float((latents - reference).norm() / own))
    if not found:
        return {"rho": None, "rho_p95": None}
    return {"rho": float(np.median(found)), "rho_p95": float(np.percentile(found, 95))}


def growth(work: Workload) -> list[dict[str, Any]]:
    """Time and memory of ours as images, size, steps and controls grow, one run each.

    Every row says what was asked, the seconds of the whole request, those of a step for one image,
    and the peak in MB, the weights of the ControlNets in use included.
    """
    controls = [work.control, *(name for name in CONTROLS if name != work.control)]
    networks = work.load(*controls)
    asked = [(replace(work, images=images), 1) for images in GROWTH_IMAGES]
    asked += [(replace(work, size=size), 1) for size in GROWTH_SIZES]
    asked += [(replace(work, steps=work.steps * factor), 1) for factor in GROWTH_STEPS]
    asked += [(work, count + 1) for count in range(len(controls))]
    rows = []
    for each, count in asked:
        some = {name: networks.controlnets[name] for name in controls[:count]}
        ours = Ours(replace(networks, controlnets=some))
        request = each.request(1)
        (control,) = request.controls
        several = (replace(control, condition=condition(name)) for name in controls[:count])
        request = replace(request, controls=tuple(several))
        first = _run(ours, replace(request, steps=1, num_samples=1))
        made = _run(ours, request)
        rows.append(
            {
                "images": each.images,
                "size": each.size,
                "steps": each.steps,
                "controls": count,
                "seconds": made.seconds,
                "seconds_per_step": _figures([made], each)["seconds_per_step"],
                "peak_memory_mb": round(
                    weights_mb(ours.networks) + max(first.peak_memory_mb, made.peak_memory_mb)
                ),
            }
        )
        _say(_row(rows[-1]))
    return rows


def server_times(model: str) -> dict[str, float]:
    """Seconds from the command to an answering server, and from Run to an image.

    The first image is timed cold, as the server's first run, and once the model is loaded.
    """
    # Only this measure needs it.
    from gradio_client import Client, handle_file  # noqa: PLC0415

    began = time.perf_counter()
    with served("apps/canny2image.py", "--model", model) as address:
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _row(row: Mapping[str, Any]) -> str:
    return (
        f"{row['images']:2} images, {row['size']} px, {row['steps']:2} steps, "
        f"{row['controls']} controls: {row['seconds']:8.2f} s, "
        f"{row['seconds_per_step']:.3f} s a step and image, {row['peak_memory_mb']} MB"
    )


def _print(result: Mapping[str, Any]) -> None:
    for name, row in result.get("runs", {}).items():
        times = row["seconds_per_image"]
        rho = "-" if row["rho"] is None else f"{row['rho']:.2f} (p95 {row['rho_p95']:.2f})"
        share = f", {row['share_of_peak']:.0%} of the peak" if "share_of_peak" in row else ""
        print(
            f"{name:18} {times['median']:.2f} s an image (p95 {times['p95']:.2f}), "
            f"{row['seconds_per_step']:.3f} s a step (p95 {row['seconds_per_step_p95']:.3f}), "
            f"{row['peak_memory_mb']} MB, rho {rho}{share}"
        )
    if result.get("ratios"):
        print("  ".join(f"{name} / ours = {ratio:.2f}" for name, ratio in result["ratios"].items()))
    if result.get("gemm_peak_gflops"):
        peak, flops = result["gemm_peak_gflops"], result["flops"]
        counted = f"; diffusers executes {flops['step'] / 1e9:.0f} GFLOP a step" if flops else ""
        print(f"matrix products: {peak['bf16']} GFLOP/s bf16, {peak['fp32']} fp32{counted}")
    for row in result.get("growth", []):
        print(_row(row))
    if result.get("server"):
        print("  ".join(f"{name} {value:.1f}" for name, value in result["server"].items()))


def _options(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="diorama", help=f"a model's name, or {RANDOM}")
    parser.add_argument("--control", default="canny")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--size", type=int, default=None, help="pixels; default: the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=None, help="timed runs of each")
    parser.add_argument("--seeds", type=int, default=None, help="rounds that rho is taken over")
    parser.add_argument("--peers", default=",".join(PEERS), help="of these; empty for ours alone")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part")
    parser.add_argument(
        "--autotune", action="store_true", help="so does its max-autotune, on a GPU alone"
    )
    parser.add_argument("--openvino", action="store_true", help="OpenVINO takes part")
    parser.add_argument("--growth", action="store_true", help="how time and memory grow, instead")
    parser.add_argument("--no-server", action="store_true", help="leave the server's times out")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    return parser, parser.parse_args(arguments)


def _taking_part(options: argparse.Namespace, device: torch.device) -> list[str]:
    names = [name for name in options.peers.split(",") if name]
    strange = [name for name in names if name not in PEERS]
    if strange:
        raise BadInput(f"There is no peer '{strange[0]}': choose of {', '.join(PEERS)}.")
    for asked, name, why_not in (
        (options.compile, "inductor", why_not_compiled),
        (options.autotune, "inductor_autotuned", why_not_compiled),
        (options.openvino, "openvino", why_not_openvino),
    ):
        missing = why_not() if asked else ""
        if asked and device.type not in COMPILED[name]:
            missing = f"it is not for {device.type}"
        if missing:
            _say(f"{name} does not take part: {missing}.")
        elif asked:
            names.append(name)
    return names


def _workload(options: argparse.Namespace) -> Workload:
    """Return what is asked for.

    Raises:
        SuiteError: there is no such model or device.
    """
    device, dtype, _ = choose_device(options.device, options.dtype)
    defaults: Mapping[str, Any] = {"image_resolution": 512, "guidance_scale": 9.0}  # v1.0's

    def load(*controls: str) -> Any:
        if options.model == RANDOM:
            return random_networks(controls, device, dtype)
        # A store of its own, or the networks would be those that somebody has already.
        return Store(options.device, options.dtype).load(options.model, *controls)

    if options.model != RANDOM:
        defaults = {**defaults, **Registry().card(options.model).defaults}
    return Workload(
        load=load,
        model=options.model,
        control=options.control,
        size=options.size or int(defaults["image_resolution"]),
        steps=options.steps,
        images=options.images,
        guidance_scale=float(defaults["guidance_scale"]),
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line; `arguments` stand in for the process's own."""
    parser, options = _options(arguments)
    slow = options.model == RANDOM
    rounds = options.rounds or (SLOW_ROUNDS if slow else ROUNDS)
    seeds = options.seeds or (SLOW_SEEDS if slow else rounds)
    try:
        work = _workload(options)
        device, dtype, _ = choose_device(options.device, options.dtype)
        result: dict[str, Any] = {
            "command": command("speed", arguments),
            "machine": machine(device, dtype),
            "workload": {
                "model": work.model,
                "control": work.control,
                "size": work.size,
                "steps": work.steps,
                "images": work.images,
                "rounds": rounds,
                "seeds": seeds,
            },
        }
        if options.growth:
            result["growth"] = growth(work)
        else:
            server = None if options.no_server or slow else server_times(options.model)
            result |= compare(work, _taking_part(options, device), rounds, seeds)
            result["server"] = server
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    _print(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
