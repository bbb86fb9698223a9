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
    """{frame: embeddings (1, k, c)} → those of every frame, (f, k, c). The last one holds to the end.

    Args:
        frames: of the clip.
        between: how to get from one to the next, evenly by default.

    Raises:
        InputError: the first frame has none, a frame is not in the clip, or they are not all alike in size.
    """
    check_stops(said, frames)
    stops = {frame: x.view(1, *x.shape[-2:]) for frame, x in sorted(said.items())}
    sizes = {tuple(x.shape[-2:]) for x in stops.values()}
    if len(sizes) > 1:
        raise InputError(f"Embeddings of the frames' prompts have sizes {sorted(sizes)}; they must be alike.")
    made = stops[max(stops)].expand(frames, -1, -1).clone()
    for (start, here), (end, there) in pairwise(stops.items()):
        made[start : end + 1] = (between or evenly)(start, end, here, there)
    return made


def check_stops(said: Mapping[int, object], frames: int) -> None:
    """Refuses frames that a clip does not have.

    Raises:
        InputError: the first frame has none, or a frame is not in the clip.
    """
    for frame in said:
        if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < frames:
            raise InputError(f"A prompt is for frame {frame!r}; this clip has frames 0 to {frames - 1}.")
    if 0 not in said:
        raise InputError("No prompt is for frame 0; a clip needs one to begin with.")
