"""The schedulers by their published names: each says which levels its options mean, and which solver steps between them.

What they compute is in `solvers`, `exponential`, `adams` and `unipc`; what people with their own loops call is in `facade`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from . import configs
from .base import Plan, Planner
from .exponential import Multistep, Singlestep, singlestep_orders
from .facade import Scheduler, SchedulerOutput
from .levels import Grid, Request, spacing_of, times_of, visited
from .schedule import Schedule
from .solvers import Churned, Ddim, Posterior, Solver
from .spacing import Array

KARRAS, ROUNDED = frozenset({"karras"}), frozenset({"karras", "lu"})


def pairs(alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
    """Levels in the form a schedule keeps them."""
    return torch.as_tensor(alpha, dtype=torch.float64), torch.as_tensor(sigma, dtype=torch.float64)


class _Discrete(Scheduler):
    """Levels are those of training at whole timesteps."""

    grid = Grid(whole=True)

    def _kept_at(self, times: Array) -> Tensor:
        """The signal left at timesteps; below 0 is the clean end."""
        kept = self.alphas_cumprod.double()
        end = kept.new_ones(()) if getattr(self._config, "set_alpha_to_one", True) else kept[0]
        at = torch.as_tensor(np.asarray(times))
        if int(at.max()) >= len(kept):
            raise InputError(f"Timestep {int(at.max())} is beyond the last, {len(kept) - 1}; lower steps_offset.")
        return torch.where(at >= 0, kept[at.clamp(min=0)], end)

    def _over(self, times: Array, landing: Array | None, final: int = -1, **more: Any) -> tuple[Schedule, Tensor]:
        kept = self._kept_at(np.append(times, final))
        lands = None
        if landing is not None:
            there = self._kept_at(landing)
            lands = torch.stack([there.sqrt(), (1 - there).sqrt()], -1)
        schedule = Schedule(
            torch.as_tensor(times), kept.sqrt(), (1 - kept).sqrt(), self._config.prediction_type, landing=lands, **more
        )
        return schedule, (schedule.sigma / schedule.alpha).float()


class DDIMScheduler(_Discrete):
    """Song et al. 2021: first order, deterministic unless eta is above 0."""

    config_class = configs.DDIMConfig

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse("DDIMScheduler", "sigmas", "mu", "original_steps")
        times = times_of(self._config, self.grid, request)
        if request.timesteps is not None:
            return self._over(times, None)
        # Published results rest on steps of an even stride, also where timesteps are not spaced by it.
        return self._over(times, times - len(self) // len(times))

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Ddim(eta)

    def _stepping(self, schedule: Schedule, options: dict[str, Any]) -> Solver:
        return Ddim(options.pop("eta", 0.0), options.pop("use_clipped_model_output", False))


class _Exploding(Scheduler):
    """Levels are clean + sigma·noise, which the network sees brought to unit variance."""

    grid = Grid()
    _needs_ratio = True

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse(type(self).__name__, "mu", "original_steps")
        times, sigmas = visited(self._config, self.grid, request, self.alphas_cumprod)
        shown = torch.from_numpy(sigmas)
        alpha, sigma = pairs(np.ones(len(times) + 1), sigmas[: len(times) + 1])
        told = torch.from_numpy(times.astype(np.float32))
        schedule = Schedule(
            told, alpha, sigma, self._config.prediction_type, True, self._first_deviation(shown), order=self.order
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
        told = 0.25 * schedule.sigma[:-1].float().log()
        return Schedule(**{**vars(schedule), "times": told}), shown

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Ddim()

    def _stepping(self, schedule: Schedule, options: dict[str, Any]) -> Solver:
        churn, low = options.pop("s_churn", 0.0), options.pop("s_tmin", 0.0)
        high, spread = options.pop("s_tmax", math.inf), options.pop("s_noise", 1.0)
        if not churn:
            return super()._stepping(schedule, options)
        return Churned(churn, low, high, spread, len(self.sigmas) - 1)


class _Preserving(Scheduler):
    """Levels keep unit variance, or lie on straight paths between clean and noise."""

    grid = Grid(beyond=True, whole=True, all_of_training=True)
    gives_clean = False
    _needs_ratio = True

    def _check(self) -> None:
        super()._check()
        c, name = self._config, type(self).__name__
        if c["use_flow_sigmas"]:
            if (kind := spacing_of(c)) not in ("flow", *self.flows_with):
                raise CheckpointError(f"{name}: {kind} sigmas and use_flow_sigmas exclude each other; set one of them.")
        elif c.prediction_type == "flow_prediction":
            raise CheckpointError(f"{name}: prediction_type 'flow_prediction' needs use_flow_sigmas; set it too.")

    flows_with: ClassVar[tuple[str, ...]] = ()

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse(type(self).__name__, "original_steps")
        times, sigmas = self._visited(request)
        told = torch.from_numpy(times.astype(np.int64))
        exact = sigmas.astype(np.float64)
        alpha, sigma = pairs(1 - exact, exact) if self._config["use_flow_sigmas"] else pairs(
            1 / np.hypot(exact, 1), exact / np.hypot(exact, 1)
        )
        return Schedule(told, alpha, sigma, self._config.prediction_type), torch.from_numpy(sigmas)

    def _visited(self, request: Request) -> tuple[Array, Array]:
        return visited(self._config, self.grid, request, self.alphas_cumprod)


class DPMSolverMultistepScheduler(_Preserving):
    """Lu et al. 2022: DPM-Solver and DPM-Solver++ with a memory of up to two earlier calls."""

    config_class = configs.DPMSolverMultistepConfig
    grid = Grid(beyond=True, whole=True, all_of_training=True, end="training", rounded=ROUNDED)

    def _check(self) -> None:
        super()._check()
        c = self._config
        if c["final_sigmas_type"] == "zero" and not c["algorithm_type"].endswith("++"):
            raise CheckpointError(
                f"{type(self).__name__}: algorithm_type {c['algorithm_type']!r} cannot end at no noise; "
                "set final_sigmas_type='sigma_min', or use its '++' form."
            )

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        c = self._config
        return Multistep(
            c["algorithm_type"],
            c["solver_order"],
            c["solver_type"] == "midpoint",
            c["lower_order_final"],
            c["euler_at_final"] or c["final_sigmas_type"] == "zero",
        )
