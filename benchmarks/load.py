"""A site left alone with the public: many callers, a long time, floods, and failing disks.

    python -m benchmarks.load [--only PART,...] [--requests N] [--minutes M] [--json]

The whole suite runs on Diorama in a process of its own, as a user starts it, with a folder of its
own for its files and its home. Pictures are 256 px. The parts:

callers   24 over several apps, in three rounds: a third cancels in the first picture, a third drops
          its connection there, and a third waits. Nothing may be lost, and each picture must be, to
          the last bit, that of the same request made alone before.
soak      short requests of many kinds, from three visitors: --requests of them, or as many as there
          are in --minutes. What the server holds is looked at every five seconds.
uploads   more requests at once than may wait, then 40 pictures of 20 megapixels.
kills     a server is killed while it saves, again and again; then it starts once more.
disks     a full and a read-only disk, for the results and for the operator's folder, in a mount
          namespace and a browser; skipped where there may be none.

Ends with 1 if something was lost, swapped or broken.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from benchmarks import _load_faults as faults
from benchmarks._load_site import (
    BUG,
    LONG,
    PATIENCE_S,
    PICTURES,
    Holding,
    Place,
    ask,
    bugs_in,
    condition_apps,
    get,
    given,
    holding,
    pixels,
    pixels_of,
    site_in,
    vanish_from,
    visitor,
)
from benchmarks._shared import Site, command, machine, record_failure

CALLERS, ROUNDS = 24, 3
FETCHED = {"/healthz": 0.1, "/canny2image": 1.0}
"""By address the seconds between one answer and the next request, while callers are served."""
WARM = 200
"""Requests after which a server holds what it needs."""
VISITORS, VISIT = 3, 10
"""Of the soak: how many at once, and the requests after which one leaves and another comes."""
LOOK_EVERY_S = 5
MOST_SECONDS_EACH = 5
"""A soak of so many requests ends after that time each, whatever is left."""
MOST_REQUESTS = 1_000_000
ROWS = 40
"""Of what was seen during a soak, in the JSON."""


# Callers


@contextmanager
def longest_answers(address: str) -> Iterator[dict[str, float]]:
    """Fetch FETCHED again and again meanwhile; the dict has the longest seconds of each."""
    longest = dict.fromkeys(FETCHED, 0.0)
    over = threading.Event()

    def fetch(path: str, pause: float) -> None:
        while not over.wait(pause):
            began = time.perf_counter()
            get(address + path)
            longest[path] = max(longest[path], time.perf_counter() - began)

    with ThreadPoolExecutor(len(FETCHED)) as threads:
        fetching = [threads.submit(fetch, *one) for one in FETCHED.items()]
        try:
            yield longest
        finally:
            over.set()
            for one in fetching:
                one.result()


def give_up(client: Client, app: str, number: int) -> bool:
    """Cancel a long request in its first picture; returns whether it came so far."""
    job = ask(client, app, number, LONG)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not job.done():
        told = job.outputs()
        if told and (told[-1][-1] or {}).get("stage") == "sample":
            job.cancel()
            return True
        time.sleep(0.05)
    return False


def callers(place: Place) -> dict[str, Any]:
    """Measure many callers at once, of whom a third cancels and a third vanishes."""
    with site_in(place) as site:
        names = condition_apps()
        waiting = range(2, CALLERS, 3)
        clients = [visitor(site.address) for _ in range(CALLERS)]
        app = {number: names[number % len(names)] for number in range(CALLERS)}
        alone = {at: pixels_of(ask(clients[0], app[at], at)) for at in waiting}
        outcomes: list[str] = []  # appended to by many threads
        lost: dict[str, str] = {}

        def call(number: int) -> None:
            kind = number % 3
            if kind == 0:
                outcomes.extend(["cancelled"] * give_up(clients[number], app[number], number))
            elif kind == 1:
                outcomes.extend(["vanished"] * vanish_from(site.address, app[number], number))
            else:
                with record_failure(f"caller {number}", lost):
                    picture = pixels_of(ask(clients[number], app[number], number))
                    same = np.array_equal(picture, alone[number])
                    outcomes.append("waited" if same else "swapped")

        began = time.perf_counter()
        with longest_answers(site.address) as longest:
            for _ in range(ROUNDS):
                with ThreadPoolExecutor(CALLERS) as threads:
                    for one in [threads.submit(call, number) for number in range(CALLERS)]:
                        one.result()
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        again = pixels_of(ask(clients[0], app[2], 2))
        rest = time.perf_counter() - began
        outcomes += ["swapped"] * (not np.array_equal(again, alone[2]))
        for client in clients:
            client.close()
    counted = Counter(outcomes)
    return {
        "callers": CALLERS,
        "rounds": ROUNDS,
        **{kind: counted[kind] for kind in ("cancelled", "vanished", "waited", "swapped")},
        "lost": max(0, CALLERS * ROUNDS - counted.total()),
        "why_lost": lost,
        "seconds": round(seconds, 1),
        "longest_answer": {path: round(value, 3) for path, value in longest.items()},
        "next_alone_seconds": round(rest, 2),
        "tracebacks": bugs_in(place),
    }


# Soak


def growth(seen: Sequence[Holding], warm: int = WARM) -> float | None:
    """Return by how many percent memory grew after the first `warm` requests.

    That is from the median of the first quarter of what was seen then, to that of the last: single
    looks fall into work or rest. None if too little was seen.
    """
    memory = [one.memory_mb for one in seen if one.requests >= warm]
    quarter = len(memory) // 4
    if not quarter:
        return None
    before, after = np.median(memory[:quarter]), np.median(memory[-quarter:])
    return round(float(100 * (after / before - 1)), 2)


def thinned(seen: Sequence[Holding], most: int = ROWS) -> list[Holding]:
    """Return at most so many, evenly spread, the first and the last among them."""
    if len(seen) <= most:
        return list(seen)
    return [seen[round(at)] for at in np.linspace(0, len(seen) - 1, most)]


def _picture(client: Client, number: int) -> bool:
    names = condition_apps()
    return pixels_of(ask(client, names[number % len(names)], number)).shape == (256, 256, 3)


def _map(client: Client, number: int) -> bool:
    image = handle_file(PICTURES[number % len(PICTURES)])
    found = client.submit(image=image, names=["canny: Canny"], api_name="/annotator")
    maps, _ = found.result(PATIENCE_S)
    return pixels(get(maps[0]["url"])).ndim == len("HWC")


def _bad_input(client: Client, number: int) -> bool:
    """Ask for what cannot be; the answer must be a sentence, and not of a bug."""
    names = condition_apps()
    wrong = (
        {"steps": 1000}, {"sampler": "none"}, {"strength": -3}, {"preprocessor": "nothing"},
        {"model": "no-such-model"}, {"image": {"url": "data:image/png;base64,AAAA"}},
    )  # fmt: skip
    asked = {"image": handle_file(PICTURES[0]), **given(number), **wrong[number % len(wrong)]}
    try:
        client.submit(api_name=f"/{names[number % len(names)]}", **asked).result(PATIENCE_S)
    except AppError as error:
        return BUG not in str(error)
    return False


def _cancel(client: Client, number: int) -> bool:
    names = condition_apps()
    return give_up(client, names[number % len(names)], number)


def _upload(client: Client, number: int) -> bool:
    """Load pages as a browser does, and upload a picture without using it."""
    names = condition_apps()
    page = get(f"{client.src}{names[number % len(names)]}")
    result = client.submit(
        image=handle_file(PICTURES[number % len(PICTURES)]), names=[], api_name="/annotator"
    )
    with suppress(AppError):  # without names there is nothing to draw
        result.result(PATIENCE_S)
    return b"gradio" in page


KINDS: dict[str, tuple[int, Callable[[Client, int], bool]]] = {
    "picture": (10, _picture),
    "map": (4, _map),
    "bad input": (2, _bad_input),
    "cancel": (2, _cancel),
    "upload": (2, _upload),
}
"""By name how often each is made of twenty requests, and what makes it and tells whether it went
as it should."""


def visit(
    site: Site, numbers: Iterator[int], most: int, end: float, done: list[tuple[str, bool]]
) -> None:
    """Make requests, as one visitor after another, until there are `most` or it is late."""
    kinds = {name: weight for name, (weight, _) in KINDS.items()}
    while time.monotonic() < end:
        client = visitor(site.address)
        for number in itertools.islice(numbers, VISIT):
            if number >= most or time.monotonic() >= end:
                client.close()
                return
            (kind,) = random.Random(number).choices(list(kinds), list(kinds.values()))
            went_well = False
            with record_failure(f"request {number}, {kind}", {}):
                went_well = KINDS[kind][1](client, number)
            if not went_well:
                print(f"request {number}, {kind}, did not go well", file=sys.stderr, flush=True)
            done.append((kind, went_well))
        client.close()


def soak(place: Place, requests: int, minutes: float | None) -> dict[str, Any]:
    """Measure what a server holds over many short requests."""
    most = MOST_REQUESTS if minutes else requests
    limit = minutes * 60 if minutes else requests * MOST_SECONDS_EACH
    done: list[tuple[str, bool]] = []  # appended to by all visitors
    seen: list[Holding] = []
    with site_in(place, CONTROLLOOP_RESULTS_GB="1") as site:
        began = time.monotonic()
        numbers = itertools.count()  # one call of next is safe among threads

        def look() -> Holding:
            seen.append(holding(site, place, len(done), time.monotonic() - began))
            return seen[-1]

        with ThreadPoolExecutor(VISITORS) as threads:
            visiting = [
                threads.submit(visit, site, numbers, most, began + limit, done)
                for _ in range(VISITORS)
            ]
            for looks in itertools.count():
                one = look()
                if looks % 12 == 0:
                    print(one, file=sys.stderr, flush=True)
                if all(thread.done() for thread in visiting):
                    break
                time.sleep(LOOK_EVERY_S)
            for thread in visiting:
                thread.result()
        last = look()
    warm = next((one for one in seen if one.requests >= WARM), last)
    return {
        "requests": last.requests,
        "kinds": Counter(kind for kind, _ in done),
        "failed": sum(not went_well for _, went_well in done),
        "seconds": last.seconds,
        "growth_percent": growth(seen),
        "warm": asdict(warm),
        "last": asdict(last),
        "most_files_mb": max(one.files_mb for one in seen),
        "seen": [asdict(one) for one in thinned(seen)],
        "tracebacks": bugs_in(place),
    }


def broken(result: dict[str, Any]) -> list[str]:
    """Return what was lost, swapped or broken, by part and name; nothing else is looked at."""
    return [
        f"{part}: {name} {found[name]}"
        for part, found in result.items()
        if isinstance(found, dict)
        for name in ("lost", "swapped", "failed", "broken", "tracebacks")
        if found.get(name)
    ]


def _print(result: dict[str, Any]) -> None:
    if "callers" in result:
        one = result["callers"]
        answers = ", ".join(
            f"{path} {value:.2f} s" for path, value in one["longest_answer"].items()
        )
        print(
            f"callers: {one['callers']} in {one['rounds']} rounds, {one['seconds']:.0f} s: "
            f"{one['cancelled']} cancelled, {one['vanished']} vanished, {one['waited']} waited; "
            f"{one['lost']} lost, {one['swapped']} swapped; longest answers: {answers}"
        )
    if "soak" in result:
        one = result["soak"]
        warm, last = one["warm"], one["last"]
        print(
            f"soak: {one['requests']} requests in {one['seconds']:.0f} s, {one['failed']} failed; "
            f"after {warm['requests']} memory {warm['memory_mb']:.0f} MB, at the end "
            f"{last['memory_mb']:.0f} MB (growth {one['growth_percent']} %); threads "
            f"{warm['threads']} and {last['threads']}, descriptors {warm['descriptors']} and "
            f"{last['descriptors']}, files {warm['files']} and {last['files']}"
        )

    if "uploads" in result:
        one = result["uploads"]
        for name in ("overflow", "flood"):
            found = one[name]
            print(
                f"{name}: {found['asked']} at once, {found['accepted']} accepted, of whom "
                f"{found['done']} were answered, {found['refused']} refused: "
                f"{' '.join(found['refusals'])}"
            )
        print(f"memory {one['memory_before_mb']:.0f} MB, peak {one['memory_peak_mb']:.0f} MB")
    if "kills" in result:
        one = result["kills"]
        print(
            f"kills: {one['kills']}; {one['pictures']} pictures, {one['broken']} broken, "
            f"{one['cut_off']} cut off under other names; cleaned up: {one['cleaned_up']}"
        )
    if "disks" in result:
        one = result["disks"]
        print(f"disks: skipped, {one['skipped']}" if "skipped" in one else "disks:")
        for name, found in one.get("shown", {}).items():
            print(f"  {name}: {found['pictures']} pictures shown; {' '.join(found['sentences'])}")


PARTS = ("callers", "soak", *faults.PARTS)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; `arguments` replace sys.argv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="the parts, separated by commas")
    parser.add_argument("--requests", type=int, default=1000, help="of the soak")
    parser.add_argument("--minutes", type=float, help="of the soak, in place of --requests")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    options = parser.parse_args(arguments)
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no part is called {min(unknown)!r}; there are: {', '.join(PARTS)}")
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        runs: dict[str, Callable[[Place], dict[str, Any]]] = {
            "callers": callers,
            "soak": lambda place: soak(place, options.requests, options.minutes),
            **faults.PARTS,
        }
        for part in wanted:
            result[part] = runs[part](Place(Path(folder), part))
            _print({part: result[part]})
    problems = broken(result)
    print("\n".join(problems) or "nothing lost, swapped or broken")
    if options.json:
        facts = {
            "command": command("load", arguments),
            "machine": machine(torch.device("cpu"), torch.bfloat16),
        }
        print(json.dumps(facts | result))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
