"""Schedulers on levels clean + sigma·noise: Euler, Euler ancestral, Heun, LMS, KDPM2, KDPM2 ancestral."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import configs
from .adams import Adams
from .facade import Scheduler
from .levels import Grid, Request, training_sigmas, visited
from .rungekutta import HEUN, MIDPOINT, RungeKutta
from .schedule import Schedule
from .solvers import Churned, Ddim, Solver, renewal
from .spacing import time_of


class _Exploding(Scheduler):
    """Levels are clean + sigma·noise, which the network sees brought to unit variance."""

    grid = Grid()
    _needs_ratio = True

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse(type(self).__name__, "mu", "original_steps")
        times, sigmas = visited(self._config, self.grid, request, self.alphas_cumprod)
        shown = torch.from_numpy(sigmas)
        sigma = torch.from_numpy(sigmas[: len(times) + 1].astype(np.float64))
        told = torch.from_numpy(times.astype(np.float32))
        schedule = Schedule(
            told,
            torch.ones_like(sigma),
            sigma,
            self._config.prediction_type,
            True,
            self._first_deviation(shown),
            order=self.order,
        )
        return schedule, shown

    def _first_deviation(self, sigmas: Tensor) -> float:
        most = sigmas.max().item()
        return math.hypot(most, 1) if self._config["timestep_spacing"] == "leading" else most


class EulerDiscreteScheduler(_Exploding):
    """Karras et al. 2022, algorithm 2: Euler's method, optionally with churn."""

    config_class = configs.EulerConfig
    grid = Grid(end="training")

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        schedule, shown = super()._schedule(request)
        if self._config["timestep_type"] != "continuous" or self._config.prediction_type != "v_prediction":
            return schedule, shown
        if request.timesteps is not None:
            raise InputError("timesteps cannot be chosen with timestep_type 'continuous'; choose sigmas.")
        sigma = shown.double()  # with all of a "log_linear" interpolation, one more than timesteps would ask for
        return replace(schedule, times=0.25 * shown[:-1].log(), alpha=torch.ones_like(sigma), sigma=sigma), shown

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Ddim()

    def _stepping(self, schedule: Schedule, options: dict[str, Any]) -> Solver:
        churn, low = options.pop("s_churn", 0.0), options.pop("s_tmin", 0.0)
        high, spread = options.pop("s_tmax", math.inf), options.pop("s_noise", 1.0)
        if not churn:
            return super()._stepping(schedule, options)
        return Churned(churn, low, high, spread, len(self.sigmas) - 1)


class EulerAncestralDiscreteScheduler(_Exploding):
    """Euler's method with as much noise renewed in each step as the reversed diffusion renews."""

    config_class = configs.EulerAncestralConfig

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Ddim(eta=1.0)


class LMSDiscreteScheduler(_Exploding):
    """Linear multistep: derivatives seen so far, continued as a polynomial in sigma (after K. Crowson)."""

    config_class = configs.LMSConfig

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Adams(4, rederive=False)

    def _stepping(self, schedule: Schedule, options: dict[str, Any]) -> Solver:
        order = options.pop("order", 4)
        super()._stepping(schedule, options)
        return Adams(order, rederive=False)


class HeunDiscreteScheduler(_Exploding):
    """Karras et al. 2022, algorithm 1: Heun's second-order method, two calls a step but for the last."""

    config_class = configs.HeunConfig
    order = 2

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        schedule, shown = super()._schedule(request)
        twice = _doubled(schedule.sigma)
        told = torch.cat([schedule.times[:1], schedule.times[1:].repeat_interleave(2)])
        return replace(schedule, times=told, alpha=torch.ones_like(twice), sigma=twice), _doubled(shown)

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return RungeKutta(HEUN, rederive=self._config["clip_sample"])


def _doubled(sigma: Tensor) -> Tensor:
    """All but the first and last level twice."""
    return torch.cat([sigma[:1], sigma[1:-1].repeat_interleave(2), sigma[-1:]])


class KDPM2DiscreteScheduler(_Exploding):
    """DPM-Solver-2 in the manner of Karras: the derivative half way, in the logarithm, between two levels."""

    config_class = configs.KDPM2Config
    grid = Grid(rounded=frozenset({"karras"}))
    order = 2
    ancestral = False

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        schedule, shown = super()._schedule(request)
        start, end = shown[:-2], self._towards(shown[:-1])
        middle = start.to(end.dtype).log().lerp(end.log(), 0.5).exp()
        between = time_of(middle.float().numpy(), np.log(training_sigmas(self.alphas_cumprod)))
        told = _woven(schedule.times, torch.from_numpy(between.astype(np.float32)))
        sigma = torch.cat([_woven(schedule.sigma[:-1], middle.double()), schedule.sigma[-1:]])
        shown = torch.cat([shown[:1], shown[1:].repeat_interleave(2), shown[-1:]])
        return replace(schedule, times=told, alpha=torch.ones_like(sigma), sigma=sigma), shown

    def _towards(self, sigma: Tensor) -> Tensor:
        """The level each step but the last goes to, without the noise it adds there."""
        return sigma[1:]

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return RungeKutta(MIDPOINT, ancestral=self.ancestral)


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """The same, with as much noise renewed in each step as the reversed diffusion renews."""

    config_class = configs.KDPM2Config
    ancestral = True

    def _towards(self, sigma: Tensor) -> Tensor:
        steps = zip(sigma.tolist(), sigma[1:].tolist(), strict=False)
        kept = [renewal((1.0, here), (1.0, there))[0] for here, there in steps]
        return torch.tensor(kept, dtype=torch.float64)  # far apart, the two levels leave a tiny one


def _woven(levels: Tensor, between: Tensor) -> Tensor:
    """Levels with those between them."""
    return torch.cat([levels[:1], torch.stack([between, levels[1:]], -1).flatten()])
