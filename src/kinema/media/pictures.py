"""The picture a clip starts from: read from any form, and brought to a size without squashing it by accident."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Literal

from PIL import Image

from kinema.errors import InputError
from kinema.media import load
from kinema.media.load import ImageInput, load_image
from kinema.media.rgb import Colour, rgb_of, to_rgb

__all__ = [
    "FITS",
    "Fit",
    "aspect_change",
    "fit_picture",
    "focus_point",
    "nearest_trained_size",
    "read_picture",
    "to_rgb",
]

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")


def read_picture(
    image: ImageInput,  # what `load_image` takes
    background: Colour = "white",  # what shows through transparent pixels
) -> Image.Image:
    """A picture in mode RGB as a viewer shows it: `kinema.load_image` with a choice of background.

    White is what browsers and viewers lay transparent pictures on, so it is what people have seen of theirs. A picture
    that is RGB and upright already comes back as it is.

    Raises:
        InputError: a type that is no picture, an array of another shape, or a colour that is none.
        MediaError: a file missing, unreadable, truncated or too large once decoded; no pixels, or not finite ones.
    """
    rgb_of(background)
    return load_image(image, partial(to_rgb, background=background) if background != "white" else None)


def fit_picture(
    picture: ImageInput,  # what `load_image` takes
    height: int,
    width: int,
    fit: Fit = "crop",
    focus: tuple[float, float] = (0.5, 0.5),  # across and down, 0 left or top to 1 right or bottom
    background: Colour = "black",  # of the bars
) -> Image.Image:
    """A picture of exactly width×height, resized with PIL's antialiased Lanczos filter.

    "crop" fills the frame and cuts what stands over, keeping the part of the picture around `focus`; "pad" shows the
    whole picture with bars, put where `focus` says; both keep its proportions. "stretch" changes them, and is what the
    reference does. A picture that has the size comes back untouched, and one that need not be
    scaled keeps its pixels.

    Raises InputError for a size, fit, focus or colour that cannot be.
    """
    height, width = _length("height", height), _length("width", width)
    if height * width > load.MAX_PIXELS:
        raise InputError(f"Size {width}×{height} is too large; expected at most {load.MAX_PIXELS:,} pixels.")
    if fit not in FITS:
        raise InputError(f"fit {fit!r} is unknown; expected {', '.join(FITS)}.")
    across, down = focus_point(focus)
    paper = rgb_of(background)
    picture = load_image(picture)
    if picture.size == (width, height):
        return picture
    if fit == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if fit == "crop":
        return _crop(picture, width, height, across, down)
    return _pad(picture, width, height, across, down, paper)


def nearest_trained_size(
    width: int,
    height: int,
    sizes: Sequence[tuple[int, int]],  # (width, height) of what a model was trained on
) -> tuple[int, int]:
    """The (width, height) whose proportions are nearest; among equals the nearest in area, then the first.

    Raises InputError where there is no size to choose from, or one that is not positive.
    """
    if not sizes or min(width, height, *(length for size in sizes for length in size)) < 1:
        raise InputError(f"There is no size nearest to {width}×{height} among {list(sizes)}; expected positive ones.")

    def distance(size: tuple[int, int]) -> tuple[float, float]:
        area = math.log(size[0] * size[1] / (width * height))
        return round(abs(math.log(aspect_change(width, height, *size))), 9), abs(area)

    return min(sizes, key=distance)


def aspect_change(width: int, height: int, to_width: int, to_height: int) -> float:
    """How much wider for its height a picture becomes when stretched: 1 not at all, 2 twice as wide, 0.5 half."""
    return (to_width * height) / (to_height * width)


def _length(name: str, length: int) -> int:
    try:
        if (whole := operator.index(length)) >= 1 and not isinstance(length, bool):
            return whole
    except TypeError:
        pass
    raise InputError(f"{name} {length!r} is no size; expected a whole number of pixels, at least 1.")


def focus_point(focus: tuple[float, float]) -> tuple[float, float]:
    """A point of a picture: (across, down), 0 at the left or top to 1. Raises InputError where it is none."""
    try:
        across, down = (float(part) for part in focus)
    except (TypeError, ValueError):
        across = down = math.nan
    if not (0 <= across <= 1 and 0 <= down <= 1):
        raise InputError(f"focus {focus!r} is no point of a picture; expected (across, down), each 0 to 1.")
    return across, down


def _crop(picture: Image.Image, width: int, height: int, across: float, down: float) -> Image.Image:
    """The largest part of the wanted proportions, its middle as near to the focus as the picture's edges let it."""
    scale = min(picture.width / width, picture.height / height)  # of the picture's pixels a wanted one covers
    wide, high = min(width * scale, picture.width), min(height * scale, picture.height)
    left = min(max(across * picture.width - wide / 2, 0.0), picture.width - wide)
    top = min(max(down * picture.height - high / 2, 0.0), picture.height - high)
    if scale == 1:
        left, top = round(left), round(top)
        return picture.crop((int(left), int(top), int(left) + width, int(top) + height))
    # A box in fractions of pixels: cutting whole ones first would change the proportions.
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high))


def _pad(
    picture: Image.Image, width: int, height: int, across: float, down: float, paper: tuple[int, int, int]
) -> Image.Image:
    wide = max(1, min(width, picture.width * height // picture.height))
    high = max(1, min(height, picture.height * width // picture.width))
    # What a whole number of pixels does not hold is cut, less than half of one at each edge: the circle stays round.
    scale = max(picture.width / width, picture.height / height)
    left, top = max(0.0, picture.width - wide * scale) / 2, max(0.0, picture.height - high * scale) / 2
    box = (left, top, picture.width - left, picture.height - top)
    small = picture if (wide, high) == picture.size else picture.resize((wide, high), Image.Resampling.LANCZOS, box=box)
    padded = Image.new("RGB", (width, height), paper)
    padded.paste(small, (round((width - wide) * across), round((height - high) * down)))
    return padded
