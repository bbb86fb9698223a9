"""Scenes of the drawn world as what networks are trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..toys.world import FRAMES, SIZE, Scene, draw, some_scene


def pictures(rng: np.random.Generator, count: int, size: int = SIZE) -> Tensor:
    """Frames (count, 3, size, size) in [-1, 1], each from a clip of its own."""
    scenes = some_scenes(rng, count)
    at = rng.uniform(0, FRAMES - 1, (count, 1)).astype(np.float32)
    return to_pixels(draw(scenes, 1, size, at)[:, 0])


def to_pixels(pictures: np.ndarray) -> Tensor:
    """(…, h, w, 3) bytes → (…, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(pictures).float().div_(127.5).sub_(1).movedim(-1, -3)


def to_bytes(pixels: Tensor) -> np.ndarray:
    """(…, 3, h, w) in about [-1, 1] → (…, h, w, 3) bytes."""
    return pixels.add(1).mul(127.5).round().clamp(0, 255).byte().movedim(-3, -1).numpy()


def some_scenes(rng: np.random.Generator, count: int, **fixed: str) -> list[Scene]:
    return [some_scene(rng, **fixed) for _ in range(count)]
