"""ControlNet++'s protocol: its metrics, its data, and a whole run on small random networks.

DPT-Large and Mask2Former are small and random, but have the interface of the real ones; they lie
where a user would put them.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
)

from annotators import _pretrained, find_annotator, pose
from annotators.seg import as_map, map_colours, palette
from benchmarks import _controlnetpp, _controlnetpp_metrics, _quality, _trained, controllability
from core.errors import BadInput, SuiteError, WeightsMissing
from core.images import grey_map
from models.store import Store
from tests.conftest import CARD
from tests.tiny_networks import save_networks, tiny_networks, tiny_tokenizer
from training.weights import save_module

CONTROLS = ("canny", "depth", "seg")


def lines(*rows):
    return grey_map(np.array(rows, np.uint8) * 255)


def classes(*rows):
    return as_map(np.array(rows, np.uint8))


# The metrics


def test_f1_pools_the_images_of_a_caption():
    target = lines([1, 1, 0, 0])
    extracted = [lines([1, 1, 0, 0]), lines([0, 0, 1, 1])]  # alone: 100 and 0
    assert _controlnetpp_metrics.pooled_f1(target, extracted) == pytest.approx(50)
    assert _controlnetpp_metrics.pooled_f1(
        target, [lines([1, 0, 1, 0]), lines([0] * 4)]
    ) == pytest.approx(100 * 2 / (2 * 1 + 1 + 3))
    assert _controlnetpp_metrics.pooled_f1(lines([0]), [lines([0])]) == 0  # as torchmetrics has it


def test_rmse_is_in_grey_levels_and_averaged_over_the_images():
    target = grey_map(np.full((2, 2), 100, np.uint8))
    extracted = [grey_map(np.full((2, 2), level, np.uint8)) for level in (110, 70)]
    assert _controlnetpp_metrics.mean_rmse(target, extracted) == pytest.approx(20)


def test_miou_is_over_all_pictures_for_each_image_in_turn():
    # Class 0 in both pictures, class 1 in the second only; the first images are perfect.
    first, second = classes([0, 0, 0, 0]), classes([0, 0, 1, 1])
    statistics = [
        _controlnetpp_metrics.class_overlaps(first, [first, classes([0, 0, 1, 1])]),
        _controlnetpp_metrics.class_overlaps(second, [second, classes([0, 0, 0, 0])]),
    ]
    # Second images: class 0 has intersection 2 + 2 and union 4 + 4, class 1 has 0 and 2 + 2.
    assert _controlnetpp_metrics.miou(statistics) == pytest.approx(100 * (1 + (0.5 + 0) / 2) / 2)


def test_black_pixels_of_a_target_are_ignored():
    target = classes([0, 0, 1, 1])
    target[0, 2:] = 0
    assert _controlnetpp_metrics.miou(
        [_controlnetpp_metrics.class_overlaps(target, [classes([0, 0, 2, 0])])]
    ) == pytest.approx(100)


def test_ms_ssim_of_equal_maps_is_one():
    soft = grey_map(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8))
    assert _controlnetpp_metrics.mean_ms_ssim(soft, [soft, soft]) == pytest.approx(1)
    assert _controlnetpp_metrics.mean_ms_ssim(soft, [255 - soft]) < 0.1


# The data


def save_picture(path, level=0):
    picture = np.full((64, 96, 3), level, np.uint8)
    picture[16:48, 24:72] = 255 - level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def test_captions_are_in_text_files_or_in_prompt_json(tmp_path):
    for name in ("b.jpg", "a.png"):
        save_picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("a box\n")
    (tmp_path / "README.md").write_text("no picture")
    assert [(e.path.name, e.caption) for e in _controlnetpp.read_folder(tmp_path)] == [
        ("a.png", "a box"),
        ("b.jpg", ""),
    ]
    line = {"source": "source/b.png", "target": "b.jpg", "prompt": "another"}
    (tmp_path / "prompt.json").write_text(json.dumps(line) + "\n\n")
    (only,) = _controlnetpp.read_folder(tmp_path)
    assert (only.path, only.caption) == (tmp_path / "b.jpg", "another")


@pytest.mark.parametrize("text", ["no json", "[1]", '{"target": "a.png"}', "7"])
def test_a_malformed_prompt_json_is_named(tmp_path, text):
    (tmp_path / "prompt.json").write_text(text)
    with pytest.raises(BadInput, match=r"prompt\.json must have one JSON object per line"):
        _controlnetpp.read_folder(tmp_path)


def test_a_caption_in_another_encoding_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_bytes("Kätzchen".encode("latin-1"))
    with pytest.raises(BadInput, match=r"cat\.txt is not UTF-8"):
        _controlnetpp.read_folder(tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="There are no pictures in"):
        _controlnetpp.read_folder(tmp_path)


def test_a_picture_is_resized_without_its_aspect_ratio(tmp_path):
    save_picture(tmp_path / "a.png")
    square = _controlnetpp.load_square(tmp_path / "a.png")
    assert square.shape == (512, 512, 3)
    assert (square[256, 140:370] == 255).all()  # the middle half, as in the picture
    with pytest.raises(BadInput, match=r"b\.png does not exist"):
        _controlnetpp.load_square(tmp_path / "b.png")


# DPT-Large and Mask2Former


@pytest.fixture
def extractors(monkeypatch, tmp_path):
    """An empty folder for their weights."""
    monkeypatch.setattr(_pretrained, "FOLDER", tmp_path / "extractors")
    _pretrained._transformer.cache_clear()
    yield tmp_path / "extractors"
    _pretrained._transformer.cache_clear()


def save_depth_network(folder):
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16,
        image_size=64, patch_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    DPTForDepthEstimation(config).save_pretrained(folder / "dpt-large")
    DPTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "dpt-large")


def save_class_network(folder):
    folder /= "mask2former-swin-large-ade-semantic"
    swin = SwinConfig(
        image_size=64, embed_dim=16, depths=[1] * 4, num_heads=[2] * 4, window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=4, num_queries=8, num_labels=150,
    )  # fmt: skip
    torch.manual_seed(0)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(
        folder
    )


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)


def test_depth_is_stretched_and_that_of_results_divided_by_its_largest(
    extractors, picture, monkeypatch
):
    save_depth_network(extractors)
    assert _controlnetpp_metrics.predict_depth(picture).shape == (96, 128)
    monkeypatch.setattr(
        _controlnetpp_metrics, "predict_depth", lambda _: np.array([[2.0, 3.0, 4.0]], np.float32)
    )
    assert _controlnetpp_metrics.draw_depth(picture, None)[0, :, 0].tolist() == [0, 128, 255]
    assert _controlnetpp_metrics.draw_generated_depth(picture, None)[0, :, 0].tolist() == [
        128,
        191,
        255,
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_depth_that_is_not_finite_is_refused(picture, monkeypatch, value):
    broken = np.array([[2.0, value, 4.0]], np.float32)
    monkeypatch.setattr(_controlnetpp_metrics, "predict_depth", lambda _: broken)
    for draw in (_controlnetpp_metrics.draw_depth, _controlnetpp_metrics.draw_generated_depth):
        with pytest.raises(SuiteError, match="NaN or infinite"):
            draw(picture, None)


def test_classes_are_in_the_palette_and_at_the_picture_s_size(extractors, picture):
    save_class_network(extractors)
    drawn = _controlnetpp_metrics.draw_classes(picture, None)
    assert drawn.shape == picture.shape
    known = {tuple(colour) for colour in map_colours().tolist()}
    assert {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()} <= known


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (_controlnetpp_metrics.draw_depth, "dpt-large"),
        (_controlnetpp_metrics.draw_classes, "mask2former"),
    ],
)
def test_missing_weights_are_one_sentence(extractors, picture, draw, name):
    with pytest.raises(WeightsMissing, match=f"{name}.* needs model.safetensors .* put them into"):
        draw(picture, None)


# The benchmark


def test_the_settings_are_the_papers():
    settings = {
        name: _controlnetpp.SETTINGS[name] for name in ("steps", "guidance_scale", "num_samples")
    }
    assert settings == {"steps": 20, "guidance_scale": 7.5, "num_samples": 4}
    assert (_controlnetpp.SIDE, _controlnetpp.SETTINGS["image_resolution"]) == (512, 512)
    assert _controlnetpp.SETTINGS["negative_prompt"] == "worst quality, low quality"
    assert _controlnetpp.SETTINGS["added_prompt"] == ""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small random model, tiny, with three controls; few steps at a small size."""
    folder = tmp_path / "models"
    save_networks(tiny_networks(controls=CONTROLS), folder / "tiny")
    (folder / "tiny.toml").write_text(CARD, encoding="utf-8")
    monkeypatch.setattr(controllability, "Store", lambda *_: Store("cpu", "float32", folder))
    for name, value in (("steps", 1), ("num_samples", 2), ("image_resolution", 256)):
        monkeypatch.setitem(_controlnetpp.SETTINGS, name, value)
    monkeypatch.setattr(_controlnetpp, "IMAGES", 2)
    monkeypatch.setattr(_controlnetpp, "SIDE", 256)
    return "tiny"


def run(folder, capsys, *more, model="tiny"):
    options = ["--model", model, "--protocol", "controlnet++", "--data", str(folder), "--json"]
    code = controllability.main([*options, "--out", str(folder.parent / "out"), *more])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), out, err


@pytest.mark.slow
def test_the_json_follows_the_contract_with_the_papers_results(model, extractors, tmp_path, capsys):
    save_depth_network(extractors)
    save_class_network(extractors)
    for name in ("one", "two"):
        save_picture(tmp_path / "data" / f"{name}.png")
    sheet = tmp_path / "sheet.png"
    code, result, out, _ = run(tmp_path / "data", capsys, "--sheet", str(sheet))
    assert code == 0 and result["protocol"] == "controlnet++" and result["scenes"] == 2
    assert (result["guidance_scale"], result["resolution"], result["images"]) == (7.5, 256, 2)
    assert {"model", "steps", "autoencoder_psnr", "prompt_colour_accuracy"} < result.keys()
    assert list(result["conditions"]) == list(result["published"]) == list(CONTROLS)
    for name, summary in result["conditions"].items():
        assert summary["metric"] == _controlnetpp_metrics.EVALUATIONS[name].metric
        assert summary["strength"].keys() == {"1"} and summary["pictures"] == 2
        assert summary["headline"].keys() == {"oracle", "1"}
        assert summary["fid"] == summary["clip"] == {"1": None}  # their networks are not here
    assert result["published"]["canny"]["ControlNet++"] == 37.04
    assert "published: ControlNet 34.65  ControlNet++ 37.04  CPO 39.28" in out
    assert "(lower is better)" in out and "others' repetitions differ by up to 1.5" in out
    assert "FID is not measured: it needs NVIDIA's inception-2015-12-05.pt in" in out
    assert result["not_measured"].keys() == {"FID", "CLIP"} and result["resumed"] == 0
    with Image.open(sheet.with_name("sheet-seg.png")) as picture:
        assert picture.size == (4 * 256, 2 * 256)


@pytest.mark.slow
def test_the_folders_own_maps_are_used(model, extractors, tmp_path, capsys):
    save_class_network(extractors)
    save_picture(tmp_path / "data" / "one.png")
    save_picture(tmp_path / "data" / "two.png")
    (tmp_path / "data" / "seg").mkdir()
    wall = np.broadcast_to(palette()[1][0], (40, 40, 3)).astype(np.uint8)
    Image.fromarray(wall).save(tmp_path / "data" / "seg" / "one.png")
    sheet = tmp_path / "sheet.png"
    more = ("--conditions", "seg", "--sheet", str(sheet))
    code, result, _, err = run(tmp_path / "data", capsys, *more)
    assert (np.asarray(Image.open(sheet.with_name("sheet-seg.png")))[:, 256:512] == 120).all()
    assert code == 1 and list(result["failed"]) == ["two.png"]
    assert err.splitlines()[-1].startswith("two.png: ") and "does not exist" in err
    assert result["conditions"]["seg"]["pictures"] == 1


@pytest.mark.slow
def test_failures_do_not_stop_the_rest(model, extractors, tmp_path, capsys):
    save_picture(tmp_path / "data" / "one.png")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG")
    code, result, _, err = run(tmp_path / "data", capsys, "--conditions", "depth,hed,canny")
    assert code == 1 and result["failed"].keys() == {"depth", "hed", "broken.png"}
    assert "dpt-large needs model.safetensors" in result["failed"]["depth"]
    assert "has no ControlNet 'hed'" in result["failed"]["hed"]
    assert result["conditions"]["canny"]["pictures"] == 1
    assert "Traceback" not in err


def test_a_condition_that_the_paper_does_not_measure_is_refused(model, tmp_path, capsys):
    save_picture(tmp_path / "one.png")
    with pytest.raises(SystemExit):
        run(tmp_path, capsys, "--conditions", "mlsd")
    assert (
        "This protocol does not measure 'mlsd': choose among canny, hed" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        controllability.main(["--protocol", "controlnet++"])
    assert "needs --data DIR" in capsys.readouterr().err


# Interruptions


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_as_if_unbroken(model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "data"
    for level, name in enumerate(("one", "two", "three")):
        save_picture(folder / f"{name}.png", 40 * level)
    options = ("--conditions", "canny", "--sheet", str(tmp_path / "sheet.png"))
    _, whole, *_ = run(folder, capsys, *options, "--out", str(tmp_path / "whole"))
    sheet = (tmp_path / "sheet-canny.png").read_bytes()

    measure, measured = _controlnetpp._Evaluator._measure, []

    def break_after_two(self, example, *rest):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(example.path.name)
        return measure(self, example, *rest)

    monkeypatch.setattr(_controlnetpp._Evaluator, "_measure", break_after_two)
    with pytest.raises(KeyboardInterrupt):
        run(folder, capsys, *options)
    rows = tmp_path / "out" / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"key": "cut o')  # as a full disk leaves it
    monkeypatch.setattr(_controlnetpp._Evaluator, "_measure", measure)
    _, resumed, out, _ = run(folder, capsys, *options)
    assert resumed["resumed"] == 2 and "2 rows are of an earlier, interrupted run." in out
    assert resumed["conditions"] == whole["conditions"]
    assert resumed["autoencoder_psnr"] == whole["autoencoder_psnr"]
    assert (tmp_path / "sheet-canny.png").read_bytes() == sheet


@pytest.mark.slow
def test_only_rows_of_the_same_picture_caption_settings_and_weights_are_kept(
    model, tmp_path, capsys
):
    folder = tmp_path / "data"
    for name in ("one", "two"):
        save_picture(folder / f"{name}.png")

    def resumed(*more):
        return run(folder, capsys, "--conditions", "canny", *more)[1]["resumed"]

    assert (resumed(), resumed()) == (0, 2)
    (folder / "two.txt").write_text("another caption")
    assert resumed() == 1
    save_picture(folder / "one.png", 90)
    assert resumed() == 1
    latest = json.loads((tmp_path / "out" / "rows.jsonl").read_text().splitlines()[-1])
    assert resumed("--strengths", "0.5") == 0
    (tmp_path / "out" / latest["pictures"][1]).unlink()
    assert resumed() == 1
    (weights,) = (tmp_path / "models" / "tiny" / "controlnet" / "canny").glob("*.safetensors")
    weights.touch()
    assert resumed() == 0


# Pose


@pytest.mark.slow
def test_poses_are_measured_where_there_are_people(tmp_path, capsys, monkeypatch, model):
    save_networks(tiny_networks(controls=("pose",)), tmp_path / "models" / "tiny")
    drawn = replace(_controlnetpp_metrics.EVALUATIONS["pose"], draw="Diorama")
    monkeypatch.setitem(_controlnetpp_metrics.EVALUATIONS, "pose", drawn)
    folder = tmp_path / "data"
    for name in ("one", "two"):
        save_picture(folder / f"{name}.png")
    (folder / "pose").mkdir()
    joints = np.array([(256 + 9 * k * (-1) ** k, 80 + 20 * k) for k in range(18)], float)
    Image.fromarray(pose.draw_people([joints], 512, 512)).save(folder / "pose" / "one.png")
    Image.new("RGB", (512, 512)).save(folder / "pose" / "two.png")  # nobody
    code, result, out, _ = run(folder, capsys, "--conditions", "pose")
    summary = result["conditions"]["pose"]
    assert code == 0 and summary["pictures"] == 1 and summary["metric"] == "mAP"
    assert summary["oracle"] == summary["strength"]["1"] == 0  # noise shows nobody
    assert "published: ControlNet 72.53  CPO 87.98" in out


# FID and CLIP score


def save_clip(folder):
    config = CLIPConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 600,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder / _quality.CLIP)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPProcessor(CLIPImageProcessor(**sizes), tiny_tokenizer())
    processor.save_pretrained(folder / _quality.CLIP)


def test_clip_score_is_the_cosine_of_picture_and_caption(extractors, picture, tmp_path):
    save_clip(extractors)
    file, device = tmp_path / "a.png", torch.device("cpu")
    Image.fromarray(picture).save(file)
    score = _quality.clip_score([file, file], ["the red ball", " "], device)
    network = CLIPModel.from_pretrained(extractors / _quality.CLIP).eval()
    processor = CLIPProcessor.from_pretrained(extractors / _quality.CLIP)
    inputs = processor(text=["the red ball"], images=[picture], return_tensors="pt")
    with torch.no_grad():
        logits = network(**inputs).logits_per_image / network.logit_scale.exp()
    assert score == pytest.approx(100 * float(logits), abs=1e-4)
    assert _quality.clip_score([file], [""], device) is None
    assert _quality.clip_score([file], ["the red ball " * 99], device) is not None


class Features(torch.nn.Module):
    """Means of the channels, and a deviation."""

    num_features = 4

    def forward(self, pixels):
        assert pixels.shape[1:] == (3, 299, 299) and pixels.max() > 1
        return torch.cat([pixels.mean((2, 3)), pixels.std((1, 2, 3))[:, None]], 1)


def test_fid_is_that_of_the_features_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_quality, "_inception", lambda *_: Features())
    files = {"real": [], "same": [], "other": []}
    for name, shift in (("real", 0), ("same", 0), ("other", 60)):
        for k in range(9):
            noise = np.random.default_rng(k).integers(20, 190 - 10 * k, (40, 40, 3)) + shift
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"{name}-{k}.png")
            files[name].append(tmp_path / f"{name}-{k}.png")
    device = torch.device("cpu")
    same, other = (_quality.fid(files["real"], [files[name]], device) for name in ("same", "other"))
    assert same == pytest.approx(0, abs=1e-2)
    assert other == pytest.approx(3 * 60**2, rel=1e-4)  # three features moved, none spread
    both = _quality.fid(files["real"], [files["same"], files["other"]], device)
    assert both == pytest.approx((same + other) / 2)
    with pytest.raises(BadInput, match="at least 2 pictures"):
        _quality.fid(files["real"][:1], [files["same"][:1]], device)


def test_inception_gets_pixels_from_minus_one_to_one(tmp_path):
    network = torch.nn.Module()
    network.layers = torch.nn.AvgPool2d(299)
    torch.jit.script(network).save(tmp_path / _quality.INCEPTION)
    inception = _quality._inception(tmp_path / _quality.INCEPTION, torch.device("cpu"))
    pixels = torch.tensor([0.0, 128, 255]).reshape(1, 3, 1, 1).expand(2, 3, 299, 299)
    assert inception(pixels)[0].tolist() == pytest.approx([-1, 0, 127 / 128])


@pytest.mark.slow
def test_fid_and_clip_score_stand_beside_the_papers(
    model, extractors, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(_quality, "_inception", lambda *_: Features())
    save_clip(extractors)
    for name in ("one", "two", "three"):
        save_picture(tmp_path / "data" / f"{name}.png")
        (tmp_path / "data" / f"{name}.txt").write_text("the ball")
    _, result, out, _ = run(tmp_path / "data", capsys, "--conditions", "canny")
    summary = result["conditions"]["canny"]
    assert summary["fid"]["1"] > 0 and -100 < summary["clip"]["1"] < 100
    assert not result["not_measured"]
    assert "published: ControlNet 14.73  ControlNet++ 20.16  CPO 19.69" in out
    assert "published: ControlNet 32.15  ControlNet++ 31.87  CPO 31.83" in out


# A ControlNet that was trained here


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["", "best"])
def test_a_trained_control_net_is_measured_where_it_lies(
    model, tmp_path, capsys, monkeypatch, inside
):
    monkeypatch.setattr(_trained, "FOLDER", tmp_path / "models")
    (control,) = tiny_networks(seed=1).controlnets.values()
    trained = tmp_path / "trained"
    save_module(control, trained / inside, {"base": "tiny", "condition": "canny"})
    save_picture(tmp_path / "data" / "one.png")
    _, result, *_ = run(tmp_path / "data", capsys, model=str(trained))
    assert list(result["conditions"]) == ["canny"]
    assert (result["model"], result["base"]) == (str(trained), "tiny")
    _, cards, *_ = run(tmp_path / "data", capsys, "--conditions", "canny", "--out", str(tmp_path))
    own, other = result["conditions"]["canny"], cards["conditions"]["canny"]
    assert own["oracle"] == other["oracle"]  # of one autoencoder
    assert own["strength"] != other["strength"]
    with pytest.raises(SystemExit):
        run(tmp_path / "data", capsys, "--conditions", "depth", model=str(trained))
    assert "was trained for canny alone" in capsys.readouterr().err


def test_a_run_without_weights_and_a_stranger_are_named(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(BadInput, match=r"train with --validation, or name the folder of --save"):
        _trained.find_trained(str(tmp_path))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    with pytest.raises(BadInput, match="does not say what it was trained for"):
        _trained.find_trained(str(stranger))
    assert _trained.find_trained("sd15") is None


@pytest.mark.parametrize("name", _controlnetpp_metrics.EVALUATIONS)
def test_every_named_preprocessor_exists(name):
    draw, annotator = _controlnetpp_metrics.EVALUATIONS[name].draw, find_annotator(name)
    if isinstance(draw, str):
        assert draw in [p.name for p in annotator.preprocessors]
