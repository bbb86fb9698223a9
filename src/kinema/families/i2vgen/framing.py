"""How I2VGen-XL is shown a picture: the cuts of its authors, for each picture by itself."""

from __future__ import annotations

from PIL import Image

from ...media.pictures import Fit, fit_picture, focus_point
from ...pipelines.picture import CENTRE, Focus


def framed(picture: Image.Image, width: int, height: int, fit: Fit = "crop", focus: Focus = CENTRE) -> Image.Image:
    """A picture of mode RGB at a size: "crop" as the authors cut, the others as `fit_picture` does them.

    Raises:
        InputError: the focus is no point of a picture.
    """
    focus = focus_point(focus)
    if fit == "crop":
        return cropped(picture, width, height, focus)
    return fit_picture(picture, height, width, fit, focus)


def cropped(picture: Image.Image, width: int, height: int, focus: Focus = CENTRE) -> Image.Image:
    """The largest part of these proportions around a point of the picture, (across, down), 0 to 1 each.

    The picture is first made as small as it may be by averaging boxes of pixels, then cut: the steps of the authors'
    code. Rounding there can make it one pixel smaller than what is cut out; not here.
    """
    scale = min(picture.width / width, picture.height / height)
    wide, high = max(width, int(picture.width // scale)), max(height, int(picture.height // scale))
    small = picture.resize((wide, high), Image.Resampling.BOX)
    left, top = _start(wide, width, focus[0]), _start(high, height, focus[1])
    return small.crop((left, top, left + width, top + height))


def seen(
    picture: Image.Image, width: int, side: tuple[int, int], fit: Fit = "crop", focus: Focus = CENTRE
) -> Image.Image:
    """What CLIP is shown, (height, width) `side`: a square as wide as the clip, made smaller bilinearly."""
    square = framed(picture, width, width, fit, focus)
    return square.resize((side[1], side[0]), Image.Resampling.BILINEAR)


def _start(whole: int, part: int, focus: float) -> int:
    """Where a part of this length begins so that its middle is as near to the focus as the edges let it."""
    return min(max(int((2 * focus * whole - part) // 2), 0), whole - part)
