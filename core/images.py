"""Pictures: reading untrusted files, fitting to a size, and conversion to and from tensors.

Between modules a picture is a uint8 array (H, W, 3) RGB; for the networks a control map is a tensor
(B, 3, H, W) in [0, 1] and a generated picture (B, 3, H, W) in [-1, 1]. Only this module converts.
"""

import io
import logging
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile, jpeg_factory
from PIL.TiffImagePlugin import (
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    TiffImageFile,
)
from torch import Tensor

from core.condition import ControlMap, Interpolation, PixelMask, RGBImage
from core.errors import BadInput
from core.png_chunks import DAMAGED, read_bytes, without_text
from core.shares import Shares

LOGGER = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif"),
    *(".heic", ".heif"),
)
"""Of their files and of HEIC's, in lower or upper case."""
BROWSER_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF")
"""Those that every browser shows."""
MAX_PIXELS = 40_000_000
"""Larger than any camera most people own, small enough to decode in a second or so."""
MAX_JPEG_PIXELS, MAX_PROGRESSIVE_PIXELS = 210_000_000, 100_000_000
"""JPEGs beyond MAX_PIXELS are decoded at a half, a quarter or an eighth of their sides: of a 200
megapixel phone's photograph 190 MB instead of 600. A progressive one needs 3 bytes a pixel at any
scale."""
DRAFT_SCALES = (1, 2, 4, 8)
"""What libjpeg can divide the sides by while it decodes."""
MAX_ASPECT = 8
"""A longer strip would need gigabytes once its short side is 512."""
CROP_AND_RESIZE, RESIZE_AND_FILL, JUST_RESIZE = RESIZE_MODES = (
    *("crop and resize", "resize and fill", "just resize"),
)
"""How a picture fits a size of another shape. Source: detectmap_proc and pixel_perfect_resolution
of Mikubill/sd-webui-controlnet, and its names."""
GRID = 64
"""Output sides are multiples of this: 8 pixels a latent cell, and three halvings in the UNet."""
YCBCR = 6
"""TIFF's photometric interpretation of that name."""
SUBFILE_TYPE, REDUCED, SUBIFDS, DNG_VERSION = 254, 1, 330, 50706
"""TIFF's tag of what a picture is (1 is a smaller version of another), of further pictures, and the
tag that every DNG file has."""
RAW_SIGNATURES = (
    *(b"II*\0\x10\0\0\0CR", b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR"),
    *(b"\0\0\0\x18ftypcrx ",),
)
"""Of Canon (CR2, CR3), Fujifilm, Panasonic and Olympus."""
SIXTEEN_TO_EIGHT = 257
"""65535 / 255."""

OPAQUE = 254
"""Of 255: some tools keep a picture's settings in alpha's lowest bit ("stealth" PNG)."""
PAPER, NOTHING = 255, 0
"""Grey levels for transparent parts: white paper under a picture; nothing drawn, on a ready map."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation, what turns a stored picture upright."""
DECODING = Shares(2 * MAX_PIXELS)
"""Of the pixels that may be decoded at the same time in this process: each takes some 10 bytes."""
MOST_DRAWN_PIXELS = 2**22
"""Of the picture that a map is drawn from: Diorama's annotator takes up to 500 bytes for each."""
_ASK_FOR = "Please save it as PNG or JPEG and try again."


# Reading a picture file


def read_image(
    source: str | Path | bytes, ground: int | None = PAPER
) -> tuple[RGBImage, list[str]]:
    """Decode a picture file from its path or bytes.

    Upright (EXIF), in sRGB, first frame of an animation; 16-bit values are scaled, not clipped. A
    JPEG beyond MAX_PIXELS is decoded smaller. Transparent parts get the grey level `ground`; None
    takes PAPER or NOTHING, whichever shows what is visible better, as lines need.
    Returns the picture and a note for each thing that may surprise.

    Raises:
        BadInput: not a picture of FORMATS, incomplete, too large, or a long strip.
    """
    data = without_text(read_bytes(source))
    picture = open_picture(data)
    notes: list[str] = []
    if isinstance(picture, JpegImageFile):
        _shrink_while_decoding(picture, notes)
    check_shape(*picture.size)
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        part = "page" if picture.format == "TIFF" else "frame of the animation"
        notes.append(f"Only the first {part} is used.")
    try:
        with DECODING.taken(picture.width * picture.height):
            return _decode(picture, ground, notes), notes
    except DAMAGED as error:
        raise BadInput(f"The picture is incomplete or damaged. {_ASK_FOR}") from error


def _decode(picture: Image.Image, ground: int | None, notes: list[str]) -> RGBImage:
    if isinstance(picture, TiffImageFile):
        _let_libtiff_read_ycbcr(picture)
    picture.load()
    turn = UPRIGHT.get(_orientation(picture))
    return _to_rgb(picture if turn is None else picture.transpose(turn), ground, notes)


def _shrink_while_decoding(picture: JpegImageFile, notes: list[str]) -> None:
    """Have libjpeg decode a photograph of too many pixels at a fraction of its sides."""
    width, height = picture.size
    progressive = "progressive" in picture.info
    if width * height > (MAX_PROGRESSIVE_PIXELS if progressive else MAX_JPEG_PIXELS):
        return  # check_shape will refuse it
    scale = next(one for one in DRAFT_SCALES if width * height <= MAX_PIXELS * one**2)
    if scale > 1:
        picture.draft(None, (width // scale, height // scale))
        notes.append(
            f"The photograph has {width * height / 1e6:.0f} million pixels and was read at "
            f"1/{scale} of its size, {picture.width} x {picture.height}."
        )


def _orientation(picture: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 if there is none or the EXIF cannot be read.

    Pillow's exif_transpose would also rewrite the EXIF, and fail if any other entry is invalid.
    """
    try:
        return int(picture.getexif().get(ExifTag.Orientation, 1))
    except Exception as error:  # noqa: BLE001 - Pillow's reader fails on bad EXIF in many ways
        LOGGER.info("The EXIF of a picture could not be read: %r", error)
        return 1


def open_picture(data: bytes) -> Image.Image:
    """Read the header only; a photograph of any size.

    Raises:
        BadInput: as read_image, but for damage that only decoding finds.
    """
    if not data:
        raise BadInput("The file is empty; please choose a picture (PNG, JPEG, WebP, ...).")
    if _is_heic(data):
        return _open_heic(data)
    foreign = _foreign_format(data)
    if foreign:
        raise BadInput(f"{foreign} files cannot be read here. {_ASK_FOR}")
    try:
        # Image.open refuses a large JPEG before it can be told to decode it smaller.
        if data.startswith(b"\xff\xd8\xff"):
            return jpeg_factory(io.BytesIO(data))
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        if _is_ours(data):
            raise BadInput(f"The picture is incomplete or damaged. {_ASK_FOR}") from error
        raise BadInput(
            "This file is not an image we can read; please choose a PNG, JPEG, WebP, AVIF, HEIC, "
            "BMP, TIFF or GIF."
        ) from error
    except DAMAGED as error:
        raise BadInput(f"The picture is incomplete or damaged. {_ASK_FOR}") from error
    if isinstance(picture, TiffImageFile) and _is_raw(picture):
        raise BadInput(f"Camera raw files cannot be read here. {_ASK_FOR}")
    return picture


def _is_raw(picture: TiffImageFile) -> bool:
    """Tell whether a TIFF is a camera's raw file, whose first picture is a small preview.

    DNG has its version; Nikon's and Sony's say that the first is reduced and others are in SubIFDs.
    """
    tags = picture.tag_v2
    return DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == REDUCED and SUBIFDS in tags)


def _foreign_format(data: bytes) -> str:
    """Return the name of a well-known format that cannot be read here, or ""."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"%pdf"):
        return "PDF"
    if start.startswith(b"<svg") or (
        start.startswith((b"<?xml", b"<!--", b"<!d")) and b"<svg" in start
    ):
        return "SVG"
    if data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL"
    if data.startswith(RAW_SIGNATURES):
        return "Camera raw"
    return ""


def _is_heic(data: bytes) -> bool:
    """Tell whether the first bytes are those of HEIF with HEVC inside, an iPhone's photograph."""
    brands = data[8:64]
    return (
        data[4:8] == b"ftyp"
        and b"avi" not in brands
        and any(one in brands for one in (b"hei", b"hev", b"mif1", b"msf1"))
    )


def _open_heic(data: bytes) -> Image.Image:
    """Read the header of a HEIC; libheif turns it upright.

    Raises:
        BadInput: it is incomplete or damaged.
    """
    from pillow_heif.as_plugin import HeifImageFile  # noqa: PLC0415 - few pictures need it

    try:
        picture: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except DAMAGED as error:
        raise BadInput(f"The HEIC file is incomplete or damaged. {_ASK_FOR}") from error
    return picture


def _is_ours(data: bytes) -> bool:
    """Tell whether the first bytes are one of FORMATS' signatures."""
    return data.startswith(
        (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8")
    ) or data[8:12] in (b"WEBP", b"avif", b"avis")


def _let_libtiff_read_ycbcr(picture: TiffImageFile) -> None:
    """Have an uncompressed YCbCr TIFF decoded by libtiff, which converts it to RGB.

    Pillow 12.3 writes such files, but its own decoder takes their three bytes a pixel for four.
    Compressed ones are read by libtiff anyway; this sets up the others as Pillow does those.
    """
    tags = picture.tag_v2
    if tags.get(PHOTOMETRIC_INTERPRETATION) != YCBCR or picture.use_load_libtiff:
        return
    whole = (0, 0, tags[IMAGEWIDTH], tags[IMAGELENGTH])  # as stored, not yet upright
    settings = ("RGBX", "raw", False, tags.offset)
    picture.tile = [
        picture.tile[0]._replace(codec_name="libtiff", extents=whole, offset=0, args=settings)
    ]
    picture.use_load_libtiff = True


def check_shape(width: int, height: int) -> None:
    """Refuse pictures that are too large or too long.

    Raises:
        BadInput: more than MAX_PIXELS, or sides further apart than MAX_ASPECT : 1.
    """
    if width * height > MAX_PIXELS:
        raise _too_large()
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadInput(
            f"The picture is a strip of {width} x {height} pixels; please crop it to "
            f"{MAX_ASPECT}:1 or less."
        )


def _too_large() -> BadInput:
    return BadInput(
        f"The picture has more than {MAX_PIXELS // 1_000_000} million pixels; please shrink it, or "
        f"save it as a JPEG, which may have {MAX_JPEG_PIXELS // 1_000_000} million "
        f"({MAX_PROGRESSIVE_PIXELS // 1_000_000} if progressive)."
    )


def _to_rgb(picture: Image.Image, ground: int | None, notes: list[str]) -> RGBImage:
    """Convert any Pillow mode to RGB, transparency on the grey level `ground`; append notes."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture)
        grey = _to_eight_bits(values, picture.mode, notes)
        # A PNG's one transparent 16-bit level, which Pillow does not turn into alpha.
        level = picture.info.get("transparency")
        if isinstance(level, int) and level in values:
            visible = values != level
            ground = _contrast(grey, visible * 1.0) if ground is None else ground
            notes.append(_filled(ground))
            grey[~visible] = ground
        return grey_map(grey)
    profile = picture.info.get("icc_profile")
    alpha = None
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        picture = picture.convert("L") if picture.mode == "LA" else with_alpha.convert("RGB")
    if picture.mode in ("P", "1"):
        picture = picture.convert("RGB")
    rgb = _to_srgb(picture, profile, notes)
    if alpha is not None and np.asarray(alpha).min() < OPAQUE:
        ground = _contrast(np.asarray(rgb.convert("L")), alpha) if ground is None else ground
        notes.append(_filled(ground))
        below = Image.new("RGB", rgb.size, (ground,) * 3)
        below.paste(rgb, mask=alpha)
        rgb = below
    return np.array(rgb)


def _contrast(grey: NDArray[np.uint8], opacity: Any) -> int:
    """Return PAPER under what is dark and NOTHING under what is light, (H, W) by its opacity."""
    weights = np.asarray(opacity, np.float64)
    light = weights.any() and np.average(grey, weights=weights) > PAPER / 2
    return NOTHING if light else PAPER


def _filled(ground: int) -> str:
    name = {PAPER: "white", NOTHING: "black"}.get(ground, f"grey {ground}")
    return f"Transparent parts were filled with {name}."


def _to_eight_bits(values: NDArray[Any], mode: str, notes: list[str]) -> NDArray[np.uint8]:
    """Scale grey (H, W) of 16 bits, 32 bits or floats to 0..255.

    White is 65535 in 16 bits and 1 in floats within [0, 1]. Any other range has no agreed white, so
    it is stretched, with a note. Infinities become the highest or lowest value, NaN the lowest.
    """
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if finite.size < numbers.size:
        notes.append("NaN and infinite values became the picture's darkest or brightest.")
        numbers = np.nan_to_num(numbers, nan=low, neginf=low, posinf=high)
    if mode.startswith("I;16"):
        numbers /= SIXTEEN_TO_EIGHT
    elif mode == "F" and low >= 0 and high <= 1:
        numbers *= 255
    else:
        notes.append(
            f"The picture's values, {low:g} to {high:g}, were stretched to black to white."
        )
        numbers = (numbers - low) * (255 / (high - low)) if high > low else numbers * 0
    return numbers.round().astype(np.uint8)


def _to_srgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert to RGB through the embedded colour profile, unless there is none or it is sRGB."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                converted = ImageCms.profileToProfile(
                    picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError):
            notes.append("The picture's colour profile could not be used; colours may differ.")
    return picture.convert("RGB")


def bright(picture: RGBImage) -> PixelMask:
    """Return where a picture is brighter than middle grey, in the mean of its channels."""
    return np.asarray(picture.mean(axis=2) > PAPER / 2, dtype=bool)


# Sizes


def fit_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return (width, height) with the short side near `resolution`, both multiples of GRID.

    As in ControlNet v1.0's resize_image (annotator/util.py): scale, then round each side.

    Raises:
        BadInput: the picture is too large or too long a strip.
    """
    check_shape(width, height)
    scale = resolution / min(width, height)
    wide, high = (max(GRID, round(side * scale / GRID) * GRID) for side in (width, height))
    return wide, high


def drawing_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """Return the size at which a picture's map is drawn: fit_size, within MOST_DRAWN_PIXELS.

    Only strips longer than 4:1 at a high resolution are drawn smaller than that was asked for.
    """
    wide, high = fit_size(width, height, resolution)
    while wide * high > MOST_DRAWN_PIXELS:
        resolution -= GRID
        wide, high = fit_size(width, height, resolution)
    return wide, high


def center_crop_to_aspect(image: RGBImage, other: RGBImage) -> RGBImage:
    """Return the largest centre crop with the other picture's aspect ratio, within a pixel."""
    (height, width), (high, wide) = image.shape[:2], other.shape[:2]
    cut_width = min(width, max(1, round(height * wide / high)))
    cut_height = min(height, max(1, round(width * high / wide)))
    if width - cut_width <= 1 and height - cut_height <= 1:
        return image
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return image[top : top + cut_height, left : left + cut_width]


def inner_size(width: int, height: int, outer: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) of a picture's shape within `outer`."""
    scale = min(outer[0] / width, outer[1] / height)
    wide, high = (max(1, round(side * scale)) for side in (width, height))
    return wide, high


def filled(control_map: ControlMap, size: tuple[int, int], exact: bool) -> ControlMap:
    """Return a map in the middle of (width, height), with margins in its border's median colour.

    With `exact`, as maps whose colours mean classes need it, the margins have the colour of the
    border that is nearest to the median, which may be none of the map's.
    """
    height, width = control_map.shape[:2]
    border = np.concatenate(
        [control_map[0], control_map[-1], control_map[:, 0], control_map[:, -1]]
    )
    colour = np.median(border, axis=0).astype(np.uint8)
    if exact:
        distances = np.abs(border.astype(int) - colour).sum(axis=1)
        colour = border[distances.argmin()]
    canvas = np.tile(colour, (size[1], size[0], 1))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    canvas[top : top + height, left : left + width] = control_map
    return canvas


def pixel_perfect_resolution(
    width: int, height: int, size: tuple[int, int], resize_mode: str
) -> int:
    """Return the short side at which a picture's map has a pixel for each of `size` (w, h)."""
    scales = size[0] / width, size[1] / height
    scale = min(scales) if resize_mode == RESIZE_AND_FILL else max(scales)
    return round(scale * min(width, height))


def resize(image: RGBImage, size: tuple[int, int], resolution: int | None = None) -> RGBImage:
    """Resize a picture to (width, height): Lanczos for enlarging, area averages for shrinking.

    `resolution` is the short side that was asked for, where fit_size has rounded it: it decides
    which of the two this is, as in ControlNet v1.0's resize_image. Without it `size` does.
    """
    if (image.shape[1], image.shape[0]) == size:
        return image
    enlarging = (resolution or min(size)) > min(image.shape[:2])
    return _resized(image, size, cv2.INTER_LANCZOS4 if enlarging else cv2.INTER_AREA)


def resize_map(
    control_map: ControlMap, size: tuple[int, int], interpolation: Interpolation
) -> ControlMap:
    """Resize a control map to (width, height) with its annotator's interpolation.

    "nearest" and "lines" create no new values; with "lines" each output pixel is the brightest of
    those it covers, so that thin white lines survive shrinking.
    """
    height, width = control_map.shape[:2]
    if (width, height) == size:
        return control_map
    if interpolation == "lines":
        reach = (max(1, math.ceil(height / size[1])), max(1, math.ceil(width / size[0])))
        brightest = cv2.dilate(control_map, np.ones(reach, np.uint8), anchor=(0, 0))
        return _resized(_as_bytes(brightest), size, cv2.INTER_NEAREST)
    flags = {
        "nearest": cv2.INTER_NEAREST,
        "linear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }
    return _resized(control_map, size, flags[interpolation])


def _resized(image: NDArray[np.uint8], size: tuple[int, int], flag: int) -> NDArray[np.uint8]:
    return _as_bytes(cv2.resize(image, size, interpolation=flag))


def _as_bytes(array: Any) -> NDArray[np.uint8]:
    """Give an OpenCV result its type, which OpenCV's stubs lack."""
    return np.asarray(array, dtype=np.uint8)


def grey_map(levels: NDArray[np.uint8]) -> ControlMap:
    """Return grey levels (H, W) as a control map of three equal channels."""
    return np.repeat(levels[:, :, None], 3, axis=2)


# Arrays and tensors


def to_tensor(control_map: ControlMap) -> Tensor:
    """Return a control map as float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(control_map.copy()).permute(2, 0, 1)[None].float() / 255


def to_picture_tensor(picture: RGBImage) -> Tensor:
    """Return a picture as float32 (1, 3, H, W) in [-1, 1]."""
    return to_tensor(picture) * 2 - 1


def to_images(pictures: Tensor) -> list[RGBImage]:
    """Return pictures (B, 3, H, W) in [-1, 1] as B arrays; values beyond are clipped.

    The caller makes sure that all are finite: NaN would silently turn black.
    """
    levels = ((pictures.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())
