"""From a configuration and a number of steps to the timesteps and noise levels a scheduler visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import spacing
from .configs import SchedulerConfig
from .spacing import Array, Spacing

# The fields that choose sigmas themselves, the first that is set counting.
SPACINGS = {
    "karras": "use_karras_sigmas",
    "lu": "use_lu_lambdas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
    "flow": "use_flow_sigmas",
}


@dataclass(frozen=True)
class Request:
    """What a caller wants of a schedule; exactly one of the first three is set."""

    steps: int | None = None
    timesteps: Sequence[float] | None = None  # custom, strictly falling
    sigmas: Sequence[float] | None = None  # custom, strictly falling; the last is where the last step lands
    mu: float | None = None  # log of the shift of flow sigmas
    original_steps: int | None = None  # of the distilled model, for LCM and TCD
    strength: float = 1.0  # the share of the distilled model's steps used, for LCM and TCD

    def __post_init__(self) -> None:
        names = {"num_inference_steps": self.steps, "timesteps": self.timesteps, "sigmas": self.sigmas}
        said = [name for name, value in names.items() if value is not None]
        if len(said) != 1:
            got = " and ".join(said) or "no number of steps"
            raise InputError(f"Got {got}; give exactly one of {', '.join(names)}.")
        if self.steps is not None and (isinstance(self.steps, bool) or int(self.steps) != self.steps or self.steps < 1):
            raise InputError(f"num_inference_steps is {self.steps}; it must be a whole number of at least 1.")
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", _falling("timesteps", self.timesteps, 1))
        if self.sigmas is not None:
            object.__setattr__(self, "sigmas", _falling("sigmas", self.sigmas, 1))

    def refuse(self, who: str, *names: str) -> None:
        """For schedulers that cannot be told some of this."""
        for name in names:
            if getattr(self, name) is not None:
                raise InputError(f"{who} cannot use {name}; leave it out or choose another scheduler.")


def _falling(name: str, values: Any, least: int) -> list[float]:
    values = values.tolist() if hasattr(values, "tolist") else values
    fits = isinstance(values, (list, tuple, range))
    if not fits or any(isinstance(v, (bool, str)) or not hasattr(v, "__float__") for v in values):
        raise InputError(f"{name} is {values!r}; it must be a list of falling numbers, noisiest first.")
    numbers = [float(v) for v in values]
    if len(numbers) < least:
        raise InputError(f"{name} is empty; give one number for each step, or leave it out.")
    steps_down = all(a > b for a, b in pairwise(numbers))
    if not steps_down or not all(map(math.isfinite, numbers)) or numbers[-1] < 0:
        raise InputError(f"{name} must fall at every step and not below 0; got {[round(v, 4) for v in numbers]}.")
    return numbers


@dataclass(frozen=True)
class Grid:
    """What differs between schedulers in how they space their levels."""

    beyond: bool = False  # count one step more and leave it out
    whole: bool = False  # the network is told whole timesteps
    all_of_training: bool = False  # chosen sigmas span all of training, not only the timesteps visited
    rounded: frozenset[str] = frozenset()  # choices of sigmas whose timesteps are rounded
    # Where `final_sigmas_type` is not "zero": no noise, training's least sigma, or the last of those chosen, again.
    end: Literal["zero", "training", "last"] = "zero"


def training_sigmas(kept: Tensor) -> Array:
    """Noise over signal at each training timestep, clean to noisy."""
    sigmas: Array = (((1 - kept) / kept) ** 0.5).numpy()
    return sigmas


def spacing_of(config: SchedulerConfig) -> str | None:
    """Which choice of sigmas a configuration asks for, if any."""
    return next((kind for kind, flag in SPACINGS.items() if getattr(config, flag, False)), None)


def times_of(config: SchedulerConfig, grid: Grid, request: Request, last: int | None = None) -> Array:
    """Timesteps from noisy to clean, custom or spaced, before any choice of sigmas."""
    train = config.num_train_timesteps
    if request.timesteps is not None:
        if grid.whole and (odd := [t for t in request.timesteps if t != int(t)]):
            raise InputError(f"timesteps holds {odd[0]:g}; this scheduler's are whole numbers.")
        times: Array = np.array(request.timesteps, dtype=np.int64 if grid.whole else np.float32)
        if times[0] >= train:
            raise InputError(
                f"timesteps start at {times[0]:g}; training had {train}, so start at {train - 1} or below."
            )
        return times
    steps = int(request.steps or 0)
    if steps > train:
        raise InputError(
            f"num_inference_steps is {steps}; training had {train} timesteps, so ask for {train} or fewer."
        )
    how: Spacing = getattr(config, "timestep_spacing", "linspace")
    offset: int = getattr(config, "steps_offset", 0)
    times = spacing.spaced_times(how, steps, train, offset=offset, last=last, beyond=grid.beyond)
    return times.round().astype(np.int64) if grid.whole else times.astype(np.float32)


def visited(config: SchedulerConfig, grid: Grid, request: Request, kept: Tensor) -> tuple[Array, Array]:
    """Timesteps (steps,) and sigmas (steps + 1,) as noise over signal, float32.

    Interpolation "log_linear" gives one sigma more, as the reference does; no step reaches it.
    """
    sigmas = training_sigmas(kept)
    log_sigmas, kind = np.log(sigmas), spacing_of(config)
    if request.sigmas is not None:
        chosen = np.array(request.sigmas, dtype=np.float32)
        if len(chosen) < 2:
            raise InputError(
                "sigmas holds one number; give one for each step and one, often 0, for where the last lands."
            )
        return spacing.time_of(chosen[:-1], log_sigmas), chosen
    if kind is not None and request.timesteps is not None:
        raise InputError(f"timesteps cannot be chosen together with {SPACINGS[kind]}; give one or the other.")
    times = times_of(config, grid, request, usable(config, kept))
    at = np.interp(times, np.arange(len(sigmas)), sigmas)
    if getattr(config, "interpolation_type", "linear") == "log_linear":
        at = torch.linspace(log_sigmas[-1], log_sigmas[0], len(times) + 1).exp().numpy()
    if kind == "flow":
        at = spacing.flow(len(times), config.num_train_timesteps, shift_of(config, request))
        times = at * config.num_train_timesteps
    elif kind is not None:
        ends = (sigmas[-1].item(), sigmas[0].item()) if grid.all_of_training else (at[0].item(), at[-1].item())
        at = chosen_sigmas(kind, *ends, int(request.steps or 0), config)
        times = spacing.time_of(at, log_sigmas)
        times = times.round() if kind in grid.rounded else times
    return times, ended(at, config, grid, smallest=sigmas[0], chosen=kind is not None)


def usable(config: SchedulerConfig, kept: Tensor) -> int:
    """How many training timesteps have a log of signal over noise above the configured least one."""
    least = getattr(config, "lambda_min_clipped", -math.inf)
    log_snr = kept.sqrt().log() - (1 - kept).sqrt().log()
    return int(len(kept) - torch.searchsorted(log_snr.flip(0), least).item())


def chosen_sigmas(kind: str, high: float, low: float, steps: int, config: SchedulerConfig) -> Array:
    """Sigmas by one of the rules, between those of the configuration where it has them."""
    most, least = getattr(config, "sigma_max", None), getattr(config, "sigma_min", None)
    high, low = high if most is None else most, low if least is None else least
    match kind:
        case "karras":
            return spacing.karras(high, low, steps)
        case "exponential":
            return spacing.exponential(high, low, steps)
        case "lu":
            return spacing.lu_lambdas(float(np.log(np.float32(high))), float(np.log(np.float32(low))), steps)
        case _:
            return spacing.beta_quantiles(high, low, steps)


def shift_of(config: SchedulerConfig, request: Request) -> float:
    """How far flow sigmas are shifted towards noise."""
    if request.mu is None:
        return float(getattr(config, "flow_shift", 1.0))
    if not getattr(config, "use_dynamic_shifting", False):
        raise InputError("mu shifts only schedulers with use_dynamic_shifting; set that option or leave mu out.")
    return request.mu if getattr(config, "time_shift_type", "") == "linear" else math.exp(request.mu)


def ended(at: Array, config: SchedulerConfig, grid: Grid, *, smallest: float, chosen: bool) -> Array:
    """The sigmas and the one after them, float32."""
    end = "zero" if getattr(config, "final_sigmas_type", "") == "zero" else grid.end
    last = {"zero": 0.0, "training": smallest, "last": at[-1] if chosen else smallest}[end]
    return np.concatenate([at, [last]]).astype(np.float32)
