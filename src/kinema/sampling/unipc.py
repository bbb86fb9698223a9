"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that costs no further network call."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .exponential import Level, log_snr
from .schedule import Schedule, wide
from .solvers import Draws, State


@dataclass(frozen=True)
class UniPC:
    """The prediction is expanded in the log of signal over noise, with B(h) = h ("bh1") or e^h − 1 ("bh2")."""

    order: int = 2
    data: bool = True  # expand the clean guess, not the noise
    bh1: bool = False
    lower_order_final: bool = True
    uncorrected: frozenset[int] = frozenset()  # steps, counted over the whole schedule, that are left as predicted

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        m = clean if self.data else schedule.noise(x, predicted, i)
        before, past = state.history or (None, ())
        if before is not None and schedule.skipped + i - 1 not in self.uncorrected:
            order = self._order_at(i - 1, len(past), schedule)
            x = self._moved(before, schedule, i - 1, past[:order], schedule.level(i), newest=m)
        past = (m, *past)[: self.order]
        order = self._order_at(i, len(past), schedule)
        moved = self._moved(x, schedule, i, past[:order], schedule.lands(i))
        return State(moved, (x, past), clean)

    def _order_at(self, i: int, known: int, schedule: Schedule) -> int:
        most = min(self.order, len(schedule) - i) if self.lower_order_final else self.order
        return min(most, known)

    def _moved(
        self, x: Tensor, schedule: Schedule, i: int, past: tuple[Tensor, ...], end: Level, newest: Tensor | None = None
    ) -> Tensor:
        """From call i to `end` by the predictions up to call i, newest first; correcting, also by the one there."""
        start = schedule.level(i)
        h = log_snr(end) - log_snr(start)
        first = self._linear(x, past[0], start, end, h)
        if math.isinf(h) or h == 0:
            return first
        ratios = [(log_snr(schedule.level(i - k)) - log_snr(start)) / h for k in range(1, len(past))]
        differences = [(m - past[0]) / r for m, r in zip(past[1:], ratios, strict=True)]
        if newest is not None:
            ratios, differences = [*ratios, 1.0], [*differences, newest - past[0]]
        for weight, difference in zip(self._weights(ratios, h, newest is not None), differences, strict=True):
            first = first - (end[0] if self.data else end[1]) * weight * difference
        return first

    def _linear(self, x: Tensor, m: Tensor, start: Level, end: Level, h: float) -> Tensor:
        (alpha, sigma), (alpha_end, sigma_end) = start, end
        if self.data:
            return sigma_end / sigma * x - alpha_end * math.expm1(-h) * m
        rise = alpha_end * sigma / alpha if math.isinf(h) else sigma_end * math.expm1(h)
        return alpha_end / alpha * x - rise * m

    def _weights(self, ratios: list[float], h: float, correcting: bool) -> list[float]:
        """B(h) times the weights that make the expansion exact up to its order (the paper's equation 11)."""
        if not ratios:
            return []
        z = -h if self.data else h
        b = z if self.bh1 else math.expm1(z)
        if len(ratios) == 1:
            return [b * 0.5]  # the paper's choice, for predictor and corrector alike
        rows, phi, factorial = [], math.expm1(z) / z - 1, 1
        goal = []
        for k in range(1, len(ratios) + 1):
            rows.append([r ** (k - 1) for r in ratios])
            goal.append(phi * factorial / b)
            factorial *= k + 1
            phi = phi / z - 1 / factorial
        return [float(b * weight) for weight in np.linalg.solve(np.array(rows), np.array(goal))]
