"""The denoising loop: the only one in the library."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..layout import to_video
from .guidance import Guidance
from .noise import Noise
from .schedule import Schedule
from .solvers import Solver, State

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
) -> Generator[Step, Tensor | None, None]:
    """Turn noise into latents, step by step. Stop early by not asking for more; `send` latents to go on from those.

    Args:
        latents: (b, f, c, h, w), as noisy as the schedule's first level.
        conditions: of every guidance branch, the slow axis of their batch.
        dtype: what the network computes in; between its evaluations everything is float32.
        calls: how many evaluations to do of the schedule's, which stops where latents still hold noise; all by default.
    """
    frames = latents.shape[1]
    prepared = denoiser.prepare(schedule.times.to(latents.device), conditions)
    state, drawn = State(latents.flatten(0, 1).float()), _NoiseOfFrames(noise)
    total = len(schedule) if calls is None else calls
    for i in range(total):
        seen = to_video(schedule.seen(state.x, i), frames).to(dtype)
        predicted = guidance(denoiser(seen, prepared.at(i)).float(), i)
        state = solver.step(state, predicted.flatten(0, 1), i, schedule, drawn)
        clean = state.x if state.clean is None else state.clean
        step = Step(i, total, float(schedule.times[i]), to_video(state.x, frames), to_video(clean, frames))
        edited = yield step
        if edited is not None:
            state = replace(state, x=edited.flatten(0, 1).to(state.x))
