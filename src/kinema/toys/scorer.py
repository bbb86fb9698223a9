"""Reads back from a clip what it shows: colour, shape, motion and background, by plain image processing.

It knows nothing of any network, and so can judge one. Distances are shares of a frame's side, like the world's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .styles import CHALK, PLAIN, Style
from .world import COLOURS

Array = NDArray[np.float32]

FAR, GROWN, TURNED = 0.12, 0.30, 0.035  # what counts as having moved, grown and turned; see tests for the margins
RAYS = 36  # directions in which an outline is measured
GREEN = 16.0  # how much greener than grey a board is, in grey levels; see tests for the margins
# (share of its enclosing circle, share of its convex hull) that a shape fills, measured on drawn clips
FILLS = {"circle": (0.94, 1.00), "square": (0.645, 1.00), "triangle": (0.43, 0.97), "star": (0.44, 0.62)}


@dataclass(frozen=True)
class Reading:
    """What a clip shows, as far as can be told; all fields but the last are words of the world."""

    colour: str
    shape: str
    motion: str
    background: str
    moved: tuple[float, float]  # from first frame to last, across and down, of a straight line through all
    grown: float  # logarithm of the size, likewise
    turned: float  # how much the outline differs from the first frame's, beyond size
    found: float  # share of frames with something in them


def read(clip: NDArray[np.generic], style: Style = PLAIN) -> Reading:
    """clip (f, h, w, 3), bytes or numbers in [0, 1] → what it shows, drawn in this style.

    Raises:
        InputError: the clip has another shape.
    """
    pixels = _levels(clip)
    if style is not PLAIN:
        board = _border(pixels)
        pixels = pixels - (board - board.mean())  # as before a grey background
    vivid = pixels.max(-1) - pixels.min(-1)
    full = max(60.0, float(np.quantile(vivid, 0.985)))
    cover = np.clip(1.25 * vivid / full - 0.125, 0, 1)  # how much of a pixel the shape covers
    body = _largest(cover > 0.5)
    seen = body.any((1, 2))
    ground = ~_widened(cover > 0.15)
    background = "light" if (pixels[ground].mean() if ground.any() else pixels.mean()) > 128 else "dark"
    if not seen.any():
        return Reading("red", "circle", "stays still", background, (0.0, 0.0), 0.0, 0.0, 0.0)
    inside = body & (cover > 0.8)
    colour = _colour(pixels[inside if inside.any() else body].mean(0))
    cover = cover * _widened(body)

    frames, (h, w) = np.flatnonzero(seen), body.shape[1:]
    down, across = np.mgrid[:h, :w].astype(np.float32) + 0.5
    weight = cover[frames]
    area = weight.sum((1, 2))
    centre = np.stack([(weight * across).sum((1, 2)), (weight * down).sum((1, 2))], 1) / area[:, None]
    outline = np.stack([_outline(c, x, y) for c, (x, y) in zip(weight, centre)]) / np.sqrt(area)[:, None]

    span = float(max(1, len(clip) - 1))
    moved = _slope(frames, centre / (w, h)) * span
    grown = float(_slope(frames, np.log(area)[:, None] / 2)[0] * span)
    turned = float(np.abs(outline - outline[0]).mean()) if len(frames) > 1 else 0.0
    motion = _motion(moved, grown, turned)
    shape = _shape(weight, centre, area)
    return Reading(
        colour, shape, motion, background, (float(moved[0]), float(moved[1])), grown, turned, len(frames) / len(clip)
    )


def style_of(clip: NDArray[np.generic]) -> str:
    """The style a clip (f, h, w, 3) is drawn in: "chalk" on a board that is green, else "plain"."""
    r, g, b = (float(v) for v in _border(_levels(clip)))
    return CHALK.name if g - (r + b) / 2 > GREEN else PLAIN.name


def _levels(clip: NDArray[np.generic]) -> Array:
    """A clip's pixels as numbers from 0 to 255."""
    if clip.ndim != 4 or clip.shape[-1] != 3:
        raise InputError(f"A clip to read has shape (frames, height, width, 3), not {clip.shape}.")
    pixels: Array = clip.astype(np.float32)
    return pixels if clip.dtype == np.uint8 else pixels * 255


def _border(pixels: Array) -> Array:
    """The colour around the edge of a clip, (3,): the median, which what crosses the edge does not sway."""
    depth = max(1, pixels.shape[2] // 16)
    sides = (pixels[:, :depth], pixels[:, -depth:], pixels[:, :, :depth], pixels[:, :, -depth:])
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), 0)


def _motion(moved: Array, grown: float, turned: float) -> str:
    far = float(np.abs(moved).max())
    if far > FAR and far / FAR >= abs(grown) / GROWN:
        axis = int(np.abs(moved).argmax())
        return (("moves left", "moves right"), ("moves up", "moves down"))[axis][int(moved[axis] > 0)]
    if abs(grown) > GROWN:
        return "grows" if grown > 0 else "shrinks"
    return "spins" if turned > TURNED else "stays still"


def _colour(rgb: Array) -> str:
    hues = {name: _hue(np.asarray(value, np.float32)) for name, value in COLOURS.items()}
    hue = _hue(rgb)
    return min(hues, key=lambda name: abs((hues[name] - hue + 180) % 360 - 180))


def _hue(rgb: Array) -> float:
    r, g, b = (float(v) for v in rgb)
    return float(np.degrees(np.arctan2(3**0.5 * (g - b), 2 * r - g - b)))


def _shape(weight: Array, centre: Array, area: Array) -> str:
    """The shape whose two fills are nearest, by the median over frames in which it does not touch the border."""
    edge = np.stack([weight[:, 0].max(1), weight[:, -1].max(1), weight[:, :, 0].max(1), weight[:, :, -1].max(1)]).max(0)
    whole = edge < 0.5
    chosen = np.flatnonzero(whole if whole.any() else ~whole)
    fills = np.median([fills_of(weight[i], centre[i], area[i]) for i in chosen], axis=0)
    return min(FILLS, key=lambda name: float(np.hypot(*(fills - FILLS[name]))))


def fills_of(cover: Array, centre: Array, area: float) -> tuple[float, float]:
    """The share of the circle around it, and of its convex hull, that a shape (h, w) fills."""
    y, x = np.nonzero(cover > 0.5)
    points = np.stack([x, y], 1) + 0.5 - centre
    angle = np.arange(2 * RAYS) * np.pi / RAYS
    reach = points @ np.stack([np.cos(angle), np.sin(angle)])  # (points, rays)
    hull = points[reach.argmax(0)] + 0.35 * np.stack([np.cos(angle), np.sin(angle)], 1)  # a pixel is no point
    hx, hy = hull.T
    surface = abs(float((hx * np.roll(hy, -1) - hy * np.roll(hx, -1)).sum())) / 2
    radius = float(np.hypot(*points.T).max()) + 0.35
    return float(area) / (np.pi * radius**2), float(area) / max(surface, 1e-6)


def _outline(cover: Array, x: float, y: float) -> Array:
    """How far a shape (h, w) reaches from its centre, along each of the rays: the covered length of a ray."""
    h, w = cover.shape
    angle = np.arange(RAYS) * 2 * np.pi / RAYS
    far = np.arange(0.25, 0.75 * max(h, w), 0.5, dtype=np.float32)
    across = np.clip(x + far[:, None] * np.cos(angle) - 0.5, 0, w - 1.001)
    down = np.clip(y + far[:, None] * np.sin(angle) - 0.5, 0, h - 1.001)
    i, j = down.astype(int), across.astype(int)
    a, b = down - i, across - j
    value = (1 - a) * ((1 - b) * cover[i, j] + b * cover[i, j + 1]) + a * (
        (1 - b) * cover[i + 1, j] + b * cover[i + 1, j + 1]
    )
    out: Array = value.sum(0) * 0.5
    return out


def _slope(at: NDArray[np.intp], values: Array) -> Array:
    """The slope of a straight line through values (n, …) at places (n,)."""
    if len(at) < 2:
        return np.zeros(values.shape[1:], np.float32)
    t = at - at.mean()
    out: Array = (t[:, None] * values).sum(0) / (t**2).sum()
    return out


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of each frame of a mask (f, h, w), the piece around its thickest spot."""
    thick = mask.astype(np.float32)
    for axis in (1, 2):
        thick = sum((np.roll(thick, s, axis) for s in range(-3, 4)), np.zeros_like(thick))
    thick = np.where(mask, thick, 0)
    flat = thick.reshape(len(mask), -1)
    piece = np.zeros_like(mask)
    rows = np.arange(len(mask))
    piece.reshape(len(mask), -1)[rows, flat.argmax(1)] = flat.max(1) > 0
    for _ in range(mask.shape[1] + mask.shape[2]):
        grown = _widened(piece) & mask
        if (grown == piece).all():
            break
        piece = grown
    return piece


def _widened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and the pixels that touch it."""
    out = mask.copy()
    for axis in (1, 2):
        first, last = [slice(None)] * 3, [slice(None)] * 3
        first[axis], last[axis] = slice(1, None), slice(None, -1)
        wide = out.copy()
        wide[tuple(first)] |= out[tuple(last)]
        wide[tuple(last)] |= out[tuple(first)]
        out = wide
    return out
