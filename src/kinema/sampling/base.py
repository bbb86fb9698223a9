"""What all schedulers share: a configuration, where it is kept, and a pure plan for pipelines."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from . import files
from .betas import TINY, training_betas, zero_terminal_snr
from .configs import SchedulerConfig, stated
from .levels import SPACINGS, Request
from .schedule import Limit, Schedule
from .solvers import Solver

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_MOOT = ("torch_dtype", "dtype", "variant", "use_safetensors", "return_unused_kwargs", "device_map")


class Plan(NamedTuple):
    """All a denoising loop needs of a scheduler."""

    schedule: Schedule
    solver: Solver


class Planner:
    """A scheduler without the stepping interface."""

    config_class: ClassVar[type[SchedulerConfig]]
    order: ClassVar[int] = 1  # network calls a step
    named: ClassVar[dict[str, type[Planner]]] = {}  # all schedulers, by name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "config_class" in vars(cls):
            Planner.named[cls.__name__] = cls

    def __init__(self, **fields: Any) -> None:
        """Builds from published option names.

        Raises:
            InputError: an option this scheduler does not have.
            CheckpointError: a value an option cannot have.
        """
        known = set(self.config_class())
        for name in fields.keys() - known - {"unknown"}:
            raise InputError(_unknown_option(type(self).__name__, name, known))
        self._build(self.config_class.read(fields, type(self).__name__))

    def _build(self, config: SchedulerConfig) -> None:
        self._config = config
        self._check()
        if config.trained_betas is not None:
            betas = torch.tensor(config.trained_betas, dtype=torch.float32)
        else:
            betas = training_betas(config.beta_schedule, config.beta_start, config.beta_end, config.num_train_timesteps)
        rescale = getattr(config, "rescale_betas_zero_snr", False)
        self.betas = zero_terminal_snr(betas) if rescale else betas
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        if rescale and self._needs_ratio:
            self.alphas_cumprod[-1] = TINY

    _needs_ratio: ClassVar[bool] = False  # whether noise over signal must stay finite

    def _check(self) -> None:
        """Refuses options that do not go together."""
        config = self._config
        if config.trained_betas is not None and len(config.trained_betas) != config.num_train_timesteps:
            raise CheckpointError(
                f"{type(self).__name__}: trained_betas holds {len(config.trained_betas)} numbers for "
                f"num_train_timesteps {config.num_train_timesteps}; make them agree."
            )
        if config.num_train_timesteps < 1:
            raise CheckpointError(
                f"{type(self).__name__}: num_train_timesteps is {config.num_train_timesteps}; it must be at least 1."
            )
        chosen = [flag for flag in SPACINGS.values() if getattr(config, flag, False)]
        exclusive = [flag for flag in chosen if flag not in ("use_lu_lambdas", "use_flow_sigmas")]
        if len(exclusive) > 1:
            raise CheckpointError(
                f"{type(self).__name__}: {' and '.join(exclusive)} exclude each other; set one of them."
            )

    # What a scheduler is told, and where that is kept

    @property
    def config(self) -> SchedulerConfig:
        """The options, as an object and as a mapping."""
        return self._config

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """Builds from any scheduler's configuration; options this one does not have are kept for those that do.

        Raises:
            InputError: an override that no scheduler has.
            CheckpointError: a value an option cannot have.
        """
        everywhere = {name for other in Planner.named.values() for name in other.config_class()}
        for name in overrides.keys() - everywhere:
            raise InputError(_unknown_option("A scheduler", name, everywhere))
        self = cls.__new__(cls)
        self._build(cls.config_class.read({**stated(config), **overrides}, cls.__name__))
        return self

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], subfolder: str | None = None, **overrides: Any) -> Self:
        """Builds from `scheduler_config.json` in a folder, in a model's folder, or of a model on the hub."""
        hub = {name: overrides.pop(name) for name in _HUB if name in overrides}
        overrides = {name: value for name, value in overrides.items() if name not in _MOOT}
        return cls.from_config(files.read(place, subfolder, hub), **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> None:
        """Writes `scheduler_config.json`, with everything the scheduler was told."""
        files.write(folder, {"_class_name": type(self).__name__, **self._config.everything()})

    save_config = save_pretrained

    @property
    def compatibles(self) -> list[type[Planner]]:
        """Schedulers that can take this one's configuration."""
        return [Planner.named[name] for name in sorted(Planner.named)]

    def __len__(self) -> int:
        return self._config.num_train_timesteps

    def __repr__(self) -> str:
        said = ", ".join(f"{k}={v!r}" for k, v in self._config.items() if k in (self._config.given or ()))
        return f"{type(self).__name__}({said})"

    # The pure part

    def _schedule(self, request: Request) -> tuple[Schedule, Tensor]:
        """The whole schedule, and the sigmas shown to people with their own loops."""
        raise NotImplementedError

    def _solver(self, schedule: Schedule, eta: float) -> Solver:
        """The solver for a whole schedule."""
        raise NotImplementedError

    def _first_deviation(self, sigmas: Tensor) -> float:
        """The standard deviation to start from, where the shown sigmas are these."""
        return 1.0

    def _limited(self, schedule: Schedule, frames_as_batch: bool = False) -> Schedule:
        """The schedule with the limit on clean guesses that the configuration asks for."""
        c = self._config
        if getattr(c, "thresholding", False):
            limit = Limit(None, c["dynamic_thresholding_ratio"], c["sample_max_value"], frames_as_batch)
        else:
            limit = Limit(c["clip_sample_range"]) if getattr(c, "clip_sample", False) else Limit()
        return replace(schedule, limit=limit)

    def plan(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,  # chosen timesteps, falling
        sigmas: Sequence[float] | None = None,  # chosen noise over signal, falling; the last is where the clip ends
        strength: float | None = None,  # for video to video: the share of the steps that is run
        eta: float = 0.0,  # 0 to 1: how much of the noise DDIM and TCD renew in each step
        frames_as_batch: bool = False,  # dynamic thresholds for each frame instead of each clip
        mu: float | None = None,  # log of the shift, for flow sigmas with use_dynamic_shifting
        original_inference_steps: int | None = None,  # LCM, TCD: steps of the distilled model
    ) -> Plan:
        """The levels to visit and how to step between them. Changes nothing, so it may be called from any thread.

        Raises:
            InputError: numbers that cannot be used; the message says what can.
        """
        if not 0 <= eta <= 1:
            raise InputError(f"eta is {eta}; it must be between 0 (deterministic) and 1.")
        request = Request(num_inference_steps, timesteps, sigmas, mu, original_inference_steps)
        schedule, _ = self._schedule(request)
        if strength is not None:
            schedule = schedule.starting_at(strength)
        schedule = self._limited(schedule, frames_as_batch)
        schedule.check_start()
        return Plan(schedule, self._solver(schedule, eta))


def _unknown_option(who: str, name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{who} has no option {name!r}; " + (
        f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}."
    )
