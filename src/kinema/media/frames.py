"""Frames in every form people hold them (pictures, arrays, tensors), turned into one another.

    tensor   (b, f, c, h, w) float in 0..1, as pipelines decode them ("pt")
    arrays   (b, f, h, w, c) float32 in 0..1 ("np")
    pictures a list of clips, each a list of PIL pictures ("pil")

One rounding rule everywhere, the published one: a float x becomes the byte round(255·x), halves to even, after
clamping to 0..1. Slight overshoots are the decoder's business; numbers that are not finite, or so far outside
that they must have another range, are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kinema.errors import InputError, MediaError
from kinema.media.rgb import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

Frame: TypeAlias = NDArray[np.uint8]  # (h, w, 3)
Frames: TypeAlias = Any  # every form above, and lists of pictures or of (h, w, c) arrays

_SLACK = 1.0  # how far below 0 or above 1 a float may stray and still be taken for a value in 0..1


def to_frames(video: Frames) -> list[Frame]:
    """One clip in any form as a list of (h, w, 3) byte arrays; the only way into the exporters.

    Takes a list of PIL pictures or of arrays (h, w, c); an array (f, h, w, c) or (1, f, h, w, c); a tensor
    (f, c, h, w) or (1, f, c, h, w); any of these inside a list or tuple of length one (a batch of one, a pipeline's
    output). Bytes stay as they are, floats follow the module's rule, alpha is laid on white.

    Raises InputError for a batch of several clips or a wrong shape, MediaError for frames that hold no picture
    (NaN, infinity, wrong range, different sizes).
    """
    frames = [_bytes(frame, i) for i, frame in enumerate(_split(video))]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise MediaError(f"Frames differ in size ({_sizes(sizes)}); resize them to one size first.")
    return frames


def to_pil(video: Tensor | NDArray[Any]) -> list[list[Image.Image]]:
    """(b, f, c, h, w) tensor or (b, f, h, w, c) array in 0..1 → b clips of f PIL pictures."""
    return [[Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in _rounded(clip)] for clip in to_numpy(video)]


def to_numpy(video: Tensor | NDArray[Any] | Sequence[Sequence[Image.Image]]) -> NDArray[np.float32]:
    """(b, f, c, h, w) tensor, (b, f, h, w, c) array, or b clips of PIL pictures → (b, f, h, w, c) float32 in 0..1."""
    if _is_tensor(video):
        return video.detach().cpu().permute(0, 1, 3, 4, 2).float().numpy()  # type: ignore[union-attr]
    if isinstance(video, np.ndarray):
        return video.astype(np.float32, copy=False)
    return np.stack([np.stack(to_frames(clip)) for clip in video]).astype(np.float32) / np.float32(255)


def to_tensor(video: Tensor | NDArray[Any] | Sequence[Sequence[Image.Image]]) -> Tensor:
    """What `to_numpy` takes → (b, f, c, h, w) float tensor in 0..1; a tensor comes back as it is."""
    if _is_tensor(video):
        return video  # type: ignore[return-value]
    import torch

    return torch.from_numpy(np.ascontiguousarray(to_numpy(video))).permute(0, 1, 4, 2, 3)


def convert(video: Tensor, output_type: str) -> Tensor | NDArray[np.float32] | list[list[Image.Image]]:
    """A decoded (b, f, c, h, w) tensor in 0..1 as a pipeline's `output_type` asks: "pt", "np" or "pil"."""
    if output_type == "pt":
        return video
    if output_type == "np":
        return to_numpy(video)
    if output_type == "pil":
        return to_pil(video)
    raise InputError(f"output_type {output_type!r} is unknown; expected pil, np, pt or latent.")


def unit_range(video: Tensor) -> Tensor:
    """What an autoencoder decodes, about -1..1, brought to 0..1 and clamped: the published arithmetic."""
    return (video * 0.5 + 0.5).clamp(0, 1)


def _is_tensor(x: object) -> bool:
    """Whether x is a torch tensor, without importing torch: nobody can hold one before it is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _split(video: Frames) -> list[Any]:
    """A clip's frames one by one, each still in its own form."""
    if isinstance(video, Image.Image):
        return [video]
    if _is_tensor(video):
        return _split_tensor(video)
    if isinstance(video, np.ndarray):
        return _split_array(video)
    if not isinstance(video, Sequence) or isinstance(video, str | bytes):
        raise InputError(f"Expected frames as pictures, arrays or a tensor, not {type(video).__name__}.")
    return _split_list(video)


def _split_list(video: Sequence[Any]) -> list[Any]:
    if not video:
        raise InputError("There are no frames; expected at least one.")
    if not (_is_clip(video[0])):
        return list(video)
    if len(video) > 1:
        raise InputError(f"This is a batch of {len(video)} clips; choose one by its index, for example frames[0].")
    return _split(video[0])


def _is_clip(x: Any) -> bool:
    """Whether an entry of a list is a whole clip rather than one frame."""
    if _is_tensor(x) or isinstance(x, np.ndarray):
        return x.ndim > 3
    return isinstance(x, Sequence) and not isinstance(x, str | bytes)


def _split_array(video: NDArray[Any]) -> list[Any]:
    video = _only_clip(video, "(frames, height, width, channels)")
    if video.shape[-1] not in (1, 3, 4):
        raise InputError(f"An array of shape {video.shape} has no 1, 3 or 4 channels last; transpose it to "
                         "(frames, height, width, channels).")  # fmt: skip
    return list(video)


def _split_tensor(video: Tensor) -> list[Any]:
    video = _only_clip(video, "(frames, channels, height, width)")
    if video.shape[1] not in (1, 3, 4):
        raise InputError(f"A tensor of shape {tuple(video.shape)} has no 1, 3 or 4 channels second; permute it to "
                         "(frames, channels, height, width).")  # fmt: skip
    return list(video.detach())


def _only_clip(video: Any, expected: str) -> Any:
    if video.ndim == 5:
        if len(video) != 1:
            raise InputError(f"This is a batch of {len(video)} clips; choose one by its index, for example frames[0].")
        video = video[0]
    if video.ndim != 4:
        raise InputError(f"Frames of shape {tuple(video.shape)} are not a clip; expected {expected}.")
    if 0 in video.shape:
        raise InputError(f"Frames of shape {tuple(video.shape)} are empty; expected at least one frame and one pixel.")
    return video


def _bytes(frame: Any, index: int) -> Frame:
    """One frame in any form → (h, w, 3) bytes."""
    if isinstance(frame, Image.Image):
        return np.asarray(to_rgb(frame))
    pixels = byte_pixels(frame, f"Frame {index}")
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 4:
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(pixels))))
    return pixels


def byte_pixels(frame: Any, name: str, slack: float = _SLACK) -> NDArray[np.uint8]:
    """An array (h, w), (h, w, c) or a tensor (h, w), (c, h, w) of any numbers → (h, w, 1, 3 or 4) bytes.

    Bytes stay as they are, 16-bit numbers are scaled, floats follow the module's rule.

    Raises InputError for a wrong type or shape, MediaError for numbers that are no picture; both begin with `name`.
    """
    if _is_tensor(frame):
        frame = frame.detach().permute(1, 2, 0) if frame.ndim == 3 else frame.detach()
        frame = (frame.float() if frame.is_floating_point() else frame).cpu().numpy()
    if not isinstance(frame, np.ndarray):
        raise InputError(f"{name} is a {type(frame).__name__}; expected a picture, an array or a tensor.")
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.ndim != 3 or frame.shape[-1] not in (1, 3, 4) or 0 in frame.shape:
        raise InputError(f"{name} has shape {frame.shape}; expected (height, width, 1, 3 or 4 channels).")
    return _quantized(frame, name, slack)


def _quantized(frame: NDArray[Any], name: str, slack: float) -> NDArray[np.uint8]:
    if frame.dtype == np.uint8:
        return frame
    if frame.dtype == np.uint16:
        return ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if frame.dtype == np.bool_:
        return frame.astype(np.uint8) * np.uint8(255)
    if frame.dtype.kind not in "iuf":
        raise InputError(f"{name} has dtype {frame.dtype}; expected bytes or floats in 0..1.")
    low, high = float(frame.min()), float(frame.max())  # NaN survives both
    if not np.isfinite([low, high]).all():
        raise MediaError(f"{name} holds numbers that are not finite (NaN or infinity), so there is no picture in it; "
                         "make it again in float32 or bfloat16.")  # fmt: skip
    if frame.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise MediaError(f"{name} holds integers from {low:.0f} to {high:.0f}; expected 0..255.")
        return frame.astype(np.uint8)
    if low < -slack or high > 1 + slack:
        raise MediaError(f"{name} holds values from {low:.3g} to {high:.3g}; expected floats in 0..1 "
                         "or bytes (uint8).")  # fmt: skip
    return _rounded(np.clip(frame.astype(np.float32, copy=False), 0, 1))


def _rounded(frames: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (frames * 255).round().astype(np.uint8)


def _sizes(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(f"{width}×{height}" for height, width, _ in sorted(shapes))
