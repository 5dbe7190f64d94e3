"""What the benchmark of load makes of what it sees; it starts no server here."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.web.files import NOT_COPIED, NOT_SAVED
from benchmarks import _load_faults as faults
from benchmarks import _load_site, load
from benchmarks._load_site import Holding, Place, figure, given, pixels
from core.request import SETTINGS

ONE = Holding(
    requests=0, seconds=0, memory_mb=1000, threads=30, descriptors=20, files=0, files_mb=0
)


def seen(memory, first=200, step=100):
    """Return what was seen, every hundred requests."""
    return [
        replace(ONE, requests=first + step * at, memory_mb=one) for at, one in enumerate(memory)
    ]


def test_memory_grows_by_what_it_has_more_in_the_last_quarter():
    assert load.growth(seen([1000, 1000, 1000, 1050, 1100, 1020, 1020, 1020])) == 2.0
    assert load.growth(seen([1000] * 12)) == 0.0
    assert load.growth(seen([1000] * 6 + [970] * 6)) == -3.0


def test_one_look_into_much_work_is_no_growth():
    flat = [1000.0] * 20
    flat[-2] = 1500
    assert load.growth(seen(flat)) == 0.0


def test_what_warms_a_server_up_is_no_growth():
    warming = seen([100, 300], first=0)
    assert load.growth([*warming, *seen([1000] * 8)]) == 0.0
    assert load.growth(warming) is None, "nothing was seen after it"


def test_of_what_was_seen_both_ends_are_kept():
    many = seen(range(1000))
    few = load.thinned(many, 7)
    assert len(few) == 7
    assert (few[0], few[-1]) == (many[0], many[-1])
    assert load.thinned(many[:3], 7) == many[:3]


def test_what_is_lost_swapped_or_failed_is_named():
    good = {"callers": {"lost": 0, "swapped": 0, "tracebacks": 0}, "soak": {"failed": 0}}
    assert load.broken(good) == []
    bad = {"callers": {"lost": 2, "swapped": 0, "tracebacks": 1}, "soak": {"failed": 3}}
    assert load.broken(bad) == ["callers: lost 2", "callers: tracebacks 1", "soak: failed 3"]


def test_figures_are_read_from_proc():
    status = "Name:\tpython\nVmHWM:\t 900 kB\nVmRSS:\t  812345 kB\nThreads:\t37\n"
    assert (figure(status, "VmRSS"), figure(status, "Threads")) == (812345, 37)


def test_each_request_has_its_own_seed_and_its_kinds_settings():
    assert given(3)["seed"] != given(4)["seed"]
    assert given(3, {"mode": "exact"})["mode"] == "exact"
    json.dumps(given(3))


def test_pixels_are_those_of_the_png(tmp_path):
    wanted = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(wanted).save(tmp_path / "one.png")
    assert np.array_equal(pixels((tmp_path / "one.png").read_bytes()), wanted)


def test_a_server_gets_its_own_folders_and_none_of_our_settings(monkeypatch):
    monkeypatch.setenv("CONTROLLOOP_OUTPUT", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    place = Place(Path("/load"), "soak")
    found = place.environment({"CONTROLLOOP_RESULTS_GB": "1"})
    assert "CONTROLLOOP_OUTPUT" not in found and "XDG_CACHE_HOME" not in found
    assert (found["CONTROLLOOP_RESULTS_GB"], found["HOME"]) == ("1", "/load/home")
    assert found["TMPDIR"] == found["GRADIO_TEMP_DIR"] == str(place.temporary)


@pytest.mark.parametrize("only", ["nothing", "callers,nothing"])
def test_an_unknown_part_is_named(only, capsys):
    with pytest.raises(SystemExit):
        load.main(["--only", only])
    assert (
        "no part is called 'nothing'; there are: callers, soak, uploads" in capsys.readouterr().err
    )


def test_a_cut_picture_is_not_whole(tmp_path):
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    assert faults.is_whole(tmp_path / "one.png")
    for length in (0, 20, len(data) // 2):
        (tmp_path / "cut.png").write_bytes(data[:length])
        assert not faults.is_whole(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("pictures", "sentences", "is_told"),
    [(1, ["lost"], True), (0, ["lost"], False), (1, [], False), (1, ["lost", "lost"], False)],
)
def test_a_picture_and_one_sentence_are_wanted(pictures, sentences, is_told):
    assert faults.is_told({"pictures": pictures, "sentences": sentences}) == is_told


@pytest.mark.parametrize("note", [NOT_SAVED, NOT_COPIED])
def test_sentences_about_disks_are_recognised(note):
    assert any(sign in note for sign in faults.SENTENCES)


def test_a_request_by_http_is_one_that_the_site_understands(monkeypatch):
    """Its arguments are those of the endpoint; a picture is a data URL."""
    sent = []

    def answer(request, timeout):
        sent.append(request)
        return io.BytesIO(b'{"event_id": "7"}')

    monkeypatch.setattr(_load_site.urllib.request, "urlopen", answer)
    assert _load_site.post("http://127.0.0.1:1", "canny2image", 3, _load_site.LONG) == "7"
    body = json.loads(sent[0].data)
    assert sent[0].full_url == "http://127.0.0.1:1/gradio_api/call/v2/canny2image"
    assert body.pop("image")["url"].startswith("data:image/")
    assert set(body) <= set(SETTINGS)
    settings = {"num_samples": body["num_samples"], "steps": body["steps"]}
    assert settings == {"num_samples": 12, "steps": 100}
