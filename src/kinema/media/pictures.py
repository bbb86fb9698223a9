"""Any PIL picture as plain RGB, without losing what its mode means."""

from __future__ import annotations

import numpy as np
from PIL import Image

from kinema.errors import MediaError


def to_rgb(image: Image.Image) -> Image.Image:
    """The same picture in mode RGB: transparency laid on white, 16-bit and float greys scaled, CMYK converted.

    An RGB picture comes back as it is. Embedded colour profiles are not applied, as in the reference.
    """
    if image.mode == "RGB":
        return image if "transparency" not in image.info else _on_white(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep_grey(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Transparent pixels keep arbitrary colours underneath; a viewer never shows them, so neither is one used."""
    straight = image.convert("RGBA")
    paper = Image.new("RGBA", straight.size, "white")
    return Image.alpha_composite(paper, straight).convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Greys deeper than 8 bits, which PIL would clip instead of scale. Floats are 0..1, or 0..255 where larger."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise MediaError("The picture holds values that are not finite; save it again without NaN or infinity.")
    top = 65535.0 if image.mode != "F" else 1.0 if values.max() <= 1 else 255.0
    return Image.fromarray(np.clip(values * (255 / top), 0, 255).round().astype(np.uint8))
