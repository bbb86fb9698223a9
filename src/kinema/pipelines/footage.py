"""Footage people bring, in any of the usual forms, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..media.rgb import to_rgb
from .inputs import finite, size


def footage(
    video: Any, stride: int, latent_channels: int, height: int | None = None, width: int | None = None
) -> Tensor:
    """One clip or a batch of clips → (b, f, 3, h, w) in [-1, 1]; latents, (b, f, latent_channels, h, w), as they are.

    Args:
        video: lists of PIL images or of arrays (h, w, 3) or tensors (3, h, w), lists of such lists, arrays
            (f, h, w, 3) or (b, f, h, w, 3), tensors (f, 3, h, w) or (b, f, 3, h, w). Whole numbers are 0 to 255,
            others 0 to 1; where there are negative ones, -1 to 1.
        stride: what height and width must be multiples of.
        height, width: what to resize to; the footage's own size by default.

    Raises:
        InputError: there is nothing, clips differ in size or length, numbers are out of range, or the size is wrong.
    """
    clips = _as_batch(video, latent_channels)
    if clips.shape[2] == latent_channels and clips.is_floating_point():
        return finite("video (taken as latents, having as many channels)", clips)
    if clips.shape[2] != 3:
        raise InputError(
            f"video has {clips.shape[2]} channels; it must have 3 (colour), or {latent_channels} (latents)."
        )
    high, wide = size(clips.shape[3] if height is None else height, clips.shape[4] if width is None else width, stride)
    pixels = _ranged(clips)
    if (high, wide) != tuple(pixels.shape[3:]):
        frames = F.interpolate(pixels.flatten(0, 1), (high, wide), mode="bicubic", antialias=True, align_corners=False)
        pixels = frames.clamp(-1, 1).unflatten(0, pixels.shape[:2])
    return pixels


def _as_batch(video: Any, latent_channels: int) -> Tensor:
    """(b, f, c, h, w) in whatever numbers it came in."""
    clip = _tensor(video, latent_channels)
    if clip.ndim not in (4, 5) or not clip.numel():
        raise InputError(
            f"video is {tuple(clip.shape)}; it must be a clip or a batch of clips, with at least one frame."
        )
    return clip[None] if clip.ndim == 4 else clip


def _tensor(video: Any, latent_channels: int) -> Tensor:
    if isinstance(video, Tensor):
        return video
    if isinstance(video, np.ndarray):
        if video.dtype.kind not in "uif" or video.ndim < 3:
            raise InputError(f"video has arrays {video.shape} of {video.dtype}; expected numbers, (h, w, 3) a frame.")
        return torch.from_numpy(np.ascontiguousarray(video)).movedim(-1, -3)
    if isinstance(video, Image.Image):
        return _tensor(np.array(to_rgb(video)), latent_channels)
    if isinstance(video, Sequence) and not isinstance(video, (str, bytes)) and video:
        parts = [_tensor(part, latent_channels) for part in video]
        shapes = sorted({tuple(p.shape) for p in parts})
        if len(shapes) > 1:
            raise InputError(f"The frames or clips of video differ: {shapes[0]} and {shapes[1]}; make them alike.")
        return torch.cat(parts) if parts[0].ndim == 5 else torch.stack(parts)
    raise InputError("video must be frames as PIL images, arrays or tensors; load_video(path) gives such a list.")


def _ranged(clips: Tensor) -> Tensor:
    """Any numbers → [-1, 1]."""
    if not clips.is_floating_point():
        if clips.dtype != torch.uint8:
            least, most = int(clips.long().min()), int(clips.long().max())
            if clips.dtype == torch.bool or least < 0 or most > 255:
                raise InputError(f"video has whole numbers from {least} to {most}; they must be bytes, 0 to 255.")
        return clips.float() / 127.5 - 1
    low, high = float(finite("video", clips).min()), float(clips.max())
    if high > 1.001 or low < -1.001:
        raise InputError(f"video has numbers from {low:g} to {high:g}; they must be 0 to 1, or whole numbers 0 to 255.")
    return clips.float() if low < 0 else clips.float() * 2 - 1
