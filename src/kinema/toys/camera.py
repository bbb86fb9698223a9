"""Camera motion in the drawn world: everything that is seen shifts, grows or turns together.

Distances are shares of a frame's side and speeds are a frame at a time, as in `world`. A pan sets out from where the
camera would stand without it, as shapes set out from the centre; sizes and tilts are the usual ones mid-clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Camera:
    """How what is seen moves, all of it: not the camera itself, which goes the other way."""

    pan: tuple[float, float] = (0.0, 0.0)  # shift a frame, across and down
    zoom: float = 0.0  # logarithm of the growth a frame, about the frame's centre
    roll: float = 0.0  # radians a frame about the frame's centre, clockwise

    def __add__(self, other: Camera) -> Camera:
        (a, b), (c, d) = self.pan, other.pan
        return Camera((a + c, b + d), self.zoom + other.zoom, self.roll + other.roll)


# The motions there are LoRAs for, at their middle speed. A camera that pans left shows things going right.
CAMERAS: dict[str, Camera] = {
    "pan-left": Camera(pan=(0.045, 0.0)),
    "pan-right": Camera(pan=(-0.045, 0.0)),
    "zoom-in": Camera(zoom=0.085),
    "zoom-out": Camera(zoom=-0.085),
    "roll": Camera(roll=0.4),
}


def some_camera(rng: np.random.Generator, name: str) -> Camera:
    """A camera of that motion, up to a tenth faster or slower.

    Raises:
        InputError: there is no such motion.
    """
    if name not in CAMERAS:
        raise InputError(f"There is no camera motion {name!r}; there are {', '.join(CAMERAS)}.")
    camera, pace = CAMERAS[name], rng.uniform(0.9, 1.1)
    return Camera((camera.pan[0] * pace, camera.pan[1] * pace), camera.zoom * pace, camera.roll * pace)


def where(cameras: Sequence[Camera], x: Array, y: Array, t: Array, middle: float) -> tuple[Array, Array, Array]:
    """Which place of the world a place of the picture shows.

    Args:
        x, y: places of the picture, broadcast to (b, f, h, w).
        t: frames since the clip's first, (b, f).
        middle: what t is in the middle of a clip.

    Returns:
        Places of the world, across and down, (b, f, h, w), and how much larger than usual it is seen, (b, f, 1, 1).
    """
    pan = np.asarray([c.pan for c in cameras], np.float32)[:, None] * t[..., None]  # (b, f, 2)
    scale = np.exp(np.asarray([c.zoom for c in cameras], np.float32)[:, None] * (t - middle))[..., None, None]
    angle = (np.asarray([c.roll for c in cameras], np.float32)[:, None] * (t - middle))[..., None, None]
    u = (x - 0.5 - pan[..., 0, None, None]) / scale
    v = (y - 0.5 - pan[..., 1, None, None]) / scale
    c, s = np.cos(angle), np.sin(angle)
    across, down = 0.5 + c * u + s * v, 0.5 + c * v - s * u
    return across.astype(np.float32), down.astype(np.float32), scale.astype(np.float32)
