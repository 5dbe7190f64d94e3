"""The tables of the READMEs, from what they are about: results/*.json and the apps.

    python -m benchmarks.tables [--check]

Writes each table between `<!-- table NAME -->` and `<!-- end -->`, wherever a README has these
lines. With --check nothing is written; it ends with 1 if a table differs.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise, zip_longest
from typing import Any

import apps
from apps.web.tool import Tool
from benchmarks._shared import ROOT
from benchmarks._stable_diffusion_cpp import KINDS

RESULTS = ROOT / "benchmarks" / "results"
READMES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
TABLE = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
PEERS = {
    "diffusers": "diffusers",
    "diffusers_float32": "diffusers, float32",
    "inductor": "torch.compile",
    "openvino": "OpenVINO",
}
ALL_PEERS = {
    "ours": "ours",
    "light": "ours, mode light",
    **PEERS,
    **{name: f"stable-diffusion.cpp, {kind}" for name, kind in KINDS.items()},
}
SHOWN = ("speed-sd15-random-cpu", "speed-sd15-random-256px-cpu", "speed-diorama-cpu",
         "speed-sd15-random-gpu")  # fmt: skip
"""Of the speeds, those that README.md has."""

Record = Mapping[str, Any]


def records(name: str) -> list[Record]:
    """Return the runs of one file of results."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found if isinstance(found, list) else [found]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def measured(record: Record) -> str:
    """Say how and where a record came about."""
    machine = record["machine"]
    place = machine.get("gpu") or (
        f"{machine['processor']}, {machine['cores']} cores" if "processor" in machine else ""
    )
    facts = [f"`{record['command']}`", place, machine["date"], record.get("note", "")]
    return " · ".join(filter(None, facts))


# How well control is kept


def control() -> str:
    """Return every condition's scores, 0 to 100, without control, with it, and at best."""
    found = {
        name: one
        for result in ("controllability-diorama", "controllability-diorama-all")
        for name, one in records(result)[0]["conditions"].items()
    }
    rows = [
        (label, *(f"{one['headline'][at]:.0f}" for one in found.values()))
        for label, at in (("strength 0", "0"), ("strength 1", "1"), ("limit", "oracle"))
    ]
    closed = ("gap closed", *(_percent(one["closed"]) for one in found.values()))
    return table(("", *found), [*rows, closed])


def scores(name: str) -> str:
    """Return one file's figures at each strength, with the scores of the pages."""
    (record,) = records(name)
    strengths = list(next(iter(record["conditions"].values()))["strength"])
    head = ("condition", "figure", *(f"strength {at}" for at in strengths), "limit",
            "score at 0, 1, limit", "gap closed", "annotator against the truth")  # fmt: skip
    rows = []
    for condition, found in record["conditions"].items():
        first = [*found["strength"].values(), found["oracle"]]
        score = ", ".join(f"{found['headline'][at]:.0f}" for at in ("0", "1", "oracle"))
        seen = f"{found['annotator']['value']:.3g}" if found["annotator"] else ""
        rows.append((_title(condition), _figure(found), *(f"{one:.3g}" for one in first), score,
                     _percent(found["closed"]), seen))  # fmt: skip
        rows += [
            ("", metric, *(f"{values[at]:.3g}" for at in (*strengths, "oracle")), "", "", "")
            for metric, values in found["beside"].items()
        ]
    colours, best = (_percent(record[f"prompt_colour_{key}"]) for key in ("accuracy", "oracle"))
    whole = (
        f"{record['scenes']} scenes, {record['steps']} steps, guidance "
        f"{record['guidance_scale']:g}. Autoencoder: {record['autoencoder_psnr']} dB. Named things "
        f"in their named colour: {colours}; in the scene after the autoencoder: {best}."
    )
    return f"{measured(record)}\n\n{table(head, rows)}\n{whole}\n"


def _title(condition: str) -> str:
    """Return the title of the first app with this annotator."""
    return next(one.title for one in apps.conditions() if one.annotator.name == condition)


def _figure(found: Record) -> str:
    return str(found["metric"]) + ("" if found["higher_is_better"] else " (lower is better)")


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


# How fast it is


def speed() -> str:
    """Return the seconds of an image, ours and diffusers', of the runs that README.md has."""
    head = ("model, device", "size, steps", "ControlLoop", "diffusers", "diffusers, float32")
    rows = []
    for record in (one for name in SHOWN for one in records(name)[-1:]):
        work = record["workload"]
        rows.append((f"{_model(work)}, {_place(record)}", f"{work['size']} px, {work['steps']}",
                     *_times(record, ("ours", "diffusers", "diffusers_float32"))))  # fmt: skip
    return table(head, rows)


def every_speed() -> str:
    """Return all runs of benchmarks.speed against peers, and how each was made."""
    names = [path.stem for path in sorted(RESULTS.glob("speed-*.json"))]
    found = sorted((record for name in names for record in records(name)), key=_place)
    head = ("", "model, device", "size, steps", "ours", *PEERS.values(), "rho",
            "memory: ours, diffusers")  # fmt: skip
    rows, notes = [], []
    for number, record in enumerate(found, 1):
        work, runs = record["workload"], record["runs"]
        rho = runs["ours"]["rho"]
        shown = [name for name in ("ours", "diffusers") if name in runs]
        memory = (f"{runs[name]['peak_memory_mb'] / 1000:.2f}" for name in shown)
        rows.append((str(number), f"{_model(work)}, {_place(record)}",
                     f"{work['size']} px, {work['steps']}", *_times(record, ("ours", *PEERS)),
                     f"{rho:.2f}" if rho else "", f"{', '.join(memory)} GB"))  # fmt: skip
        peak = record["gemm_peak_gflops"]
        kind, name = ("bf16", "bfloat16") if "bf16" in peak else ("fp32", "float32")
        best = f"{peak[kind]} GFLOP/s in {name}"
        notes.append(f"{number}. {measured(record)} · {best}")
    return table(head, rows) + "\n" + "\n".join(notes) + "\n"


def _place(record: Record) -> str:
    """Return what a run was made on, in short: AMD EPYC, 2 cores, AVX2 only."""
    machine = record["machine"]
    name = (machine["gpu"] or machine["processor"]).replace("(R)", "")
    cores = "" if machine["gpu"] else f", {machine['cores']} cores"
    level = f", {machine['level'].upper()} only" if machine.get("level") else ""
    return " ".join(name.split()[:2]) + cores + level


def _model(work: Record) -> str:
    return {"sd15-random": "SD 1.5 + ControlNet", "diorama": "Diorama"}[work["model"]]


def _times(record: Record, names: Iterable[str]) -> list[str]:
    """Seconds of an image and of a step; of a peer also how many times ours it takes."""
    cells = []
    for name in names:
        run = record["runs"].get(name)
        if run is None:
            cells.append("")
            continue
        image, step = run["seconds_per_image"]["median"], run["seconds_per_step"]
        cell = f"{_seconds(image)} ({_seconds(step)} a step)"
        if name != "ours":
            cell += f": **{record['ratios'][name]:.2f} ×**"
        cells.append(cell)
    return cells


def _seconds(value: float) -> str:
    return f"{1000 * value:.1f} ms" if value < 0.1 else f"{value:.3g} s"


def peers() -> str:
    """Return time, memory and exactness of all that were measured with stable-diffusion.cpp."""
    head = ("", "an image", "a step", "times ours", "memory, GB", "rho", "PSNR")
    text = ""
    for record in records("peers-sd15-random-cpu"):
        rows = []
        for name, run in record["runs"].items():
            rows.append((ALL_PEERS[name], _seconds(run["seconds_per_image"]["median"]),
                         _seconds(run["seconds_per_step"]),
                         f"{record['ratios'].get(name, 1):.2f}",
                         f"{run['peak_memory_mb'] / 1000:.2f}",
                         f"{run['rho']:.2f}" if run["rho"] else "",
                         f"{run['psnr']:.1f} dB" if "psnr" in run else ""))  # fmt: skip
        built = record["machine"]["stable_diffusion_cpp"]
        text += f"{measured(record)} · {built}\n\n{table(head, rows)}\n"
    return text.rstrip() + "\n"


def growth() -> str:
    """Return how time and memory grow with images, size, steps and controls."""
    (record,) = records("growth-sd15-random-cpu")
    rows = [
        (
            *(str(row[key]) for key in ("images", "size", "steps", "controls")),
            f"{row['seconds']:.1f}",
            f"{row['peak_memory_mb'] / 1000:.2f}",
        )
        for row in record["growth"]
    ]
    head = ("images", "px", "steps", "controls", "seconds", "memory, GB")
    return f"{measured(record)}\n\n{table(head, rows)}"


def beside() -> str:
    """Return how much longer ours and others take beside busy programs."""
    (record,) = records("beside-diorama-cpu")
    rows = [
        (
            str(row["busy"]),
            *(f"{row['seconds'][n]:.2f} s: {row['slower'][n]:.1f} ×" for n in row["seconds"]),
        )
        for row in record["beside"]
    ]
    head = ("busy programs", *record["beside"][0]["seconds"])
    return f"{measured(record)}\n\n{table(head, rows)}"


def modes() -> str:
    """Return what each mode costs and loses."""
    (record,) = records("modes-diorama-cpu")
    rows = [
        (
            name,
            f"{row['seconds']:.2f}",
            f"{row['R']:.2f}",
            f"{row['R_sampling']:.2f}",
            "" if row["psnr"] is None else f"{row['psnr']:.1f}, {row['psnr_lowest']:.1f}",
            f"{row['score']:.1f}",
        )
        for name, row in record["modes"].items()
    ]
    head = ("mode", "seconds", "times as fast", "sampling alone",
            "PSNR to exact in dB, mean and lowest", "score")  # fmt: skip
    return f"{measured(record)}\n\n{table(head, rows)}"


def light() -> str:
    """Return what the mode light costs and saves at full size."""
    (record,) = records("light-sd15-random-cpu")
    rows = [
        (
            mode,
            _seconds(run["seconds_per_step"]),
            _seconds(run["seconds_per_image"]["median"]),
            f"{run['peak_memory_mb'] / 1000:.2f}",
        )
        for mode, run in (("exact", record["runs"]["ours"]), ("light", record["runs"]["light"]))
    ]
    head = ("mode", "a step", f"an image of {record['workload']['steps']} steps", "memory, GB")
    return f"{measured(record)}\n\n{table(head, rows)}"


def throughput() -> str:
    """Return what many clients get at once, one after the other, and from several workers."""
    return "\n".join(map(_throughput, records("throughput-diorama-cpu")))


def _throughput(record: Record) -> str:
    rows = [
        (
            name,
            f"{row['images_per_second']:.2f}",
            f"{row['wait_p50']:.1f}",
            f"{row['wait_p95']:.1f}",
        )
        for name, row in record["ways"].items()
    ]
    head = (f"{record['clients']} clients", "images a second", "median wait, s", "p95 wait, s")
    same = (
        f"{record['identical']} of {record['requests']} pictures are, to the last bit, those made "
        f"alone. Images a second, at once to one at a time: {record['throughput_ratio']:.2f}."
    )
    for name, count in record.get("identical_of_workers", {}).items():
        same += f" {name}: {count} of {record['requests']} to the last bit."
    if record.get("hop_seconds"):
        same += f" The way to a worker and back takes {1000 * record['hop_seconds']:.0f} ms."
    return f"{measured(record)}\n\n{table(head, rows)}\n{same}\n"


def live() -> str:
    """Return how soon a live picture follows the pen, and what becomes of a fast hand."""
    record, *editors = records("live-diorama-cpu")
    timed = record["seconds"] | {
        f"live, editor of {one['editor']}": one["seconds"]["live"] for one in editors
    }
    rows = [(name, f"{row['median']:.2f}", f"{row['p95']:.2f}") for name, row in timed.items()]
    hand = record["fast_hand"]
    same = (
        f"{record['times_as_fast']:.1f} times as fast. {hand['strokes']} strokes in as many "
        f"seconds: {hand['lost']} lost, {hand['pictures']} pictures, the last "
        f"{hand['last_after']:.2f} s after the last stroke."
    )
    head = ("from the pen, or the press on Run, to the picture", "median, s", "p95, s")
    commands = ", ".join(f"`{one['command']}`" for one in editors)
    others = f" The editors: {commands}." if editors else ""
    return f"{measured(record)}\n\n{table(head, rows)}\n{same}{others}\n"


def load() -> str:
    """Return what a site does under load, part by part."""
    found = records("load-diorama-cpu")
    rows = [
        row for record in found for name, rows in LOAD.items() if name in record
        for row in rows(record[name])
    ]  # fmt: skip
    notes = "\n\n".join(map(measured, found))
    return f"{notes}\n\n{table(('the load', 'what became of it'), rows)}"


Rows = list[tuple[str, str]]


def _callers(part: Record) -> Rows:
    answers = ", ".join(
        f"{seconds:.2f} s for `{path}`" for path, seconds in part["longest_answer"].items()
    )
    return [
        (
            f"{part['callers']} callers over several apps, {part['rounds']} times: "
            f"{part['cancelled']} cancel, {part['vanished']} vanish, the others wait",
            f"{part['waited']} pictures are, to the last bit, those made alone; {part['lost']} "
            f"lost, {part['swapped']} swapped; "
            f"longest wait for an answer {answers}",
        )
    ]


def _soak(part: Record) -> Rows:
    warm, last = part["warm"], part["last"]
    ends = ", ".join(f"{name} {warm[name]} and {last[name]}" for name in ("threads", "descriptors"))
    return [
        (
            f"{part['requests']} short requests in {part['seconds'] / 60:.0f} minutes",
            f"{part['failed']} failed; memory {warm['memory_mb']:.0f} MB after {warm['requests']}, "
            f"then {part['growth_percent']:+.1f} %{_last_hour(part)}; {ends}; files at most "
            f"{part['most_files_mb']:.0f} MB, where 1000 MB were allowed",
        )
    ]


def _last_hour(part: Record) -> str:
    """Return the median memory of each half of the last hour, by which visits are forgotten."""
    began = part["seconds"] - 3600
    if began < 3600:
        return ""
    halves = (began, began + 1800, began + 3600)
    medians = [
        statistics.median(
            one["memory_mb"] for one in part["seen"] if after < one["seconds"] <= until
        )
        for after, until in pairwise(halves)
    ]
    return f" (the last hour's halves: {medians[0]:.0f} and {medians[1]:.0f} MB)"


def _uploads(part: Record) -> Rows:
    overflow, flood = part["overflow"], part["flood"]
    return [
        (f"{overflow['asked']} requests at once", _answered(overflow)),
        (
            f"{flood['asked']} pictures of {flood['megapixels']:.0f} megapixels at once",
            f"{_answered(flood)}; memory {part['memory_before_mb']:.0f} MB before, "
            f"{part['memory_peak_mb']:.0f} MB at most",
        ),
    ]


def _answered(part: Record) -> str:
    told = " ".join(json.loads(one)["detail"] for one in part["refusals"])
    return (
        f"{part['done']} of {part['accepted']} that were taken have their picture; "
        f"{part['refused']} were refused" + (f": “{told}”" if told else "")
    )


def _kills(part: Record) -> Rows:
    tidy = "removed" if part["cleaned_up"] else "**not** removed"
    return [
        (
            f"killed {part['kills']} times while saving",
            f"{part['broken']} of {part['pictures']} pictures broken, {part['cut_off']} cut off "
            f"under other names; what was left is {tidy} by the next start",
        )
    ]


def _disks(part: Record) -> Rows:
    if "skipped" in part:
        return [("a full and a read-only disk", f"not measured: {part['skipped']}")]
    return [
        (f"{name} disk", f"the picture is shown; “{' '.join(one['sentences'])}”")
        for name, one in part["shown"].items()
    ]


LOAD: dict[str, Callable[[Record], Rows]] = {
    "callers": _callers,
    "soak": _soak,
    "uploads": _uploads,
    "kills": _kills,
    "disks": _disks,
}
"""By part, the rows of its record."""


def watermark() -> str:
    """Return what the watermark costs, and where it is found."""
    (record,) = records("watermark-diorama-cpu")
    rows = [
        (
            name,
            f"{found['pictures']} of {record['pictures']}",
            f"{found['mean_bits']:.1f}, {found['fewest_bits']}",
        )
        for name, found in record["found"].items()
    ]
    quality = record["psnr"]
    cost = (
        f"Its cost: a PSNR of {quality['mean']:.1f} dB, {quality['lowest']:.1f} at the lowest; a "
        f"score of {record['marked_score']:.1f} in place of {record['score']:.1f}; "
        f"{record['seconds']:.2f} s a picture."
    )
    head = ("the picture", "found", f"of {record['bits']} bits right, mean and fewest")
    return f"{measured(record)}\n\n{table(head, rows)}\n{cost}\n"


# The apps


def gallery() -> str:
    """Return the apps, two in a row, each with its picture; those of conditions first."""
    found = sorted(map(apps.find, apps.names()), key=lambda app: isinstance(app, Tool))
    cells = [
        f"**{app.title}** `{app.name}`<br>{app.blurb}<br>"
        f'<img src="pictures/{app.name}.jpg" width="400" alt="{app.title}: an example">'
        for app in found
    ]
    pairs = zip_longest(cells[::2], cells[1::2], fillvalue="")
    return table(("Input, control map, result with its score", ""), pairs)


TABLES: dict[str, Callable[[], str]] = {
    "apps": gallery,
    "control": control,
    "speed": speed,
    "control-canny": lambda: scores("controllability-diorama"),
    "control-others": lambda: scores("controllability-diorama-all"),
    "control-seg": lambda: scores("controllability-diorama-seg"),
    "every-speed": every_speed,
    "peers": peers,
    "beside": beside,
    "growth": growth,
    "modes": modes,
    "light": light,
    "throughput": throughput,
    "live": live,
    "load": load,
    "watermark": watermark,
}


def filled(text: str) -> str:
    """Return a README's text with its tables written anew.

    Raises:
        KeyError: it has a table that is not one of TABLES.
    """
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    """The command line; `arguments` stand in for the process's own. Returns 1 if --check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args(arguments)
    differ = 0
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            continue
        differ = 1
        if options.check:
            print(f"{path.relative_to(ROOT)} differs: python -m benchmarks.tables", file=sys.stderr)
        else:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))
    return differ if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
