"""Solvers reach their published order on a Gaussian, whose perfect denoiser is a formula, and keep its moments."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.sampling import schedulers
from kinema.sampling.adams import Adams
from kinema.sampling.exponential import Multistep, Singlestep, singlestep_orders, step_between
from kinema.sampling.rungekutta import CLASSIC, HEUN, MIDPOINT, RungeKutta
from kinema.sampling.schedule import Schedule
from kinema.sampling.solvers import Ddim, Solver, State
from kinema.sampling.unipc import UniPC

MEAN, DEVIATION = 0.4, 0.3


class Seeded:
    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)


def noise_in(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The noise a perfect network sees in latents whose clean form is Gaussian."""
    return sigma * (x - alpha * MEAN) / ((alpha * DEVIATION) ** 2 + sigma**2)


def exact(x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
    """Where the probability flow takes x: it keeps x's place within its level's Gaussian."""
    spread = [math.hypot(a * DEVIATION, s) for a, s in (start, end)]
    return end[0] * MEAN + (x - start[0] * MEAN) * spread[1] / spread[0]


def even(steps: int, calls: int = 1, high: float = 20.0, low: float = 0.05) -> Schedule:
    """Levels of unit variance, even in the log of signal over noise; or with a level half way, or twice the same."""
    ratio = torch.logspace(math.log10(high), math.log10(low), steps + 1, dtype=torch.float64)
    if calls > 1:
        parts = [ratio[:-1], *([(ratio[:-1] * ratio[1:]).sqrt()] * (calls - 2 if calls > 2 else 0)), ratio[1:]]
        if calls == 2:
            parts = [ratio[:-1], ratio[1:]]
        ratio = torch.cat([torch.stack(parts, -1).flatten(), ratio[-1:]])
    alpha = 1 / torch.hypot(ratio, torch.ones(()).double())
    return Schedule(torch.arange(len(ratio) - 1), alpha, ratio * alpha)


def run(solver: Solver, schedule: Schedule, x: Tensor, seed: int = 0, warm: int = 0) -> Tensor:
    """From level 0 to the end; the first calls, which multistep solvers make at low order, led along the exact path."""
    state, noise = State(x), Seeded(seed)
    for i in range(len(schedule)):
        if i <= warm:
            state = State(exact(x, schedule.level(0), schedule.level(i)), state.history)
        state = solver.step(state, noise_in(state.x, *schedule.level(i)), i, schedule, noise)
    return state.x


def error(make: Any, steps: int, calls: int, warm: int) -> float:
    schedule = even(steps, calls)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    start, end = schedule.level(0), schedule.level(len(schedule))
    x = start[0] * MEAN + x * math.hypot(start[0] * DEVIATION, start[1])
    return (run(make(steps), schedule, x, warm=warm) - exact(x, start, end)).abs().max().item()


SOLVERS: dict[str, tuple[Any, float, int]] = {
    "ddim": (lambda n: Ddim(), 1, 1),
    "lms of order 2": (lambda n: Adams(2), 2, 1),
    "lms of order 3": (lambda n: Adams(3), 3, 1),
    "deis of order 1": (lambda n: Adams(1, True), 1, 1),
    "deis of order 2": (lambda n: Adams(2, True), 2, 1),
    "deis of order 3": (lambda n: Adams(3, True), 3, 1),
    "heun": (lambda n: RungeKutta(HEUN), 2, 2),
    **{
        f"{kind} multistep of order {order}, {'midpoint' if midpoint else 'heun'}": (
            lambda n, k=kind, o=order, m=midpoint: Multistep(k, o, m, lower_order_final=False),
            # As published, in the authors' code and all others, 3M takes half the second derivative: order 2.
            min(order, 2),
            1,
        )
        for kind in ("dpmsolver", "dpmsolver++")
        for order in (1, 2, 3)
        for midpoint in (True, False)
    },
    **{
        f"{kind} singlestep of order {order}": (
            lambda n, k=kind, o=order: Singlestep(k, o, False, orders=singlestep_orders(n, o, False, False)),
            order,
            1,
        )
        for kind in ("dpmsolver", "dpmsolver++")
        for order in (1, 2, 3)
    },
    **{
        f"unipc predictor of order {order}, data {data}": (
            lambda n, o=order, d=data: UniPC(o, d, lower_order_final=False, uncorrected=frozenset(range(n))),
            order,
            1,
        )
        for order in (1, 2, 3)
        for data in (True, False)
    },
    **{
        f"unipc of order {order}, {'bh1' if bh1 else 'bh2'}": (
            lambda n, o=order, b=bh1: UniPC(o, True, b, lower_order_final=False),
            order,
            1,
        )
        for order in (1, 2, 3)
        for bh1 in (True, False)
    },
}


@pytest.mark.parametrize("name", SOLVERS)
def test_halving_the_steps_shrinks_the_error_by_the_published_order(name: str) -> None:
    make, order, calls = SOLVERS[name]
    warm = 0 if "singlestep" in name or calls > 1 else int(order) - 1
    errors = [error(make, steps, calls, warm) for steps in (48, 96)]
    assert math.log2(errors[0] / errors[1]) > order - 0.25, errors


def test_the_midpoint_rule_and_classic_runge_kutta_reach_their_orders_too() -> None:
    for tableau, calls, order in ((MIDPOINT, 2, 2), (CLASSIC, 4, 4)):
        errors = []
        for steps in (12, 24):
            ratio = torch.logspace(1.3, -1.3, steps + 1, dtype=torch.float64)
            middle = (ratio[:-1] + ratio[1:]) / 2  # of the ratio, in which the noise is integrated
            parts = [ratio[:-1], middle] if calls == 2 else [ratio[:-1], middle, middle, ratio[1:]]
            ratio = torch.cat([torch.stack(parts, -1).flatten(), ratio[-1:]])
            alpha = 1 / torch.hypot(ratio, torch.ones(()).double())
            schedule = Schedule(torch.arange(len(ratio) - 1), alpha, ratio * alpha)
            x = torch.linspace(-2, 2, 5, dtype=torch.float64)
            truth = exact(x, schedule.level(0), schedule.level(len(schedule)))
            errors.append((run(RungeKutta(tableau), schedule, x) - truth).abs().max().item())
        assert math.log2(errors[0] / errors[1]) > order - 0.35, (calls, errors)


STOCHASTIC: dict[str, Any] = {
    "ddim with eta 1": lambda n: Ddim(1.0),
    "ddim with eta 0.5": lambda n: Ddim(0.5),
    **{
        f"{kind} of order {order}": lambda n, k=kind, o=order: Multistep(k, o, lower_order_final=False)
        for kind in ("sde-dpmsolver", "sde-dpmsolver++")
        for order in (1, 2, 3)
    },
    "sde-dpmsolver++ singlestep of order 2": lambda n: Singlestep(
        "sde-dpmsolver++", 2, orders=singlestep_orders(n, 2, False, False)
    ),
    "heun": lambda n: RungeKutta(HEUN),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_mean_and_variance_are_those_of_the_data(name: str) -> None:
    # A singlestep group draws noise for its inner call that its outer call forgets, a bias that goes with the steps.
    steps, clips = 600 if "singlestep" in name else 150, 40_000
    schedule = even(steps, 2 if name == "heun" else 1, high=50.0, low=0.01)
    start = schedule.level(0)
    noise = torch.randn(clips, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = run(STOCHASTIC[name](steps), schedule, start[0] * MEAN + math.hypot(start[0] * DEVIATION, start[1]) * noise)
    assert abs(x.mean().item() - MEAN) < 0.01
    assert abs(x.std().item() / DEVIATION - 1) < 0.03


def test_the_weights_of_a_stochastic_step_are_the_integrals_they_stand_for() -> None:
    """Of 2·alpha_end·e^(−2(h−τ))·(τ/h)^k/k! over τ in [0, h]. The reference has +1/2 for −1/2 in the third's φ3."""
    start, end = (0.6, 0.8), (0.8, 0.6)
    h = math.log(0.8 / 0.6) * 2
    tau = torch.linspace(0, h, 100_001, dtype=torch.float64)
    step = step_between("sde-dpmsolver++", start, end)
    for k, weight in enumerate((step.first, step.second, step.third)):
        integral = torch.trapezoid(2 * 0.8 * torch.exp(-2 * (h - tau)) * (tau / h) ** k / math.factorial(k), tau)
        assert -weight == pytest.approx(integral.item(), rel=1e-6)


def test_ddim_is_euler_and_with_eta_1_euler_ancestral() -> None:
    for eta, name in ((0.0, "EulerDiscreteScheduler"), (1.0, "EulerAncestralDiscreteScheduler")):
        schedule, solver = getattr(schedulers, name)().plan(7)
        assert solver == Ddim(eta)
        assert (schedule.alpha == 1).all()


@pytest.mark.parametrize("name", [n for n in schedulers.__all__ if n.endswith("Scheduler") and n != "Scheduler"])
def test_a_plan_steps_alike_from_two_threads_and_leaves_its_scheduler_alone(name: str) -> None:
    scheduler = getattr(schedulers, name)()
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scheduler).items()}
    plan = scheduler.plan(6, eta=0.5)
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(5)) * plan.schedule.init_noise_sigma

    def go(_: int) -> Tensor:
        state, noise = State(x), Seeded(3)
        for i in range(len(plan.schedule)):
            state = plan.solver.step(state, torch.sin(plan.schedule.seen(state.x, i)), i, plan.schedule, noise)
        return state.x

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(go, range(2))
    assert first.dtype == torch.float32
    assert torch.equal(first, second) and torch.equal(first, go(0))
    assert vars(scheduler).keys() == before.keys()
    for key, value in vars(scheduler).items():
        assert torch.equal(value, before[key]) if isinstance(value, Tensor) else value is before[key], key
