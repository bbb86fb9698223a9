"""Measures how all that a clip shows moves together: one shift, growth and turn a frame, by least squares.

It knows nothing of any network, nor of the shapes there are. For one velocity of shift, growth and turn about the
frame's centre, every frame carried along should be the next one; Gauss and Newton find it, on blurred frames first
(Lucas and Kanade 1981; all pairs of frames share one velocity, so that even a disc that orbits the centre is told from
one that moves on).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .camera import CAMERAS, Camera
from .world import FRAMES

Array = NDArray[np.float32]

# What counts as a camera's motion, a frame: a third of what is drawn; of rolling a sixth, as when it was drawn slower.
LEAST = {"pan": 0.015, "zoom": 0.028, "roll": 0.063}
BLURS = (4.0, 2.0, 1.0)  # deviations in pixels of a frame 64 wide, from coarse to fine
ROUNDS = 4  # at each of them
SIDE = 32  # pixels a frame is looked at with: what moves is larger


def camera_of(clip: NDArray[np.generic]) -> Camera:
    """clip (f, h, w, 3), bytes or numbers in [0, 1] → what is seen moves so, a frame of a clip of FRAMES frames.

    Half of what is measured forwards less half of what is measured backwards: outlines that merely wobble are fitted
    best by shrinking a little, whichever way time runs, and that cancels.

    Raises:
        InputError: the clip has another shape, or a single frame.
    """
    if clip.ndim != 4 or clip.shape[-1] != 3 or len(clip) < 2:
        raise InputError(f"A clip to measure has shape (2 or more frames, height, width, 3), not {clip.shape}.")
    pixels: Array = clip.astype(np.float32) / np.float32(255 if clip.dtype == np.uint8 else 1)
    pixels = _smaller((pixels - np.median(pixels, (0, 1, 2))).astype(np.float32))
    pace = (len(clip) - 1) / (FRAMES - 1)
    x, y, zoom, roll = (float(v) * pace for v in (_velocity(pixels) - _velocity(pixels[::-1])) / 2)
    return Camera((x, y), zoom, roll)


def named(camera: Camera) -> str:
    """The camera motion that a measured one shows most of, or "still" where it is not enough of any."""
    shown = {
        "pan-left": camera.pan[0] / LEAST["pan"],
        "tilt-up": camera.pan[1] / LEAST["pan"],
        "zoom-in": camera.zoom / LEAST["zoom"],
        "roll": camera.roll / LEAST["roll"],
    }
    opposite = {"pan-left": "pan-right", "tilt-up": "tilt-down", "zoom-in": "zoom-out", "roll": "roll-back"}
    most = max(shown, key=lambda name: abs(shown[name]))
    if abs(shown[most]) < 1:
        return "still"
    return most if shown[most] > 0 else opposite[most]


def shows(camera: Camera, name: str) -> bool:
    """Whether a measured motion has enough of this one in it, whatever else it has.

    Raises:
        InputError: there is no such motion.
    """
    if name not in CAMERAS:
        raise InputError(f"There is no camera motion {name!r}; there are {', '.join(CAMERAS)}.")
    wanted = CAMERAS[name]
    for is_, want, least in (
        (camera.pan[0], wanted.pan[0], LEAST["pan"]),
        (camera.zoom, wanted.zoom, LEAST["zoom"]),
        (camera.roll, wanted.roll, LEAST["roll"]),
    ):
        if want and is_ * np.sign(want) < least:
            return False
    return True


def _velocity(pixels: Array) -> NDArray[np.float64]:
    """Across, down, growth and turn, a frame."""
    velocity = np.zeros(4, np.float64)
    for blur in BLURS:
        soft = _blurred(pixels, blur * pixels.shape[2] / 64)
        for _ in range(ROUNDS):
            velocity += _better(soft, velocity)
    return velocity


def _better(frames: Array, velocity: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to add to a velocity so that each of the frames (f, h, w, c), carried along, is more like the next."""
    h, w = frames.shape[1:3]
    y = ((np.arange(h, dtype=np.float32) + 0.5) / h - 0.5)[:, None]
    x = ((np.arange(w, dtype=np.float32) + 0.5) / w - 0.5)[None]
    across, down, zoom, roll = (float(v) for v in velocity)
    c, s, scale = np.cos(roll), np.sin(roll), np.exp(-zoom)
    u = scale * (c * (x - across) + s * (y - down))  # where a place of the next frame was in this one
    v = scale * (c * (y - down) - s * (x - across))
    there, seen = _sampled(frames[:-1], u, v)
    wrong = (frames[1:] - there) * seen[..., None]
    dx, dy = np.gradient(there, axis=2) * w * seen[..., None], np.gradient(there, axis=1) * h * seen[..., None]
    x, y = (x - across)[..., None], (y - down)[..., None]
    slopes = np.stack([-dx, -dy, -(dx * x + dy * y), dx * y - dy * x], -1).reshape(-1, 4).astype(np.float64)
    square = slopes.T @ slopes
    step: NDArray[np.float64] = np.linalg.solve(
        square + np.eye(4) * (1e-3 * np.trace(square) / 4 + 1e-9), slopes.T @ wrong.reshape(-1)
    )
    return np.clip(step, -0.1, 0.1)


def _sampled(frames: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Frames (f, h, w, c) at places (h, w) around their centre, between pixels; and which places lie inside."""
    h, w = frames.shape[1:3]
    x, y = (u + 0.5) * w - 0.5, (v + 0.5) * h - 0.5
    inside = ((x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)).astype(np.float32)
    x, y = np.clip(x, 0, w - 1.001), np.clip(y, 0, h - 1.001)
    i, j = y.astype(int), x.astype(int)
    a, b = (y - i)[..., None].astype(np.float32), (x - j)[..., None].astype(np.float32)
    out: Array = (1 - a) * ((1 - b) * frames[:, i, j] + b * frames[:, i, j + 1]) + a * (
        (1 - b) * frames[:, i + 1, j] + b * frames[:, i + 1, j + 1]
    )
    return out, inside


def _smaller(frames: Array) -> Array:
    """Frames with about SIDE pixels a side, each the mean of a block."""
    n = max(1, min(frames.shape[1:3]) // SIDE)
    h, w = (size // n * n for size in frames.shape[1:3])
    blocks = frames[:, :h, :w].reshape(len(frames), h // n, n, w // n, n, -1)
    small: Array = blocks.mean((2, 4))
    return small


def _blurred(frames: Array, deviation: float) -> Array:
    reach = max(1, round(3 * deviation))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 4
        pad[axis] = (reach, reach)
        wide = np.pad(frames, pad, mode="edge")
        size = frames.shape[axis]
        frames = sum((k * np.take(wide, range(i, i + size), axis) for i, k in enumerate(kernel)), np.zeros_like(frames))
    return frames
