"""FreeNoise's start (Qiu et al. 2023, section 3.2): long clips from the noise of short ones, in another order.

What attends to what there, its other half, belongs to a network's blocks: `kinema.nn.free_noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .noise import Noise, OneStream

NoiseType = Literal["shuffle_context", "repeat_context", "random"]


@dataclass(frozen=True)
class Rescheduling:
    """How the noise of a clip's first frames is used again for those after them.

    Raises:
        InputError: settings cannot be used.
    """

    length: int = 16  # frames whose noise is drawn
    stride: int = 4  # frames that are shuffled among themselves
    noise_type: NoiseType = "shuffle_context"  # shuffled again and again, repeated as it is, or all drawn

    def __post_init__(self) -> None:
        for name in ("length", "stride"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a whole number of frames, at least 1.")
        if self.noise_type not in get_args(NoiseType):
            raise InputError(f"noise_type is {self.noise_type!r}; it must be one of {', '.join(get_args(NoiseType))}.")

    def extend(self, noise: Tensor, frames: int, source: Noise, time: int = 2) -> Tensor:
        """Noise (b, c, f, h, w) whose first `length` frames count → that of `frames` frames; `time` is their axis.

        Orders come from `source`, drawn in turn, as the reference does it (equation 7).
        """
        if self.noise_type == "random" or frames <= self.length:
            return noise
        places = torch.arange(frames) % self.length
        if self.noise_type == "repeat_context":
            return noise.index_select(time, places)
        made = [*noise.narrow(time, 0, self.length).unbind(time)]
        for start in range(self.length, frames, self.stride):
            first = start - self.length
            count = min(self.stride, frames - first)
            orders = source.order(len(noise), count)[:, : frames - start]
            shuffled = torch.stack(made[first : first + count])  # (count, b, …)
            made += [shuffled[order, torch.arange(len(noise))] for order in orders.T]
        return torch.stack(made, time)


class Rescheduled:
    """Noise that begins clips as FreeNoise does, and is like any other after that."""

    def __init__(self, source: Noise, how: Rescheduling):
        self.source, self.how = source, how
        self.streams: Sequence[OneStream] = source.streams

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        if purpose != "start" or not time:
            return self.source.draw(shape, purpose, time)
        shape, frames = list(shape), shape[time]
        if self.how.noise_type == "repeat_context":
            shape[time] = min(frames, self.how.length)
        return self.how.extend(self.source.draw(shape, purpose, time), frames, self.source, time)

    def order(self, clips: int, count: int) -> Tensor:
        return self.source.order(clips, count)

    def aside(self) -> Noise:
        return self.source.aside()
