"""The familiar stepping interface, once for all schedulers, for people with their own loops.

It keeps its place and history on the scheduler object, so one object serves one loop at a time. Underneath are the very
schedule and solver that `plan` gives pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from ..errors import InputError
from .base import Planner
from .configs import SchedulerConfig
from .levels import Request
from .schedule import Schedule
from .solvers import Solver, State


@dataclass(frozen=True)
class SchedulerOutput:
    """What `step` returns."""

    prev_sample: Tensor  # the latents one level on
    pred_original_sample: Tensor | None = None  # the latents as they look without noise

    @property
    def denoised(self) -> Tensor | None:
        """The clean guess, by the name LCM gives it."""
        return self.pred_original_sample

    def __getitem__(self, index: int) -> Tensor | None:
        return (self.prev_sample, self.pred_original_sample)[index]


@dataclass(frozen=True)
class _Generated:
    """Noise in the order one generator, or one for each clip, gives it."""

    generator: Generator | Sequence[Generator] | None
    like: Tensor
    given: Tensor | None = None  # used instead

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        if self.given is not None:
            return self.given
        if self.generator is None or isinstance(self.generator, Generator):
            return self._randn(shape, self.generator)
        return torch.cat([self._randn((1, *shape[1:]), g) for g in self.generator])

    def _randn(self, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
        device = self.like.device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(self.like.device)


class Scheduler(Planner):
    """The parent of all schedulers."""

    gives_clean: ClassVar[bool] = True  # whether `step` also returns the clean guess
    default_eta: ClassVar[float] = 0.0

    def _build(self, config: SchedulerConfig) -> None:
        super()._build(config)
        self.num_inference_steps: int | None = None
        self._schedule_now: Schedule | None = None
        self._sigmas: Tensor | None = None
        self._times: Tensor | None = None
        self._begin: int | None = None
        self._index: int | None = None
        self._history: tuple[Any, ...] = ()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Chooses the timesteps to visit, and forgets any earlier loop. Arguments as those of `plan`."""
        request = Request(num_inference_steps, timesteps, sigmas, mu, original_inference_steps, strength)
        schedule, self._sigmas = self._schedule(request)
        self._schedule_now = self._limited(schedule)
        self._times = schedule.times.to(device) if device is not None else schedule.times
        self.num_inference_steps = schedule.steps
        self._begin, self._index, self._history = None, None, ()

    @property
    def timesteps(self) -> Tensor:
        """What to tell the network at each call; all of training's, noisiest first, before `set_timesteps`."""
        if self._times is None:
            return torch.arange(len(self) - 1, -1, -1)
        return self._times

    @property
    def sigmas(self) -> Tensor:
        """Noise over signal at each call and at the end, float32."""
        if self._sigmas is None:
            sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
            return torch.cat([sigmas.flip(0), sigmas.new_zeros(1)])
        return self._sigmas

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise to start from."""
        if self._schedule_now is None:
            return self._first_deviation(self.sigmas)
        return self._schedule_now.init_noise_sigma

    @property
    def step_index(self) -> int | None:
        """Which of the timesteps comes next, once a loop has begun."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """Where the loop begins, if that was said."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Says where in the timesteps the loop begins."""
        self._begin = begin_index

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The latents as the network sees them."""
        schedule = self._ready()
        if not schedule.normalized:
            return sample
        if timestep is None:
            raise InputError(
                f"{type(self).__name__}.scale_model_input needs the timestep; pass one of scheduler.timesteps."
            )
        return schedule.seen(sample, self._place(timestep))

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        eta: float | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor | None, ...]:
        """One step towards the clean end.

        Args:
            model_output: what the network made of `scale_model_input(sample, timestep)`.
            timestep: one of `timesteps`.
            sample: the latents at that timestep.
            eta: how much noise DDIM (0 unless said) and TCD (0.3) renew; others have no use for it.
            generator: where noise comes from, one for all clips or one for each.
            variance_noise: the noise itself, instead.
            options: `use_clipped_model_output` (DDIM), `order` (LMS), `s_churn`, `s_tmin`, `s_tmax`, `s_noise` (Euler).
        """
        schedule = self._ready()
        i = self._place(timestep)
        if i != self._index:
            self._history = ()
        solver = self._stepping(schedule, options if eta is None else {**options, "eta": eta})
        noise = _Generated(generator, sample, variance_noise)
        state = solver.step(State(sample, self._history), model_output, i, schedule, noise)
        self._history, self._index = state.history, i + 1
        x = state.x.to(model_output.dtype)
        if not return_dict:
            return (x, state.clean) if self.gives_clean else (x,)
        return SchedulerOutput(x, state.clean)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents made as noisy as at each clip's timestep, (b,)."""
        alpha, sigma = self._levels(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a v-prediction network is trained to say of clean latents and their noise (Salimans & Ho 2022)."""
        kept = self.alphas_cumprod.to(sample.device)[timesteps.long().to(sample.device)].view(
            -1, *[1] * (sample.ndim - 1)
        )
        return (kept.sqrt() * noise - (1 - kept).sqrt() * sample).to(sample.dtype)

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at timesteps (b,), shaped to broadcast."""
        schedule = self._schedule_now
        if self._needs_ratio and schedule is None:
            request = Request(len(self))
            schedule = self._schedule(request)[0]
        if schedule is None or not self._needs_ratio:
            kept = self.alphas_cumprod.double()[timesteps.reshape(-1).long().cpu()]
            pairs = torch.stack([kept.sqrt(), (1 - kept).sqrt()], -1)
        else:
            where = [
                self._begin if self._begin is not None else _find(schedule.times, t, schedule.order)
                for t in timesteps.reshape(-1)
            ]
            pairs = torch.stack([torch.stack([schedule.alpha[k], schedule.sigma[k]]) for k in where])
        alpha, sigma = pairs.to(like.device, like.dtype).view(-1, 2, *[1] * (like.ndim - 1)).unbind(1)
        return alpha, sigma

    def _ready(self) -> Schedule:
        if self._schedule_now is None:
            raise InputError(f"{type(self).__name__} has no timesteps yet; call set_timesteps first.")
        return self._schedule_now

    def _place(self, timestep: float | Tensor) -> int:
        """Which call a timestep belongs to: the next one in a loop, else the first that is told it."""
        times = self._ready().times
        value = timestep.detach().reshape(-1)[0].cpu() if isinstance(timestep, Tensor) else torch.tensor(timestep)
        if self._index is None and self._begin is not None:
            return self._begin
        if self._index is not None and self._index < len(times) and times[self._index] == value:
            return self._index
        return _find(times, value, self.order)

    def _stepping(self, schedule: Schedule, options: dict[str, Any]) -> Solver:
        """The solver for one step, with the options given to `step`."""
        eta = options.pop("eta", self.default_eta)
        if options:
            raise InputError(f"{type(self).__name__}.step has no {', '.join(sorted(options))}; leave it out.")
        return self._solver(schedule, eta)


def _find(times: Tensor, value: Tensor, order: int) -> int:
    places = (times == value).nonzero().reshape(-1).tolist()
    if not places:
        raise InputError(f"Timestep {value.item():g} is none of those set; pass one of scheduler.timesteps.")
    first = [place for place in places if place % order == 0]  # where a step begins
    return int((first or places)[0])
