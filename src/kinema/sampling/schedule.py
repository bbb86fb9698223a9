"""Noise schedules: at level i, noisy latents are alpha[i]·clean + sigma[i]·noise; every solver works from that."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError, NumericsError

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]


def wide(x: Tensor) -> Tensor:
    """At least single precision, in which all sampling arithmetic is done."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Limit:
    """Keeps a clean guess within a range: a fixed one, or one that follows its largest values."""

    clip: float | None = None  # largest magnitude
    ratio: float | None = None  # dynamic thresholding (Saharia et al. 2022): the share of values that stay untouched
    ceiling: float = 1.0  # no threshold is higher
    frames_as_batch: bool = False  # a threshold for each frame of (b, f, c, h, w), not for each clip

    def __call__(self, clean: Tensor) -> Tensor:
        if self.ratio is None:
            return clean if self.clip is None else clean.clamp(-self.clip, self.clip)
        flat = clean.flatten(2 if self.frames_as_batch and clean.ndim == 5 else 1)
        threshold = _quantile(flat.abs(), self.ratio).clamp(1.0, self.ceiling)
        return (flat.clamp(-threshold, threshold) / threshold).view_as(clean)


def _quantile(values: Tensor, share: float) -> Tensor:
    """(..., n) to (..., 1), interpolated linearly; unlike torch.quantile of any length."""
    at = share * (values.shape[-1] - 1)
    low = values.kthvalue(math.floor(at) + 1, dim=-1, keepdim=True).values
    high = values.kthvalue(math.ceil(at) + 1, dim=-1, keepdim=True).values
    return low.lerp(high, at - math.floor(at))


@dataclass(frozen=True)
class Schedule:
    """The levels a clip passes on its way from noise to clean, and how to read the network's predictions there.

    The numbers live on the CPU in float64: solvers use them as Python floats, so that no step waits for a device.
    """

    times: Tensor  # (calls,) what the network is told at each call
    alpha: Tensor  # (calls + 1,) the share of clean at each call, then at the end
    sigma: Tensor  # (calls + 1,) the share of noise
    prediction: Prediction = "epsilon"  # what the network predicts
    normalized: bool = False  # whether the network sees latents brought to unit variance
    init_noise_sigma: float = 1.0  # the standard deviation to start from
    landing: Tensor | None = None  # (calls, 2) alpha and sigma each step arrives at, where not those of the next call
    order: int = 1  # network calls a step
    skipped: int = 0  # calls left out at the noisy end
    limit: Limit = Limit()  # kept by clean guesses

    def __len__(self) -> int:
        return len(self.times)

    @property
    def steps(self) -> int:
        """How many steps the whole schedule has, those left out included."""
        return (self.skipped + len(self) + self.order - 1) // self.order

    @property
    def left(self) -> int:
        """How many steps there are to do."""
        return (len(self) + self.order - 1) // self.order

    @property
    def extra(self) -> int:
        """Calls at the start that belong to no step of their own."""
        return max(len(self) - self.left * self.order, 0)

    def level(self, i: int) -> tuple[float, float]:
        """Alpha and sigma at call i; those of the end at i = len(self)."""
        return self.alpha[i].item(), self.sigma[i].item()

    def lands(self, i: int) -> tuple[float, float]:
        """Alpha and sigma after the step of call i."""
        if self.landing is None:
            return self.level(i + 1)
        return self.landing[i, 0].item(), self.landing[i, 1].item()

    def spread(self, i: int) -> float:
        """The standard deviation of latents at call i, for clean latents of unit variance."""
        return math.hypot(*self.level(i))

    def seen(self, x: Tensor, i: int) -> Tensor:
        """Latents as the network sees them."""
        return x / self.spread(i) if self.normalized else x

    def clean(self, x: Tensor, predicted: Tensor, i: int) -> Tensor:
        """What noisy latents look like without noise, going by the network's prediction, within the limit."""
        return self.limit(self._split(x, predicted, i)[0])

    def noise(self, x: Tensor, predicted: Tensor, i: int) -> Tensor:
        """The noise in noisy latents, going by the network's prediction."""
        return self._split(x, predicted, i)[1]

    def noise_besides(self, x: Tensor, clean: Tensor, i: int) -> Tensor:
        """The noise in noisy latents that look like `clean` without it."""
        alpha, sigma = self.level(i)
        return (x - alpha * clean) / sigma

    def add_noise(self, clean: Tensor, noise: Tensor, i: int = 0) -> Tensor:
        """Clean latents made as noisy as those of call i."""
        alpha, sigma = self.level(i)
        return alpha * clean + sigma * noise

    def starting_at(self, strength: float) -> Schedule:
        """The schedule's last part, for video to video: a strength of 1 is all of it, 0.5 its cleaner half.

        Raises:
            InputError: the strength is not above 0 and at most 1, or leaves no step.
        """
        return self.after(self.steps - steps_of(self.steps, strength))

    def after(self, steps: int) -> Schedule:
        """The schedule without its first steps."""
        k = steps * self.order
        landing = None if self.landing is None else self.landing[k:]
        times, alpha, sigma = self.times[k:], self.alpha[k:], self.sigma[k:]
        return replace(self, times=times, alpha=alpha, sigma=sigma, landing=landing, skipped=self.skipped + k)

    def check_start(self, i: int = 0) -> None:
        """Refuses to read a clean guess off a noise prediction where latents hold no signal.

        Raises:
            InputError: so it is at call i.
        """
        if self.prediction == "epsilon" and self.alpha[i] == 0:
            raise InputError(
                f"Timestep {self.times[i]:g} holds no signal, from which a noise prediction cannot start; use "
                "timestep_spacing='leading', rescale_betas_zero_snr=False, or a v_prediction model."
            )

    def _split(self, x: Tensor, predicted: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """The clean guess and the noise in x. See Salimans & Ho 2022, appendix D, for the four predictions."""
        x, predicted = wide(x), mean_of(wide(predicted), x)
        alpha, sigma = self.level(i)
        match self.prediction:
            case "epsilon":
                self.check_start(i)
                return (x - sigma * predicted) / alpha, predicted
            case "sample":
                return predicted, (x - alpha * predicted) / sigma
            case "flow_prediction":
                return x - sigma * predicted, x + alpha * predicted
            case "v_prediction":
                k = self.spread(i) if self.normalized else 1.0
                unit = x / k if self.normalized else x
                return (alpha * unit - sigma * predicted) / k, (alpha * predicted + sigma * unit) / k
        raise NumericsError(f"Prediction type {self.prediction!r} is unknown.")


@dataclass(frozen=True)
class Rebuilt(Schedule):
    """A schedule whose first steps are unlike the others, and so is built anew where it starts later."""

    count: int = 0  # steps of the whole schedule
    again: Callable[[int], Schedule] | None = None  # the schedule without its first steps
    redone_from: tuple[float, float] | None = None  # the level a step begun is taken to begin at, when redone

    @property
    def steps(self) -> int:
        return self.count

    @property
    def left(self) -> int:
        return self.count - self.skipped

    def after(self, steps: int) -> Schedule:
        """The schedule without its first steps."""
        assert self.again is not None
        return self.again(steps)


def steps_of(steps: int, strength: float) -> int:
    """How many of the steps a strength in (0, 1] asks for."""
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength}; it must be above 0 and at most 1.")
    kept = min(int(steps * strength), steps)
    if kept == 0:
        raise InputError(
            f"strength {strength} of {steps} steps leaves none; raise one of them until their product is at least 1."
        )
    return kept


def split_axis(predicted: Tensor, x: Tensor) -> int | None:
    """The axis, twice as long as in the latents, along which a prediction also holds variances; None without them."""
    if predicted.ndim != x.ndim:
        return None
    return next((k for k in range(x.ndim) if predicted.shape[k] == 2 * x.shape[k]), None)


def mean_of(predicted: Tensor, x: Tensor) -> Tensor:
    """A prediction without the variances that some networks append."""
    axis = None if predicted.shape == x.shape else split_axis(predicted, x)
    return predicted if axis is None else predicted.narrow(axis, 0, x.shape[axis])
