"""How much a clip moves: words for it, what a model is told, and what is measured."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kinema.errors import InputError
from kinema.media.frames import Frame, Frames, to_frames

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.media.flow import Flow

# What Stable Video Diffusion calls motion_bucket_id. Its recipe was never published; 127 is the reference's default and
# the middle of what it was trained on. The one table of these words: pipelines, command line and guide read it here.
BUCKETS = (1, 255)
MOTION_WORDS: dict[str, int] = {"still": 1, "calm": 63, "normal": 127, "lively": 191}

SIDE = 768  # pixels: movements are given as on a frame of this side squared, Stable Video Diffusion's trained area
RATE = 7.0  # frames a second that the buckets' speeds are for, the reference's default
_WORKING = 112  # the side, squared, of the area movements are found at
_SLOW, _FAST = 2.0, 66.0  # pixels a frame: where the scale of buckets turns from even steps to even ratios, and its end
_AT_ONCE = 16  # pairs of frames


@dataclass(frozen=True)
class Motion:
    """How much a clip moves.

    Pixels are those of a frame of 768×768 or as many, 1024×576 say, whatever size the clip has.
    """

    pixels: float  # a frame: how far what can be seen moves, on average
    camera: float  # a frame: the part of it that most of the frame agrees on (pans, turns, zooms)
    subject: float  # a frame: what moves against that
    by_frame: tuple[float, ...]  # pixels from each frame to the next, cuts among them
    explained: float  # 0..1: how much of the change between frames is movement; the rest is flicker, noise or cuts
    fps: float  # frames a second that `bucket` was reckoned at

    @property
    def bucket(self) -> int:
        """The motion bucket (1 to 255) a clip that moves like this stands for: see `bucket_of_speed`."""
        return bucket_of_speed(self.pixels * self.fps / RATE)

    @property
    def scale(self) -> float:
        """The same from 0 (still) to 1 (as lively as any)."""
        return motion_scale(self.bucket)

    @property
    def word(self) -> str:
        """The same as a word: still, calm, normal or lively."""
        return motion_word(self.bucket)


def measure_motion(
    video: Frames | str | os.PathLike[str],  # one clip in any form the exporters take, a pipeline's output, or a file
    fps: float | None = None,  # frames a second; those of the file, or 7, where None
    max_frames: int | None = None,  # measure so many, the first
) -> Motion:
    """How much a clip moves, by optical flow between neighbouring frames.

    Plain areas, where no movement can be seen, do not count; pairs of frames that are cuts do not either. Neither
    size nor brightness of a clip changes what is measured; frames are compared as they follow one another, so a clip
    played twice as fast moves as far a frame, and has a higher bucket if its fps is given.

    Raises:
        InputError: no clip, several clips, one frame only, frames smaller than 8×8, or an fps that is none.
        MediaError: a file that cannot be read, or frames that hold no picture.
    """
    from kinema.media.clips import load_video

    rate = None if fps is None else _rate(fps)
    if isinstance(video, str | os.PathLike):
        video, files = load_video(video, return_fps=True, max_frames=max_frames)
        rate = rate or files or None
    frames = to_frames(getattr(video, "frames", video))[:max_frames]
    if len(frames) < 2:
        raise InputError("Motion needs two frames at least; this clip has one.")
    height, width, _ = frames[0].shape
    if min(height, width) < 8:
        raise InputError(f"Frames of {width}×{height} are too small to see motion in; expected at least 8×8.")
    return _measured(frames, rate or RATE)


def bucket_of_speed(pixels: float) -> int:
    """Pixels a frame at 7 frames a second, on a frame of 768×768 or as many → 1 to 255.

    The recipe of the published buckets is not known; this one is kinema's own, and the models in the box are trained
    by it. Steps are even ratios above two pixels, as speed is felt: 1 is 29, 8 is 116, 9.6 is 127, 66 and more is 255.
    """
    least, most = BUCKETS
    part = math.log1p(max(0.0, pixels) / _SLOW) / math.log1p(_FAST / _SLOW)
    return min(most, max(least, round(most * part)))


def speed_of_bucket(bucket: float) -> float:
    """The other way: pixels a frame at 7 frames a second."""
    return _SLOW * math.expm1(bucket / BUCKETS[1] * math.log1p(_FAST / _SLOW))


def motion_bucket(motion: str | float) -> int:
    """A word of MOTION_WORDS, or a number from 0 (still) over 0.5 (normal) to 1 (as lively as trained) → 1 to 255.

    Raises InputError for another word, or a number out of 0..1: buckets themselves are given as motion_bucket_id.
    """
    if isinstance(motion, str):
        if motion.strip().lower() in MOTION_WORDS:
            return MOTION_WORDS[motion.strip().lower()]
        raise InputError(f"motion {motion!r} is unknown; expected {', '.join(MOTION_WORDS)}, or a number of 0 to 1.")
    try:
        scale = math.nan if isinstance(motion, bool) else float(motion)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 <= scale <= 1:
        raise InputError(f"motion {motion!r} is not in 0 to 1; numbers beyond are given as motion_bucket_id.")
    least, most = BUCKETS
    return max(least, math.floor(scale * most))


def motion_scale(bucket: float) -> float:
    """The other way: a bucket as a number from 0 to 1."""
    least, most = BUCKETS
    return 0.0 if bucket <= least else min(1.0, bucket / most)


def motion_word(bucket: float) -> str:
    """The word whose bucket is nearest."""
    return min(MOTION_WORDS, key=lambda word: abs(MOTION_WORDS[word] - bucket))


def _rate(fps: float) -> float:
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise InputError(f"fps {fps!r} is no frame rate; expected a positive number.")
    return float(fps)


def _measured(frames: list[Frame], fps: float) -> Motion:
    import torch

    from kinema.media.flow import flow

    height, width, _ = frames[0].shape
    brightness = torch.from_numpy(np.stack([_brightness(frame) for frame in frames]))
    unit = SIDE / math.sqrt(height * width) * math.sqrt(height * width / brightness[0].numel())
    rows = []
    with torch.inference_mode():
        for i in range(0, len(frames) - 1, _AT_ONCE):
            first, second = brightness[:-1][i : i + _AT_ONCE], brightness[1:][i : i + _AT_ONCE]
            rows.append(_of_pairs(flow(first, second)))
    whole, camera, subject, before, after = (column.double().numpy() for column in torch.cat(rows, 1))
    kept = ~_cuts(before, after)
    change = float(before[kept].sum())
    return Motion(
        pixels=float(whole[kept].mean() * unit),
        camera=float(camera[kept].mean() * unit),
        subject=float(subject[kept].mean() * unit),
        by_frame=tuple(float(x) for x in whole * unit),
        explained=1.0 if change == 0 else float(np.clip(1 - after[kept].sum() / change, 0, 1)),
        fps=fps,
    )


def _brightness(frame: Frame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(h, w, 3) bytes → (h', w') in 0..1, no larger than movements are found at."""
    height, width, _ = frame.shape
    luma = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)
    shrink = _WORKING / math.sqrt(height * width)
    if shrink >= 1:
        return luma
    size = max(8, round(width * shrink)), max(8, round(height * shrink))
    return np.array(Image.fromarray(luma).resize(size, Image.Resampling.BILINEAR))


def _of_pairs(found: Flow) -> Tensor:
    """(5, n): mean length of the movement, of the camera's, of the rest; mean change, what movement leaves of it."""
    import torch

    from kinema.media.flow import length

    weight = found.trust
    total = weight.sum((1, 2)) + 1e-4 * weight[0].numel()  # a plain frame's few trusted pixels count little
    camera = found.camera
    return torch.stack(
        [
            (weight * length(found.vectors)).sum((1, 2)) / total,
            length(camera).mean((1, 2)),
            (weight * length(found.vectors - camera)).sum((1, 2)) / total,
            found.before.mean((1, 2)),
            found.after.mean((1, 2)),
        ]
    )


def _cuts(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(n,) changes → which pairs of frames are cuts: much is left that movement does not explain, unlike elsewhere."""
    sudden: np.ndarray[Any, np.dtype[np.bool_]]
    sudden = (after > 4 * np.median(after)) & (after > 0.2 * before) & (after > 0.02)
    return sudden if not sudden.all() else np.zeros_like(sudden)
