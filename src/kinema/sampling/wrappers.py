"""Denoisers made of denoisers: the same two methods, and something done before, between or after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..layout import take_frames, take_rows
from ..place import sent
from .loop import Denoiser, Prepared
from .windows import Window, Windows


class Cuttable(Protocol):
    """A signal of which a denoiser can be told a part."""

    def of_last(self, clips: int, /) -> Self:
        """What it says of the last clips: of the conditional branch, where there is another."""
        ...

    def at_frames(self, frames: Sequence[int], /) -> Self:
        """What it says of these frames, as though they were a clip of their own."""
        ...


C = TypeVar("C", contravariant=True)
S = TypeVar("S", bound=Cuttable)


@dataclass(frozen=True)
class WholeSignal(Generic[S]):
    """What a windowed denoiser is told at a step: what its windows are told, still in one piece."""

    whole: S
    step: int

    def at_frames(self, frames: Sequence[int]) -> WholeSignal[S]:
        return WholeSignal(self.whole.at_frames(frames), self.step)

    def of_last(self, clips: int) -> WholeSignal[S]:
        return WholeSignal(self.whole.of_last(clips), self.step)


@dataclass(frozen=True)
class WholePrepared(Generic[S]):
    """The signals of every step."""

    whole: Prepared[S]

    def at(self, step: int) -> WholeSignal[S]:
        return WholeSignal(self.whole.at(step), step)


class Telling:
    """A denoiser whose signals say more than it says itself, the same at every step; in all else it is that one."""

    def __init__(self, denoiser: Any, **told: Any):
        """`told`: fields of what the denoiser prepares."""
        self.denoiser, self.told = denoiser, told

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        """times (steps,) → the signals of all steps."""
        return replace(self.denoiser.prepare(times, conditions), **self.told)

    def __call__(self, latents: Tensor, signal: Any) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        predicted: Tensor = self.denoiser(latents, signal)
        return predicted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


class Apart:
    """A denoiser that sees guidance branches one after the other, in less memory; in all else it is that one.

    What branches have in common before the first cross-attention is then computed for each.
    """

    def __init__(self, denoiser: Any, single: bool = False):
        """With `single`, clips of a batch are seen one after the other too."""
        self.denoiser, self.single = denoiser, single

    def __call__(self, latents: Tensor, signal: Any) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        return torch.cat([self.denoiser(*part) for _, *part in self._parts(latents, signal)])

    def begin(self, latents: Tensor, signal: Any, fresh: int) -> list[Tensor]:
        """As `VideoUNet` does."""
        made = [self.denoiser.begin(*part, fresh) for _, *part in self._parts(latents, signal)]
        return [torch.cat(features) for features in zip(*made, strict=True)]

    def denoise_and_keep(
        self, latents: Tensor, signal: Any, fresh: int, begun: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """As `VideoUNet` does."""
        made = [
            self.denoiser.denoise_and_keep(*part, fresh, self._of(begun, rows, latents))
            for rows, *part in self._parts(latents, signal)
        ]
        predicted, deep = zip(*made, strict=True)
        return torch.cat(predicted), torch.cat(deep)

    def denoise_above(
        self, latents: Tensor, signal: Any, deep: Tensor, fresh: int, begun: Sequence[Tensor] = ()
    ) -> Tensor:
        """As `VideoUNet` does; deep features are (branches·b·f, c, h, w)."""
        made = [
            self.denoiser.denoise_above(*part, *self._of([deep], rows, latents), fresh, self._of(begun, rows, latents))
            for rows, *part in self._parts(latents, signal)
        ]
        return torch.cat(made)

    @staticmethod
    def _of(features: Sequence[Tensor], rows: range, latents: Tensor) -> list[Tensor]:
        """These rows' share of features (b·f or branches·b·f, c, h, w)."""
        clips, f = latents.shape[:2]
        return [take_rows(x, *_ends(rows), clips, f) for x in features]

    def _parts(self, latents: Tensor, signal: Any) -> Iterator[tuple[range, Tensor, Any]]:
        """Rows of the prediction, with the latents and the signal they are made of."""
        clips = len(latents)
        step = 1 if self.single else clips
        for start in range(0, max(clips, signal.rows), step):
            rows = range(start, start + step)
            yield rows, take_rows(latents, *_ends(rows), clips), signal.of_rows(*_ends(rows), clips)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def _ends(rows: range) -> tuple[int, int]:
    return rows.start, rows.stop


class Windowed(Generic[C, S]):
    """Denoises a clip in windows, one after the other, and blends what it predicts of them.

    Time is proportional to the number of frames, and so is memory only of latents: all that does not depend on them is
    prepared once for the clip, and each window is told its part. Clips of one window are denoised as they are.
    """

    def __init__(self, denoiser: Denoiser[C, S], windows: Windows | None = None, **settings: Any):
        """Takes windows, or the settings they have: `Windowed(unet, length=16, overlap=4)`.

        Raises:
            InputError: settings cannot be used.
        """
        self.denoiser = denoiser
        self.windows = Windows(**settings) if windows is None else windows

    def prepare(self, times: Tensor, conditions: C) -> WholePrepared[S]:
        """times (steps,) → the signals of all steps."""
        return WholePrepared(self.denoiser.prepare(times, conditions))

    def __call__(self, latents: Tensor, signal: WholeSignal[S]) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w), of blended ones float32."""
        frames = latents.shape[1]
        if not self.windows.cuts(frames):
            return self.denoiser(latents, signal.whole)
        windows = self.windows.plan(frames, signal.step)
        seen = (self._predicted(latents, signal.whole, window.frames) for window in windows)
        return blend(windows, seen, frames)

    def _predicted(self, latents: Tensor, signal: S, frames: Sequence[int]) -> Tensor:
        return self.denoiser(take_frames(latents, frames), signal.at_frames(frames)).float()


def blend(windows: Sequence[Window], predictions: Iterator[Tensor], frames: int) -> Tensor:
    """Predictions of windows, (rows, some, c, h, w) each, as they count for a clip's frames: (rows, f, c, h, w)."""
    blended: Tensor | None = None
    for window in windows:
        predicted = next(predictions)
        if blended is None:
            rows, _, *rest = predicted.shape
            blended = predicted.new_zeros(rows, frames, *rest)
        weights = sent(torch.tensor(window.weights), blended.device)[:, None, None, None]
        blended.index_add_(1, sent(torch.tensor(window.frames), blended.device), predicted * weights)
        del predicted  # before the next window needs the room
    assert blended is not None
    return blended
