"""High-order multistep schedulers on levels of unit variance, or on straight flow paths: DPM-Solver, DEIS, UniPC."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from . import configs
from .adams import Adams
from .exponential import Multistep, Singlestep, singlestep_orders
from .facade import Scheduler
from .levels import Grid, Request, ended, shift_of, spacing_of, visited
from .schedule import Schedule
from .solvers import Solver
from .spacing import Array
from .unipc import UniPC


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
        alpha = 1 - exact if self._config["use_flow_sigmas"] else 1 / np.hypot(exact, 1)
        sigma = exact if self._config["use_flow_sigmas"] else exact * alpha
        levels = torch.from_numpy(alpha), torch.from_numpy(sigma)
        return Schedule(told, *levels, self._config.prediction_type), torch.from_numpy(sigmas)

    def _visited(self, request: Request) -> tuple[Array, Array]:
        return visited(self._config, self.grid, request, self.alphas_cumprod)


class DPMSolverMultistepScheduler(_Preserving):
    """Lu et al. 2022: DPM-Solver and DPM-Solver++ with a memory of up to two earlier calls."""

    config_class = configs.DPMSolverMultistepConfig
    grid = Grid(beyond=True, whole=True, all_of_training=True, end="training")

    def _check(self) -> None:
        super()._check()
        # A cosine schedule crowds its noisy end, where rounding would make timesteps fall together.
        whole = frozenset() if self._config.beta_schedule == "squaredcos_cap_v2" else frozenset({"karras", "lu"})
        self.grid = replace(type(self).grid, rounded=whole)
        _check_end(self)

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        c = self._config
        return Multistep(
            c["algorithm_type"],
            c["solver_order"],
            c["solver_type"] == "midpoint",
            c["lower_order_final"],
            c["euler_at_final"] or c["final_sigmas_type"] == "zero",
        )


class DPMSolverSinglestepScheduler(_Preserving):
    """Lu et al. 2022: DPM-Solver and DPM-Solver++ in groups of calls that start from one level."""

    config_class = configs.DPMSolverSinglestepConfig
    grid = Grid(beyond=True, whole=True, all_of_training=True, end="training", rounded=frozenset({"karras"}))

    def _check(self) -> None:
        super()._check()
        _check_end(self)

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        c = self._config
        to_zero = c["final_sigmas_type"] == "zero"
        lower = c["lower_order_final"] or to_zero
        orders = singlestep_orders(schedule.steps, c["solver_order"], lower, to_zero)
        return Singlestep(c["algorithm_type"], c["solver_order"], c["solver_type"] == "midpoint", orders)


class DEISMultistepScheduler(_Preserving):
    """Zhang & Chen 2023: exponential integrator whose noise is a polynomial in the log of sigma over alpha."""

    config_class = configs.DEISMultistepConfig
    grid = Grid(beyond=True, whole=True, all_of_training=True, end="last", rounded=frozenset({"karras"}))

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Adams(self._config["solver_order"], True, self._config["lower_order_final"])


class UniPCMultistepScheduler(_Preserving):
    """Zhao et al. 2023: predictor and corrector of any order."""

    config_class = configs.UniPCMultistepConfig
    grid = Grid(beyond=True, whole=True, all_of_training=True, end="last", rounded=frozenset({"karras"}))
    flows_with = ("karras",)

    def _check(self) -> None:
        super()._check()
        if self._config["solver_order"] < 1:
            raise CheckpointError(
                f"UniPCMultistepScheduler: solver_order is {self._config['solver_order']}; it must be at least 1."
            )
        if self._config["shift_terminal"] is not None and not self._config["use_flow_sigmas"]:
            raise CheckpointError(
                "UniPCMultistepScheduler: shift_terminal is for flow sigmas; set use_flow_sigmas or leave it out."
            )

    def _visited(self, request: Request) -> tuple[Array, Array]:
        c = self._config
        if c["use_dynamic_shifting"] and request.mu is None:
            raise InputError(
                "UniPCMultistepScheduler with use_dynamic_shifting needs mu, the log of the shift; pass it."
            )
        if not c["use_flow_sigmas"]:
            return super()._visited(request)
        return self._straight(request)

    def _straight(self, request: Request) -> tuple[Array, Array]:
        """Flow sigmas: even or chosen, shifted, and stretched to end at `shift_terminal`."""
        c, train = self._config, len(self)
        request.refuse("UniPCMultistepScheduler with use_flow_sigmas", "timesteps")
        if spacing_of(c) == "karras":
            _, ratios = super()._visited(request)
            at = ratios[:-1].astype(np.float64)
            at = at / (1 + at)
        else:
            even = np.linspace(1, 1 / train, (request.steps or 0) + 1)[:-1]
            at = even if request.sigmas is None else np.array(request.sigmas, dtype=np.float64)
            shift = shift_of(c, request)
            at = shift * at / (1 + (shift - 1) * at)
            if c["shift_terminal"]:
                at = 1 - (1 - at) / ((1 - at[-1]) / (1 - c["shift_terminal"]))
            if abs(at[0] - 1) < 1e-6:  # alpha must not be 0
                at[0] -= 1e-6
        return at * train, ended(at, c, self.grid, smallest=at[-1], chosen=True)

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        c = self._config
        left_out = frozenset(c["disable_corrector"])
        return UniPC(c["solver_order"], c["predict_x0"], c["solver_type"] == "bh1", c["lower_order_final"], left_out)


def _check_end(scheduler: Scheduler) -> None:
    c = scheduler.config
    if c["final_sigmas_type"] == "zero" and not c["algorithm_type"].endswith("++"):
        raise CheckpointError(
            f"{type(scheduler).__name__}: algorithm_type {c['algorithm_type']!r} cannot end at no noise; "
            "set final_sigmas_type='sigma_min', or use its '++' form."
        )
