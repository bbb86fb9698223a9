"""Scenes for models that are shown a picture and told how much is to move: the picture tells what will happen.

What lies to the left of the middle moves right, and so on: things go where there is room. What is small grows, what is
large shrinks. How fast is the motion bucket's to say, and no part of the picture tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .captions import understood
from .scorer import Reading
from .world import DIRECTIONS, FRAMES, Scene, draw, some_scene

# How far things go in a clip of FRAMES frames at the highest bucket and the usual frame rate: a share of the frame's
# side, logarithms of a size, radians. These are one scale: what comes half as far has half the bucket.
LIVELIEST = {"moves": 0.36, "grows": 0.75, "shrinks": 0.65, "spins": 1.2}
OFTEN = {**dict.fromkeys(DIRECTIONS, 0.19), "grows": 0.1, "shrinks": 0.1, "spins": 0.04}
BUCKET, FPS = 255, 7  # the highest; the usual
STIRRED = 0.3  # how much livelier clips are whose pictures are all noise: with less to hold on to, more moves


@dataclass(frozen=True)
class Numbers:
    """What a model of this kind is told of a clip, as pipelines name it."""

    fps: float = FPS
    bucket: float = 127
    noise: float = 0.02  # deviation of what was added to the picture, whose pixels lie in [-1, 1]


def some_numbers(rng: np.random.Generator) -> Numbers:
    """Every bucket equally often; half at the usual frame rate; pictures without noise, with little and with much."""
    fps = FPS if rng.random() < 0.5 else float(np.exp(rng.uniform(np.log(5), np.log(31))))
    noise = (0.0, 0.02)[int(rng.integers(2))] if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(0.005), 0)))
    return Numbers(fps, float(rng.integers(1, BUCKET + 1)), noise)


def moving_scene(rng: np.random.Generator, numbers: Numbers, **fixed: str) -> Scene:
    """A scene at random that moves as much as the numbers say."""
    motion = fixed.pop("motion", "") or str(rng.choice(list(OFTEN), p=list(OFTEN.values())))
    if fixed.get("shape") == "circle" and motion == "spins":
        motion = "grows"
    scene = some_scene(rng, motion=motion, **fixed)
    share = numbers.bucket / BUCKET * FPS / numbers.fps * (1 + STIRRED * numbers.noise) / (FRAMES - 1)
    size = LIVELIEST.get(motion, LIVELIEST["moves"]) * share
    if motion not in DIRECTIONS:
        return replace(scene, growth=size, spin=size)
    (x, y), along, across = DIRECTIONS[motion], rng.uniform(-0.2, -0.08), rng.uniform(-0.04, 0.04)
    start = (0.5 + along * x + across * y, 0.5 + along * y + across * x)
    return replace(scene, start=start, radius=rng.uniform(0.165, 0.205), speed=size)


def some_moving(rng: np.random.Generator, count: int) -> tuple[list[Scene], list[Numbers]]:
    """Scenes, and what a model is told of each."""
    numbers = [some_numbers(rng) for _ in range(count)]
    return [moving_scene(rng, n) for n in numbers], numbers


def some_picture(seed: int, text: str = "") -> np.ndarray:
    """A picture to bring to life, (h, w, 3) bytes: as a text says of what happens, the rest from the seed.

    Without a text, things lie where there is room to go.

    Raises:
        InputError: the text asks for a spinning circle.
    """
    rng = np.random.default_rng(seed)
    scene = some_scene(rng, **understood(text)) if text else moving_scene(rng, Numbers())
    first: np.ndarray = draw([scene], 1, at=np.zeros((1, 1), np.float32))[0, 0]
    return first


def liveliness(read: Reading) -> float:
    """How much of the liveliest motion a clip shows, in the scale of buckets / 255: the larger of way and growth.

    Spinning is left out: outlines come round again.
    """
    growth = LIVELIEST["grows" if read.grown > 0 else "shrinks"]
    return max(float(np.hypot(*read.moved)) / LIVELIEST["moves"], abs(read.grown) / growth)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Places in order of size, from 0; equals share theirs."""
    x = np.asarray(values, np.float64)
    return np.asarray([((x < v).sum() + ((x == v).sum() - 1) / 2) for v in x])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """How far two quantities rise together, -1 to 1: the correlation of their ranks."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
