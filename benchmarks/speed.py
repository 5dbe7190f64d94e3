"""How fast the pipeline and the server are, compared with diffusers' pipeline on the same weights.

    python -m benchmarks.speed --model diorama [--json]
    python -m benchmarks.speed --model sd15-random --steps 4 --rounds 3 [--compile] [--growth]
    python -m benchmarks.speed --model sd15-random --dtype bfloat16 --device cuda
    python -m benchmarks.speed --beside 2,5 --steps 4
    python -m benchmarks.speed --model sd15-random --size 256 --steps 4 --level avx2

All competitors run in one process, in turns (A B A B), with the same weights and number of threads,
so that a busy machine slows them equally: ratios can be compared across machines, seconds cannot.
Each round has its own scene and seed, so prompt and map are new to all. `rho` is the distance of
the final latents from a float32 run of diffusers, divided by the distance of diffusers' own run in
the same format (1 or less: no worse). The share of the peak is the time that the machine's best
matrix product would need for diffusers' operations, divided by the time measured: it may exceed 1
for a competitor that executes fewer. Memory is a competitor's weights and what a run adds at its
peak, without Python and libraries, which are common to all; on a GPU it includes what CUDA graphs
keep.

--level limits all competitors alike to a processor's instructions, as if it had no better ones.

--light adds ours in the mode light, whose weights are in 8 bits.

--stable-diffusion-cpp adds that program (`pip install stable-diffusion-cpp-python` builds it for
this processor). Its sampler is another DDIM, so its picture is compared with that of diffusers in
float32 with the same one; its timesteps are diffusers' where --steps divides 1000.

--beside runs them, and a matrix product, beside so many programs that are always busy, and prints
how many times as long each takes as alone.

sd15-random is Stable Diffusion 1.5 at full size with random weights. Each competitor's weights stay
in memory: 2.9 GB twice in bfloat16, and 5.7 GB in float32, which `--peers diffusers` leaves out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from annotators import find_annotator
from benchmarks._peers import (
    COMPILE_OPTIONS,
    Diffusers,
    Measurement,
    Ours,
    PeakMemory,
    Peer,
    weights_mb,
    why_not_compiled,
    why_not_openvino,
)
from benchmarks._random_sd15 import random_networks
from benchmarks._shared import ROOT, command, machine, psnr, served
from benchmarks._stable_diffusion_cpp import (
    KINDS,
    StableDiffusionCpp,
    build,
    why_no_cpp,
    write_checkpoints,
)
from core.condition import ALREADY_A_MAP, Condition
from core.errors import BadInput, SuiteError
from core.request import DEFAULTS, GenerationRequest
from models.checkpoints.detect import SD1_WIDTH
from models.checkpoints.folders import read_json
from models.devices import choose_device
from models.engine.kernels.build import LIMIT_VARIABLE, cpu_has_bfloat16
from models.engine.layers import can_be_light
from models.registry import Registry
from models.store import NOT_LIGHT, Store
from training.diorama.dataset import HELD_OUT
from training.diorama.renderer import render
from training.diorama.world import make_scene

THREADS = torch.get_num_threads()
GEMM_SIDE, GPU_GEMM_SIDE = 2048, 8192
RANDOM = "sd15-random"
ROUNDS = 5
SLOW_ROUNDS, SLOW_SEEDS = 3, 1
"""For sd15-random, where a picture takes minutes."""
WARM_UP_STEPS = 2
PEERS = ("diffusers", "diffusers_float32")
LIGHT = "light"
LIMIT_VARIABLES = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", LIMIT_VARIABLE)
LEVELS = {
    "avx512-vnni": ("avx512", "AVX512", "AVX512_CORE_VNNI"),
    "avx512": ("avx512", "AVX512", "AVX512_CORE"),
    "avx2": ("avx2", "AVX2", "AVX2"),
}
"""Instruction sets as torch, MKL, and oneDNN with our kernels call them in LIMIT_VARIABLES."""
BUSY = "while True: pass"
"""A program that wants a processor all the time."""
PRODUCTS = 20
"""Matrix products in a row, for --beside."""
CONTROLS = ("canny", "depth", "hed")
"""For --growth with several controls."""
GROWTH_IMAGES, GROWTH_SIZES, GROWTH_STEPS = (1, 2, 4, 8), (256, 384, 512, 640, 768), (1, 2, 4)
"""Number of images, sides in pixels, and factors of the steps."""


@dataclass(frozen=True)
class Workload:
    """The task of every competitor."""

    load: Callable[..., Any]
    """(*control names, light=) -> new networks, with the same weights each time."""
    model: str
    control: str
    size: int
    steps: int
    images: int
    guidance_scale: float

    def request(self, round_: int) -> GenerationRequest:
        """Return a round's request: its own scene, with its number as the seed."""
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
    """A condition with this control."""
    return Condition(control, control, "", find_annotator(control), control)


def gemm_peak(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of a product of two square matrices, the best of five."""
    side = GPU_GEMM_SIDE if device.type == "cuda" else GEMM_SIDE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).flatten()[0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def compare(work: Workload, names: Sequence[str], rounds: int, seeds: int) -> dict[str, Any]:
    """Run ours and the named competitors in turns; returns this part of the benchmark's JSON.

    Float32 runs in the first `seeds` rounds only, over which rho is computed.
    """
    peers, weights = _peers(work, names)
    measurements: dict[str, list[Measurement]] = {name: [] for name in peers}
    memory: dict[str, float] = {}
    for name, peer in peers.items():
        warm_up = replace(work.request(0), steps=min(WARM_UP_STEPS, work.steps))
        first = _run(peer, warm_up)
        memory[name] = first.peak_memory_mb
        _log(f"{name}: warmed up in {first.seconds:.1f} s")
    for round_ in range(1, max(rounds, seeds) + 1):
        request = work.request(round_)
        for name, peer in peers.items():
            if name == "diffusers_float32" and round_ > seeds:
                continue
            measurement = _run(peer, request)
            measurements[name].append(measurement)
            memory[name] = max(memory[name], measurement.peak_memory_mb)
            _log(f"round {round_}, {name}: {measurement.seconds / work.images:.2f} s per image")
    device, dtype = peers["ours"].networks.device, peers["ours"].networks.dtype
    peak = {"fp32": round(gemm_peak(torch.float32, device))}
    if is_native := device.type == "cuda" or cpu_has_bfloat16():
        peak["bf16"] = round(gemm_peak(torch.bfloat16, device))
    flops: dict[str, float] = {}
    eager = peers.get("diffusers")
    if isinstance(eager, Diffusers):
        step, rest = eager.flops(work.request(0))
        flops = {"step": step, "rest": rest, "image": work.steps * step + rest}
    rows = {}
    psnrs = _psnrs(measurements, peers.get("diffusers_float32"), work)
    same_format, references = (
        measurements.get(name, []) for name in ("diffusers", "diffusers_float32")
    )
    for name, runs in measurements.items():
        row = _times(runs, work)
        row["peak_memory_mb"] = round(weights[name] + memory[name])
        row |= _rho(runs, same_format, references)
        row |= psnrs.get(name, {})
        if flops and name not in KINDS:
            is_float32 = dtype == torch.float32 or name == "diffusers_float32" or not is_native
            best = peak["fp32" if is_float32 else "bf16"] * 1e9
            row["share_of_peak"] = flops["image"] / best / row["seconds_per_image"]["median"]
        rows[name] = row
    base = rows["ours"]["seconds_per_image"]["median"]
    ratios = {
        n: row["seconds_per_image"]["median"] / base for n, row in rows.items() if n != "ours"
    }
    return {"gemm_peak_gflops": peak, "flops": flops, "runs": rows, "ratios": ratios}


def _peers(work: Workload, names: Sequence[str]) -> tuple[dict[str, Peer], dict[str, float]]:
    """Return the competitors, and the memory of their weights in MB.

    Each has its own weights, except that the compiled ones share diffusers'.
    """
    peers: dict[str, Peer] = {"ours": Ours(work.load(work.control))}
    theirs: Any = work.load(work.control) if set(names) - {LIGHT} else None
    in_cpp = [name for name in names if name in KINDS]
    if in_cpp:
        with TemporaryDirectory() as folder:
            files = write_checkpoints(theirs, work.control, Path(folder))
            peers |= {name: StableDiffusionCpp(theirs, *files, KINDS[name]) for name in in_cpp}
    for name in names:
        if name in peers:
            continue
        if name == LIGHT:
            peers[name] = Ours(work.load(work.control, light=True))
        elif name == "diffusers":
            peers[name] = Diffusers(theirs, work.control)
        elif name == "diffusers_float32":
            # If the weights are float32 already, this repeats diffusers, and rho is undefined.
            peers[name] = Diffusers(theirs.in_float32(), work.control)
        else:
            peers[name] = Diffusers(replace(theirs), work.control, name)
    return peers, {name: peer.weights_mb() for name, peer in peers.items()}


def _psnrs(
    measurements: Mapping[str, Sequence[Measurement]], exact: Peer | None, work: Workload
) -> dict[str, dict[str, float]]:
    """Return rows' PSNR in dB, of the first picture to that of diffusers in float32, if it ran.

    stable-diffusion.cpp's is compared with one of its own sampler, made for this.
    """
    if not isinstance(exact, Diffusers):
        return {}
    usual = measurements["diffusers_float32"][0].picture
    trailing = None
    if KINDS.keys() & measurements.keys():
        trailing = exact.trailing_picture(work.request(1))
    found = {}
    for name, (run, *_) in measurements.items():
        reference = trailing if name in KINDS else usual
        if name != "diffusers_float32" and run.picture is not None and reference is not None:
            found[name] = {"psnr": psnr(run.picture, reference)}
    return found


def _run(peer: Peer, request: GenerationRequest) -> Measurement:
    torch.set_num_threads(THREADS)  # ours may have changed it, for all
    device = peer.networks.device
    measurement = Measurement(on_gpu=device.type == "cuda")
    with PeakMemory(device) as peak:
        start = time.perf_counter()
        peer(request, measurement)
        if measurement.on_gpu:
            torch.cuda.synchronize(device)
        measurement.seconds = time.perf_counter() - start
    measurement.peak_memory_mb = peak.megabytes
    return measurement


def _times(runs: Sequence[Measurement], work: Workload) -> dict[str, Any]:
    seconds = [run.seconds / work.images for run in runs]
    # The start of a first step is not recorded, so a single step has no time of its own.
    steps = [s for run in runs for s in run.step_seconds] or [s / work.steps for s in seconds]
    return {
        "seconds_per_image": _median_p95(seconds),
        "seconds_per_step": float(np.median(steps)),
        "seconds_per_step_p95": float(np.percentile(steps, 95)),
    }


def _median_p95(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def _rho(
    runs: Sequence[Measurement],
    same_format: Sequence[Measurement],
    references: Sequence[Measurement],
) -> dict[str, float | None]:
    """Return rho's median and 95th percentile over the rounds that have all three."""
    rhos = []
    for run, other, exact in zip(runs, same_format, references, strict=False):
        if not run.latents:
            continue
        latents, theirs, reference = (torch.cat(m.latents) for m in (run, other, exact))
        error = (theirs - reference).norm()
        if error > 0:
            rhos.append(float((latents - reference).norm() / error))
    if not rhos:
        return {"rho": None, "rho_p95": None}
    return {"rho": float(np.median(rhos)), "rho_p95": float(np.percentile(rhos, 95))}


def growth(work: Workload) -> list[dict[str, Any]]:
    """Time and memory of ours as images, size, steps and controls grow, one run each.

    A row has the workload, the request's seconds, those of a step per image, and the peak memory in
    MB, including the weights of the ControlNets in use.
    """
    controls = [work.control, *(name for name in CONTROLS if name != work.control)]
    networks = work.load(*controls)
    workloads = [(replace(work, images=images), 1) for images in GROWTH_IMAGES]
    workloads += [(replace(work, size=size), 1) for size in GROWTH_SIZES]
    workloads += [(replace(work, steps=work.steps * factor), 1) for factor in GROWTH_STEPS]
    workloads += [(work, count + 1) for count in range(len(controls))]
    rows = []
    for each, count in workloads:
        used = {name: networks.controlnets[name] for name in controls[:count]}
        ours = Ours(replace(networks, controlnets=used))
        request = each.request(1)
        (control,) = request.controls
        several = (replace(control, condition=condition(name)) for name in controls[:count])
        request = replace(request, controls=tuple(several))
        first = _run(ours, replace(request, steps=1, num_samples=1))
        measurement = _run(ours, request)
        rows.append(
            {
                "images": each.images,
                "size": each.size,
                "steps": each.steps,
                "controls": count,
                "seconds": measurement.seconds,
                "seconds_per_step": _times([measurement], each)["seconds_per_step"],
                "peak_memory_mb": round(
                    weights_mb(ours.networks)
                    + max(first.peak_memory_mb, measurement.peak_memory_mb)
                ),
            }
        )
        _log(_row(rows[-1]))
    return rows


def beside(work: Workload, counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time ours, diffusers and a matrix product alone, then beside so many busy programs.

    A row has the number of programs, the median seconds by name, and how many times as long as
    alone that is.
    """
    peers, _ = _peers(work, ["diffusers"])
    for peer in peers.values():
        _run(peer, replace(work.request(0), steps=min(WARM_UP_STEPS, work.steps)))
    rows: list[dict[str, Any]] = []
    for count in (0, *counts):
        seconds: dict[str, list[float]] = {name: [] for name in (*peers, "matrix product")}
        with _busy(count):
            for round_ in range(1, rounds + 1):
                for name, peer in peers.items():
                    seconds[name].append(_run(peer, work.request(round_)).seconds)
                seconds["matrix product"].append(_seconds_of_products())
        median = {name: float(np.median(found)) for name, found in seconds.items()}
        alone = rows[0]["seconds"] if rows else median
        slower = {name: value / alone[name] for name, value in median.items()}
        rows.append({"busy": count, "seconds": median, "slower": slower})
        _log(_beside_row(rows[-1]))
    return rows


def _seconds_of_products() -> float:
    """Time matrix products in a row, each on all threads."""
    torch.set_num_threads(THREADS)
    dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    a, b = (torch.randn(GEMM_SIDE, GEMM_SIDE, dtype=dtype) for _ in range(2))
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    return time.perf_counter() - start


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep so many programs busy while the block runs."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _beside_row(row: Mapping[str, Any]) -> str:
    times = (
        f"{name} {seconds:.2f} s ({row['slower'][name]:.1f} times as long)"
        for name, seconds in row["seconds"].items()
    )
    return f"{row['busy']} busy programs: {', '.join(times)}"


def server_times(model: str) -> dict[str, float]:
    """Seconds until the server answers, and from a request to its image, cold and warm."""
    # Only this measurement needs it.
    from gradio_client import Client, handle_file  # noqa: PLC0415

    start = time.perf_counter()
    with served("apps/canny2image.py", "--model", model) as address:
        answered = time.perf_counter() - start
        client = Client(address, verbose=False)
        picture = handle_file(str(ROOT / "test_imgs" / "chelsea.jpg"))
        times = []
        for _ in range(2):  # the first run may still wait for the weights
            start = time.perf_counter()
            client.predict(
                image=picture, prompt="a red ball on grass", seed=1, api_name="/canny2image"
            )
            times.append(time.perf_counter() - start)
    return {
        "seconds_to_answer": answered,
        "seconds_to_first_image_cold": times[0],
        "seconds_to_first_image": times[1],
    }


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _row(row: Mapping[str, Any]) -> str:
    return (
        f"{row['images']:2} images, {row['size']} px, {row['steps']:2} steps, "
        f"{row['controls']} controls: {row['seconds']:8.2f} s, "
        f"{row['seconds_per_step']:.3f} s per step and image, {row['peak_memory_mb']} MB"
    )


def _print(result: Mapping[str, Any]) -> None:
    for name, row in result.get("runs", {}).items():
        times = row["seconds_per_image"]
        rho = "-" if row["rho"] is None else f"{row['rho']:.2f} (p95 {row['rho_p95']:.2f})"
        exactness = f", PSNR {row['psnr']:.1f} dB" if "psnr" in row else ""
        share = f", {row['share_of_peak']:.0%} of the peak" if "share_of_peak" in row else ""
        print(
            f"{name:18} {times['median']:.2f} s per image (p95 {times['p95']:.2f}), "
            f"{row['seconds_per_step']:.3f} s per step (p95 {row['seconds_per_step_p95']:.3f}), "
            f"{row['peak_memory_mb']} MB, rho {rho}{exactness}{share}"
        )
    if result.get("ratios"):
        print("  ".join(f"{name} / ours = {ratio:.2f}" for name, ratio in result["ratios"].items()))
    if result.get("gemm_peak_gflops"):
        peak, flops = result["gemm_peak_gflops"], result["flops"]
        counted = f"; diffusers executes {flops['step'] / 1e9:.0f} GFLOP per step" if flops else ""
        found = ", ".join(f"{value} GFLOP/s in {name}" for name, value in peak.items())
        print(f"matrix products: {found}{counted}")
    for row in result.get("growth", []):
        print(_row(row))
    for row in result.get("beside", []):
        print(_beside_row(row))
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
    parser.add_argument("--rounds", type=int, default=None, help="timed runs per competitor")
    parser.add_argument("--seeds", type=int, default=None, help="rounds to compute rho over")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="competitors, of these; empty for ours alone"
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile")
    parser.add_argument(
        "--autotune", action="store_true", help="add torch.compile with max-autotune; GPU only"
    )
    parser.add_argument("--openvino", action="store_true", help="add OpenVINO; CPU only")
    parser.add_argument(
        "--stable-diffusion-cpp",
        action="store_true",
        help="add stable-diffusion.cpp, with weights in f16 and in q8_0; CPU only",
    )
    parser.add_argument("--light", action="store_true", help="add ours in the mode light; CPU only")
    parser.add_argument(
        "--growth", action="store_true", help="measure how time and memory grow instead"
    )
    parser.add_argument(
        "--beside", default="", help="numbers of busy programs to measure beside instead, as 2,5"
    )
    parser.add_argument("--level", choices=LEVELS, help="best instructions used; CPU only")
    parser.add_argument("--no-server", action="store_true", help="skip the server's times")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    return parser, parser.parse_args(arguments)


def limit(level: str, arguments: Sequence[str]) -> None:
    """Start this program anew with a level's limits, which libraries read once; or do nothing."""
    limits = dict(zip(LIMIT_VARIABLES, LEVELS[level], strict=True))
    if any(os.environ.get(name) != value for name, value in limits.items()):
        program = [sys.executable, "-m", "benchmarks.speed", *arguments]
        os.execve(sys.executable, program, os.environ | limits)


def _competitors(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> list[str]:
    names = [name for name in options.peers.split(",") if name]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise BadInput(f"There is no peer '{unknown[0]}': choose among {', '.join(PEERS)}.")
    no_cpp = partial(why_no_cpp, _is_sd1(options.model), options.level)
    wanted: tuple[tuple[bool, str, Callable[[], str]], ...] = (
        (options.compile, "inductor", why_not_compiled),
        (options.autotune, "inductor_autotuned", why_not_compiled),
        (options.openvino, "openvino", why_not_openvino),
        *((options.stable_diffusion_cpp, name, no_cpp) for name in KINDS),
        (options.light, LIGHT, lambda: "" if can_be_light(device, dtype) else NOT_LIGHT),
    )
    for requested, name, why_not in wanted:
        reason = why_not() if requested else ""
        only = ("cpu",) if name in KINDS else COMPILE_OPTIONS.get(name, device.type)
        if requested and device.type not in only:
            reason = f"it does not run on {device.type}"
        if reason:
            _log(f"{name} is left out: {reason}.")
        elif requested:
            names.append(name)
    return names


def _is_sd1(model: str) -> bool:
    """Tell whether a model is of Stable Diffusion 1.x's size."""
    if model == RANDOM:
        return True
    config = read_json(Registry().card(model).base_folder / "unet" / "config.json")
    return bool(config["cross_attention_dim"] == SD1_WIDTH)


def _workload(options: argparse.Namespace) -> Workload:
    """Return the workload of the options.

    Raises:
        SuiteError: There is no such model or device.
    """
    device, dtype, _ = choose_device(options.device, options.dtype)
    defaults: Mapping[str, Any] = DEFAULTS

    def load(*controls: str, light: bool = False) -> Any:
        if options.model == RANDOM:
            return random_networks(controls, device, dtype, light=light)
        # A new store each time, or competitors would share networks.
        return Store(options.device, options.dtype).load(options.model, *controls, light=light)

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
    """Run the command line; `arguments` replace sys.argv."""
    parser, options = _options(arguments)
    if options.level:
        limit(options.level, sys.argv[1:] if arguments is None else arguments)
    slow = options.model == RANDOM
    rounds = options.rounds or (SLOW_ROUNDS if slow else ROUNDS)
    seeds = options.seeds or (SLOW_SEEDS if slow else rounds)
    try:
        work = _workload(options)
        device, dtype, _ = choose_device(options.device, options.dtype)
        result: dict[str, Any] = {
            "command": command("speed", arguments),
            "machine": machine(device, dtype) | {"level": options.level or ""},
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
        elif options.beside:
            result["beside"] = beside(work, [int(n) for n in options.beside.split(",")], rounds)
        else:
            server = None if options.no_server or slow else server_times(options.model)
            names = _competitors(options, device, dtype)
            if KINDS.keys() & set(names):
                result["machine"]["stable_diffusion_cpp"] = build()
            result |= compare(work, names, rounds, seeds)
            result["server"] = server
    except SuiteError as error:
        parser.exit(2, f"{error}\n")
    _print(result)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
