"""Pictures and clips from wherever people keep them, as plain RGB pictures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

from PIL import Image, ImageOps

from kinema.errors import InputError, MediaError
from kinema.media import fetch
from kinema.media.frames import to_frames
from kinema.media.pictures import to_rgb

ImageInput: TypeAlias = Any  # str | PathLike | PIL.Image.Image | ndarray (h, w[, c]) | Tensor (c, h, w)

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # a larger picture is taken for a decompression bomb


def load_image(
    image: ImageInput,  # a path, an http(s) address, a PIL picture, an array (h, w, c) or a tensor (c, h, w)
    convert_method: Callable[[Image.Image], Image.Image] | None = None,  # applied instead of conversion to RGB
) -> Image.Image:
    """A picture in mode RGB, turned upright as its EXIF says.

    Transparency is laid on white (the reference shows whatever hides underneath), greys of any depth are scaled to
    8 bits, CMYK is converted, an animation gives its first frame. Arrays and tensors follow the rule of
    `kinema.media.frames`. Raises MediaError where there is no readable picture, InputError for another type.
    """
    if isinstance(image, str | os.PathLike):
        opened = decode(fetch.read(image), str(image))
    elif isinstance(image, Image.Image):
        opened = image
    elif hasattr(image, "ndim") and image.ndim in (2, 3):
        opened = Image.fromarray(to_frames([image])[0])
    else:
        shape = getattr(image, "shape", None)
        what = f"{type(image).__name__} of shape {tuple(shape)}" if shape is not None else type(image).__name__
        raise InputError(
            f"Expected a path, an address, a picture, an array (h, w, c) or a tensor (c, h, w), not {what}."
        )
    return upright(opened, convert_method or to_rgb)


def upright(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture as a viewer shows it: turned by its EXIF orientation, then converted."""
    try:
        turned = ImageOps.exif_transpose(image) or image
    except (OSError, SyntaxError, ValueError):  # broken EXIF says nothing about the pixels
        turned = image
    return convert(turned)


def decode(content: bytes, name: str) -> Image.Image:
    """An encoded picture, wholly decoded (first frame). Raises MediaError for what is not one, or is cut or a bomb."""
    opened = open_image(content, name)
    try:
        opened.load()
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise MediaError(
            f"{name} is a damaged or truncated {opened.format} picture ({error}); get it again."
        ) from error
    return opened


def open_image(content: bytes, name: str) -> Image.Image:
    """An encoded picture with its header read. Raises MediaError for what is not one or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            opened = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has more than {MAX_PIXELS:,} pixels; resize it first.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"{name} is not a picture that can be read; expected PNG, JPEG, WebP or the like.") from error
    if opened.width * opened.height > MAX_PIXELS:
        raise MediaError(
            f"{name} has {opened.width}×{opened.height} pixels, more than {MAX_PIXELS:,}; resize it first."
        )
    return opened
