"""A folder of one's own pictures: read as the app reads them, checked before the first step."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from annotators import find_annotator
from core.images import read_image
from models.catalog.paths import MODELS
from tests.tiny_networks import save_networks, tiny_networks
from training import train_control
from training.examples import FolderExamples, bucket, with_maps
from training.train_base import cached_latents


def manifest(folder, *rows):
    (folder / "prompt.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pairs(folder, count):
    rows = []
    for k in range(count):
        for name, picture in (
            (f"t{k}.png", Image.new("RGB", (16, 16), (k * 90, 200 - k * 90, 30))),
            (f"s{k}.png", Image.fromarray(np.eye(16, dtype=np.uint8) * 255)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / name)
        rows.append({"source": f"s{k}.png", "target": f"t{k}.png", "prompt": "a red ball"})
    return rows


def one(folder, name, condition="canny", side=64):
    row = {"source": name, "target": name, "prompt": ""}
    return FolderExamples(manifest(folder, row), find_annotator(condition), side)


def test_sixteen_bit_maps_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "m.png")
    data = one(tmp_path, "m.png", "depth")
    assert data.maps([0])[0, 0, ::21, 0].tolist() == [0, 85, 170, 255]
    assert np.array_equal(data.batch([0])[0], read_image(tmp_path / "m.png")[0])


def test_a_turned_photograph_is_upright(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:, 32:, 2] = 255, 255
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(pixels).save(tmp_path / "t.jpg", exif=exif, quality=95)
    assert np.array_equal(one(tmp_path, "t.jpg").batch([0])[0], read_image(tmp_path / "t.jpg")[0])


def test_transparent_is_paper_in_a_picture_and_nothing_in_a_map(tmp_path):
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[..., 1], layer[16:48, 16:48] = 255, (255, 0, 0, 255)
    Image.fromarray(layer).save(tmp_path / "t.png")
    data = one(tmp_path, "t.png", "pose")
    assert data.batch([0])[0, 0, 0].tolist() == [255, 255, 255]
    assert data.maps([0])[0, 0, 0].tolist() == [0, 0, 0]


def test_latents_follow_the_pictures_and_their_order(tmp_path):
    rows = pairs(tmp_path, 2)

    def latents(*rows):
        data = FolderExamples(manifest(tmp_path, *rows), find_annotator("canny"), 64)
        return torch.stack(cached_latents(tmp_path, data, vae, "cpu")).float()

    vae = AutoencoderTiny.from_pretrained(MODELS / "diorama" / "vae")

    first, swapped = latents(*rows), latents(*rows[::-1])
    assert (first[0] - first[1]).abs().max() > 0.3
    assert (swapped - first.flip(0)).abs().max() < 0.1
    Image.new("RGB", (16, 16), "white").save(tmp_path / "t0.png")
    assert (latents(*rows)[0] - first[0]).abs().max() > 0.3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_networks(tiny_networks("tiny"), tmp_path_factory.mktemp("base"))


def refusal(folder, base, capsys):
    few = ["--steps", "1", "--batch", "1", "--size", "64", "--device", "cpu"]
    out = folder.parent / "run"
    with pytest.raises(SystemExit) as refused:
        train_control.main([*few, "--folder", f"{folder}", "--base", f"{base}", "--out", f"{out}"])
    assert not out.exists()
    return str(refused.value)


def test_what_cannot_be_used_is_named_before_the_first_step(base, tmp_path, capsys):
    folder = tmp_path / "f"
    rows = pairs(folder, 3)
    manifest(folder, *rows)
    whole = (folder / "s1.png").read_bytes()
    (folder / "s1.png").write_bytes(whole[:-30])
    assert "s1.png: The picture is incomplete" in refusal(folder, base, capsys)
    (folder / "s1.png").unlink()
    assert "line 2 of prompt.json: There is no file s1.png." in refusal(folder, base, capsys)
    manifest(folder, *({"source": row["source"], "target": row["target"]} for row in rows))
    assert 'It has no text "prompt"' in refusal(folder, base, capsys)
    (folder / "prompt.json").unlink()
    rows = ({"file_name": row["target"]} for row in rows)
    maps = ({"conditioning_image": "s0.png"}, {}, {})
    lines = [json.dumps(row | one) for row, one in zip(rows, maps, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert "has no control map: run `python -m annotators canny`" in refusal(folder, base, capsys)


def test_maps_are_drawn_where_a_folder_has_none_and_again_when_a_picture_changes(tmp_path):
    folder, canny = tmp_path / "f", find_annotator("canny")
    folder.mkdir()
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    Image.fromarray(square).save(folder / "a.png")
    (folder / "a.txt").write_text("a white square")
    first = with_maps(folder, canny, 64, tmp_path / "run")
    data = FolderExamples(first, canny, 64)
    assert (
        data.captions == ["a white square"] and 100 < (data.maps([0])[0, :, :, 0] > 0).sum() < 200
    )
    assert np.array_equal(data.batch([0])[0], square)
    assert with_maps(folder, canny, 64, tmp_path / "run") == first
    Image.fromarray(square[:, ::-1] // 2).save(folder / "a.png")
    again = FolderExamples(with_maps(folder, canny, 64, tmp_path / "run"), canny, 64)
    assert again.batch([0]).max() == 127


def test_pictures_keep_their_shape_in_buckets(tmp_path):
    shapes = {"wide": (160, 80), "tall": (70, 140), "square": (90, 90)}
    rows = []
    for name, shape in shapes.items():
        Image.new("RGB", shape, "teal").save(tmp_path / f"{name}.png")
        rows.append({"source": f"{name}.png", "target": f"{name}.png", "prompt": ""})
    data = FolderExamples(manifest(tmp_path, *rows), find_annotator("canny"), 64, multiple=16)
    assert data.sizes == [(80, 48), (48, 80), (64, 64)]  # 96 x 32 is further from 2 : 1
    assert [data.batch([k]).shape[1:3] for k in range(3)] == [(48, 80), (80, 48), (64, 64)]
    assert data.maps([0]).shape == (1, 48, 80, 3)


def test_a_check_reads_every_row_and_names_the_bad_ones(base, tmp_path, capsys):
    folder, out = tmp_path / "f", tmp_path / "run"
    manifest(folder, *pairs(folder, 5))
    check = ["--check", "--folder", f"{folder}", "--base", f"{base}", "--out", f"{out}"]
    train_control.main(check)
    assert "5 of 5 pictures" in capsys.readouterr().out
    with Image.open(out / "check.png") as sheet:
        assert sheet.size == (8 * 128, 2 * 128)
        colours = [sheet.getpixel((128 * k + 64, 64)) for k in range(3)]
    assert colours == [(0, 200, 30), (90, 110, 30), (180, 20, 30)]
    whole = (folder / "t1.png").read_bytes()
    (folder / "t1.png").write_bytes(whole[:-30])
    Image.new("RGB", (16, 32)).save(folder / "s3.png")
    with pytest.raises(SystemExit):
        train_control.main(check)
    told = capsys.readouterr().out
    assert "t1.png: " in told and "incomplete" in told and "3 of 5 pictures" in told
    assert "t3.png: Its map has another shape, 16 x 32 pixels" in told
    assert "3 have a caption; maps of canny are from the folder, 0 are empty" in told


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([64, 256, 512]))
def test_a_bucket_is_no_larger_than_the_square(width, height, size):
    multiple = 64 if size == 512 else 32
    wide, high = bucket(width, height, size, multiple)
    assert wide % multiple == high % multiple == 0 and wide * high <= size * size
    assert (wide >= high) == (width >= height) or wide == high
    if width == height:
        assert (wide, high) == (size, size)


def test_each_folder_and_base_has_a_run_of_its_own(tmp_path):
    names = {
        train_control._options(["--folder", f"{tmp_path / one}", "--base", base]).out
        for one in ("a", "b")
        for base in ("diorama", "sd15", "/models/sd15")
    }
    assert len(names) == 6 and str(train_control._options([]).out) == "runs/control-canny"
