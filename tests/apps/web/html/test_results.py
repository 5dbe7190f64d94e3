"""The page's HTML: nothing from outside becomes markup, and the figures stand where they belong."""

import base64
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import apps
from apps.batch.folder import Batch
from apps.web.files import RunFiles, SavedMaps, SavedResult, contact_sheet, save_whole
from apps.web.html import results
from apps.web.html.comparison import Side, versus
from apps.web.html.many import many
from apps.web.sheet import TILE
from apps.web.tool import Tool
from core.condition import Condition, Score
from core.picture_folder import Row
from core.provenance import COMPOSITE, EDITED, GENERATED, read_claims
from core.request import ControlResult, Download, GenerationRequest, GenerationResult, Progress
from models.registry import Registry

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)}"


def _result(condition: Condition, *headlines: float) -> GenerationResult:
    picture = np.zeros((64, 128, 3), np.uint8)
    control_map = picture.copy()
    control_map[32] = 255
    count = len(headlines)
    return GenerationResult(
        images=(picture,) * count,
        controls=(
            ControlResult(
                condition,
                control_map,
                reextracted=(picture,) * count,
                scores=tuple(Score(h, "F1", {"F1": h / 100, "F1 exact": 0.25}) for h in headlines),
            ),
        ),
        seeds=tuple(range(7, 7 + count)),
        seconds={"sample": 1.5},
        warnings=(),
        request=GenerationRequest.single(condition, picture, params=condition.annotator.params()),
        model="tiny",
        device="cpu",
        dtype="float32",
        width=128,
        height=64,
        hashes={},
        cancelled=False,
    )


def _saved(count: int) -> SavedResult:
    paths = tuple(Path(f"/cache/{i}.png") for i in range(count))
    wanted = Path("/cache/map.png")
    return SavedResult(paths, (SavedMaps(wanted, paths, wanted, paths),))


def test_a_card_shows_score_metric_and_seed(canny: Condition) -> None:
    page = results.results(_result(canny, 81.6), _saved(1))
    assert re.search(r'class="cl-score".*?<b>82</b>', page, re.DOTALL)
    assert "F1 0.816" in page and "F1 exact 0.25" in page
    assert "<code>7</code>" in page
    assert page.count("<img") == 3


def test_an_empty_map_has_no_score(canny: Condition) -> None:
    made = _result(canny, 100.0)
    empty = replace(made.controls[0], control_map=made.images[0])
    page = results.results(replace(made, controls=(empty,)), _saved(1))
    assert "<b>–</b>" in page and "100</b>" not in page and "the control map is empty" in page
    one_side = Side("Tiny", replace(made, controls=(empty,)), _saved(1))
    assert "<b>–</b>" in versus([one_side]) and "100 / 100" not in versus([one_side])
    both = replace(made, controls=(empty, _result(canny, 40.0).controls[0]))
    assert both.headlines == (40.0,), "the mean of the maps that ask for something"
    assert replace(made, controls=(empty, empty)).headlines == (100.0,)


def test_a_score_has_its_scale_where_it_was_measured(canny: Condition) -> None:
    references = {"canny": (7.93, 76.42)}
    page = results.results(_result(canny, 49.0), _saved(1), references=references)
    assert "scores <b>8</b> without the control, and <b>76</b> is the most" in page
    assert "cl-scale" not in results.results(_result(canny, 49.0), _saved(1))
    other = {"depth": (1.0, 2.0)}
    assert "cl-scale" not in results.results(_result(canny, 49.0), _saved(1), references=other)
    made = _result(canny, 100.0)
    empty = replace(made, controls=(replace(made.controls[0], control_map=made.images[0]),))
    assert "cl-scale" not in results.results(empty, _saved(1), references=references)


def test_the_home_page_groups_the_apps_and_repeats_no_picture() -> None:
    found = [apps.find(name) for name in apps.names()]
    cards = Registry().cards()
    diorama = next(one for one in cards if one.name == "diorama")
    page = results.home(found, Path(__file__).parents[4] / "pictures", diorama, cards)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Draw", "Start from a photograph", "Tools"]
    shown = re.findall(r'<img src="([^"]+)"', page)
    assert len(shown) == len(set(shown)) == len(found)
    (sentence,) = re.findall(r'class="cl-model">(.*?)</p>', page, re.DOTALL)
    assert "<b>Diorama</b>" in sentence and "--model sd15<" in sentence and ". " not in sentence


def test_the_map_of_several_images_stands_once(canny: Condition) -> None:
    page = results.results(_result(canny, 20.0, 90.0, 50.0), _saved(3))
    assert page.count("<img") == 1 + 3 * 2
    two = _result(canny, 20.0, 90.0)
    several = replace(two, controls=two.controls * 2)
    page = results.results(several, replace(_saved(2), maps=_saved(2).maps * 2))
    assert page.count("<img") == 2 + 2 * (1 + 2)


def test_images_are_shown_while_more_are_made(canny: Condition) -> None:
    made = _result(canny, 20.0, 90.0)
    request = replace(made.request, num_samples=5)
    page = results.so_far(replace(made, request=request), _saved(2))
    assert "2 of 5 images" in page and page.count("data:image/jpeg") == 2
    assert page.count("<figure") == 5 == results.to_come(request).count("<figure"), "room for all"
    assert "<b>20</b>" in page and "seed <code>8</code>" in page
    assert 'href="gradio_api/file=/cache/1.png"' in page


def test_a_batch_has_places_for_what_is_to_come(tmp_path: Path) -> None:
    rows = [Row(name, tmp_path / name, "") for name in ("a.png", "b.png")]
    batch = Batch(rows, {"c.png": "It is damaged."})
    assert many(batch, tmp_path).count("cl-to-come") == 2
    assert "cl-to-come" not in many(batch, tmp_path, {}), "at the end, also if it was stopped"


def test_everything_of_a_run_is_in_one_archive(canny: Condition, tmp_path: Path) -> None:
    result = _result(canny, 20.0, 90.0)
    (whole,) = save_whole([(result, RunFiles(tmp_path))])
    assert whole.archive and whole.sheet
    with ZipFile(whole.archive) as archive:
        names = set(archive.namelist())
        assert names == {
            "canny2image-7.png", "canny2image-8.png", "canny2image-control-map.png",
            "canny2image-7-reextracted.png", "canny2image-8-reextracted.png",
            "contact-sheet.png", "report.json",
        }  # fmt: skip
        report = json.loads(archive.read("report.json"))
        assert archive.read("canny2image-7.png") == whole.images[0].read_bytes()
        kinds = {one: read_claims(archive.read(one)).source_types for one in names if "png" in one}
    assert kinds.pop("contact-sheet.png") == (COMPOSITE,)
    assert {name for name, kind in kinds.items() if kind == (GENERATED,)} == {
        "canny2image-7.png", "canny2image-8.png",
    }, "a map shows no generated picture"  # fmt: skip
    assert not any(kind for name, kind in kinds.items() if "map" in name or "reextr" in name)
    assert report["files"] == ["canny2image-7.png", "canny2image-8.png"]
    assert report["seeds"] == [7, 8]
    page = results.results(result, whole)
    assert 'download="controlloop.zip"' in page and 'download="contact-sheet.png"' in page
    one = _result(canny, 20.0)
    (whole,) = save_whole([(one, RunFiles(tmp_path))])
    assert whole.sheet is None


def test_pictures_inside_the_page_are_marked_too_and_maps_are_not(canny: Condition) -> None:
    made = _result(canny, 20.0)
    changed = replace(made, request=replace(made.request, denoising_strength=0.5))
    for result, kind in ((made, GENERATED), (changed, EDITED)):
        (small,) = _inlined(results.so_far(result, _saved(1)))
        picture, *maps = _inlined(results.live(result))
        assert read_claims(small).source_types == read_claims(picture).source_types == (kind,)
        assert [read_claims(one).source_types for one in maps] == [(), ()]


def _inlined(page: str) -> list[bytes]:
    return [base64.b64decode(one) for one in re.findall(r"base64,([^\"]+)", page)]


def test_two_models_share_an_archive(canny: Condition, tmp_path: Path) -> None:
    first = _result(canny, 20.0)
    pair = [(one, RunFiles(tmp_path)) for one in (first, replace(first, model="other"))]
    whole = save_whole(pair)
    with ZipFile(whole[0].archive) as archive:
        assert {"tiny/canny2image-7.png", "other/canny2image-7.png"} <= set(archive.namelist())
    sides = [Side("A", pair[0][0], whole[0]), Side("B", pair[1][0], whole[1])]
    assert 'download="controlloop.zip"' in versus(sides)


@given(count=st.integers(1, 12), size=st.tuples(st.integers(64, 300), st.integers(64, 300)))
@settings(max_examples=15, deadline=None)
def test_a_contact_sheet_holds_every_image(
    canny: Condition, count: int, size: tuple[int, int]
) -> None:
    made = _result(canny, *[50.0] * count)
    red = np.zeros((*size, 3), np.uint8) + np.uint8([255, 0, 0])
    sheet = contact_sheet(replace(made, images=(red,) * count))
    long = max(size)
    area = size[0] * size[1] * min(1, TILE / long) ** 2
    found = (sheet == [255, 0, 0]).all(axis=2).sum()
    assert found == pytest.approx(count * area, rel=0.03)


def test_cards_stand_as_made_and_know_their_rank(canny: Condition) -> None:
    page = results.results(_result(canny, 20.0, 90.0, 50.0), _saved(3))
    assert re.findall(r"--rank:(\d)", page) == ["2", "0", "1"]
    assert re.findall(r"<code>(\d)</code>", page) == ["7", "8", "9"]


def test_a_copy_that_failed_is_told_among_the_warnings(canny: Condition) -> None:
    page = results.results(_result(canny, 50.0), replace(_saved(1), note="No copy was taken."))
    assert "<li>No copy was taken.</li>" in page
    assert "<li>" not in results.results(_result(canny, 50.0), _saved(1))


def test_a_card_leads_to_the_apps_that_take_its_picture(canny: Condition) -> None:
    page = results.results(_result(canny, 50.0), _saved(1), [replace(canny, name="other")])
    assert 'href="other?from=cache/0.png"' in page and 'target="_blank"' in page
    assert "Send to" not in results.results(_result(canny, 50.0), _saved(1))


def test_a_control_map_leads_to_the_apps_that_take_it(canny: Condition) -> None:
    tool = next(app for app in map(apps.find, apps.names()) if isinstance(app, Tool))
    page = results.results(_result(canny, 50.0), _saved(1), [canny, tool])
    link = f'href="{canny.name}?from=cache/0.png&amp;map=cache/map.png"'
    assert page.count(link) == 1 and f'href="{tool.name}?from=cache/0.png"' in page
    assert f"{tool.name}?from=cache/0.png&amp;map" not in page, "its input is no map"
    assert "Use this map" not in results.results(_result(canny, 50.0), _saved(1))


def test_no_address_leaves_a_proxys_path(canny: Condition) -> None:
    """One that begins with / would, and the pages may stand below any path."""
    found = [apps.find(name) for name in apps.names()]
    card = next(iter(Registry().cards()))
    home = results.home(found, Path(__file__).parents[4] / "pictures", card, [card])
    for page in (home, results.results(_result(canny, 50.0), _saved(1), found)):
        addresses = re.findall(r'(?:href|src|url)[=(]["\']?([^"\')]+)', page)
        assert any("gradio_api/file=" in one for one in addresses)
        assert not [one for one in addresses if one.startswith("/")]


def test_several_controls_stand_each_with_its_maps_and_score(canny: Condition) -> None:
    first, second = _result(canny, 40.0).controls[0], _result(canny, 80.0).controls[0]
    hostile = replace(second, condition=replace(canny, title=HOSTILE))
    result = replace(_result(canny, 40.0), controls=(first, hostile))
    saved = replace(_saved(1), maps=_saved(1).maps * 2)
    page = results.results(result, saved)
    assert re.findall(r'cl-score".*?<b>(\d+)</b>', page, re.DOTALL) == ["60", "40", "80"]
    assert page.count('class="cl-made"') == 1 and page.count("Re-extracted</span>") == 4
    assert "<img src=x" not in page and "&lt;img" in page


def test_no_level_of_headings_is_skipped(canny: Condition) -> None:
    one, saved = _result(canny, 40.0), _saved(1)
    several = replace(one, controls=one.controls * 2)
    for page in (
        results.empty(canny),
        results.EMPTY_MAPS,
        results.results(one, saved),
        results.results(several, replace(saved, maps=saved.maps * 2)),
        results.maps([], [], 1),
        versus([Side("One", one, saved), Side("Two")]),
    ):
        levels = [int(level) for level in re.findall(r"<h(\d)", page)]
        assert levels[0] == 2, "below the page's own"
        assert all(later <= before + 1 for before, later in pairwise(levels))


def test_text_from_outside_stays_text(canny: Condition) -> None:
    result = replace(_result(canny, 50.0), warnings=(HOSTILE,))
    for page in (
        results.results(result, _saved(1)),
        results.note(HOSTILE),
        results.maps([], [], 1, [HOSTILE]),
        results.restored_note([HOSTILE], [HOSTILE]),
        results.running(Progress(HOSTILE, 1, 2, 0, None, None), 1),
    ):
        assert "<img src=x" not in page and "&lt;img" in page


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 run is ahead of this one"), (3, "3 runs are ahead of this one")]
)
def test_who_waits_sees_how_many_are_ahead(count: int, words: str) -> None:
    report = Progress("wait", 0, 20, 0, None, None, ahead=count)
    assert words in results.running(report, 1)
    assert results.progress_words(report) == f"Waiting for the machine: {words}"


def test_progress_counts_all_images() -> None:
    page = results.running(Progress("sample", 10, 20, 1, 75.0, None), 2)
    assert "image 2 of 2 · step 10 of 20 · about 75\N{NO-BREAK SPACE}s left" in page
    assert "width:75%" in page


@pytest.mark.parametrize(
    ("here", "whole", "seconds", "sentence"),
    [
        (1.2e9, 5e9, 185, "Downloading Far: 1.2 of 5.0 GB, about 3 minutes left"),
        (1.2e9, 5e9, None, "Downloading Far: 1.2 of 5.0 GB"),
        (120e6, 723e6, 40, "Downloading Far: 120 of 723 MB, about 40 seconds left"),
        (0.1e9, 5e9, 7300, "Downloading Far: 0.1 of 5.0 GB, about 2 hours left"),
    ],
)
def test_a_download_is_one_sentence_and_a_bar(
    here: float, whole: float, seconds: float | None, sentence: str
) -> None:
    download = Download("Far", int(here), int(whole))
    shown = results.running(Progress("download", 0, 20, 0, seconds, None, download), 1)
    assert f"<b>{sentence}</b>" in shown and f"width:{100 * here / whole:.0f}%" in shown


def test_files_are_exact_and_kept_apart(canny: Condition, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    result = replace(_result(canny, 50.0), images=(noise,))
    first = RunFiles(tmp_path / "cache", tmp_path / "keep").save(result)
    second = RunFiles(tmp_path / "cache").save(result)
    assert np.array_equal(np.asarray(Image.open(first.images[0])), noise)
    assert first.images[0].parent != second.images[0].parent
    maps = first.maps[0]
    assert maps.shown_map == maps.control_map, "a map shown as it is needs no second file"
    kept = list((tmp_path / "keep").iterdir())
    assert [path.read_bytes() for path in kept] == [first.images[0].read_bytes()]


def test_an_empty_page_says_what_to_do_first(canny: Condition) -> None:
    assert "Add a picture" in results.empty(canny)
    assert "Draw something" in results.empty(replace(canny, input="canvas"))
    assert "Add a drawing" in results.empty(replace(canny, input="drawing"))


@pytest.mark.parametrize(
    "name", ["fake_scribble2image", "scribble2image", "scribble2image_interactive"]
)
def test_a_drawings_score_stands_beside_those_of_made_scribbles(name: str) -> None:
    app = apps.find(name)
    assert isinstance(app, Condition)
    result = _result(app, 50.0)
    shown = results._what_scores_mean(result, {"fake_scribble": (39.6, 97.97)})
    assert "scores <b>40</b> without the control, and <b>98</b> is the most" in shown
    assert ("not by hand" in shown) == (app.input != "photo")
    assert results._what_scores_mean(result, {"canny": (8.0, 76.0)}) == ""
