"""A plan says beforehand what a run takes, and how to make it fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kinema.errors import MemoryBudgetError
from kinema.memory.needs import trace
from kinema.memory.plan import SLACK, Stage, fit, predict


class Wide(nn.Module):
    """Something with small weights and a wide middle."""

    def __init__(self, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(8, inner, bias=False), nn.Linear(inner, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


ROWS = 100


def step(module: nn.Module) -> Tensor:
    return module(torch.empty(ROWS, 8, device="meta", dtype=module.up.weight.dtype))


@pytest.fixture
def components() -> dict[str, nn.Module]:
    return {"small": Wide(16), "large": Wide(64)}


@pytest.fixture
def stages() -> list[Stage]:
    return [Stage("encode", "small", step), Stage("denoise", "large", step, times=25)]


def test_a_plan_is_what_the_run_takes(stages, components):
    plan = predict(stages, components)
    x = torch.zeros(ROWS, 8)
    for stage, module in zip(plan.stages, components.values(), strict=True):
        assert stage.needs.peak == trace(lambda m=module: m(x)).peak + x.numel() * 4
    assert plan.peak == plan.worst.peak == 4 * (2 * 8 * (16 + 64) + ROWS * (8 + 64 + 8))
    assert plan.flops == 2 * ROWS * 2 * 8 * (16 + 25 * 64)


def test_each_mode_keeps_less_on_the_device(stages, components):
    weights = {
        mode: [s.weights for s in predict(stages, components, mode=mode).stages]
        for mode in ("resident", "model", "sequential")
    }
    both, small, large = 4 * 2 * 8 * (16 + 64), 4 * 2 * 8 * 16, 4 * 2 * 8 * 64
    assert weights == {"resident": [both, both], "model": [small, large], "sequential": [small // 2, large // 2]}
    assert predict(stages, components).resident == {"small", "large"}
    assert predict(stages, components, mode="sequential").streamed


def test_half_precision_halves_a_plan(stages, components):
    assert predict(stages, components, dtype=torch.float16).peak * 2 == predict(stages, components).peak
    assert components["small"].up.weight.dtype == torch.float32


def test_a_plan_never_exceeds_its_budget_and_is_the_fastest_that_fits(stages, components):
    peaks = {mode: predict(stages, components, mode=mode).peak for mode in ("resident", "model", "sequential")}
    for budget in range(int(peaks["sequential"] * SLACK) + 1, int(peaks["resident"] * SLACK) + 100, 97):
        plan = fit(stages, components, budget)
        assert plan.peak * SLACK <= budget
        assert plan.mode == next(mode for mode, peak in peaks.items() if peak * SLACK <= budget)


def test_what_cannot_fit_is_said_with_the_stage_and_the_amount(stages, components):
    with pytest.raises(MemoryBudgetError, match=r"denoise stage takes .* kB .* there are 1 kB; ask for fewer frames"):
        fit(stages, components, 1000)


def test_a_plan_prints_as_a_table(stages, components):
    lines = str(predict(stages, components)).splitlines()
    assert lines[0].split()[:3] == ["stage", "component", "weights"]
    assert [line.split()[0] for line in lines[1:]] == ["encode", "denoise", "peak"]
    assert len({line.index("small" if i == 1 else "large") for i, line in enumerate(lines[1:3], 1)}) == 1
