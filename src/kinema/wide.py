"""Products of 16-bit numbers on processors that have no arithmetic for them: computed in float32, and rounded once.

That is what processors with such arithmetic do as well: they sum in float32. Others imitate it number by number, which
takes several times as long as float32 does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from .place import kind_of

T = TypeVar("T")

FEW = (torch.float16, torch.bfloat16)
GAIN = 1.5  # times as fast it must be, to be worth the room that converted numbers take
_PRODUCTS = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.bmm, torch.matmul, Tensor.matmul}
_PRODUCTS |= {Tensor.__matmul__}

_lock = threading.Lock()
_faster: dict[torch.dtype, bool] = {}


def wide(x: Tensor) -> AbstractContextManager[Any]:
    """Within, in this thread, products of x's number format are computed in float32 where that is faster."""
    few = x.dtype in FEW and kind_of(x) == "cpu" and not torch.compiler.is_compiling()
    return _Wide(x.dtype) if few and faster(x.dtype) else nullcontext()


def wide_steps(x: Tensor, steps: Iterator[T]) -> Iterator[T]:
    """The same for what is made step by step: each is made within, and handed on outside."""
    end: Any = object()
    while True:
        with wide(x):
            made = next(steps, end)
        if made is end:
            return
        yield made


def faster(dtype: torch.dtype) -> bool:
    """Whether this processor gains by it, timed once a process; never where `KINEMA_KERNELS` names others."""
    with _lock:
        if dtype not in _faster:
            asked = os.environ.get("KINEMA_KERNELS", "")
            _faster[dtype] = (not asked or "wide" in asked.split(",")) and gain(dtype) >= GAIN
        return _faster[dtype]


def gain(dtype: torch.dtype) -> float:
    """How many times as fast a product is this way, by the best of some turns."""
    x, weight = torch.full((512, 640), 0.5, dtype=dtype), torch.full((640, 640), 0.5, dtype=dtype)
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: F.linear(x, weight),
        lambda: F.linear(x.float(), weight.float()).to(dtype),
    )
    taken: list[list[float]] = [[], []]
    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
        for _ in range(6):
            for way, times in zip(ways, taken, strict=True):
                start = time.perf_counter()
                way()
                times.append(time.perf_counter() - start)
    own, here = (min(times[1:]) for times in taken)  # the first turn warms up
    return own / max(here, 1e-9)


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
