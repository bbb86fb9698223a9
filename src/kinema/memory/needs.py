"""What a piece of network code needs: memory and arithmetic, found by running it on tensors without contents.

The code itself is run, so there is no formula to keep in step with it. On the meta device a published network takes
about a second at any size; Python's references keep tensors alive there exactly as they do in a real run.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .shapes import Shapes, signature
from .stream import tensors_of

M = TypeVar("M", bound=nn.Module)

_counting: ContextVar[Ledger | None] = ContextVar("counting", default=None)


@dataclass(frozen=True)
class Needs:
    """What one call needs beyond what was in memory before it."""

    peak: int  # bytes alive at the worst moment; no workspace of kernels, no slack of allocators
    where: str  # the module whose code ran at that moment, "" outside all known ones
    largest: int  # bytes of the largest single allocation
    kept: int  # bytes still alive at the end: what the call returns
    flops: int  # of matrix products, convolutions and attention, two for each multiplication with its addition
    moved: int = 0  # bytes read and written by all other operations, each run by itself
    read: int = 0  # bytes of weights that calls of a network read, where these were counted

    def __str__(self) -> str:
        return f"{amount(self.peak)} at {self.where or 'the top'}, {self.flops / 1e12:.3g} TFLOP"


def trace(call: Callable[[], Any], *, resident: Iterable[nn.Module | Tensor] = ()) -> Needs:
    """Run `call` without gradients and follow every storage it makes until its last reference goes.

    Args:
        call: takes nothing; its tensors may be on the meta device (nothing is computed) or hold numbers.
        resident: modules whose names `where` may use; they have hooks until the call ends, so give a copy made by
            `on_meta` where other threads use the original. Storages that exist before the call never count, listed
            or not.
    """
    ledger = Ledger()
    places, token = _places(resident, ledger.inside), _counting.set(ledger)
    try:
        with places, torch.inference_mode(False), torch.no_grad(), _Storages(ledger), _Attention(ledger):
            result = call()
            kept = ledger.live
        del result
    finally:
        _counting.reset(token)
    return Needs(ledger.peak, ledger.where, ledger.largest, kept, ledger.flops, ledger.moved, ledger.read)


def counting() -> Ledger | None:
    """The count that is being taken of what this thread does, if any."""
    return _counting.get()


@contextmanager
def capped(limit: int) -> Iterator[Ledger]:
    """Within, in this thread, there is room for `limit` bytes of new tensors; beyond that, they are refused.

    Raises:
        torch.OutOfMemoryError: an operation makes more than there is room for.
    """
    ledger = Ledger(limit)
    with _Storages(ledger), _Attention(ledger):
        yield ledger


def on_meta(module: M, dtype: torch.dtype | None = None) -> M:
    """The same module without contents: every setting is copied, no weight is. `dtype` is that of its real numbers."""
    return copy.deepcopy(module, {id(t): _hollow(t, dtype) for t in tensors_of(module)}).eval()


def bytes_of(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of a module's parameters and buffers, were they of this dtype."""
    return sum(t.numel() * _as(t, dtype).itemsize for t in tensors_of(module))


def amount(size: float) -> str:
    """Bytes, for people: 1.37 GB (10⁹ bytes), 24.0 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def _as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _hollow(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", dtype=_as(tensor, dtype), requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def _places(roots: Iterable[nn.Module | Tensor], inside: list[str]) -> Iterator[None]:
    """Keeps `inside` up to date while modules run."""
    with ExitStack() as hooks:
        for root in roots:
            for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
                place = name or type(module).__name__
                hooks.callback(module.register_forward_pre_hook(lambda *_, place=place: inside.append(place)).remove)
                hooks.callback(module.register_forward_hook(lambda *_: _drop_last(inside), always_call=True).remove)
        yield


def _drop_last(inside: list[str]) -> None:
    inside.pop()


class Ledger:
    """Counts bytes of live storages, and arithmetic."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit  # bytes that may be alive
        self.inside: list[str] = []  # names of the modules that are running, the innermost last
        self.live = self.peak = self.largest = self.flops = self.moved = self.read = 0
        self.where = ""
        self._seen: set[int] | None = None  # addresses of storages that operations read, where they are noted
        self._known: dict[int, weakref.ref[Any]] = {}  # by address, which is used again only after a storage has gone

    def existed(self, tensor: Tensor) -> None:
        """A storage that was there before."""
        self._enter(tensor, 0)
        if self._seen is not None:
            self._seen.add(tensor.untyped_storage()._cdata)

    def known(self) -> set[int]:
        """The addresses of storages that are there."""
        return set(self._known)

    def apart(self, call: Callable[[], Any]) -> tuple[Any, Needs, set[int]]:
        """What a call within this one makes, what it takes by itself, and the addresses of storages it read."""
        before, counted = self.live, (self.peak, self.where, self.largest, self.flops, self.moved)
        self.peak, self.where, self.largest, self.flops, self.moved = before, "", 0, 0, 0
        self._seen = seen = set[int]()
        made = call()
        self._seen = None
        needs = Needs(self.peak - before, self.where, self.largest, self.live - before, self.flops, self.moved)
        peak, where = self.peak, self.where
        self.peak, self.where, self.largest, self.flops, self.moved = counted
        self._most(peak, where)
        self.add(replace(needs, peak=0), 0)
        return made, needs, seen

    def add(self, needs: Needs, read: int) -> None:
        """What a call takes that is like one before, beside what is there now."""
        self._most(self.live + needs.peak, needs.where)
        self.largest, self.read = max(self.largest, needs.largest), self.read + read
        self.flops, self.moved = self.flops + needs.flops, self.moved + needs.moved

    def _most(self, peak: int, where: str) -> None:
        if peak > self.peak:
            self.peak, self.where = peak, where

    def made(self, tensor: Tensor) -> None:
        """A storage that may be new; views and results written in place are not."""
        self._enter(tensor, tensor.untyped_storage().nbytes())

    def _enter(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        if self.limit is not None and self.live + size > self.limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {amount(size)} are asked for, {amount(self.limit - self.live)} of "
                f"{amount(self.limit)} are free"
            )

        def gone(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.largest = max(self.largest, size)
        if self.live > self.peak:
            self.peak, self.where = self.live, self.inside[-1] if self.inside else ""


class _Storages(TorchDispatchMode):
    """Sees every operation below autograd, with all it reads and makes."""

    def __init__(self, ledger: Ledger):
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.shapes = Shapes()
        self._made_of_others: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._composite(func):
            with self:  # inference tensors bring operations here that are made of others
                return func.decompose(*args, **kwargs)
        tensors: list[Tensor] = []
        key = func, signature(args, tensors), signature(kwargs, tensors)
        for tensor in tensors:
            self.ledger.existed(tensor)
        out, cost = self.shapes.run(func, args, kwargs, tensors, key)
        for tensor in (out,) if isinstance(out, Tensor) else out if isinstance(out, (list, tuple)) else ():
            if isinstance(tensor, Tensor):
                self.ledger.made(tensor)
        self.ledger.flops += cost.flops
        self.ledger.moved += cost.moved
        return out

    def _composite(self, func: Any) -> bool:
        """Whether an operation has no kernel of its own."""
        known = self._made_of_others.get(func)
        if known is None:
            known = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
            self._made_of_others[func] = known
        return known


class _Attention(TorchFunctionMode):
    """Attention is one fused kernel on every device, which never holds a score for each pair of tokens.

    On the meta device PyTorch would take it apart instead, so there it is answered here.
    """

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(…, n, d), (…, k, d), (…, k, e) → (…, n, e), laid out as the fused kernels do."""
        q, k, v = query, key, value
        flops, moved = self.ledger.flops, self.ledger.moved
        rows = q.numel() // q.shape[-1]
        if q.is_meta:
            out = q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1])).transpose(-3, -2)
            q.new_empty(rows, dtype=torch.float32)  # the kernel keeps a sum for each row
        else:
            out = F.scaled_dot_product_attention(q, k, v, *args, **kwargs)
        self.ledger.flops = flops + 2 * rows * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        self.ledger.moved = moved
        return out
