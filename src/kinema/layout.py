"""How video tensors lie in memory, and every way of turning one view of them into another.

    b batch    f frames    c channels    h, w height and width    n = h·w    k context tokens

    video    (b, f, c, h, w)    at every boundary inside kinema, pixels and latents alike
    frames   (b·f, c, h, w)     inside the networks, channels last in memory

Physically frames are b-f-h-w-c, so tokens, volumes and strips below are views of them, never copies;
only attention over time has to move data, because its sequences are strided in memory.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, channels_last

from .place import sent


def to_frames(video: Tensor) -> Tensor:
    """(b, f, c, h, w) → (b·f, c, h, w), channels last."""
    return video.flatten(0, 1).contiguous(memory_format=channels_last)


def to_video(frames: Tensor, f: int) -> Tensor:
    """(b·f, c, h, w) → (b, f, c, h, w)."""
    return frames.unflatten(0, (-1, f))


def swap_time(video: Tensor) -> Tensor:
    """(b, f, c, h, w) ↔ (b, c, f, h, w): the layout published pipelines take and return for latents."""
    return video.transpose(1, 2)


def take_frames(x: Tensor, frames: Sequence[int], axis: int = 1) -> Tensor:
    """Some of the frames that lie along an axis, in this order; a view where they are neighbours."""
    first, count = frames[0], len(frames)
    if list(frames) == list(range(first, first + count)):
        return x.narrow(axis, first, count)
    return x.index_select(axis, sent(torch.tensor(frames), x.device))


def some_frames(x: Tensor, frames: Sequence[int], f: int) -> Tensor:
    """(b·f, …) → (b·k, …): some of the frames of every clip; pictures channels last, tokens in one piece."""
    rows = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    some = take_frames(rows.unflatten(0, (-1, f)), frames).flatten(0, 1).contiguous()
    return some.permute(0, 3, 1, 2) if x.ndim == 4 else some


def put_frames(whole: Tensor | None, some: Tensor, frames: Sequence[int], f: int, axis: int = 0) -> Tensor:
    """The reverse of `some_frames`, or along axis 1 of `take_frames`: `whole` with these frames put in their places.

    Begin with None, whose other frames hold nothing yet.
    """
    rows = some.permute(0, 2, 3, 1) if some.ndim == 4 else some
    clips = rows if axis else rows.unflatten(0, (-1, len(frames)))
    if whole is None:
        made = clips.new_empty(len(clips), f, *clips.shape[2:])
        whole = made if axis else made.flatten(0, 1)
        whole = whole.permute(0, 3, 1, 2) if some.ndim == 4 else whole
    inside = whole.permute(0, 2, 3, 1) if some.ndim == 4 else whole
    inside = inside if axis else inside.unflatten(0, (-1, f))
    inside.index_copy_(1, sent(torch.tensor(frames), inside.device), clips)
    return whole


def to_strips(frames: Tensor, f: int) -> Tensor:
    """(b·f, c, h, w) → (b, c, f, n): a clip as one picture, time going down, so that 2-D operations mix frames."""
    return (
        frames.permute(0, 2, 3, 1)
        .reshape(-1, f, frames.shape[2] * frames.shape[3], frames.shape[1])
        .permute(0, 3, 1, 2)
    )


def from_strips(strips: Tensor, h: int, w: int) -> Tensor:
    """(b, c, f, n) → (b·f, c, h, w)."""
    return strips.permute(0, 2, 3, 1).reshape(-1, h, w, strips.shape[1]).permute(0, 3, 1, 2)


def to_tokens(frames: Tensor) -> Tensor:
    """(b·f, c, h, w) → (b·f, n, c): the pixels of a frame attend to one another."""
    return frames.permute(0, 2, 3, 1).flatten(1, 2)


def from_tokens(tokens: Tensor, h: int, w: int) -> Tensor:
    """(b·f, n, c) → (b·f, c, h, w)."""
    return tokens.unflatten(1, (h, w)).permute(0, 3, 1, 2)


def across_time(tokens: Tensor, f: int) -> Tensor:
    """(b·f, n, c) → (b·n, f, c): a pixel attends to itself in the other frames."""
    return tokens.unflatten(0, (-1, f)).transpose(1, 2).flatten(0, 1)


def across_space(tokens: Tensor, n: int) -> Tensor:
    """(b·n, f, c) → (b·f, n, c)."""
    return tokens.unflatten(0, (-1, n)).transpose(1, 2).flatten(0, 1)


def per_frame(vectors: Tensor, like: Tensor, f: int = 1) -> Tensor:
    """(b, c) → (b·f, c, 1, 1), or (1, c, 1, 1) where one vector serves all: one vector for every frame of its clip.

    There may be fewer vectors than clips in `like` (b·f, …): guidance branches then have them in common.
    """
    if len(vectors) > 1:
        vectors = widen(vectors, len(like) // f).repeat_interleave(f, 0)
    return vectors[:, :, None, None]


def take_rows(x: Tensor, start: int, stop: int, clips: int, each: int = 1) -> Tensor:
    """(branches·b·each, …) → rows `start` to `stop` of branches·b, where each has `each`; b is `clips`.

    Of what branches have in common, (b·each, …), it takes the same clips', and of what all clips have in common, all.
    """
    rows = len(x) // each
    if rows == 1:
        return x
    first = start % clips if rows == clips else start
    return x[first * each : (first + stop - start) * each]


def widen(x: Tensor, rows: int) -> Tensor:
    """(b, …) → (rows, …): what guidance branches had in common, once for each of them. Branches are the slow axis."""
    return x if len(x) == rows else x.repeat(rows // len(x), *(1,) * (x.ndim - 1))


@overload
def one_branch(x: Tensor, rows: int, branch: int) -> Tensor: ...


@overload
def one_branch(x: Tensor | None, rows: int, branch: int) -> Tensor | None: ...


def one_branch(x: Tensor | None, rows: int, branch: int) -> Tensor | None:
    """(branches·rows, …) → (rows, …): one guidance branch; what branches have in common, (1 or rows, …), stays.

    Branches count from 0, or from -1 back.
    """
    return x if x is None or len(x) <= rows else x.unflatten(0, (-1, rows))[branch]
