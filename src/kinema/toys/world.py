"""A small world of moving shapes, drawn: what the model in the box learned, and can be checked against.

One coloured shape before a soft gradient, in clips of any length and size. Distances below are in units of a frame's
side, so that the same clip can be drawn at any size; speeds are for a clip's own frame rate, a frame at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .camera import Camera, where
from .styles import PLAIN, Style

Array = NDArray[np.float32]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 45),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 210, 40),
    "purple": (165, 50, 205),
    "cyan": (40, 205, 220),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star")
MOTIONS: tuple[str, ...] = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "stays still",
    "grows",
    "shrinks",
    "spins",
)
BACKGROUNDS: tuple[str, ...] = ("dark", "light")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}

DIRECTIONS: dict[str, tuple[float, float]] = {
    "moves left": (-1.0, 0.0),
    "moves right": (1.0, 0.0),
    "moves up": (0.0, -1.0),
    "moves down": (0.0, 1.0),
}
FRAMES, SIZE = 8, 64  # of the clips the model in the box is trained on


@dataclass(frozen=True)
class Scene:
    """All that a clip shows."""

    colour: str
    shape: str
    motion: str
    background: str
    start: tuple[float, float] = (0.5, 0.5)  # the centre in the first frame: across, down
    radius: float = 0.19  # in the first frame
    speed: float = 0.042  # a frame, where it moves
    growth: float = 0.10  # logarithm of the size, a frame, where it grows or shrinks
    spin: float = 0.30  # radians a frame, clockwise, where it spins
    tilt: float = 0.0  # radians, in the first frame
    shade: float = 1.0  # how bright the colour is
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the background, around its grey
    slope: tuple[float, float] = (0.0, 0.0)  # of the background's brightness, across and down

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"The world has no {name} {getattr(self, name)!r}; it has {', '.join(allowed)}.")
        if self.motion == "spins" and self.shape == "circle":
            raise InputError("A circle cannot be seen to spin; give it corners or another motion.")


def some_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """A scene at random, its colour, shape, motion or background as given.

    Paths start near the centre and run outward: averaged over its frames a clip then still shows where it goes, so
    direction is decided where noise is high, which is what lets a small model learn it (docs/toy-model.md).

    Raises:
        InputError: a given value is not of this world, or asks for a spinning circle.
    """
    chosen = {name: fixed.get(name) or str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
    if chosen["motion"] == "spins" and chosen["shape"] == "circle":
        if "shape" in fixed and "motion" in fixed:
            raise InputError("A circle cannot be seen to spin; give it corners or another motion.")
        free, values = ("motion", MOTIONS[:-1]) if "shape" in fixed else ("shape", SHAPES[1:])
        chosen[free] = str(rng.choice(values))
    along, across = rng.uniform(-0.06, 0.0), rng.uniform(-0.06, 0.06)
    x, y = DIRECTIONS.get(chosen["motion"], (1.0, 0.0))
    moving = chosen["motion"] in DIRECTIONS
    if not moving:
        along = rng.uniform(-0.06, 0.06)
    radius = {"grows": (0.13, 0.15), "shrinks": (0.23, 0.265), "stays still": (0.17, 0.21), "spins": (0.19, 0.225)}
    return Scene(
        **chosen,
        start=(0.5 + along * x + across * y, 0.5 + along * y + across * x),
        radius=rng.uniform(*radius.get(chosen["motion"], (0.165, 0.195))),
        speed=rng.uniform(0.041, 0.046),
        growth=rng.uniform(0.085, 0.105),
        spin=rng.uniform(0.28, 0.36),
        tilt=rng.uniform(-0.08, 0.08),
        shade=rng.uniform(0.94, 1.06),
        tint=tuple(rng.uniform(-6, 6, 3)),
        slope=tuple(rng.uniform(-22, 22, 2)),
    )


def draw(
    scenes: Sequence[Scene],
    frames: int = FRAMES,
    size: int = SIZE,
    at: NDArray[np.float32] | None = None,
    *,
    style: Style = PLAIN,
    cameras: Sequence[Camera] | None = None,
) -> NDArray[np.uint8]:
    """Scenes → clips (b, f, size, size, 3), antialiased; `at` (b, f) names other moments than all from first to last.

    A clip longer or shorter than usual goes as far, in smaller or larger steps: what a model trained on one length
    makes of another.

    Args:
        style: how things look.
        cameras: one a scene, that moves all that is seen; none by default.
    """
    if not scenes or frames < 1 or size < 8:
        raise InputError("Drawing needs at least one scene, one frame and 8 pixels a side.")
    if cameras is not None and len(cameras) != len(scenes):
        raise InputError(f"There are {len(scenes)} scenes and {len(cameras)} cameras; give one for each.")
    column = {f.name: [getattr(s, f.name) for s in scenes] for f in fields(Scene)}
    number = {k: np.asarray(v, np.float32) for k, v in column.items() if k not in ATTRIBUTES}
    t = np.linspace(0, FRAMES - 1, frames, dtype=np.float32)[None] if at is None else at

    way = np.asarray([DIRECTIONS.get(m, (0.0, 0.0)) for m in column["motion"]], np.float32)
    grow = np.asarray([{"grows": 1.0, "shrinks": -1.0}.get(m, 0.0) for m in column["motion"]], np.float32)
    turn = np.asarray([float(m == "spins") for m in column["motion"]], np.float32)
    centre = number["start"][:, None] + (way * number["speed"][:, None])[:, None] * t[..., None]  # (b, f, 2)
    radius = number["radius"][:, None] * np.exp((grow * number["growth"])[:, None] * t)
    angle = number["tilt"][:, None] + (turn * number["spin"])[:, None] * t

    grid: Array = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    across, down = grid[None, None, None, :], grid[None, None, :, None]
    scale: Array = np.ones((1, 1, 1, 1), np.float32)
    if cameras is not None:
        across, down, scale = where(cameras, across, down, np.broadcast_to(t, centre.shape[:2]), (FRAMES - 1) / 2)
    x = across - centre[..., 0, None, None]  # (b, f, 1, w), or with a camera (b, f, h, w)
    y = down - centre[..., 1, None, None]
    c, s = np.cos(angle)[..., None, None], np.sin(angle)[..., None, None]
    u, v = c * x + s * y, c * y - s * x
    outside = np.empty(u.shape, np.float32)
    shapes = np.asarray(column["shape"])
    for shape in SHAPES:
        rows = shapes == shape
        if rows.any():
            outside[rows] = _DISTANCE[shape](u[rows], v[rows], radius[rows][..., None, None])
    cover = np.clip(0.5 - outside * (size * scale), 0, 1)[..., None]  # how much of a pixel the shape covers

    grey = np.asarray([getattr(style, b) for b in column["background"]], np.float32)  # (b, 3)
    slope = (across - 0.5) * number["slope"][:, 0, None, None, None]
    slope = slope + (down - 0.5) * number["slope"][:, 1, None, None, None]
    ground = (grey[:, None, None, None] + slope[..., None]) + number["tint"][:, None, None, None]
    paint = np.asarray([COLOURS[n] for n in column["colour"]], np.float32) * number["shade"][:, None]
    paint = paint + style.paler * (255 - paint)
    clip = ground * (1 - cover) + paint[:, None, None, None] * cover
    drawn: NDArray[np.uint8] = np.clip(np.rint(clip), 0, 255).astype(np.uint8)
    return drawn


def _circle(x: Array, y: Array, r: Array) -> Array:
    out: Array = np.hypot(x, y) - r * np.float32(0.9)
    return out


def _square(x: Array, y: Array, r: Array) -> Array:
    out: Array = np.maximum(np.abs(x), np.abs(y)) - r * np.float32(0.80)
    return out


def _triangle(x: Array, y: Array, r: Array) -> Array:
    """Equilateral, one corner up; its corners lie on a circle of 1.15 r around its centre of area."""
    out: Array = np.maximum(np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y, y) - r * np.float32(0.575)
    return out


def _star(x: Array, y: Array, r: Array) -> Array:
    """Five points, one up, each an isosceles wedge mirrored into the first tenth of a turn."""
    r = r * np.float32(1.15)
    step = np.float32(2 * np.pi / 5)
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - step * np.rint(angle / step))
    d = np.hypot(x, y)
    a, b = d * np.cos(angle), d * np.sin(angle)  # a along a point's axis, b ≥ 0 away from it
    inner = np.float32(0.45)
    ix, iy = inner * np.cos(step / 2), inner * np.sin(step / 2)  # the notch; the tip is (1, 0)
    length = np.hypot(1 - ix, iy)
    out: Array = ((a - r) * iy + b * (1 - ix)) / length
    return out


_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
