"""A denoiser that networks beside it steer: ControlNets and SparseCtrl, any number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...checkpoint.pairing import check_pairing
from ...errors import InputError
from ...layout import widen
from ...nn.signal import Prepared, Signal
from ...nn.unet import meet
from ...sampling.loop import Denoiser
from ...sampling.loop import Prepared as Steps
from .configs import ImageConfig
from .controlnet import ControlNetModel, SteeringNet
from .sparse_controlnet import SparseControlNetModel, spread
from .unet import MotionConditions


class Steering(Protocol):
    """One network beside, with what it is shown and how much it counts for."""

    @property
    def net(self) -> SteeringNet: ...
    @property
    def scale(self) -> float: ...
    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def guess(self) -> bool: ...

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared: ...


@dataclass(frozen=True)
class Control:
    """A ControlNet and the pictures it steers by.

    Raises:
        InputError: a field is out of its range.
    """

    net: ControlNetModel
    pictures: Tensor  # (1 or b, f, 3, H, W) in [0, 1], eight times the latents' size
    scale: float = 1.0
    start: float = 0.0  # of the steps, the share after which it begins
    end: float = 1.0  # and that after which it is done
    guess: bool = False  # whether it steers without the text: only the conditional branch, deep features most

    def __post_init__(self) -> None:
        check_steering(self.scale, self.start, self.end)
        channels = self.net.config.conditioning_channels
        if self.pictures.ndim != 5 or self.pictures.shape[2] != channels:
            raise InputError(
                f"The pictures of a ControlNet are {tuple(self.pictures.shape)}; they must be (clips, frames, "
                f"{channels}, height, width)."
            )

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        if self.pictures.shape[1] != conditions.frames:
            raise InputError(
                f"A ControlNet has {self.pictures.shape[1]} pictures for {conditions.frames} frames; it needs one each."
            )
        return self.net.prepare(times, conditions, self.pictures)


@dataclass(frozen=True)
class SparseControl:
    """A SparseCtrl, and pictures for some of the frames.

    Raises:
        InputError: a field is out of its range.
    """

    net: SparseControlNetModel
    pictures: Tensor  # (1 or b, n, c, H, W): latents of pictures, for the kind that reads these, else pixels in [0, 1]
    frames: Sequence[int] = (0,)  # which frames these are, from 0
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess: bool = False

    def __post_init__(self) -> None:
        check_steering(self.scale, self.start, self.end)
        channels = self.net.config.conditioning_channels
        if self.pictures.ndim != 5 or self.pictures.shape[2] != channels:
            raise InputError(
                f"The pictures of a SparseCtrl are {tuple(self.pictures.shape)}; they must be (clips, pictures, "
                f"{channels}, height, width)."
            )
        if self.pictures.shape[1] != len(self.frames) or len(set(self.frames)) != len(self.frames):
            raise InputError(
                f"A SparseCtrl has {self.pictures.shape[1]} pictures for the frames {list(self.frames)}; it needs one "
                "for each, and each frame once."
            )

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        if odd := [i for i in self.frames if not 0 <= i < conditions.frames]:
            raise InputError(
                f"A SparseCtrl has a picture for frame {odd[0]} of {conditions.frames}; frames start at 0."
            )
        return self.net.prepare(times, conditions, *spread(self.pictures, self.frames, conditions.frames))


def check_steering(scale: float, start: float, end: float) -> None:
    """Refuses a strength or a range of steps that cannot be used.

    Raises:
        InputError: it is one.
    """
    if not abs(scale) < float("inf"):
        raise InputError(f"The scale of a ControlNet is {scale}; it must be a finite number.")
    if not 0 <= start < end <= 1:
        raise InputError(
            f"A ControlNet is to steer from {start} to {end}; these are shares of all steps, 0 <= start < end <= 1."
        )


@dataclass(frozen=True)
class Steered:
    """One network at one step."""

    steering: Steering
    signal: Signal

    @property
    def alone(self) -> bool:
        """Whether it says something of the conditional branch only."""
        return self.steering.guess or self.steering.net.config.global_pool_conditions

    def residuals(self, latents: Tensor, rows: int) -> list[Tensor]:
        """latents (b, f, c, h, w) → what it adds; `rows` is branches·b."""
        steering, clips = self.steering, len(latents)
        alone = self.alone
        said = steering.net(latents, self.signal.of_last(clips) if alone else self.signal)
        scales = [steering.scale] * len(said)
        if steering.guess and not steering.net.config.global_pool_conditions:
            scales = (steering.scale * torch.logspace(-1, 0, len(said))).tolist()
        said = [r if scale == 1 else r * scale for r, scale in zip(said, scales, strict=True)]
        return [_behind_nothing(r, rows, clips, latents.shape[1]) for r in said] if alone else said


@dataclass(frozen=True)
class ControlledSignal:
    """What a steered denoiser is told at a step."""

    inner: Signal
    steered: tuple[Steered, ...]  # those that steer at this step
    rows: int  # branches·b

    def at_frames(self, frames: Sequence[int]) -> ControlledSignal:
        some = tuple(replace(one, signal=one.signal.at_frames(frames)) for one in self.steered)
        return replace(self, inner=self.inner.at_frames(frames), steered=some)

    def of_branch(self, clips: int, branch: int) -> ControlledSignal:
        last = branch in (-1, self.rows // clips - 1)
        some = tuple(
            replace(one, signal=one.signal.of_branch(clips, branch)) for one in self.steered if last or not one.alone
        )
        return replace(self, inner=self.inner.of_branch(clips, branch), steered=some, rows=clips)


@dataclass(frozen=True)
class ControlledPrepared:
    """The signals of every step."""

    inner: Steps[Signal]
    steered: tuple[tuple[Steering, Prepared], ...]
    rows: int
    steps: int

    def at(self, step: int) -> ControlledSignal:
        now = tuple(Steered(s, prepared.at(step)) for s, prepared in self.steered if self._steers(s, step))
        return ControlledSignal(self.inner.at(step), now, self.rows)

    def _steers(self, steering: Steering, step: int) -> bool:
        within = step / self.steps >= steering.start and (step + 1) / self.steps <= steering.end
        return within and steering.scale != 0


class Controlled:
    """A denoiser that others steer: each looks at the same latents and its own pictures; what they say is summed."""

    def __init__(self, unet: Denoiser[MotionConditions, Signal], controls: Sequence[Steering]):
        """Takes a denoiser whose signals are plain ones.

        Raises:
            CheckpointError: a network was made for another denoiser.
        """
        self.unet, self.controls = unet, tuple(controls)
        for control in self.controls:
            config = getattr(unet, "config", None)
            if isinstance(config, ImageConfig):
                check_pairing(type(control.net).__name__, control.net.config, config)

    def prepare(self, times: Tensor, conditions: MotionConditions) -> ControlledPrepared:
        """times (steps,) → the signals of all steps."""
        steered = tuple((control, control.prepare(times, conditions)) for control in self.controls)
        return ControlledPrepared(self.unet.prepare(times, conditions), steered, len(conditions.text), len(times))

    def __call__(self, latents: Tensor, signal: ControlledSignal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        total: list[Tensor] = []
        for one in signal.steered:
            said = one.residuals(latents, signal.rows)
            total = [meet(a, b) for a, b in zip(total, said, strict=True)] if total else said
        return self.unet(latents, replace(signal.inner, residuals=total))


def _behind_nothing(x: Tensor, rows: int, clips: int, frames: int) -> Tensor:
    """What is said of the conditional branch, (b·f, …), behind zeros for the others, (branches·b·f, …)."""
    x = widen(x, clips * frames)
    return torch.cat([x.new_zeros((rows - clips) * frames, *x.shape[1:]), x])
