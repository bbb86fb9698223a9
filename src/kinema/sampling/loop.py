"""The denoising loop: the only one in the library."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import NumericsError
from ..layout import to_video
from .guidance import Guidance
from .noise import Noise
from .schedule import Schedule
from .solvers import Solver, State
from .watch import Kept, Replaying, Spare

S = TypeVar("S")
P = TypeVar("P", covariant=True)
C = TypeVar("C", contravariant=True)


class Prepared(Protocol[P]):
    """What a denoiser worked out before the first step."""

    def at(self, step: int, /) -> P: ...


class Denoiser(Protocol[C, S]):
    """A network in two speeds: what it can work out once a clip, and the rest, once a step."""

    def prepare(self, times: Tensor, conditions: C, /) -> Prepared[S]: ...

    def __call__(self, latents: Tensor, signal: S, /) -> Tensor: ...


@dataclass(frozen=True)
class Step:
    """Where the loop is after one evaluation of the network."""

    index: int
    total: int
    time: float  # what the network was told of the noise level
    latents: Tensor  # (b, f, c, h, w), as noisy as the next level
    clean: Tensor  # the same, as the network now thinks it will end


@dataclass(frozen=True)
class _NoiseOfFrames:
    """A clip's noise for what works on frames (b·f, c, h, w)."""

    noise: Noise

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        return self.noise.draw(shape, purpose, time=0)


@torch.no_grad()
def denoise(
    denoiser: Denoiser[C, S],
    latents: Tensor,
    conditions: C,
    *,
    schedule: Schedule,
    solver: Solver,
    guidance: Guidance,
    noise: Noise,
    dtype: torch.dtype = torch.float32,
    calls: int | None = None,
    spare: Spare | None = None,
) -> Generator[Step, Tensor | None, None]:
    """Turn noise into latents, step by step. Stop early by not asking for more; `send` latents to go on from those.

    Args:
        latents: (b, f, c, h, w), as noisy as the schedule's first level.
        conditions: of every guidance branch, the slow axis of their batch.
        dtype: what the network computes in; between its evaluations everything is float32.
        calls: how many evaluations to do of the schedule's, which stops where latents still hold noise; all by default.
        spare: what does steps again whose prediction is not finite. Where it waits for the last step, steps are told
            of again from the first that was not.

    Raises:
        NumericsError: a step is not finite with the spare either.
    """
    run = _Run(denoiser, conditions, latents, schedule, solver, guidance, dtype, calls, spare)
    start, drawn = State(latents.flatten(0, 1).float()), _NoiseOfFrames(noise)
    if spare is None or spare.at_once:
        yield from run.steps(start, 0, drawn)
        return
    kept, again = Kept(start), Replaying(drawn)
    yield from run.steps(start, 0, again, kept)
    fault = kept.fault()
    if fault is not None:
        first, state = fault
        yield from run.steps(state, first, again)


class _Run:
    """One run of the loop, which can begin again at any step."""

    def __init__(
        self,
        denoiser: Denoiser[Any, Any],
        conditions: Any,
        latents: Tensor,
        schedule: Schedule,
        solver: Solver,
        guidance: Guidance,
        dtype: torch.dtype,
        calls: int | None,
        spare: Spare | None,
    ):
        self.denoiser, self.conditions, self.frames = denoiser, conditions, latents.shape[1]
        self.schedule, self.solver, self.guidance = schedule, solver, guidance
        self.dtype, self.spare = dtype, spare
        self.times = schedule.times.to(latents.device)
        self.total = len(schedule) if calls is None else calls
        self._high: tuple[Any, Any] | None = None

    def steps(
        self, state: State, first: int, noise: _NoiseOfFrames | Replaying, kept: Kept | None = None
    ) -> Generator[Step, Tensor | None, None]:
        """The steps from the first on; with `kept`, that is where sound states go, and else a spare is used at once."""
        schedule, frames = self.schedule, self.frames
        prepared = self.denoiser.prepare(self.times, self.conditions)
        for i in range(first, self.total):
            if isinstance(noise, Replaying):
                noise.begin(i)
            seen = to_video(schedule.seen(state.x, i), frames)
            predicted = self.guidance(self.denoiser(seen.to(self.dtype), prepared.at(i)).float(), i)
            if kept is None and self.spare is not None and not torch.isfinite(predicted).all():
                predicted = self._again(self.spare, seen, i)
                prepared = self.denoiser.prepare(self.times, self.conditions)  # what it remembers may be of this step
            state = self.solver.step(state, predicted.flatten(0, 1), i, schedule, noise)
            clean = state.x if state.clean is None else state.clean
            time = float(schedule.times[i])
            edited = yield Step(i, self.total, time, to_video(state.x, frames), to_video(clean, frames))
            if edited is not None:
                state = replace(state, x=edited.flatten(0, 1).to(state.x))
            if kept is not None:
                kept.keep(state, predicted)

    def _again(self, spare: Spare, seen: Tensor, i: int) -> Tensor:
        """What the spare predicts at a step, guided.

        Raises:
            NumericsError: that is not finite either.
        """
        if self._high is None:
            denoiser, conditions = spare.make()
            self._high = denoiser, denoiser.prepare(self.times, conditions)
        denoiser, prepared = self._high
        predicted = self.guidance(denoiser(seen.float(), prepared.at(i)).float(), i)
        if not torch.isfinite(predicted).all():
            raise NumericsError(
                f"Step {i} of the denoise stage produced numbers that are not finite, in float32 either: weights or "
                "conditions are broken."
            )
        spare.steps.append(i)
        return predicted
