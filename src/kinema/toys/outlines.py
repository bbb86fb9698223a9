"""Outlines of what a clip shows, as pictures to steer by, and how far one clip covers what another shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

EDGE = 48.0  # a change of so many levels from one pixel to the one after next is an outline
APART = 60.0  # so many levels from the colour most of a frame has are a shape, less is background


def outlines(clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes (…, h, w, 3) → white lines on black where what is seen changes, of the same shape.

    Raises:
        InputError: the clip is no pictures of red, green and blue.
    """
    if clip.ndim < 3 or clip.shape[-1] != 3:
        raise InputError(f"Pictures are {clip.shape}; outlines are drawn of (…, height, width, 3).")
    x = clip.astype(np.float32)
    beside = [(0, 0)] * (clip.ndim - 3)
    x = np.pad(x, [*beside, (1, 1), (1, 1), (0, 0)], mode="edge")
    across = x[..., 1:-1, 2:, :] - x[..., 1:-1, :-2, :]
    down = x[..., 2:, 1:-1, :] - x[..., :-2, 1:-1, :]
    line = np.hypot(across, down).max(-1, keepdims=True) > EDGE
    out: NDArray[np.uint8] = np.repeat(line, 3, axis=-1).astype(np.uint8) * 255
    return out


def overlap(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """How far the shapes of two clips (f, h, w, 3) cover the same pixels, 0 to 1: what both cover of what either does,
    on average over frames."""
    one, other = _shape(a), _shape(b)
    both, either = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return float(np.mean(both / np.maximum(either, 1)))


def _shape(clip: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(f, h, w): where a clip (f, h, w, 3) shows something else than background."""
    x = clip.astype(np.float32)
    out: NDArray[np.bool_] = np.abs(x - np.median(x, axis=(1, 2), keepdims=True)).max(-1) > APART
    return out
