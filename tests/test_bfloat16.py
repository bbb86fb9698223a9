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

from kinema import products
from kinema.choice import Verdict
from kinema.memory.needs import on_meta, trace
from kinema.place import standing_for

SHORT = {"num_frames": 2, "num_inference_steps": 1}


def found_wide(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, taken: bool) -> None:
    """As on a processor where float32 is faster, or is not."""
    monkeypatch.setitem(products.WIDE.verdicts, (torch.device("cpu"), dtype), Verdict(taken, ""))


class Products(TorchDispatchMode):
    """The number formats of everything that is multiplied and summed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: set[tuple[str, torch.dtype]] = set()
        self.all: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {(str(func), a.dtype) for a in args if isinstance(a, torch.Tensor)}
        self.all |= given
        if func._overloadpacket in flop_registry:
            self.of |= given
        return func(*args, **(kwargs or {}))


def watched(pipe: Any, name: str, **call: Any) -> tuple[Any, Products]:
    """A clip, and what its denoiser multiplies."""
    found, forward = Products(), pipe.unet.forward

    def run(latents: Any, signal: Any) -> Any:
        with found:
            return forward(latents, signal)

    pipe.unet.forward = run
    return clip(pipe, name, **call), found


@pytest.mark.parametrize("name", PIPES)
def test_clips_are_finite_and_near_and_products_those_of_the_processor(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_wide(monkeypatch, torch.bfloat16, False)  # as where it is good at them
    pipe = own(name)
    exact = clip(pipe, name).frames
    made, found = watched(pipe.to(torch.bfloat16), name)
    assert made.receipt["dtype"] == "bfloat16" and "redone_in_float32" not in made.receipt
    assert np.isfinite(made.frames).all() and off(made.frames, exact) < 0.15
    assert {dtype for _, dtype in found.of} == {torch.bfloat16}, found.of


@pytest.mark.parametrize("dtype", products.FEW, ids=str)
def test_where_float32_is_faster_products_are_its_and_as_near(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, apart = clip(own("SVD"), "SVD", **SHORT).frames, {}
    for way in (False, True):
        found_wide(monkeypatch, dtype, way)
        made, found = watched(own("SVD").to(dtype), "SVD", **SHORT)
        assert {kind for _, kind in found.of} == {torch.float32 if way else dtype}
        apart[way] = off(made.frames, exact)
    assert apart[True] < 1.5 * apart[False] < 0.15


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products.WIDE, "verdicts", {})
    monkeypatch.setenv("KINEMA_KERNELS", "plain")
    assert not products.wide(torch.bfloat16)


def test_what_is_made_step_by_step_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found_wide(monkeypatch, torch.bfloat16, True)
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    inside: list[bool] = []

    def steps() -> Iterator[int]:
        for i in range(2):
            inside.append(bool(torch.overrides._get_current_function_mode_stack()))
            yield i

    outside = [bool(torch.overrides._get_current_function_mode_stack()) for _ in products.fast_steps(x, steps())]
    assert inside == [True, True] and outside == [False, False]


def test_plans_for_a_processor_count_the_copies_that_are_made_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found_wide(monkeypatch, torch.bfloat16, True)
    vae = own("ModelScope").vae.to(torch.bfloat16)
    latents = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    real = trace(lambda: vae.decode(latents))
    twin = on_meta(vae)
    with standing_for("cpu"):
        planned = trace(lambda: twin.decode(latents.to("meta")))
    assert planned.peak == pytest.approx(real.peak, rel=0.03)


def test_where_another_library_is_faster_large_products_of_float32_are_its(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = clip(own("SVD"), "SVD", **SHORT).frames
    monkeypatch.setitem(products.ONEDNN.verdicts, (torch.device("cpu"), torch.float32), Verdict(True, ""))
    monkeypatch.setattr(products, "LEAST", 1)
    made, found = watched(own("SVD"), "SVD", **SHORT)
    kinds = {name for name, _ in found.all}
    assert "mkldnn._linear_pointwise.default" in kinds and "aten.addmm.default" not in kinds
    assert off(made.frames, exact) < 1e-4


@pytest.mark.parametrize("shape", [(7, 33), (2, 3, 33), (2, 5, 3, 33)])
def test_it_is_the_linear_layer(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(17, 33), torch.randn(17)
    for given in (x, x.transpose(0, -2), x.expand(shape)):
        for added in (None, bias):
            made = products.linear(given, weight, added)
            torch.testing.assert_close(made, torch.nn.functional.linear(given, weight, added), rtol=0, atol=1e-4)
