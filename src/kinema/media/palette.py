"""256 colours for a whole clip, chosen so that the colours lost are the ones least missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kinema.media.frames import Frame

_SAMPLED = 1 << 16  # pixels a clip's colours are counted on
_LIMIT = 1 << 13  # distinct colours the refinement looks at
_FINE = 1 << 15  # distinct colours of a frame beyond which neighbours are looked up as one
_ROUNDS = 5
_CHUNK = 1 << 12  # rows of distances at a time: what a cache holds

Colours: TypeAlias = NDArray[np.uint8]  # (n, 3)


def choose(frames: Sequence[Frame], size: int = 256) -> Colours:
    """At most `size` colours for all frames: exact where the clip has no more, else median cut refined by k-means.

    k-means minimises the mean square error over the pixels counted (Lloyd's algorithm); it starts from PIL's median
    cut and never ends worse than it. Entries that serve no pixel move to the colour served worst.
    """
    colours, counts = _histogram(frames)
    if len(colours) <= size:
        return colours
    colours, counts = _merged(colours, counts)
    centres = _median_cut(colours, counts, size)
    points, weights = colours.astype(np.float32), counts.astype(np.float64)
    for _ in range(_ROUNDS):
        centres = _refined(points, weights, centres)
    return np.unique(centres.round().astype(np.uint8), axis=0)


def indices(frame: Frame, palette: Colours) -> NDArray[np.uint8]:
    """(h, w) index of the palette entry nearest to each pixel; among very many colours, of its nearest even value."""
    colours, where = _distinct(frame)
    nearest, _ = _nearest(colours, palette.astype(np.float32))
    return nearest.astype(np.uint8)[where].reshape(frame.shape[:2])


def dithered(frame: Frame, palette: Colours, corner: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """The same, each pixel mixed from the entries around its colour in a 4×4 pattern that lies where `corner` says.

    Thomas Knoll's pattern dithering: sixteen times the entry nearest to the colour plus the error so far, sorted by
    lightness and laid out in Bayer's order. Unlike error diffusion it keeps still parts still. Takes 16 times longer.
    """
    colours, where = _distinct(frame)
    centres = palette.astype(np.float32)
    missing, mix = np.zeros_like(colours), np.empty((len(colours), 16), np.int64)
    for i in range(16):
        mix[:, i], _ = _nearest(np.clip(colours + missing, 0, 255), centres)
        missing += colours - centres[mix[:, i]]
    lightness = centres @ np.array([0.299, 0.587, 0.114], np.float32)
    mix = np.take_along_axis(mix, lightness[mix].argsort(1, kind="stable"), 1)
    rows, columns = (np.arange(corner[i], corner[i] + frame.shape[i]) % 4 for i in (0, 1))
    return mix[where, _BAYER[np.ix_(rows, columns)].reshape(-1)].astype(np.uint8).reshape(frame.shape[:2])


def _distinct(frame: Frame) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A frame's distinct colours (n, 3) and which of them each pixel is; neighbours as one where they are very many."""
    codes = _packed(frame)
    colours, where = np.unique(codes, return_inverse=True)
    if len(colours) > _FINE:
        colours, where = np.unique(codes & 0xFEFEFE, return_inverse=True)
    return _unpacked(colours).astype(np.float32), where.reshape(-1)


_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])


def _packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(..., 3) bytes → (n,) numbers 0xRRGGBB."""
    p = pixels.reshape(-1, 3).astype(np.uint32)
    return (p[:, 0] << 16 | p[:, 1] << 8 | p[:, 2]).astype(np.uint32, copy=False)


def _unpacked(codes: NDArray[np.uint32]) -> Colours:
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)


def _histogram(frames: Sequence[Frame]) -> tuple[Colours, NDArray[np.int64]]:
    """The distinct colours and how often each occurs: of every pixel where few, of an even sample where many."""
    distinct = np.empty(0, np.uint32)
    for frame in frames:  # a drawn clip has few colours in millions of pixels: it deserves all of them
        distinct = np.union1d(distinct, np.unique(_packed(frame)))
        if len(distinct) > 256:
            break
    else:
        return _unpacked(distinct), np.ones(len(distinct), np.int64)
    step = max(1, sum(frame.shape[0] * frame.shape[1] for frame in frames) // _SAMPLED)
    codes, counts = np.unique(np.concatenate([_packed(frame)[i % step :: step] for i, frame in enumerate(frames)]),
                              return_counts=True)  # fmt: skip
    return _unpacked(codes), counts


def _merged(colours: Colours, counts: NDArray[np.int64]) -> tuple[Colours, NDArray[np.int64]]:
    """Few enough colours for k-means, near ones first counted as one."""
    bits = 0
    while len(colours) > _LIMIT:
        bits += 1
        kept = np.uint32((0xFF >> bits << bits) * 0x010101)
        codes, where = np.unique(_packed(colours) & kept, return_inverse=True)
        counts = np.bincount(where, counts).astype(np.int64)
        colours = _unpacked(codes) + np.uint8(1 << bits >> 1)
    return colours, counts


def _median_cut(colours: Colours, counts: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """PIL's median cut over the colours, each drawn as often as it occurs, up to a bound."""
    times = np.maximum(1, counts * _SAMPLED // counts.sum())
    strip = Image.fromarray(np.repeat(colours, times, axis=0)[None])
    found = strip.quantize(size, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    return np.array(found, np.float32).reshape(-1, 3)[:size]


def _refined(
    points: NDArray[np.float32], weights: NDArray[np.float64], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One round of Lloyd's algorithm."""
    nearest, distance = _nearest(points, centres)
    mass = np.bincount(nearest, weights, len(centres))
    sums = np.stack([np.bincount(nearest, weights * points[:, c], len(centres)) for c in range(3)], axis=-1)
    moved = (sums / np.maximum(mass, 1)[:, None]).astype(np.float32)
    idle = np.flatnonzero(mass == 0)
    moved[idle] = points[np.argsort(-distance * weights)[: len(idle)]]
    return moved


def _nearest(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) index of the nearest centre and the square distance to it; bytes in float32 keep this exact."""
    index, distance = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    square, twice = (centres**2).sum(1), -2 * centres.T
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        gap = part @ twice
        gap += square
        index[start : start + _CHUNK] = best = gap.argmin(1)
        distance[start : start + _CHUNK] = gap[np.arange(len(part)), best] + (part**2).sum(1)
    return index, distance
