"""One-step solvers: how far to move from one noise level to the next, going by what the network predicts.

A solver is a frozen value; what it remembers of earlier calls is in the `State` it returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..place import sent
from .schedule import Schedule, split_axis, wide


class Draws(Protocol):
    """Where fresh noise comes from; `kinema.sampling.noise` has such objects."""

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor: ...


@dataclass(frozen=True)
class State:
    """What is carried from one network call to the next."""

    x: Tensor  # noisy latents
    history: tuple[Any, ...] = ()  # whatever the solver wants to see again
    clean: Tensor | None = None  # the latents as they look without noise


class Solver(Protocol):
    """Moves latents from call i's level to the next."""

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State: ...


def fresh_noise(noise: Draws, x: Tensor) -> Tensor:
    """Noise to add in a step, like x."""
    return sent(noise.draw(tuple(x.shape), "step"), x.device, x.dtype)


def transfer(x: Tensor, noise: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """Latents moved between two levels along a fixed noise: x/alpha is linear in sigma/alpha (Song et al. 2021)."""
    (alpha, sigma), (alpha_end, sigma_end) = start, end
    ratio = alpha_end / alpha
    return ratio * x + (sigma_end - ratio * sigma) * noise


def renewal(start: tuple[float, float], end: tuple[float, float], eta: float = 1.0) -> tuple[float, float]:
    """How much old noise stays and how much fresh noise joins on the way to `end`; together they make its sigma.

    eta = 1 renews as much as the reversed diffusion does (Song et al. 2021, equation 16), 0 nothing.
    """
    (alpha, sigma), (alpha_end, sigma_end) = start, end
    shrink = sigma_end * alpha / (alpha_end * sigma)  # of sigma/alpha
    share = max(0.0, 1 - shrink**2)
    kept = (
        min(shrink, 1.0) if eta == 1 else math.sqrt(1 - eta**2 * share)
    )  # without a difference of nearly equal squares
    return sigma_end * kept, eta * sigma_end * math.sqrt(share)


@dataclass(frozen=True)
class Ddim:
    """First order. On variance-exploding levels this is Euler's method, with eta = 1 its ancestral form."""

    eta: float = 0.0
    rederive: bool = False  # read the noise off the limited clean guess instead of off the prediction

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        old = schedule.noise_besides(x, clean, i) if self.rederive else schedule.noise(x, predicted, i)
        kept, fresh = renewal(schedule.level(i), schedule.lands(i), self.eta)
        moved = schedule.lands(i)[0] * clean + kept * old
        if self.eta:
            moved = moved + fresh * fresh_noise(noise, x)
        return State(moved, (), clean)


@dataclass(frozen=True)
class Churned:
    """Euler's method on levels made noisier first (Karras et al. 2022, algorithm 2), with the prediction at hand."""

    churn: float
    lowest: float = 0.0  # sigmas outside this range are left alone
    highest: float = math.inf
    spread: float = 1.0  # of the noise put on
    of: int = 1  # steps the churn is shared among

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x, sigma = wide(state.x), schedule.level(i)[1]
        more = min(self.churn / self.of, math.sqrt(2) - 1) if self.lowest <= sigma <= self.highest else 0.0
        raised = sigma * (1 + more)
        if more > 0:
            x = x + self.spread * math.sqrt(raised**2 - sigma**2) * fresh_noise(noise, x)
        if schedule.prediction == "epsilon":
            clean = x - raised * wide(predicted)
        else:
            clean = schedule.clean(x, predicted, i)
        return State(x + (schedule.lands(i)[1] - raised) / raised * (x - clean), (), clean)


@dataclass(frozen=True)
class Posterior:
    """The reversed diffusion itself (Ho et al. 2020, equation 7), with a choice of the noise it adds."""

    variance: str = "fixed_small"

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        start, end = schedule.level(i), schedule.lands(i)
        kept, fresh = renewal(start, end)
        moved = end[0] * clean + kept * schedule.noise_besides(x, clean, i)
        if schedule.times[i] > 0:
            moved = moved + self._deviation(wide(predicted), x, fresh, 1 - (start[0] / end[0]) ** 2) * fresh_noise(
                noise, x
            )
        return State(moved, (), clean)

    def _deviation(self, predicted: Tensor, x: Tensor, smallest: float, beta: float) -> float | Tensor:
        """The standard deviation of the noise: between the posterior's own and the step's whole beta, or learned."""
        smallest = max(smallest, 1e-10)
        if self.variance in ("fixed_large", "fixed_large_log"):
            return math.sqrt(beta)
        if not self.variance.startswith("learned"):
            return smallest
        axis = split_axis(predicted, x)
        if axis is None:
            raise InputError(
                f"variance_type {self.variance!r} needs a network that predicts variances in as many further channels; "
                f"got {tuple(predicted.shape)} for latents {tuple(x.shape)}."
            )
        learned = predicted.narrow(axis, x.shape[axis], x.shape[axis])
        if self.variance == "learned":
            return learned.sqrt()
        share = (learned + 1) / 2  # Nichol & Dhariwal 2021, equation 15
        return torch.exp(share * (0.5 * math.log(beta)) + (1 - share) * math.log(smallest))


@dataclass(frozen=True)
class Consistency:
    """Jumps to the clean end and back up to the next level (Luo et al. 2023, algorithm 3)."""

    time_scale: float = 10.0
    data_sigma: float = 0.5

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        t, data = schedule.times[i].item() * self.time_scale, self.data_sigma
        skip, out = data**2 / (t**2 + data**2), t / math.hypot(t, data)
        clean = out * schedule.clean(x, predicted, i) + skip * x
        if i == len(schedule) - 1:
            return State(clean, (), clean)
        alpha, sigma = schedule.lands(i)
        return State(alpha * clean + sigma * fresh_noise(noise, x), (), clean)


@dataclass(frozen=True)
class Trajectory:
    """Moves beyond the next level and back up to it (Zheng et al. 2024, strategic stochastic sampling)."""

    between: tuple[tuple[float, float], ...]  # alpha and sigma gone down to at each call
    renew: bool = True

    def step(self, state: State, predicted: Tensor, i: int, schedule: Schedule, noise: Draws) -> State:
        x = wide(state.x)
        clean = schedule.clean(x, predicted, i)
        alpha, sigma = self.between[i]
        moved = alpha * clean + sigma * schedule.noise(x, predicted, i)
        if self.renew and i < len(schedule) - 1:
            back = schedule.lands(i)[0] / alpha
            moved = back * moved + math.sqrt(max(0.0, 1 - back**2)) * fresh_noise(noise, x)
        return State(moved, (), clean)
