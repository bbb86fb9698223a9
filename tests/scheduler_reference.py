"""Runs a scheduler of ours and the reference's over the same pseudo-network, for the parity tests."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
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


def grid(**options: list[Any]) -> list[dict[str, Any]]:
    """All configurations made of these options; a dictionary among the values stands for its own options."""
    found = []
    for values in itertools.product(*options.values()):
        config: dict[str, Any] = {}
        for name, value in zip(options, values, strict=True):
            config |= value if isinstance(value, dict) else {name: value}
        found.append(config)
    return found


class Grid(NamedTuple):
    """A scheduler with configurations, arguments of `set_timesteps` and arguments of `step`, each with each."""

    scheduler: str
    configs: list[dict[str, Any]]
    calls: list[dict[str, Any]]
    steps: Sequence[dict[str, Any]] = ({},)

    def combinations(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
        return itertools.product(self.configs, self.calls, self.steps)


@contextlib.contextmanager
def corrected(name: str) -> Iterator[None]:
    """The reference with the sign in sde-dpmsolver++'s third order put right."""
    method = {
        "DPMSolverMultistepScheduler": "multistep_dpm_solver_third_order_update",
        "DPMSolverSinglestepScheduler": "singlestep_dpm_solver_third_order_update",
    }.get(name)
    if method is None:
        yield
        return
    kind = getattr(diffusers, name)
    wrong = getattr(kind, method)

    def right(self: Any, outputs: list[Tensor], *, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        x = wrong(self, outputs, sample=sample, noise=noise)
        single = method.startswith("single")
        if self.config.algorithm_type != "sde-dpmsolver++" or (single and self.config.solver_type == "midpoint"):
            return x
        pairs = [self._sigma_to_alpha_sigma_t(self.sigmas[self.step_index + k]) for k in (1, 0, -1, -2)]
        end, *snr = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in pairs]
        m0, m1, m2 = outputs[-1], outputs[-2], outputs[-3]
        if single:
            r0, r1 = (snr[0] - snr[2]) / (end - snr[2]), (snr[1] - snr[2]) / (end - snr[2])
            second = 2 * ((m0 - m2) / r0 - (m1 - m2) / r1) / (r0 - r1)
        else:
            r0, r1 = (snr[0] - snr[1]) / (end - snr[0]), (snr[1] - snr[2]) / (end - snr[0])
            second = ((m0 - m1) / r0 - (m1 - m2) / r1) / (r0 + r1)
        return x + pairs[0][0] * second  # −alpha·(… + 1/2) becomes −alpha·(… − 1/2)

    with mock.patch.object(kind, method, right):
        yield


def _exact_ancestral(scheduler: Any) -> None:
    """KDPM2 ancestral's inner levels, in double precision."""
    sigma = scheduler.sigmas[::2]
    below = torch.cat([sigma[1:], sigma.new_zeros(1)])
    up = below * (1 - (below / sigma) ** 2).clamp(min=0).sqrt()
    up[-1], down = 0, below**2 / sigma
    down[-1] = 0
    middle = sigma.log().lerp(down.log(), 0.5).exp()
    middle[-2:] = 0
    for field, value in (("sigmas_up", up), ("sigmas_down", down), ("sigmas_interpol", middle)):
        setattr(scheduler, field, torch.cat([value[:1], value[1:].repeat_interleave(2), value[-1:]]))


def exact_times(scheduler: Any) -> Tensor:
    """What the reference tells the network, without the digits KDPM2 ancestral loses to cancellation."""
    if not hasattr(scheduler, "sigmas_down"):
        return scheduler.timesteps
    exact = copy.deepcopy(scheduler)
    exact.sigmas = exact.sigmas.double()
    _exact_ancestral(exact)
    times = scheduler.timesteps.clone()
    inner = exact.sigmas_interpol[::2][: len(times[1::2])].float()
    times[1::2] = torch.tensor([float(exact._sigma_to_t(sigma, exact.log_sigmas)) for sigma in inner.numpy()])
    return times


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
    name: str,
    config: dict[str, Any],
    call: dict[str, Any],
    step: dict[str, Any],
    double: bool = False,
    told: Tensor | None = None,
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
            if hasattr(scheduler, "sigmas_down"):
                _exact_ancestral(scheduler)
            patches.enter_context(mock.patch.object(module, "torch", Double()))
            if hasattr(module, "randn_tensor"):
                drawn = lambda shape, generator=None, **_: torch.randn(shape, generator=generator).double()  # noqa: E731
                patches.enter_context(mock.patch.object(module, "randn_tensor", drawn))
        trajectory = [x]
        for t, said in zip(scheduler.timesteps, scheduler.timesteps if told is None else told, strict=True):
            predicted = network(scheduler.scale_model_input(x, t), said)
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
