"""Multistep solvers in the manner of Adams: a weighted mean of the noise seen at this call and at earlier ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from torch import Tensor

from .schedule import Schedule, wide
from .solvers import Draws, State, transfer


@lru_cache(maxsize=4096)
def weights(ratios: tuple[float, ...], end: float, logarithmic: bool) -> tuple[float, ...]:
    """What each noise counts for when noise between levels is a polynomial through those seen.

    Args:
        ratios: sigma over alpha at this call and at earlier ones, newest first.
        end: sigma over alpha where the step lands.
        logarithmic: the polynomial is in the ratio's logarithm, not in the ratio.

    Returns:
        As many weights, of sum 1: the noise's mean over the ratios passed.
    """
    at = ratios[0]
    if len(ratios) == 1 or end == at or (logarithmic and end <= 0):
        return (1.0, *[0.0] * (len(ratios) - 1))
    nodes = [math.log(r / at) if logarithmic else r - at for r in ratios]
    stop = math.log(end / at) if logarithmic else end - at
    found = []
    for k, node in enumerate(nodes):
        others = nodes[:k] + nodes[k + 1 :]
        lagrange = Polynomial.fromroots(others) / float(np.prod([node - other for other in others]))
        found.append(_integral(lagrange, stop, logarithmic) * (at if logarithmic else 1.0) / (end - at))
    return tuple(found)


def _integral(p: Polynomial, stop: float, exponential: bool) -> float:
    """Of p(u) du from 0 to stop, or of p(u)·e^u du, whose antiderivative is e^u·(p − p' + p'' − …)."""
    if not exponential:
        return float(p.integ()(stop))
    alternating, sign, derivative = Polynomial([0.0]), 1.0, p
    for _ in range(p.degree() + 1):
        alternating, sign, derivative = alternating + sign * derivative, -sign, derivative.deriv()
    return float(math.exp(stop) * alternating(stop) - alternating(0.0))


def ratio(schedule: Schedule, i: int) -> float:
    """Sigma over alpha at call i."""
    alpha, sigma = schedule.level(i)
    return sigma / alpha


def mean(noises: Sequence[Tensor], by: Sequence[float]) -> Tensor:
    """The weighted sum."""
    total = by[0] * noises[0]
    for weight, noise in zip(by[1:], noises[1:], strict=False):
        total = total + weight * noise
    return total


@dataclass(frozen=True)
class Adams:
    """LMS (a polynomial in sigma over alpha) and DEIS (in its logarithm; Zhang & Chen 2023)."""

    order: int = 4
    logarithmic: bool = False
    lower_order_final: bool = False
    rederive: bool = True  # noise is read off the limited clean guess

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        seen = schedule.noise_besides(x, clean, i) if self.rederive else schedule.noise(x, predicted, i)
        noises = (seen, *state.history)[: self._order_at(i, schedule)]
        alpha, sigma = schedule.lands(i)
        by = weights(tuple(ratio(schedule, i - k) for k in range(len(noises))), sigma / alpha, self.logarithmic)
        moved = transfer(x, mean(noises, by), schedule.level(i), (alpha, sigma))
        return State(moved, (seen, *state.history)[: self.order - 1], clean)

    def _order_at(self, i: int, schedule: Schedule) -> int:
        if self.lower_order_final and schedule.steps < 15:
            return min(self.order, len(schedule) - i)
        return self.order
