"""A picture from wherever people keep it, as plain RGB, or one sentence why not."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from kinema.errors import InputError, KinemaError, MediaError
from kinema.media import fetch
from kinema.media.frames import byte_pixels
from kinema.media.rgb import to_rgb

ImageInput: TypeAlias = Any  # str | PathLike | PIL.Image.Image | ndarray (h, w[, c]) | Tensor (c, h, w)

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # a larger picture is taken for a decompression bomb
_SLACK = 0.25  # how far a float may stray from 0..1; more than that and the picture has another range, -1..1 say


def load_image(
    image: ImageInput,  # a path, an http(s) address, a PIL picture, an array (h, w, c) or a tensor (c, h, w)
    convert_method: Callable[[Image.Image], Image.Image] | None = None,  # applied instead of conversion to RGB
) -> Image.Image:
    """A picture in mode RGB, turned upright as its EXIF says.

    Transparency is laid on white (the reference shows whatever hides underneath), greys of any depth are scaled to
    8 bits, CMYK is converted, an animation gives its first frame. Arrays and tensors have 1, 3 or 4 channels of bytes,
    16-bit numbers or floats in 0..1. Raises MediaError where there is no readable picture, InputError for another type.
    """
    opened = _opened(image)
    try:
        return upright(opened, convert_method or to_rgb)
    except KinemaError:
        raise
    except Exception as error:
        if convert_method is not None:  # what a conversion of the caller's raises is the caller's
            raise
        raise MediaError(f"The picture cannot be read ({error}); open it again, or save it as PNG.") from error


def _opened(image: ImageInput) -> Image.Image:
    """A decoded picture of at least one pixel and not too many."""
    if isinstance(image, str | os.PathLike):
        return decode(fetch.read(image), os.fspath(image))
    if isinstance(image, Image.Image):
        _bound(image, "The picture")
        _load(image, "The picture")
        return image
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) not in (2, 3):
        what = f"{type(image).__name__} of shape {shape}" if shape else type(image).__name__
        raise InputError(
            f"Expected a path, an address, a picture, an array (h, w, c) or a tensor (c, h, w), not {what}."
        )
    pixels = byte_pixels(image, "The picture", _SLACK)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    _bound(picture, "The picture")
    return picture


def upright(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture as a viewer shows it: turned by its EXIF orientation, then converted."""
    try:
        turned = ImageOps.exif_transpose(image) or image
    except Exception:  # broken EXIF, which PIL meets with errors of any kind, says nothing about the pixels
        turned = image
    return convert(turned)


def decode(content: bytes, name: str) -> Image.Image:
    """An encoded picture, wholly decoded (first frame). Raises MediaError for what is not one, or is cut or a bomb."""
    opened = open_image(content, name)
    _load(opened, name)
    return opened


def open_image(content: bytes, name: str) -> Image.Image:
    """An encoded picture with its header read. Raises MediaError for what is not one or is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            opened = Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has more than {MAX_PIXELS:,} pixels; resize it first.") from error
    except Exception as error:  # damaged headers end in errors of any kind
        raise MediaError(f"{name} is not a picture that can be read; expected PNG, JPEG, WebP or the like.") from error
    _bound(opened, name)
    return opened


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception as error:  # damaged pixels end in errors of any kind
        kind = f" {image.format}" if image.format else ""
        raise MediaError(f"{name} is a damaged or truncated{kind} picture ({error}); get it again.") from error


def _bound(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"{name} has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}; resize it first.")
    if not image.width * image.height:
        raise MediaError(f"{name} is {image.width}×{image.height} pixels; expected at least one.")
