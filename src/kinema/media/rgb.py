"""Any PIL picture as plain RGB, without losing what its mode means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from kinema.errors import InputError, MediaError

Colour = str | tuple[int, int, int]  # a name or #hex as CSS has them, or red, green, blue of 0 to 255

_SEE_THROUGH = ("RGBA", "LA", "PA", "RGBa", "La")


def to_rgb(image: Image.Image, background: Colour = "white") -> Image.Image:
    """The same picture in mode RGB: transparency laid on a background, deep greys scaled, CMYK converted.

    An RGB picture comes back as it is. Whole greys (modes I;16 and I) are 0..65535, those of mode I that end at 255
    are bytes; floats (mode F) are 0..1, 0..255 or 0..65535, the first that holds them. Embedded colour profiles are
    not applied, as in the reference.

    Raises InputError for a colour that is none, MediaError for greys that are not finite or fit none of the ranges.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image, background)
    if image.mode in _SEE_THROUGH or "transparency" in image.info:
        return _laid_on(image, background)
    return image if image.mode == "RGB" else image.convert("RGB")


def rgb_of(colour: Colour) -> tuple[int, int, int]:
    """A colour's red, green and blue, 0 to 255. Raises InputError where it is no colour."""
    try:
        parts = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(int(part) for part in colour)
    except (ValueError, TypeError):
        parts = ()
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise InputError(f"{colour!r} is no colour; expected a name, '#rrggbb' or three numbers of 0 to 255.")
    return parts[0], parts[1], parts[2]


def _laid_on(image: Image.Image, background: Colour) -> Image.Image:
    """Transparent pixels keep arbitrary colours underneath; a viewer never shows them, so neither is one used."""
    straight = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    paper = Image.new("RGBA", straight.size, rgb_of(background))
    return Image.alpha_composite(paper, straight).convert("RGB")


def _deep_grey(image: Image.Image, background: Colour) -> Image.Image:
    """Greys deeper than 8 bits, which PIL would clip instead of scale."""
    values = np.asarray(image).astype(np.float64)
    if not values.size:
        return Image.new("RGB", image.size)
    grey = np.clip(values * (255 / _top(values, image.mode)), 0, 255).round().astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    hidden = image.info.get("transparency")  # in these modes PNG names one grey that is not shown
    if isinstance(hidden, int):
        pixels[values == hidden] = rgb_of(background)
    return Image.fromarray(pixels)


def _top(values: NDArray[np.float64], mode: str) -> float:
    """The number that means white."""
    low, high = float(values.min()), float(values.max())  # NaN survives both
    if not np.isfinite([low, high]).all():
        raise MediaError("The picture holds values that are not finite; save it again without NaN or infinity.")
    tops = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(mode, (65535.0,))
    if high > tops[-1] or low < -0.25 * tops[-1]:
        raise MediaError(f"The picture holds greys from {low:.4g} to {high:.4g}; expected 0 to {tops[-1]:.0f} at most.")
    return next(top for top in tops if high <= top)
