"""Denoisers that are not asked everything at every step: approximations, each of which measures what it costs.

Each wraps a denoiser and answers some steps cheaply, from what it saw at others. Where it works a step out in full, it
also notes how far off the cheap answer would have been, now that what it remembers is at its oldest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from .loop import Denoiser, Prepared
from .wrappers import Cuttable

Combine = Callable[[Tensor, int], Tensor]  # a guidance: (prediction of all branches, step) → the guided one


class Layered(Denoiser[Any, Any], Protocol):
    """A denoiser whose outermost rows can run without those between."""

    def begin(self, latents: Tensor, signal: Any, fresh: int, /) -> list[Tensor]: ...

    def denoise_and_keep(
        self, latents: Tensor, signal: Any, fresh: int, begun: Sequence[Tensor] = (), /
    ) -> tuple[Tensor, Tensor]: ...

    def denoise_above(
        self, latents: Tensor, signal: Any, deep: Tensor, fresh: int, begun: Sequence[Tensor] = (), /
    ) -> Tensor: ...


MEASURED = 3  # errors that are taken in a run, spread over it, where taking one costs something

C = TypeVar("C", contravariant=True)
S = TypeVar("S", bound=Cuttable)


@dataclass
class Spent:
    """What an approximation did in one run."""

    steps: int = 0  # where windows or clips are decided about one by one, those of each
    cheap: int = 0  # of them answered cheaply
    taken: list[Tensor] = field(default_factory=list)  # errors of steps, which nothing waits for before they are read

    @property
    def errors(self) -> list[float]:
        """Of the steps measured, relative to the full answer; not of those that overflowed."""
        return [error for error in map(float, self.taken) if math.isfinite(error)]

    @property
    def error(self) -> float | None:
        """The mean of the errors; None where none was taken."""
        return sum(self.errors) / len(self.errors) if self.errors else None

    def __str__(self) -> str:
        told = f"{self.cheap} of {self.steps} steps approximated"
        if self.error is None:
            return told
        return (
            f"{told}; estimated error of a prediction {self.error:.2%}, at most {max(self.errors):.2%} "
            f"(measured {len(self.errors)} times)"
        )


@dataclass(frozen=True)
class Running(Generic[S]):
    """What a sparing denoiser is told at a step, and what it remembers of the steps before."""

    whole: S
    step: int
    total: int
    memory: dict[Any, Any]  # of one run
    part: tuple[Any, ...] = ()  # which frames and branches of the clip this is about

    def at_frames(self, frames: Sequence[int]) -> Running[S]:
        return replace(self, whole=self.whole.at_frames(frames), part=(*self.part, tuple(frames)))

    def of_last(self, clips: int) -> Running[S]:
        return replace(self, whole=self.whole.of_last(clips), part=(*self.part, clips))

    @property
    def rows(self) -> int:
        """Of how many clips it tells, those of every guidance branch counted."""
        rows: int = self.whole.rows  # type: ignore[attr-defined]
        return rows

    def of_rows(self, start: int, stop: int, clips: int) -> Running[S]:
        """What it says of these of its rows, of which every guidance branch has `clips`."""
        return replace(self, whole=self.whole.of_rows(start, stop, clips))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class RunningPrepared(Generic[S]):
    """The signals of every step of one run, and its memory."""

    whole: Prepared[S]
    total: int
    memory: dict[Any, Any] = field(default_factory=dict)

    def at(self, step: int) -> Running[S]:
        return Running(self.whole.at(step), step, self.total, self.memory)


class Measured(Generic[C, S]):
    """A denoiser that notes at some steps how far off it is."""

    def __init__(self, denoiser: Denoiser[C, S], guidance: Combine, spent: Spent):
        self.denoiser, self.guidance, self.spent = denoiser, guidance, spent

    def prepare(self, times: Tensor, conditions: C) -> RunningPrepared[S]:
        """times (steps,) → the signals of all steps."""
        return RunningPrepared(self.denoiser.prepare(times, conditions), len(times))

    def note(self, cheap: Tensor, full: Tensor, step: int) -> None:
        """How far a cheap answer is from the full one, guided, as a share of its size."""
        wanted, got = (self.guidance(x.float(), step) for x in (full, cheap))
        self.spent.taken.append((got - wanted).norm() / wanted.norm().clamp_min(1e-12))

    def to_measure(self, signal: Running[S]) -> bool:
        """Whether this is the first step asked about in its share of the run."""
        share = MEASURED * signal.step // signal.total
        fresh = share not in signal.memory
        signal.memory[share] = True
        return fresh


class Sparing(Measured[C, S]):
    """A denoiser that answers some steps cheaply."""

    def __call__(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        self.spent.steps += 1
        if not self.cheaply(latents, signal):
            return self.full(latents, signal)
        self.spent.cheap += 1
        return self.cheap(latents, signal)

    @abstractmethod
    def cheaply(self, latents: Tensor, signal: Running[S]) -> bool:
        """Whether this step may be answered cheaply."""

    @abstractmethod
    def cheap(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """A cheap answer."""

    @abstractmethod
    def full(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """The denoiser's own answer, and what to remember of it."""


class DeepReuse(Sparing[C, S]):
    """Runs the inner rows of a U-Net at some steps only (DeepCache, Ma et al. 2023, section 3.2).

    Features far from the edges change little from step to step; the outermost `fresh` rows see every step's latents.
    """

    denoiser: Layered

    def __init__(self, denoiser: Layered, guidance: Combine, spent: Spent, *, every: int = 3, fresh: int = 1):
        """
        Args:
            every: all rows run at every so many steps.
            fresh: rows at each end that always run.
        """
        super().__init__(denoiser, guidance, spent)
        self.every, self.fresh = every, fresh

    def cheaply(self, latents: Tensor, signal: Running[S]) -> bool:
        known = signal.memory.get(signal.part)
        return known is not None and bool(signal.step - known[0] < self.every)

    def full(self, latents: Tensor, signal: Running[S]) -> Tensor:
        measured = signal.part in signal.memory and self.to_measure(signal)
        near = self.cheap(latents, signal) if measured else None
        signal.memory.pop(signal.part, None)  # a whole step needs the room
        predicted, deep = self.denoiser.denoise_and_keep(latents, signal.whole, self.fresh)
        if near is not None:
            self.note(near, predicted, signal.step)
        signal.memory[signal.part] = signal.step, deep
        return predicted

    def cheap(self, latents: Tensor, signal: Running[S]) -> Tensor:
        return self.denoiser.denoise_above(latents, signal.whole, signal.memory[signal.part][1], self.fresh)


class Mergeable(Layered, Protocol):
    """A denoiser of whose tokens some can attend as one, where a signal says so in its field `merging`."""

    def merging(self, share: float, size: tuple[int, int], corner: int = 0) -> Any: ...


class TokenMerging(Measured[C, S]):
    """Joins tokens that are alike while they attend to one another (Bolya and Hoffman 2023, section 3).

    That spares a small part of each step, so one step alone is worked out in full as well: the first from the middle of
    a run on that runs all rows. A step may come in pieces, as clips, guidance branches or windows, and counts once.
    """

    denoiser: Mergeable

    def __init__(self, denoiser: Mergeable, guidance: Combine, spent: Spent, *, ratio: float):
        """`ratio`: the share of tokens that are joined to others."""
        super().__init__(denoiser, guidance, spent)
        self.ratio = ratio

    def __call__(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        cheap = self.denoiser(latents, self.merged(latents, signal))
        if not self.in_full(signal):
            return cheap
        full = self.denoiser(latents, signal.whole)
        self.note(cheap, full, signal.step)
        return full

    def in_full(self, signal: Running[S]) -> bool:
        """Whether a piece of a step that runs all rows is worked out in full as well; counts the step."""
        due = signal.step >= signal.total // 2 and signal.memory.setdefault("measured", signal.step) == signal.step
        self.count(signal, not due)
        return due

    def count(self, signal: Running[S], cheap: bool) -> None:
        """Counts a step, in however many pieces it comes; it is approximated unless one of them is not."""
        known = signal.memory.get(signal.step)
        cheap = cheap and known is not False
        self.spent.steps += known is None
        self.spent.cheap += cheap - bool(known)
        signal.memory[signal.step] = cheap

    def merged(self, latents: Tensor, signal: Running[S]) -> Any:
        """What the denoiser is told where tokens are joined; other ones stay at every step."""
        *_, h, w = latents.shape
        merging = self.denoiser.merging(self.ratio, (h, w), signal.step % 4)
        return replace(signal.whole, merging=merging)  # type: ignore[type-var]

    def begin(self, latents: Tensor, signal: Running[S], fresh: int) -> list[Tensor]:
        """The same for what reuses deep features."""
        return self.denoiser.begin(latents, self.merged(latents, signal), fresh)

    def denoise_and_keep(
        self, latents: Tensor, signal: Running[S], fresh: int, begun: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """The same for what reuses deep features."""
        cheap, deep = self.denoiser.denoise_and_keep(latents, self.merged(latents, signal), fresh, begun)
        if not self.in_full(signal):
            return cheap, deep
        del deep  # the other needs the room
        full, deep = self.denoiser.denoise_and_keep(latents, signal.whole, fresh)
        self.note(cheap, full, signal.step)
        return full, deep

    def denoise_above(
        self, latents: Tensor, signal: Running[S], deep: Tensor, fresh: int, begun: Sequence[Tensor] = ()
    ) -> Tensor:
        """The same for what reuses deep features."""
        self.count(signal, True)
        return self.denoiser.denoise_above(latents, self.merged(latents, signal), deep, fresh, begun)


class GuidanceInterval(Sparing[C, S]):
    """Guides only from one share of the steps to another (Kynkäänniemi et al. 2024); else asks the condition only."""

    def __init__(self, denoiser: Denoiser[C, S], guidance: Combine, spent: Spent, *, start: float, end: float):
        """Guided are the steps from the share `start` of all to the share `end`."""
        super().__init__(denoiser, guidance, spent)
        self.start, self.end = start, end

    def cheaply(self, latents: Tensor, signal: Running[S]) -> bool:
        return signal.step not in range(round(self.start * signal.total), round(self.end * signal.total))

    def full(self, latents: Tensor, signal: Running[S]) -> Tensor:
        return self.denoiser(latents, signal.whole)

    def cheap(self, latents: Tensor, signal: Running[S]) -> Tensor:
        if not self.to_measure(signal):
            within = self.denoiser(latents, signal.whole.of_last(len(latents)))
            return torch.cat([within, within])
        full = self.full(latents, signal)
        self.note(torch.cat([full.chunk(2)[1]] * 2), full, signal.step)
        return full


class GuidanceReuse(Sparing[C, S]):
    """Asks the unconditional branch at some steps only, and keeps its distance to the condition's in between.

    That distance changes slowly (FasterCache, Lv et al. 2024, section 3.3).
    """

    def __init__(
        self, denoiser: Denoiser[C, S], guidance: Combine, spent: Spent, *, every: int = 2, start: float = 0.2
    ):
        """Both branches are asked at every so many steps, and at all before the share `start`."""
        super().__init__(denoiser, guidance, spent)
        self.every, self.start = every, start

    def __call__(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """The same; where the condition alone is asked, outside an interval of guidance, there is nothing to reuse."""
        return self.denoiser(latents, signal.whole) if signal.part else super().__call__(latents, signal)

    def cheaply(self, latents: Tensor, signal: Running[S]) -> bool:
        known = signal.memory.get(signal.part)
        if known is None or signal.step < self.start * signal.total:
            return False
        return bool(signal.step - known[0] < self.every)

    def full(self, latents: Tensor, signal: Running[S]) -> Tensor:
        predicted = self.denoiser(latents, signal.whole)
        without, within = predicted.chunk(2)
        known = signal.memory.get(signal.part)
        if known is not None and signal.step - known[0] > 1:
            self.note(torch.cat([within + known[1], within]), predicted, signal.step)
        signal.memory[signal.part] = signal.step, without - within
        return predicted

    def cheap(self, latents: Tensor, signal: Running[S]) -> Tensor:
        within = self.denoiser(latents, signal.whole.of_last(len(latents)))
        return torch.cat([within + signal.memory[signal.part][1], within])
