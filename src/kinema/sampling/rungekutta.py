"""Solvers that look at intermediate levels: Heun's method, the midpoint rule, Runge-Kutta, and PNDM that begins so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .adams import mean
from .schedule import Schedule, wide
from .solvers import Draws, State, fresh_noise, renewal, transfer

Tableau = tuple[tuple[float, ...], ...]  # for each call of a step, what the noises seen so far in it count for

HEUN: Tableau = ((1,), (1 / 2, 1 / 2))
MIDPOINT: Tableau = ((1,), (0, 1))
CLASSIC: Tableau = ((1,), (0, 1), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6))

# Adams-Bashforth for even steps, newest first (Liu et al. 2022, equation 12, and its starts)
ADAMS: Tableau = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class RungeKutta:
    """Several calls a step, all starting again from the step's first level."""

    tableau: Tableau = HEUN
    rederive: bool = False  # noise is read off the limited clean guess
    ancestral: bool = False  # the step's last call renews noise

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        seen = schedule.noise_besides(x, clean, i) if self.rederive else schedule.noise(x, predicted, i)
        stage = i % len(self.tableau)
        anchor, noises = (state.history[0], (*state.history[1], seen)) if stage else (x, (seen,))
        start, end = schedule.level(i - stage), schedule.lands(i)
        combined, last = mean(noises, self.tableau[stage]), stage == len(self.tableau) - 1
        if self.ancestral and last:
            kept, fresh = renewal(start, end)
            moved = transfer(anchor, combined, start, (end[0], kept)) + fresh * fresh_noise(noise, x)
        else:
            moved = transfer(anchor, combined, start, end)
        return State(moved, () if last else (anchor, noises), clean)


@dataclass(frozen=True)
class Pndm:
    """Liu et al. 2022: Adams-Bashforth steps, after Runge-Kutta steps or one step of Heun's method."""

    warm_calls: int = 0  # of Runge-Kutta
    redone_from: tuple[float, float] | None = None  # the level at which Heun's first step is taken to begin

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean, seen = schedule.clean(x, predicted, i), schedule.noise(x, predicted, i)
        begun, noises = state.history or (None, ())  # the step begun: its latents and noises
        anchor, inner, from_call = begun or (x, (), i)
        start = schedule.level(from_call)
        if i < self.warm_calls:
            inner = (*inner, seen)
            stage = len(inner) - 1
            noises = (seen, *noises) if stage == 0 else noises
            combined, done = mean(inner, CLASSIC[stage]), stage == len(CLASSIC) - 1
        elif i == 1 and begun:
            combined, done = mean((noises[0], seen), HEUN[1]), True
            start = self.redone_from or start
        else:
            noises = (seen, *noises)[:4]
            combined, done = mean(noises, ADAMS[len(noises) - 1]), i > 0
            inner = (seen,)
        moved = transfer(anchor, combined, start, schedule.lands(i))
        return State(moved, (None if done else (anchor, inner, from_call), noises[:3]), clean)
