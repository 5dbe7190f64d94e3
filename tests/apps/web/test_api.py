"""The endpoint, called as other programs call it: gradio_client, on a running server."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import apps
from apps.web.files import new_folder
from apps.web.jobs.request import sent_result
from core.condition import Condition
from core.errors import BadInput
from core.images import read_image, resize
from core.metadata import read_controls, read_settings
from core.provenance import EDITED, GENERATED, read_claims
from tests.apps.web.conftest import PATIENCE_S, HeldRun

# It needs the whole site.
pytestmark = pytest.mark.slow

PHOTO = Path(__file__).resolve().parents[3] / "test_imgs" / "coffee.jpg"
ARGUMENTS = [
    "image", "prompt", "added_prompt", "negative_prompt", "num_samples", "image_resolution",
    "steps", "strength", "guess_mode", "guidance_scale", "seed", "eta", "low_threshold",
    "high_threshold", "preprocessor", "model", "control_start", "control_end", "sampler", "mode",
    "control_mode", "resize_mode", "denoising_strength", "mask_blur", "mask", "edit",
]  # fmt: skip


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    downloads = tmp_path_factory.mktemp("downloads")
    client = Client(address, verbose=False, download_files=downloads)
    yield client
    client.close()


def _call(client: Client, image: Any = PHOTO, **settings: Any) -> Any:
    image = handle_file(image) if isinstance(image, Path) else image
    return client.predict(image=image, api_name="/canny2image", **({"steps": 1} | settings))


def test_the_arguments_are_named_typed_and_have_defaults(client: Client) -> None:
    endpoint = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(endpoint) == [f"/{name}" for name in apps.names()]
    parameters = endpoint["/canny2image"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == ARGUMENTS
    defaults = {p["parameter_name"]: p["parameter_default"] for p in parameters[1:]}
    assert all(p["parameter_has_default"] for p in parameters[1:])
    assert defaults["model"] == "tiny" and defaults["steps"] == 2, "the model's card decides"
    assert defaults["seed"] == -1 and defaults["strength"] == 1.0
    assert defaults["preprocessor"] == "Canny" and defaults["low_threshold"] == 100
    assert defaults["mode"] == "exact"


def test_a_call_returns_map_images_maps_and_report(client: Client, canny: Condition) -> None:
    control_map, images, found, report = _call(client, prompt="the red ball", num_samples=2, seed=5)
    assert len(images) == len(found) == 2
    assert report["seeds"] == [5, 6]
    assert (report["width"], report["height"]) == (384, 256)
    assert {"model", "device", "dtype", "seconds", "warnings"} <= report.keys()
    for score in report["scores"]:
        assert 0 <= score["headline"] <= 100
        assert set(score["metrics"]) == {"F1", "F1 exact"}
    wanted = np.asarray(Image.open(control_map))
    assert wanted.shape == (256, 384, 3) and set(np.unique(wanted)) == {0, 255}
    again = canny.annotator.preprocessors[0].draw(
        read_image(images[0])[0], canny.annotator.params()
    )
    assert np.array_equal(np.asarray(Image.open(found[0])), again), "the image came back exact"
    settings, notes = read_settings(images[1], canny)
    assert (settings["seed"], settings["prompt"], notes) == (6, "the red ball", [])
    marked = [read_claims(file).source_types for file in (*images, control_map, *found)]
    assert marked == [(GENERATED,), (GENERATED,), (), (), ()]


def test_a_copy_that_failed_is_told_in_the_report(
    client: Client, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keep").write_text("a file where a folder should be")
    monkeypatch.setattr(suite, "keep", tmp_path / "keep")
    *_, report = _call(client)
    assert any("copied" in warning for warning in report["warnings"])


def test_a_fast_picture_is_another_but_nearly_the_same(client: Client) -> None:
    pictures = {}
    for mode in ("exact", "fast"):
        _, images, _, report = _call(client, seed=5, steps=8, mode=mode)
        assert report["mode"] == mode
        pictures[mode] = np.asarray(Image.open(images[0])).astype(int)
        assert read_settings(images[0])[0]["mode"] == mode
    lost = np.abs(pictures["exact"] - pictures["fast"]).mean()
    assert 0 < lost < 40  # of 255, on a model that draws noise


def test_an_image_alone_is_the_image_of_the_batch(client: Client) -> None:
    _, batch, _, _ = _call(client, num_samples=2, seed=5)
    _, alone, _, _ = _call(client, seed=6)
    first, second = (np.asarray(Image.open(files[-1])) for files in (batch, alone))
    assert np.abs(first.astype(int) - second).max() <= 1


def test_only_what_is_masked_changes(client: Client, tmp_path: Path) -> None:
    photo = read_image(PHOTO)[0]
    mask = Image.new("L", photo.shape[1::-1])
    wide, high = mask.size
    mask.paste(255, (wide // 3, high // 3, wide // 2, high // 2))
    mask.save(tmp_path / "mask.png")
    given = {"mask": handle_file(tmp_path / "mask.png"), "denoising_strength": 0.7, "steps": 4}
    _, (image,), _, report = _call(client, mode="exact", **given)
    made = read_image(image)[0]
    original = resize(photo, (made.shape[1], made.shape[0]), 256)
    changed = (made != original).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    high, wide = changed.shape
    assert high // 3 - 1 <= rows[0] and rows[-1] <= high // 2 + 1
    assert wide // 3 - 1 <= columns[0] and columns[-1] <= wide // 2 + 1
    assert changed.sum() > 0.8 * high * wide / 36
    assert report["seconds"]["encode"] > 0
    settings, _ = read_settings(image)
    assert (settings["denoising_strength"], settings["mask_blur"]) == (0.7, 4)
    assert read_claims(image).source_types == (EDITED,)


@pytest.mark.parametrize("name", ["scribble2image", "scribble2image_interactive"])
def test_a_drawing_cannot_be_changed(client: Client, name: str) -> None:
    with pytest.raises(AppError, match=r"There is no picture to change, because .* drawing"):
        client.predict(image=handle_file(PHOTO), denoising_strength=0.5, api_name=f"/{name}")


def test_a_map_goes_in_as_it_is(client: Client, tmp_path: Path) -> None:
    drawn = np.zeros((256, 256, 3), np.uint8)
    drawn[100:103] = 255
    Image.fromarray(drawn).save(tmp_path / "map.png")
    control_map, *_ = _call(client, tmp_path / "map.png", preprocessor="None")
    assert np.array_equal(np.asarray(Image.open(control_map)), drawn)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "Steps is 0"),
        ({"steps": 2.5}, "Steps must be a whole number"),
        ({"strength": 99}, "Control strength is 99"),
        ({"guidance_scale": "NaN"}, "Guidance scale must be a number"),
        ({"seed": 2**32}, "Seed is 4294967296"),
        ({"seed": "abc"}, "Seed must be a whole number"),
        ({"num_samples": 13}, "Images is 13"),
        ({"image_resolution": 4096}, "Image resolution is 4096"),
        ({"low_threshold": 0}, "Canny low threshold is 0"),
        ({"control_start": 0.8, "control_end": 0.2}, "must be less"),
        ({"model": "/etc/passwd"}, "not on offer"),
        ({"mode": "faster"}, "Mode must be one of: exact, fast"),
        ({"preprocessor": "<b>x</b>"}, "preprocessor must be one of"),
        ({"prompt": "x" * 5000}, "shorten"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_setting_is_one_sentence(client: Client, settings: dict, sentence: str) -> None:
    with pytest.raises(AppError, match=sentence) as error:
        _call(client, **settings)
    _assert_a_sentence(str(error.value))


def _bomb() -> bytes:
    memory = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(memory, "PNG")
    return memory.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("text.png", b"hello", "not an image we can read"),
        ("empty.png", b"", "empty"),
        ("half.jpg", PHOTO.read_bytes()[: PHOTO.stat().st_size // 2], "incomplete"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        ("bomb.png", _bomb(), "million pixels"),
    ],
)
def test_a_bad_file_is_one_sentence(
    client: Client, tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AppError, match=sentence) as error:
        _call(client, tmp_path / name)
    _assert_a_sentence(str(error.value))


def test_no_image_is_one_sentence(client: Client) -> None:
    with pytest.raises(AppError, match="no picture yet") as error:
        _call(client, None)
    _assert_a_sentence(str(error.value))


@pytest.mark.parametrize("image", [str(PHOTO), "https://example.com/a.png", 5, [str(PHOTO)]])
def test_a_picture_that_was_only_named_is_one_sentence(client: Client, image: Any) -> None:
    with pytest.raises(AppError, match="must be uploaded; with gradio_client, use handle_file"):
        _call(client, image)


@pytest.mark.parametrize("meta", [{"_type": "gradio.FileData"}, {"_type": "x"}, None])
@pytest.mark.parametrize("name", ["private.png", "fifo"])
def test_a_file_of_the_server_is_no_picture(
    client: Client, address: str, tmp_path: Path, meta: Any, name: str
) -> None:
    import httpx

    secret = tmp_path / name
    if name == "fifo":
        os.mkfifo(secret)
    else:
        Image.new("RGB", (64, 64), "red").save(secret)
    api = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    data = [p.get("parameter_default") for p in api["/canny2image"]["parameters"]]
    data[0] = {"path": str(secret)} | ({"meta": meta} if meta else {})
    started = httpx.post(f"{address}gradio_api/call/canny2image", json={"data": data})
    told = httpx.get(
        f"{address}gradio_api/call/canny2image/{started.json()['event_id']}", timeout=30
    )
    assert "event: error" in told.text and "event: complete" not in told.text
    assert "not an upload" in told.text
    assert httpx.get(f"{address}gradio_api/file={secret}").status_code == 403


def test_a_prompt_beyond_the_last_chunk_names_what_had_no_effect(client: Client) -> None:
    *_, report = _call(client, prompt="the red ball " * 40)
    assert not any("tokens" in warning for warning in report["warnings"])
    *_, report = _call(client, prompt="the red ball " * 201)
    assert any("600 tokens; left out: the red ball" in warning for warning in report["warnings"])


def test_a_bug_shows_an_id_and_nothing_else(
    client: Client, suite: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(suite.pipeline, "generate", broken)
    with pytest.raises(AppError) as error:
        _call(client)
    message = str(error.value)
    assert "/secret" not in message
    number = message.rstrip(".").split()[-1]
    assert number in caplog.text and "/secret/path" in caplog.text


def test_a_cancelled_call_frees_the_machine(client: Client, held: HeldRun) -> None:
    long = client.submit(
        image=handle_file(PHOTO), steps=100, num_samples=12, api_name="/canny2image"
    )
    assert held.at_work.wait(PATIENCE_S)
    long.cancel()
    held.must_stop()
    *_, report = _call(client)
    assert len(report["seeds"]) == 1


def test_all_maps_of_a_picture(client: Client, canny: Condition, ways: list[str]) -> None:
    blind, broken, seeing = ways
    files, report = client.predict(
        image=handle_file(PHOTO), names=ways, image_resolution=256, api_name="/annotator"
    )
    assert report["maps"] == [seeing] and len(files) == 1
    assert report["errors"][blind] == "The eyes are not here: fetch <them>."
    assert "/secret" not in report["errors"][broken] and "log" in report["errors"][broken]
    assert set(report["seconds"]) == set(ways)
    picture = resize(read_image(PHOTO)[0], (384, 256))
    wanted = canny.annotator.preprocessors[0].draw(picture, canny.annotator.params())
    assert wanted.any() and np.array_equal(np.asarray(Image.open(files[0])), wanted)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"names": []}, "choose at least one"),
        ({"names": ["<b>x</b>"]}, "There is no map"),
        ({"image_resolution": 4096}, "Image resolution is 4096"),
        ({"image": None}, "no picture yet"),
    ],
    ids=["none", "unknown", "size", "no picture"],
)
def test_a_bad_choice_of_maps_is_one_sentence(
    client: Client, settings: dict, sentence: str
) -> None:
    given = {"image": handle_file(PHOTO), "names": ["canny: Canny"]} | settings
    with pytest.raises(AppError, match=sentence) as error:
        client.predict(**given, api_name="/annotator")
    _assert_a_sentence(str(error.value))


def _assert_a_sentence(message: str) -> None:
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message


def _several(client: Client, **settings: Any) -> Any:
    given = {"image": handle_file(PHOTO), "control_1": "canny2image", "steps": 1, "seed": 5}
    return client.predict(api_name="/multi2image", **(given | settings))


def test_several_controls_each_with_its_picture(client: Client, canny: Condition) -> None:
    other = PHOTO.with_name("astronaut.jpg")
    maps, images, found, report = _several(
        client,
        control_2="canny2image",
        image_2=handle_file(other),
        strength_2=0.5,
        control_end_2=0.8,
        num_samples=2,
    )
    assert (len(maps), len(images), len(found)) == (2, 2, 4)
    first, second = (np.asarray(Image.open(path)) for path in maps)
    assert first.shape == second.shape == (256, 384, 3) and not np.array_equal(first, second)
    assert [len(told["controls"]) for told in report["scores"]] == [2, 2]
    headlines = [one["headline"] for one in report["scores"][1]["controls"]]
    assert report["scores"][1]["headline"] == pytest.approx(sum(headlines) / 2)
    assert any("centre-cropped" in warning for warning in report["warnings"])
    drawn = canny.annotator.preprocessors[0].draw(
        read_image(images[1])[0], canny.annotator.params()
    )
    for path in found[2:]:  # both of the second image
        assert np.array_equal(np.asarray(Image.open(path)), drawn)
    asked, notes = read_controls(images[1], {canny.name: canny})
    assert notes == [] and [one["strength"] for _, one in asked] == [1.0, 0.5]
    assert [one["own_picture"] for _, one in asked] == [False, True]


def test_each_of_several_maps_is_drawn_with_its_own_settings(
    client: Client, canny: Condition
) -> None:
    settings = {"low_threshold": 250, "high_threshold": 255}
    maps, images, *_ = _several(client, control_2="canny2image", params_2=settings)
    usual, sparse = (np.asarray(Image.open(path)) for path in maps)
    assert 0 < sparse.sum() < usual.sum() / 2
    asked, _ = read_controls(images[0], {canny.name: canny})
    assert asked[1][1]["params"] == settings


def test_one_control_of_several_is_that_app_alone(client: Client) -> None:
    maps, images, _, report = _several(client, control_2="", image=None, image_1=handle_file(PHOTO))
    _, alone, _, told = _call(client, seed=5)
    assert len(maps) == 1 and report["scores"] == told["scores"]
    assert np.array_equal(np.asarray(Image.open(images[0])), np.asarray(Image.open(alone[0])))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"control_1": "", "control_2": ""}, "No control was chosen"),
        ({"image": None}, "no picture yet"),
        ({"control_2": "<b>x</b>"}, "has no control"),
        (
            {"control_1": "mlsd2image"},
            "has no control 'mlsd2image'; it has: canny2image .Canny edges.",
        ),
        ({"control_1": ["canny2image"]}, "has no control"),
        ({"strength_1": 99}, "Control strength is 99"),
        ({"params_1": {"low_threshold": 0}}, "Canny low threshold is 0"),
        (
            {"params_1": {"<b>": 5}},
            "Canny edges has no map setting .*; it has: low_threshold, high",
        ),
        ({"params_1": [5]}, "must be given by name"),
        ({"detect_resolution_1": 5}, "Detect resolution is 5"),
        ({"control_start_1": 0.8, "control_end_1": 0.2}, "must be less"),
        ({"preprocessor_1": "<b>x</b>"}, "Canny edges: the preprocessor must be one of"),
        ({"steps": 0}, "Steps is 0"),
        ({"model": "/etc/passwd"}, "not on offer"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bad_setting_of_several_is_one_sentence(
    client: Client, settings: dict, sentence: str
) -> None:
    with pytest.raises(AppError, match=sentence) as error:
        _several(client, **settings)
    _assert_a_sentence(str(error.value))


@pytest.mark.parametrize(
    "name", ["", "../x.png", "/etc/passwd", "controlloop-0/x.png", f"controlloop-{'0' * 32}/x.png",
             f"controlloop-{'0' * 32}/../../secret.png", "x" * 100_000, "\0"],
)  # fmt: skip
def test_only_a_result_of_this_server_can_be_sent(name: str) -> None:
    with pytest.raises(BadInput, match="no longer here"):
        sent_result(name)


def test_a_result_is_sent_by_its_run_and_name_and_an_upload_is_not() -> None:
    cache = Path(get_upload_folder())
    folder = new_folder(cache)
    result, upload = folder / "canny2image-5.png", cache / ("0" * 64) / "x.png"
    for file in (result, upload):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    assert Path(sent_result(f"{folder.name}/{result.name}")).samefile(result)
    with pytest.raises(BadInput, match="no longer here"):
        sent_result(f"{upload.parent.name}/{upload.name}")
