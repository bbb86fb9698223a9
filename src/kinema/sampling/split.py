"""A denoiser whose windows and guidance branches are dealt to several processes, and noise they have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ..layout import take_frames
from .loop import Denoiser, Prepared
from .noise import Noise, OneStream
from .windows import Window, Windows
from .wrappers import blend


class Ranks(Protocol):
    """Processes that work alike, and what they exchange."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def first(self, x: Tensor, /) -> Tensor:
        """What process 0 has."""
        ...

    def gather(self, mine: Tensor | None, like: Tensor, /) -> list[Tensor | None]:
        """What each has, flat, in their order."""
        ...


class Branched(Protocol):
    """A signal of which a denoiser can be told a part."""

    def of_branch(self, clips: int, branch: int, /) -> Self:
        """What it says of one guidance branch of so many clips; branches count from 0, or from -1 back."""
        ...

    def at_frames(self, frames: Sequence[int], /) -> Self:
        """What it says of these frames, as though they were a clip of their own."""
        ...


C = TypeVar("C", contravariant=True)
S = TypeVar("S", bound=Branched)


class Unit(NamedTuple):
    """The least that is evaluated alone: some frames, and one of their guidance branches, or all as None."""

    window: int
    branch: int | None


def deal(windows: int, branches: int, size: int, apart: bool = True) -> list[list[Unit]]:
    """The units of each of `size` processes. Branches part only where that makes the longest share shorter.

    Branches that stay together share what comes before the network tells them apart; so those of one process do.
    """
    apart = apart and branches > 1 and -(-windows * branches // size) < branches * -(-windows // size)
    units = [Unit(w, b) for w in range(windows) for b in (range(branches) if apart else (None,))]
    shares = [units[len(units) * k // size : len(units) * (k + 1) // size] for k in range(size)]
    return [list(_joined(share, branches)) for share in shares]


def _joined(share: list[Unit], branches: int) -> Iterator[Unit]:
    for window, units in groupby(share, key=lambda unit: unit.window):
        some = list(units)
        yield from [Unit(window, None)] if len(some) == branches else some


@dataclass(frozen=True)
class SplitSignal(Generic[S]):
    """What a split denoiser is told at a step, still in one piece."""

    whole: S
    step: int
    branches: int

    def of_last(self, clips: int) -> SplitSignal[S]:
        return replace(self, whole=self.whole.of_branch(clips, -1), branches=1)

    def at_frames(self, frames: Sequence[int]) -> SplitSignal[S]:
        return replace(self, whole=self.whole.at_frames(frames))


@dataclass(frozen=True)
class SplitPrepared(Generic[S]):
    """The signals of every step."""

    whole: Prepared[S]
    branches: int

    def at(self, step: int) -> SplitSignal[S]:
        return SplitSignal(self.whole.at(step), step, self.branches)


class Split(Generic[C, S]):
    """Denoises a clip with other processes: each predicts its share of windows and branches, and all learn all.

    What is predicted is put together in the order one process has, so numbers differ only by what a network's rounding
    owes to the size of its batch. The latents of process 0 count.
    """

    def __init__(
        self,
        denoiser: Denoiser[C, S],
        ranks: Ranks,
        branches: int,
        windows: Windows | None = None,
        apart: bool = True,
    ):
        """
        Args:
            branches: that are predicted of each clip.
            windows: with these, clips that are cut are denoised as `Windowed` does.
            apart: whether signals can be told of one branch.
        """
        self.denoiser, self.ranks, self.windows = denoiser, ranks, windows
        self.branches, self.apart = branches, apart

    def prepare(self, times: Tensor, conditions: C) -> SplitPrepared[S]:
        """times (steps,) → the signals of all steps."""
        return SplitPrepared(self.denoiser.prepare(times, conditions), self.branches)

    def __call__(self, latents: Tensor, signal: SplitSignal[S]) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w), of blended ones float32."""
        latents, frames = self.ranks.first(latents), latents.shape[1]
        cut = self.windows is not None and self.windows.cuts(frames)
        windows = self.windows.plan(frames, signal.step) if self.windows and cut else (_all(frames),)
        dealt = deal(len(windows), signal.branches, self.ranks.size, self.apart)
        mine = [self._predicted(latents, signal, windows[w] if cut else None, b) for w, b in dealt[self.ranks.rank]]
        all_of_it = self.ranks.gather(torch.cat([x.flatten() for x in mine]) if mine else None, latents)
        made: dict[int, list[Tensor]] = {w: [] for w in range(len(windows))}
        for units, data in zip(dealt, all_of_it, strict=True):
            for unit, predicted in _apart(units, data, latents, windows, signal.branches):
                made[unit.window].append(predicted)
        whole = (torch.cat(made.pop(w)) for w in range(len(windows)))
        return blend(windows, whole, frames) if cut else next(whole)

    def _predicted(self, latents: Tensor, signal: SplitSignal[S], window: Window | None, branch: int | None) -> Tensor:
        told = signal.whole if branch is None else signal.whole.of_branch(len(latents), branch)
        if window is None:
            return self.denoiser(latents, told)
        return self.denoiser(take_frames(latents, window.frames), told.at_frames(window.frames)).float()


def _all(frames: int) -> Window:
    return Window(tuple(range(frames)), (1.0,) * frames)


def _apart(
    units: Sequence[Unit], data: Tensor | None, latents: Tensor, windows: Sequence[Window], branches: int
) -> Iterator[tuple[Unit, Tensor]]:
    """What a process predicted, (rows, frames, c', h, w) of each of its units."""
    if data is None:
        return
    clips, _, _, *size = latents.shape
    rows = [(branches if unit.branch is None else 1) * clips for unit in units]
    counts = [n * len(windows[unit.window].frames) for n, unit in zip(rows, units, strict=True)]
    pieces = data.view(sum(counts), -1, *size).split(counts)
    for unit, n, piece in zip(units, rows, pieces, strict=True):
        yield unit, piece.unflatten(0, (n, -1))


class SharedNoise:
    """Noise as process 0 draws it. All draw, so generators move on alike everywhere."""

    def __init__(self, own: Noise, ranks: Ranks):
        self.own, self.ranks = own, ranks

    @property
    def streams(self) -> Sequence[OneStream]:
        return self.own.streams

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        return self.ranks.first(self.own.draw(shape, purpose, time))

    def order(self, clips: int, count: int) -> Tensor:
        return self.ranks.first(self.own.order(clips, count).contiguous())

    def aside(self) -> SharedNoise:
        return SharedNoise(self.own.aside(), self.ranks)
