"""Exponential integrators in the log of signal over noise: DPM-Solver and DPM-Solver++, deterministic and stochastic.

With a prediction m, data or noise, all of them solve the linear part of the equation exactly and expand m around a
level: x_end = lead·x − scale·(φ1·m + φ2·m' + φ3·m''), Lu et al. 2022 (2206.00927, 2211.01095).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from .schedule import Schedule, wide
from .solvers import Draws, State, fresh_noise

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
Level = tuple[float, float]


class Step(NamedTuple):
    """The coefficients of one step between two levels."""

    lead: float  # of the latents
    first: float  # scale·φ1, φ2, φ3: of the prediction and its two scaled differences
    second: float
    third: float
    fresh: float  # of fresh noise


def log_snr(level: Level) -> float:
    """Log of alpha over sigma."""
    alpha, sigma = level
    return math.inf if sigma <= 0 else math.log(alpha) - math.log(sigma)


def phis(z: float) -> tuple[float, float, float]:
    """(e^z − 1), (e^z − 1)/z − 1 and (e^z − 1 − z)/z² − 1/2, exact near 0 too."""
    first = math.expm1(z)
    if math.isinf(z):
        return first, math.nan, math.nan
    if abs(z) < 1e-2:
        second = z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6))))
        return first, second, z / 6 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6 * (1 + z / 7))))
    return first, first / z - 1, (first - z) / z**2 - 0.5


def step_between(algorithm: Algorithm, start: Level, end: Level) -> Step:
    """How to move from one level to the other."""
    (alpha, sigma), (alpha_end, sigma_end) = start, end
    h = log_snr(end) - log_snr(start)
    match algorithm:
        case "dpmsolver++":
            lead, scale, z, fresh = sigma_end / sigma, alpha_end, -h, 0.0
        case "sde-dpmsolver++":
            lead, scale, z = sigma_end / sigma * math.exp(-h), alpha_end, -2 * h
            fresh = sigma_end * math.sqrt(-math.expm1(-2 * h))
        case _:
            doubled = algorithm == "sde-dpmsolver"
            lead, scale, z = alpha_end / alpha, sigma_end * (1 + doubled), h
            if math.isinf(h):  # the limit of sigma_end·(e^h − 1) as all noise goes
                return Step(lead, alpha_end * sigma / alpha * (1 + doubled), 0.0, 0.0, lead * sigma * doubled)
            fresh = sigma_end * math.sqrt(math.expm1(2 * h)) if doubled else 0.0
    first, second, third = phis(z)
    return Step(lead, scale * first, scale * second, scale * third, fresh)


@dataclass(frozen=True)
class Exponential:
    """What the two ways of stepping share: the prediction in the form wanted, and the sum."""

    algorithm: Algorithm = "dpmsolver++"
    order: int = 2
    midpoint: bool = True  # the second order's φ2 replaced by φ1/2, which agrees to that order

    def wanted(self, x: Tensor, predicted: Tensor, clean: Tensor, i: int, schedule: Schedule) -> Tensor:
        """The prediction as data or as noise."""
        if self.algorithm.endswith("++"):
            return clean
        if schedule.limit.ratio is not None:
            return schedule.noise_besides(x, clean, i)
        return schedule.noise(x, predicted, i)

    def moved(self, x: Tensor, step: Step, differences: list[Tensor], noise: Draws, halved: bool) -> Tensor:
        """The sum of latents, prediction, its differences and fresh noise."""
        second = step.first / 2 if halved else step.second
        moved = step.lead * x
        for weight, difference in zip((step.first, second, step.third), differences, strict=False):
            moved = moved - weight * difference
        if self.algorithm.startswith("sde"):
            moved = moved + step.fresh * fresh_noise(noise, x)
        return moved


@dataclass(frozen=True)
class Multistep(Exponential):
    """From the predictions of this call and of those before (2M, 3M)."""

    lower_order_final: bool = True
    first_order_final: bool = False  # the last step alone

    def order_at(self, i: int, remembered: int, schedule: Schedule) -> int:
        """High orders need a past, and are unsafe in the last of few steps."""
        left, few = len(schedule) - i, schedule.steps < 15
        if left == 1 and (self.first_order_final or (self.lower_order_final and few)):
            return 1
        most = 2 if left == 2 and self.lower_order_final and few else self.order
        return min(most, remembered + 1)

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        m = self.wanted(x, predicted, clean, i, schedule)
        order = self.order_at(i, len(state.history), schedule)
        here, there = schedule.level(i), schedule.lands(i)
        differences = [m]
        if 0 < (h := log_snr(there) - log_snr(here)) < math.inf:
            differences += _backward([m, *state.history][:order], _snrs(schedule, i, order), h)
        moved = self.moved(
            x, step_between(self.algorithm, here, there), differences, noise, self.midpoint and order == 2
        )
        return State(moved, (m, *state.history)[: self.order - 1], clean)


def _snrs(schedule: Schedule, i: int, count: int) -> list[float]:
    return [log_snr(schedule.level(i - k)) for k in range(count)]


def _backward(m: list[Tensor], snr: list[float], h: float) -> list[Tensor]:
    """First and second difference at the newest of up to three predictions, newest first, in units of h."""
    if len(m) < 2:
        return []
    r0 = (snr[0] - snr[1]) / h
    newest = (m[0] - m[1]) / r0
    if len(m) < 3:
        return [newest]
    r1 = (snr[1] - snr[2]) / h
    bend = newest - (m[1] - m[2]) / r1
    return [newest + r0 / (r0 + r1) * bend, bend / (r0 + r1)]


@dataclass(frozen=True)
class Singlestep(Exponential):
    """From predictions within a group of calls, all steps of which start at the group's first level (2S, 3S)."""

    orders: tuple[int, ...] = ()  # of each call of the whole schedule

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        anchor, past = state.history or (x, ())
        m = (self.wanted(x, predicted, clean, i, schedule), *past)
        order = min(self.orders[schedule.skipped + i], len(m))
        if order == 1:
            anchor = x
        snr = [log_snr(schedule.level(i - k)) for k in range(order)]
        there = schedule.lands(i)
        step = step_between(self.algorithm, schedule.level(i - order + 1), there)
        differences = [m[order - 1]]
        if 0 < (h := log_snr(there) - snr[-1]) < math.inf:
            differences += self._forward(m[:order], snr, h)
        moved = self.moved(anchor, step, differences, noise, self.midpoint and order == 2)
        return State(moved, (anchor, m[: self.order - 1]), clean)

    def _forward(self, m: tuple[Tensor, ...], snr: list[float], h: float) -> list[Tensor]:
        """First and second difference at the oldest prediction, newest first, in units of h."""
        if len(m) < 2:
            return []
        r0 = (snr[0] - snr[-1]) / h
        whole = (m[0] - m[-1]) / r0
        if len(m) < 3:
            return [whole]
        if self.midpoint:
            return [whole]
        r1 = (snr[1] - snr[-1]) / h
        half = (m[1] - m[-1]) / r1
        return [(r0 * half - r1 * whole) / (r0 - r1), 2 * (whole - half) / (r0 - r1)]


def singlestep_orders(steps: int, order: int, lower_order_final: bool, end_first: bool) -> tuple[int, ...]:
    """The order of each call: groups 1, 2, .. order, and lower ones where the last group is short.

    Args:
        lower_order_final: end with lower orders even where the groups fit.
        end_first: the last step is of first order.
    """
    groups, rest = divmod(steps, order)
    if lower_order_final and rest == 0:
        groups, rest = groups - 1, order
    group = list(range(1, order + 1))
    tail = group[:rest]
    if rest == order and order > 1:
        tail = [*group[: order - 1], 1]  # as many calls, the last of first order
    orders = group * groups + tail
    if end_first and orders:
        orders[-1] = 1
    return tuple(orders)
