"""The given picture as the first frame of its clip, and how near a generated one comes to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kinema.errors import InputError
from kinema.media.frames import to_frames

if TYPE_CHECKING:
    from torch import Tensor


def hold_first_frame(
    frames: Tensor,  # (f, c, h, w) or (b, f, c, h, w) in 0..1
    picture: Tensor
    | Image.Image,  # (c, h, w), or (b, c, h, w), in 0..1, or a picture of the frames' size for all clips
    fade: int = 8,  # frames until what the picture adds is gone; 1 changes the first alone
) -> Tensor:
    """Frames of which the first is the picture, exactly; in float32 at least, so that its bytes survive.

    What the picture has and the generated first frame has not (detail the autoencoder lost, a shift of colour) is
    added to the frames after it too, weighted by (1 + cos(π·i/fade))/2 at frame i, so that nothing jumps; the result is
    clamped to 0..1. The frames given are not changed.

    Raises InputError where shapes differ, fade is below 1, or numbers are not finite.
    """
    import torch

    if isinstance(fade, bool) or not isinstance(fade, int) or fade < 1:
        raise InputError(f"fade {fade!r} is no number of frames; expected at least 1.")
    if frames.ndim not in (4, 5) or not frames.numel():
        raise InputError(
            f"Frames of shape {tuple(frames.shape)} are no clip; expected (f, c, h, w) or (b, f, c, h, w)."
        )
    held = frames.to(torch.promote_types(frames.dtype, torch.float32)).clone()
    wanted = _tensor(picture).to(held)
    if wanted.shape[-3:] != held.shape[-3:] or wanted.ndim not in (3, held.ndim - 1):
        raise InputError(
            f"The picture is {tuple(wanted.shape)} and frames are {tuple(held.shape[-3:])}; fit it to them first."
        )
    if wanted.ndim == 4 and len(wanted) != len(held):
        raise InputError(f"There are {len(wanted)} pictures for {len(held)} clips; expected one for each.")
    if not bool(torch.isfinite(wanted).all()):
        raise InputError("The picture holds numbers that are not finite; expected 0 to 1.")
    wanted = wanted.clamp(0, 1)
    missing = wanted - held[..., 0, :, :, :]
    for i in range(1, min(fade, held.shape[-4])):
        held[..., i, :, :, :] += (1 + math.cos(math.pi * i / fade)) / 2 * missing
    held[..., 0, :, :, :] = wanted
    return held.clamp_(0, 1)


def psnr(a: Any, b: Any) -> float:
    """Peak signal-to-noise ratio in dB of two pictures or clips of one shape, in 0..1 or bytes; infinite where equal.

    Takes tensors, arrays and PIL pictures, each pair of one kind. Raises InputError where shapes differ.
    """
    first, second = _numbers(a), _numbers(b)
    if first.shape != second.shape or not first.size:
        raise InputError(f"Shapes {first.shape} and {second.shape} cannot be compared; expected the same.")
    error = float(((first - second) ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def _tensor(picture: Tensor | Image.Image) -> Tensor:
    import torch

    if isinstance(picture, Image.Image):
        return torch.from_numpy(to_frames([picture])[0].copy()).permute(2, 0, 1).float() / 255
    return picture


def _numbers(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(x, Image.Image):
        x = to_frames([x])[0]
    elif hasattr(x, "detach"):
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    values = np.asarray(x)
    return values.astype(np.float64) / (255 if values.dtype == np.uint8 else 1)
