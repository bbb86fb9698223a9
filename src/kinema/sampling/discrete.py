"""Schedulers that visit training's own timesteps: DDIM, DDPM, PNDM, LCM, TCD."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import configs
from .facade import Scheduler
from .levels import Grid, Request, times_of
from .rungekutta import Pndm
from .schedule import Rebuilt, Schedule, steps_of
from .solvers import Consistency, Ddim, Posterior, Solver, Trajectory
from .spacing import Array


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

    def _over(
        self, times: Array, landing: Array | None, final: int = -1, kind: type[Schedule] = Schedule, **more: Any
    ) -> tuple[Schedule, Tensor]:
        kept = self._kept_at(np.append(times, final))
        lands = None
        if landing is not None:
            there = self._kept_at(landing)
            lands = torch.stack([there.sqrt(), (1 - there).sqrt()], -1)
        schedule = kind(
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


class DDPMScheduler(_Discrete):
    """Ho et al. 2020: the reversed diffusion, with fresh noise in every step."""

    config_class = configs.DDPMConfig

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse("DDPMScheduler", "sigmas", "mu", "original_steps")
        return self._over(times_of(self._config, self.grid, request), None)

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Posterior(self._config["variance_type"] or "fixed_small")


class PNDMScheduler(_Discrete):
    """Liu et al. 2022: fourth order from earlier calls; begins with three Runge-Kutta steps or one of Heun's."""

    config_class = configs.PNDMConfig
    gives_clean = False
    warm_steps = 3  # of four calls each

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse("PNDMScheduler", "sigmas", "mu", "original_steps")
        times = times_of(self._config, self.grid, request)
        stride = None if request.timesteps is not None else len(self) // len(times)
        if not self._config["skip_prk_steps"] and len(times) <= self.warm_steps:
            raise InputError(
                f"PNDMScheduler begins with {self.warm_steps} Runge-Kutta steps, so {len(times)} steps are too few; "
                f"ask for {self.warm_steps + 1} or more, or set skip_prk_steps=True."
            )
        return self._from(times, stride, 0)

    def _from(self, times: Array, stride: int | None, start: int) -> tuple[Schedule, Tensor]:
        """The calls of all steps from the one given on."""
        rest = times[start:]
        build = self._eased if self._config["skip_prk_steps"] or len(rest) <= self.warm_steps else self._warmed
        told, landing = build(rest, stride)
        return self._over(
            told,
            landing,
            kind=Rebuilt,
            skipped=start,
            count=len(times),
            again=lambda steps: self._from(times, stride, steps)[0],
            redone_from=self._redone_from(rest, stride),
        )

    def _redone_from(self, times: Array, stride: int | None) -> tuple[float, float] | None:
        """Where Heun's step is taken to begin: a stride before the second timestep, wherever the first one is."""
        if stride is None or len(times) < 2:
            return None
        kept = self._kept_at(times[1:2] + stride).item()
        return math.sqrt(kept), math.sqrt(1 - kept)

    def _eased(self, times: Array, stride: int | None) -> tuple[Array, Array]:
        """The second timestep is visited twice, since the first step is Heun's."""
        landing = np.append(times[1:], -1) if stride is None else times - stride
        told = np.concatenate([times[:2], times[1:]])
        return told, np.concatenate([landing[:1], times[1:2], landing[1:]])

    def _warmed(self, times: Array, stride: int | None) -> tuple[Array, Array]:
        """The first steps have two calls half way and one at the end besides the one at the start."""
        told, landing = [], []
        for here, there in pairwise(times[: self.warm_steps + 1]):
            half = (here - there if stride is None else stride) // 2
            told += [here, there + half, there + half, there]
            landing += [here - half, there + half, there, there]
        rest = times[self.warm_steps :]
        ends = np.append(rest[1:], -1) if stride is None else rest - stride
        return np.array([*told, *rest]), np.array([*landing, *ends])

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        count = schedule.steps - schedule.skipped
        if not self._config["skip_prk_steps"] and count > self.warm_steps:
            return Pndm(4 * self.warm_steps)
        return Pndm(redone_from=schedule.redone_from if isinstance(schedule, Rebuilt) else None)


class _Distilled(_Discrete):
    """Timesteps are some of those a model was distilled on."""

    config_class = configs.DistilledConfig
    runtime_original_means_all = False

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        request.refuse(type(self).__name__, "sigmas", "mu")
        times = self._chosen(request) if request.timesteps is None else times_of(self._config, self.grid, request)
        if request.timesteps is not None:
            times = times[len(times) - steps_of(len(times), request.strength) :]
        return self._over(times, None, final=0)

    def _chosen(self, request: Request) -> Array:
        train, steps = len(self), int(request.steps or 0)
        original = request.original_steps or self._config["original_inference_steps"]
        if original > train:
            raise InputError(
                f"original_inference_steps is {original}; training had {train} timesteps, so ask for no more."
            )
        origin = np.arange(1, int(original * request.strength) + 1) * (train // original) - 1
        if request.original_steps is not None and self.runtime_original_means_all:
            origin = np.arange(int(train * request.strength))
        if steps > min(original, len(origin)):
            raise InputError(
                f"num_inference_steps is {steps}; the model was distilled on {min(original, len(origin))}, so ask "
                "for no more, or raise original_inference_steps."
            )
        return origin[::-1][np.floor(np.linspace(0, len(origin), steps, endpoint=False)).astype(np.int64)].copy()


class LCMScheduler(_Distilled):
    """Luo et al. 2023: latent consistency models, 1 to 8 steps."""

    config_class = configs.DistilledConfig

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        return Consistency(self._config["timestep_scaling"])


class TCDScheduler(_Distilled):
    """Zheng et al. 2024: trajectory consistency distillation; eta is the paper's gamma."""

    config_class = configs.DistilledConfig
    runtime_original_means_all = True
    default_eta = 0.3

    def _limited(self, schedule: Schedule, frames_as_batch: bool = False) -> Schedule:
        return schedule  # the reference never limits TCD's guesses, and results rest on it

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        ends = torch.cat([schedule.times[1:], schedule.times.new_zeros(1)])
        kept = self._kept_at(torch.floor((1 - eta) * ends).long().numpy())
        between = tuple(zip(kept.sqrt().tolist(), (1 - kept).sqrt().tolist(), strict=True))
        return Trajectory(between, renew=eta > 0)
