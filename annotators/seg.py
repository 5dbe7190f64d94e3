"""Segmentation: every pixel in the colour of its class, one of ADE20K's 150.

The palette is MMSegmentation's, which ControlNet was trained with; `ade20k.csv` lists it with the
class names. Two classes share a grey, road and skyscraper: maps drawn here have skyscrapers one
level bluer, of 255, which no network notices and PNG preserves, so class indices can be read back
and scored. Other maps are read by nearest colour, skyscrapers as road.

Source: Xie et al. 2021, "SegFormer" (transformers), trained on ADE20K (Zhou et al. 2017).
"""

import csv
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from annotators._diorama import HELP, TRAINING_RESOLUTION, doubt, load_network, predict, resize_like
from annotators._lossy_classes import nearest, restored_classes
from annotators._pretrained import INFERENCE_LOCK, load_transformer, transformer_preprocessor
from annotators._segments_edit import segments_editor
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score, WebUINames
from core.images import resize_map

SEGFORMER = (
    "AutoModelForSemanticSegmentation",
    "nvidia/segformer-b0-finetuned-ade-512-512",
    "489d5cd81a0b59fab9b7ea758d3548ebe99677da",
    15_036_944,
)

MIN_AREA = 1 / 256
"""Of the picture: a class that Diorama's annotator predicts for less is a guess."""
MIN_KNOWN = 0.5
"""Smallest share of pixels in ADE20K's colours in a class map."""

ClassMap = NDArray[np.uint8]
"""(H, W): indices of ADE20K's classes, from 0."""


@dataclass(frozen=True)
class SegParams:
    """Segmentation has no settings."""


@cache
def palette() -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return the names of the 150 classes and their colours (150, 3)."""
    with (Path(__file__).with_name("ade20k.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    colours = [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]
    return tuple(row["name"] for row in rows), np.array(colours, np.uint8)


@cache
def map_colours() -> NDArray[np.uint8]:
    """Return the colours (150, 3) that maps are drawn in: the palette, made unique.

    Of two classes that share a colour, the second is one level bluer.
    """
    colours = palette()[1].copy()
    for index, colour in enumerate(palette()[1]):
        colours[index, 2] += (palette()[1][:index] == colour).all(axis=1).sum()
    return colours


def as_map(classes: ClassMap) -> ControlMap:
    """Return classes (H, W) as a map; `as_classes` inverts it."""
    return np.asarray(map_colours()[classes])


def as_classes(control_map: ControlMap) -> ClassMap:
    """Return the class (H, W) of every pixel: by as_map's exact colours, else by the nearest.

    Of classes that share a palette colour it is the first: road, not skyscraper.
    """
    numbers, known = _as_numbers(control_map), _as_numbers(map_colours())
    order = known.argsort()
    place = np.searchsorted(known[order], numbers).clip(max=len(known) - 1)
    if (known[order][place] == numbers).all():  # drawn here; some 20 times as fast
        return np.asarray(order[place], np.uint8)
    return _nearest_classes(control_map.tobytes(), control_map.shape)


@lru_cache(maxsize=1)
def _nearest_classes(data: bytes, shape: tuple[int, int, int]) -> ClassMap:
    """Read a map's bytes by nearest colour; the wanted map of several images once."""
    control_map = np.frombuffer(data, np.uint8).reshape(shape)
    classes, _ = nearest(control_map, palette()[1])
    for index in np.flatnonzero((map_colours() != palette()[1]).any(1)):
        classes[(control_map == map_colours()[index]).all(2)] = index
    classes.flags.writeable = False  # the next caller gets the same
    return classes


def fit_map(control_map: ControlMap, size: tuple[int, int]) -> ControlMap:
    """Fit a ready map to (width, height); after JPEG it gets its exact colours back first."""
    if _is_known(control_map).mean() < 1:
        classes = restored_classes(control_map, palette()[1])
        control_map = control_map if classes is None else as_map(classes)
    return resize_map(control_map, size, "nearest")


def draw_diorama(image: RGBImage, _: SegParams) -> ControlMap:
    """Draw the classes that Diorama's annotator predicts; it knows 23 of the 150."""
    index = np.array(load_network().config.classes, np.uint8)
    return as_map(index[most_likely(resize_like(predict(image)["classes"], image))])


def most_likely(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the argmax (H, W) of scores (H, W, C) over classes that cover MIN_AREA at least.

    Pixels of smaller classes get the next likely class: they are specks where the network is
    unsure. Against the ground truth of Diorama's scenes this raises mIoU from 0.64 to 0.77.
    """
    scores = scores.copy()
    while True:
        classes: NDArray[np.int64] = scores.argmax(2)
        area = np.bincount(classes.reshape(-1), minlength=scores.shape[2]) / classes.size
        small = (area > 0) & (area < MIN_AREA)
        if not small.any():
            return classes
        scores[:, :, small] = -np.inf


def draw_segformer(image: RGBImage, _: SegParams) -> ControlMap:
    """Draw SegFormer's classes."""
    processor, network = load_transformer(*SEGFORMER)
    with INFERENCE_LOCK, torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        logits = network(**pixels).logits[0].permute(1, 2, 0).float().cpu().numpy()
    size = (image.shape[1], image.shape[0])
    classes, most = np.zeros(image.shape[:2], np.uint8), np.full(image.shape[:2], -np.inf)
    for index, small in enumerate(np.moveaxis(logits, 2, 0)):  # all at once take gigabytes
        likely = cv2.resize(small, size)
        classes[likely > most] = index
        most = np.maximum(most, likely)
    return as_map(classes)


def score(target: ControlMap, extracted: ControlMap) -> Score:
    """Compare two class maps of one size: mean intersection over union (mIoU), 0..1.

    ControlNet++'s metric, but of one picture: the mean over the classes in either map, so a class
    that should not be there costs as much as one that is missing.
    """
    count = len(map_colours())
    pairs = as_classes(target).astype(np.intp) * count + as_classes(extracted)
    table = np.bincount(pairs.reshape(-1), minlength=count**2).reshape(count, count)
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    miou = float((both[either > 0] / either[either > 0]).mean())
    accuracy = float(both.sum() / pairs.size)
    return Score(100 * miou, "mIoU", {"mIoU": miou, "pixel accuracy": accuracy})


def map_warning(control_map: ControlMap) -> str:
    """Warn of a map in other colours than the palette's."""
    if _is_known(control_map).mean() < MIN_KNOWN:
        return "Most pixels are not in ADE20K's colours; each is read as the nearest one."
    return ""


def _is_known(control_map: ControlMap) -> NDArray[np.bool_]:
    """Return where a map has exactly a colour of the palette (H, W)."""
    known = np.concatenate([palette()[1], map_colours()])
    return np.isin(_as_numbers(control_map), _as_numbers(known))


def _as_numbers(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.asarray(colours.astype(np.int64) @ [65536, 256, 1])


ANNOTATOR = Annotator(
    name="seg",
    preprocessors=(
        Preprocessor(
            "Diorama",
            draw_diorama,
            help=f"{HELP} Its classes for photographs are mostly wrong.",
            detect_resolution=TRAINING_RESOLUTION,
            doubt=doubt,
        ),
        transformer_preprocessor("SegFormer", draw_segformer, SEGFORMER, "for non-commercial use"),
    ),
    params=SegParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    map_warning=map_warning,
    fit_map=fit_map,
    editor=segments_editor(palette()[0], map_colours(), as_classes, as_map),
    webui=WebUINames(
        {
            "seg_ufade20k": "SegFormer",
            "segmentation": "SegFormer",
            "seg_ofade20k": "SegFormer",
            "oneformer_ade20k": "SegFormer",
        },
        ("seg",),
    ),
)
