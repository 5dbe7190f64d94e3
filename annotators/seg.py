"""Segmentation: every place in its class's colour, of ADE20K's 150 classes.

The palette is MMSegmentation's, which ControlNet was trained with; `ade20k.csv` lists it with the
names. It is not invertible: road and skyscraper share one grey. So maps drawn here have skyscrapers
one level bluer, of 255, which no network sees and no PNG loses: the colours carry the indices, and
scores are of those. A map from elsewhere is read by the nearest colours, its skyscrapers as road.

Source: Xie et al. 2021, "SegFormer" (transformers), trained on ADE20K (Zhou et al. 2017).
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from annotators._diorama import HELP, LEARNED_AT, at_size, load_network, see
from annotators._map_checks import MANY
from annotators._pretrained import IN_TURN, by_transformer, load_transformer
from core.condition import Annotator, ControlMap, Preprocessor, RGBImage, Score

SEGFORMER = (
    "AutoModelForSemanticSegmentation",
    "nvidia/segformer-b0-finetuned-ade-512-512",
    "489d5cd81a0b59fab9b7ea758d3548ebe99677da",
    15_036_944,
)

SMALLEST = 1 / 256
"""Of the picture: a class of which Diorama's annotator sees less is a guess."""

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
def drawn_colours() -> NDArray[np.uint8]:
    """Return the colours (150, 3) that maps are drawn in: the palette, each class told apart.

    Of classes that share a colour, the second is one level bluer than the first.
    """
    colours = palette()[1].copy()
    for index, colour in enumerate(palette()[1]):
        colours[index, 2] += (palette()[1][:index] == colour).all(axis=1).sum()
    return colours


def as_map(classes: ClassMap) -> ControlMap:
    """Return classes (H, W) in the palette's colours, told apart by them."""
    return np.asarray(drawn_colours()[classes])


def as_classes(control_map: ControlMap) -> ClassMap:
    """Return the class (H, W) of every place: that of as_map's maps, else of the nearest colour.

    The first of those that share it: a road where it could be a skyscraper.
    """
    colours, place = np.unique(control_map.reshape(-1, 3), axis=0, return_inverse=True)
    known, drawn = palette()[1].astype(np.int32), drawn_colours()
    nearest = [
        exact[0]
        if len(exact := np.flatnonzero((drawn == colour).all(axis=1)))
        else np.square(known - colour).sum(1).argmin()
        for colour in colours.astype(np.int32)
    ]
    found = np.array(nearest, np.uint8)[place.reshape(-1)]
    return np.asarray(found.reshape(control_map.shape[:2]))


def draw_diorama(image: RGBImage, _: SegParams) -> ControlMap:
    """Draw the classes that Diorama's annotator sees; it knows 23 of the 150."""
    index = np.array(load_network().config.classes, np.uint8)
    return as_map(index[likeliest(at_size(see(image)["classes"], image))])


def likeliest(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which of the scores (H, W, C) is the highest (H, W), of classes that cover SMALLEST.

    The places of the others go to the next likely class. They are specks where the network is in
    doubt: against the truth of Diorama's scenes the mean intersection over union rises from 0.64 to
    0.77 without them.
    """
    scores = scores.copy()
    while True:
        found: NDArray[np.int64] = scores.argmax(2)
        covered = np.bincount(found.reshape(-1), minlength=scores.shape[2]) / found.size
        few = (covered > 0) & (covered < SMALLEST)
        if not few.any():
            return found
        scores[:, :, few] = -np.inf


def draw_segformer(image: RGBImage, _: SegParams) -> ControlMap:
    """Draw SegFormer's classes."""
    processor, network = load_transformer(*SEGFORMER)
    with IN_TURN, torch.no_grad():
        pixels = processor(images=image, return_tensors="pt").to(network.device)
        logits = network(**pixels).logits[0].permute(1, 2, 0).float().cpu().numpy()
    size = (image.shape[1], image.shape[0])
    return as_map(np.stack([cv2.resize(c, size) for c in np.moveaxis(logits, 2, 0)]).argmax(0))


def score(wanted: ControlMap, found: ControlMap) -> Score:
    """Compare two class maps of one size: mean intersection over union of their classes.

    mIoU, 0..1, ControlNet++'s figure, here of one picture: the mean over the classes in either map,
    so that a class nobody asked for counts as one that is missed.
    A map of one class everywhere scores what that class covers, shared by all classes.
    """
    first, second = as_classes(wanted), as_classes(found)
    overlaps = []
    for index in np.union1d(first, second):
        a, b = first == index, second == index
        overlaps.append((a & b).sum() / (a | b).sum())
    miou = float(np.mean(overlaps))
    same = float((first == second).mean())
    return Score(100 * miou, "mIoU", {"mIoU": miou, "pixel accuracy": same})


def map_warning(control_map: ControlMap) -> str:
    """Tell of a map in other colours than those of classes."""
    known = np.concatenate([palette()[1], drawn_colours()])
    of_classes = np.isin(_as_numbers(control_map), _as_numbers(known))
    if of_classes.mean() < MANY:
        return "Most colours of this map are not ADE20K's; each is taken for the nearest of them."
    return ""


def _as_numbers(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.asarray(colours.astype(np.int64) @ [65536, 256, 1])


ANNOTATOR = Annotator(
    name="seg",
    preprocessors=(
        Preprocessor(
            "Diorama",
            draw_diorama,
            help=f"{HELP} In photographs it mostly guesses.",
            detect_resolution=LEARNED_AT,
        ),
        by_transformer("SegFormer", draw_segformer, SEGFORMER, "for non-commercial use"),
    ),
    params=SegParams,
    score=score,
    interpolation="nearest",
    detect_resolution=512,
    map_warning=map_warning,
)
