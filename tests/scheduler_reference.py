"""Runs a scheduler of ours and the reference's over the same pseudo-network, for the parity tests."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from torch import Tensor

from kinema.sampling import schedulers
from kinema.sampling.solvers import State

SHAPE = (2, 4, 5, 6)
diffusers.utils.logging.set_verbosity_error()
warnings.filterwarnings("ignore")


class Generated:
    """The noise of one generator, in the order asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """Smooth in latents and time, so that a wrong level or a wrong time shows."""
    t = float(t) / 1000
    return 0.8 * torch.sin(0.7 * x + 3 * t) + 0.1 * x * float(np.cos(2 * t)) + 0.05


def grid(**options: list[Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


class Double:
    """The torch module with double precision under single precision's name."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _idle(self: Any, *_: Any, **__: Any) -> None:
    self.sigmas = self.timesteps = torch.zeros(1)


def built(name: str, config: dict[str, Any]) -> Any:
    """The reference's scheduler, without the thousand-step schedule that some make first and never use."""
    kind = getattr(diffusers, name)
    with mock.patch.object(kind, "set_timesteps", _idle):
        return kind(**config)


def reference(
    name: str, config: dict[str, Any], call: dict[str, Any], step: dict[str, Any], double: bool = False
) -> tuple[Any, list[Tensor]]:
    """The reference's scheduler and its trajectory; in double precision too, from the same levels and noise."""
    scheduler = built(name, config)
    scheduler.set_timesteps(**call)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    step = dict(step)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step["generator"] = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    module = sys.modules[type(scheduler).__module__]
    with contextlib.ExitStack() as patches:
        if double:
            x = x.double()
            for field, value in vars(scheduler).items():
                if isinstance(value, Tensor) and field not in ("timesteps", "betas", "alphas"):
                    setattr(scheduler, field, value.double())
            patches.enter_context(mock.patch.object(module, "torch", Double()))
            if hasattr(module, "randn_tensor"):
                drawn = lambda shape, generator=None, **_: torch.randn(shape, generator=generator).double()  # noqa: E731
                patches.enter_context(mock.patch.object(module, "randn_tensor", drawn))
        trajectory = [x]
        for t in scheduler.timesteps:
            predicted = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(predicted, t, x, **step).prev_sample
            trajectory.append(x)
    return scheduler, trajectory


def stepped(
    name: str, config: dict[str, Any], call: dict[str, Any], step: dict[str, Any], double: bool = False
) -> tuple[Any, list[Tensor]]:
    """Ours, by the stepping interface."""
    scheduler = getattr(schedulers, name)(**config)
    scheduler.set_timesteps(**call)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    x = x.double() if double else x
    trajectory = [x]
    for t in scheduler.timesteps:
        predicted = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(predicted, t, x, generator=generator, **step).prev_sample
        trajectory.append(x)
    return scheduler, trajectory


def planned(name: str, config: dict[str, Any], call: dict[str, Any], step: dict[str, Any]) -> list[Tensor]:
    """Ours, by the pure plan."""
    schedule, solver = getattr(schedulers, name)(**config).plan(**call, **step)
    noise = Generated(7)
    state = State(torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * schedule.init_noise_sigma)
    trajectory = [state.x]
    for i in range(len(schedule)):
        predicted = network(schedule.seen(state.x, i), schedule.times[i])
        state = solver.step(state, predicted, i, schedule, noise)
        trajectory.append(state.x)
    return trajectory


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, over the range of the reference's trajectory; infinite where the lengths differ."""
    if len(ours) != len(theirs):
        return float("inf")
    a, b = torch.stack([x.double() for x in ours]), torch.stack([x.double() for x in theirs])
    return ((a - b).abs().max() / (b.max() - b.min())).item()
