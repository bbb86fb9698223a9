"""FreeInit (Wu et al. 2023): denoise, noise the result again keeping its slow part, and denoise once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, fft

from ..errors import InputError

Method = Literal["butterworth", "ideal", "gaussian"]
AXES = (1, 3, 4)  # frames, height and width of a video (b, f, c, h, w)


@dataclass(frozen=True)
class FreeInit:
    """How often a clip is begun anew, and what it keeps.

    Raises:
        InputError: settings cannot be used; the message says what can.
    """

    rounds: int = 3  # times the clip is denoised, the first one included
    fast: bool = False  # whether the first rounds take fewer steps, the last one all
    method: Method = "butterworth"
    order: int = 4  # of a Butterworth filter: higher ones cut off more sharply
    spatial: float = 0.25  # where slow ends and fast begins, 0 to 1, a share of the highest frequency of a picture
    temporal: float = 0.25  # the same over time

    def __post_init__(self) -> None:
        for name in ("rounds", "order"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of FreeInit is {value!r}; it must be a whole number, at least 1.")
        for name in ("spatial", "temporal"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise InputError(f"The {name} stop frequency is {value!r}; it must be from 0 to 1.")
        if self.method not in get_args(Method):
            raise InputError(f"method is {self.method!r}; it must be one of {', '.join(get_args(Method))}.")

    def steps(self, steps: int, number: int) -> int:
        """How many of so many steps a round takes, counted from 0."""
        return max(1, int(steps / self.rounds * (number + 1))) if self.fast else steps

    def filter(self, frames: int, height: int, width: int) -> Tensor:
        """(f, h, w) in [0, 1], float32: how much is kept of each frequency, the slowest in the middle."""
        if self.spatial == 0 or self.temporal == 0:
            return torch.zeros(frames, height, width)
        t, y, x = (2 * torch.arange(n, dtype=torch.float64) / n - 1 for n in (frames, height, width))
        t = t * (self.spatial / self.temporal)
        return SHAPES[self.method](t[:, None, None] ** 2 + y[:, None] ** 2 + x**2, self).float()

    def mix(self, slow: Tensor, fast: Tensor) -> Tensor:
        """The slow part of one video (b, f, c, h, w) and the fast part of another, float32."""
        kept = fft.ifftshift(self.filter(slow.shape[1], *slow.shape[3:]))[:, None].to(slow.device)
        slow, fast = slow.float(), fast.float()
        return fast + fft.ifftn(fft.fftn(slow - fast, dim=AXES) * kept, dim=AXES).real

    def again(self, clean: Tensor, start: Tensor, fresh: Tensor, kept: float) -> Tensor:
        """What a round starts from, (b, f, c, h, w), all noise of unit variance.

        Args:
            clean: what the round before ended with.
            start: the noise of the first round.
            fresh: noise for the fast part.
            kept: the square of the share of clean latents at the noisiest level of training.
        """
        return self.mix(kept**0.5 * clean.float() + (1 - kept) ** 0.5 * start.float(), fresh)


def _butterworth(square: Tensor, how: FreeInit) -> Tensor:
    return 1 / (1 + (square / how.spatial**2) ** how.order)


def _ideal(square: Tensor, how: FreeInit) -> Tensor:
    return (square <= how.spatial * 2).double()


def _gaussian(square: Tensor, how: FreeInit) -> Tensor:
    return (-square / (2 * how.spatial**2)).exp()


SHAPES: dict[Method, Callable[[Tensor, FreeInit], Tensor]] = {
    "butterworth": _butterworth,
    "ideal": _ideal,
    "gaussian": _gaussian,
}
