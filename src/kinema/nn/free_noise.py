"""FreeNoise's attention (Qiu et al. 2023, section 3.3): over time a block sees windows of a clip, and blends them.

Where long clips start from, its other half, is not a network's matter: `kinema.sampling.free_noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..place import sent
from .attention import FeedForward, TransformerBlock
from .by_frame import by_frame
from .signal import Signal

Weighting = Literal["pyramid", "flat", "delayed_reverse_sawtooth"]


class Span(NamedTuple):
    """A window, and what its frames count for."""

    start: int  # its first frame
    weights: tuple[float, ...]  # over all spans those of a frame sum to 1


@dataclass(frozen=True)
class FrameWindows:
    """How a clip's frames are shared out among windows inside a block.

    Raises:
        InputError: settings cannot be used.
    """

    length: int = 16  # frames of a window; shorter clips are one
    stride: int = 4  # frames from one window's first to the next one's
    weighting: Weighting = "pyramid"

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise InputError(f"context_length is {self.length!r}; it must be a whole number of frames, at least 1.")
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or not 1 <= self.stride <= self.length:
            raise InputError(
                f"context_stride is {self.stride!r}; it must be a whole number from 1 to context_length, "
                f"{self.length}, or frames between windows would be left out."
            )
        if self.weighting not in get_args(Weighting):
            raise InputError(f"weighting_scheme is {self.weighting!r}; it must be one of {', '.join(WEIGHTS)}.")

    def spans(self, frames: int) -> list[Span]:
        """The windows of a clip at least as long as one; the last one's frames count where no other window has them."""
        starts = list(range(0, frames - self.length + 1, self.stride))
        shape, total = WEIGHTS[self.weighting](self.length), [0.0] * frames
        for start in starts:
            for i, weight in enumerate(shape):
                total[start + i] += weight
        found = [Span(start, tuple(w / total[start + i] for i, w in enumerate(shape))) for start in starts]
        rest = frames - (starts[-1] + self.length)
        if rest:
            found.append(Span(frames - self.length, (0.0,) * (self.length - rest) + (1.0,) * rest))
        return found

    def blend(self, x: Tensor, within: Callable[[Tensor, int], Tensor]) -> Tensor:
        """x (b, f, …) → what `within` makes of its windows (b, length, …) and of their first frames, blended.

        Windows are copies, whose memory `within` may use again. Sums are as precise as x.
        """
        frames = x.shape[1]
        if frames <= self.length:
            return within(x, 0)
        made = torch.zeros_like(x)
        for start, weights in self.spans(frames):
            seen = within(x[:, start : start + self.length].clone(), start)
            share = sent(torch.tensor(weights, dtype=x.dtype), x.device).view(1, -1, *(1,) * (x.ndim - 2))
            made[:, start : start + self.length] += seen * share
        return made


def _pyramid(n: int) -> list[float]:
    """1, 2, 3, …, 3, 2, 1 (equation 9)."""
    return [float(min(i + 1, n - i)) for i in range(n)]


def _flat(n: int) -> list[float]:
    return [1.0] * n


def _sawtooth(n: int) -> list[float]:
    """Hardly anything in the first half, then the most and ever less."""
    middle = (n + 1) // 2
    return [0.01 if i < middle - 1 else float(min(middle, n - i)) for i in range(n)]


WEIGHTS: dict[Weighting, Callable[[int], list[float]]] = {
    "pyramid": _pyramid,
    "flat": _flat,
    "delayed_reverse_sawtooth": _sawtooth,
}


class OverTime(TransformerBlock):
    """A block whose attentions are over time, and over windows of it where its signal says so; tokens (b·f, n, c)."""

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        return by_frame(self.ff, self.in_windows(x, signal), signal, self.fed)

    def fed(self, ff: FeedForward, x: Tensor, signal: Signal) -> Tensor:
        return ff.onto(x, self.norm3)

    def in_windows(self, x: Tensor, signal: Signal) -> Tensor:
        """Both attentions, in windows where there are some and the clip is longer than one."""
        windows = signal.windows
        if windows is None or signal.frames <= windows.length:
            return self.attend(x, signal)
        clips = x.unflatten(0, (-1, signal.frames))
        return windows.blend(clips, partial(self._within, signal)).flatten(0, 1)

    def _within(self, signal: Signal, x: Tensor, start: int) -> Tensor:
        """x (b, length, n, c), a window that begins with this frame → the same."""
        frames = x.shape[1]
        weights = signal.weights and signal.weights.at_frames(range(start, start + frames))
        told = replace(signal, frames=frames, weights=weights)
        return self.attend(x.flatten(0, 1), told).unflatten(0, (-1, frames))


class PixelOverTime(OverTime):
    """The same where a row is a pixel and tokens are its frames, (b·n, f, c)."""

    def in_windows(self, x: Tensor, signal: Signal) -> Tensor:
        if signal.windows is None:
            return self.attend(x, signal)
        return signal.windows.blend(x, lambda part, start: self.attend(part, signal))


def sees_windows(model: nn.Module) -> bool:
    """Whether the model has blocks over time that may see windows of a clip."""
    return any(isinstance(module, OverTime) for module in model.modules())
