"""Matrix products of a processor by another way than PyTorch's own, where that is found to be faster there.

Numbers of 16 bits, where it has no arithmetic for them, are multiplied in float32 and rounded once: processors that
have it sum in float32 as well, and others imitate it number by number, which takes several times as long. Those of 32
bits go through the library that convolutions go through, where the other one does not know the processor well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .choice import Choice, Ways
from .place import kind_of

T = TypeVar("T")

FEW = (torch.float16, torch.bfloat16)
LEAST = 1 << 22  # products of numbers below which another library's longer way to begin shows
_PRODUCTS = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.bmm, torch.matmul, Tensor.matmul}
_PRODUCTS |= {Tensor.__matmul__}
_CPU = torch.device("cpu")


def fast(x: Tensor) -> AbstractContextManager[Any]:
    """Within, in this thread, products of x's number format are computed the way that is faster on its processor."""
    if kind_of(x) != "cpu" or torch.compiler.is_compiling():
        return nullcontext()
    if x.dtype in FEW:
        return _Wide(x.dtype) if wide(x.dtype) else nullcontext()
    return _Linear() if x.dtype == torch.float32 and ONEDNN.taken(x) else nullcontext()


def fast_steps(x: Tensor, steps: Iterator[T]) -> Iterator[T]:
    """The same for what is made step by step: each is made within, and handed on outside."""
    end: Any = object()
    while True:
        with fast(x):
            made = next(steps, end)
        if made is end:
            return
        yield made


def wide(dtype: torch.dtype) -> bool:
    """Whether processors multiply these numbers in float32 here."""
    return WIDE.verdict(_CPU, dtype).taken


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of float32 by oneDNN, without gradients."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


def _pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random numbers that take none from anybody's generator."""
    dice = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1024, 640, generator=dice), torch.randn(1280, 640, generator=dice) / 25
    return x.to(dtype), weight.to(dtype)


def _wide_sample(_: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = _pair(dtype)
    return _plainly(lambda: F.linear(x, weight)), _plainly(lambda: F.linear(x.float(), weight.float()).to(dtype))


def _onednn_sample(_: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = _pair(dtype)
    return _plainly(lambda: F.linear(x, weight)), _plainly(lambda: linear(x, weight))


def _plainly(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Whoever changes what functions do does not change what is tried."""

    def run() -> Tensor:
        with torch._C.DisableTorchFunction():
            return way()

    return run


# Converted numbers take room, so the first must be worth it.
WIDE = Choice("wide", "16-bit matrix products", _wide_sample, least=1.5)
ONEDNN = Choice("onednn", "matrix products", _onednn_sample, least=1.2)


class _Wide(TorchFunctionMode):
    """Gives products float32 copies of what they multiply, and rounds what they make."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != self.dtype:
            return func(*args, **kwargs)
        made: Tensor = func(*map(self._wide, args), **{name: self._wide(value) for name, value in kwargs.items()})
        return made.to(self.dtype)

    def _wide(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self.dtype else value


class _Linear(TorchFunctionMode):
    """Has large linear layers of float32 computed by oneDNN."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) > 1:
            x, weight, *_ = args
            large = x.numel() * weight.shape[0] >= LEAST and x.dtype == weight.dtype == torch.float32
            if large and not x.is_meta and not torch.is_grad_enabled():
                return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
