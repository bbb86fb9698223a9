"""Prompts that change on the way: what is said at some frames, and what lies between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import InputError

# How embeddings get from one frame's (1, k, c) to a later one's: (first, last, from, to) -> (last - first + 1, k, c).
Between = Callable[[int, int, Tensor, Tensor], Tensor]


def evenly(first: int, last: int, start: Tensor, end: Tensor) -> Tensor:
    """A straight line between two embeddings, (1, k, c) each → (last - first + 1, k, c), both included."""
    share = torch.arange(last - first + 1, device=start.device, dtype=torch.float64) / max(last - first, 1)
    shares = share.to(start.dtype)[:, None, None]
    return (1 - shares) * start + shares * end


def travel(said: Mapping[int, Tensor], frames: int, between: Between | None = None) -> Tensor:
    """{frame: embeddings (k, c)} → those of every frame, (f, k, c): the first from the start on, the last to the end.

    Args:
        frames: of the clip.
        between: how to get from one to the next, evenly by default.

    Raises:
        InputError: nothing is said, a frame is not in the clip, embeddings are not all alike in size, or `between`
            makes something else of two of them.
    """
    if not said:
        raise InputError("No prompt is given for any frame; give at least one for frame 0.")
    if wrong := [frame for frame in said if not 0 <= frame < frames]:
        raise InputError(f"A prompt is for frame {wrong[0]}; this clip has frames 0 to {frames - 1}.")
    sizes = sorted({tuple(x.shape) for x in said.values()})
    if len(sizes) > 1:
        raise InputError(f"Embeddings of the frames' prompts have sizes {sizes[0]} and {sizes[1]}; they must be alike.")
    stops = sorted(said.items())
    made = torch.stack([stops[0][1]] * frames)
    made[stops[-1][0] :] = stops[-1][1]
    for (start, here), (end, there) in pairwise(stops):
        part = (between or evenly)(start, end, here[None], there[None])
        if part.shape != made[start : end + 1].shape:
            wanted = tuple(made[start : end + 1].shape)
            raise InputError(f"Between frames {start} and {end} embeddings must be {wanted}, not {tuple(part.shape)}.")
        made[start : end + 1] = part
    return made
