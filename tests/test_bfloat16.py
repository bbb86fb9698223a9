"""16 bits on a processor: every family's clips are finite and near; products are its own, or float32's if faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import off
from tests.test_weight_storage import PIPES, clip, own
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kinema import wide
from kinema.memory.needs import on_meta, trace
from kinema.place import standing_for

SHORT = {"num_frames": 2, "num_inference_steps": 1}


class Products(TorchDispatchMode):
    """The number formats of everything that is multiplied and summed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            self.of |= {(str(func), a.dtype) for a in args if isinstance(a, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def watched(pipe: Any, name: str, **call: Any) -> tuple[Any, Products]:
    """A clip, and what its denoiser multiplies."""
    products, forward = Products(), pipe.unet.forward

    def run(latents: Any, signal: Any) -> Any:
        with products:
            return forward(latents, signal)

    pipe.unet.forward = run
    return clip(pipe, name, **call), products


@pytest.mark.parametrize("name", PIPES)
def test_clips_are_finite_and_near_and_products_those_of_the_processor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "_faster", {torch.bfloat16: False})  # as where it is good at them
    pipe = own(name)
    exact = clip(pipe, name).frames
    made, products = watched(pipe.to(torch.bfloat16), name)
    assert made.receipt["dtype"] == "bfloat16" and "redone_in_float32" not in made.receipt
    assert np.isfinite(made.frames).all() and off(made.frames, exact) < 0.15
    assert {dtype for _, dtype in products.of} == {torch.bfloat16}, products.of


@pytest.mark.parametrize("dtype", wide.FEW, ids=str)
def test_where_float32_is_faster_products_are_its_and_as_near(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, apart = clip(own("SVD"), "SVD", **SHORT).frames, {}
    for way in (False, True):
        monkeypatch.setattr(wide, "_faster", {dtype: way})
        made, products = watched(own("SVD").to(dtype), "SVD", **SHORT)
        assert {found for _, found in products.of} == {torch.float32 if way else dtype}
        apart[way] = off(made.frames, exact)
    assert apart[True] < 1.5 * apart[False] < 0.15


def test_which_is_faster_is_timed_once_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_faster", {})
    monkeypatch.setattr(wide, "gain", lambda dtype: 50.0)
    assert wide.faster(torch.bfloat16) and wide._faster == {torch.bfloat16: True}
    monkeypatch.setattr(wide, "_faster", {})
    monkeypatch.setenv("KINEMA_KERNELS", "plain")
    assert not wide.faster(torch.bfloat16)


def test_what_is_made_step_by_step_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_faster", {torch.bfloat16: True})
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    inside: list[bool] = []

    def steps() -> Iterator[int]:
        for i in range(2):
            inside.append(bool(torch.overrides._get_current_function_mode_stack()))
            yield i

    outside = [bool(torch.overrides._get_current_function_mode_stack()) for _ in wide.wide_steps(x, steps())]
    assert inside == [True, True] and outside == [False, False]


def test_plans_for_a_processor_count_the_copies_that_are_made_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_faster", {torch.bfloat16: True})
    vae = own("ModelScope").vae.to(torch.bfloat16)
    latents = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    real = trace(lambda: vae.decode(latents))
    twin = on_meta(vae)
    with standing_for("cpu"):
        planned = trace(lambda: twin.decode(latents.to("meta")))
    assert planned.peak == pytest.approx(real.peak, rel=0.03)
