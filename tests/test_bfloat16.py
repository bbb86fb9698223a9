"""bfloat16 on a processor: every family's clips are finite and near, and no product is secretly one of float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import off
from tests.test_weight_storage import PIPES, clip, own
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Products(TorchDispatchMode):
    """The number formats of everything that is multiplied and summed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            self.of |= {(str(func), a.dtype) for a in args if isinstance(a, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PIPES)
def test_clips_are_finite_and_near_and_all_products_of_denoising_are_of_bfloat16(name: str) -> None:
    pipe = own(name)
    exact = clip(pipe, name).frames
    unet, products, told = pipe.to(torch.bfloat16).unet, Products(), set()

    def watched(latents: Any, signal: Any) -> Any:
        with products:
            made = forward(latents, signal)
        told.add(made.dtype)
        return made

    forward, unet.forward = unet.forward, watched
    made = clip(pipe, name)
    assert made.receipt["dtype"] == "bfloat16" and "redone_in_float32" not in made.receipt
    assert np.isfinite(made.frames).all() and off(made.frames, exact) < 0.15
    assert told == {dtype for _, dtype in products.of} == {torch.bfloat16}, products.of
