"""Operations on tensors without contents, each worked out once for the shapes it meets and known from then on.

PyTorch works out what an operation makes of such tensors in Python, which takes longer than some operations do. A
network repeats itself, and a clip decoded in bands does so thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_EMPTY = {torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_strided, torch.ops.aten.empty_like}


class Cost(NamedTuple):
    """What an operation takes."""

    flops: int  # of products
    moved: int  # bytes read and written where there are none: of the rest, that is what takes time


@dataclass(frozen=True)
class Known:
    """What an operation makes of arguments of some shapes."""

    make: Callable[[tuple[Any, ...]], Any] | None  # a new result, from the arguments; None: it has to be run
    cost: Cost


class Shapes:
    """Runs operations, and gives those it has seen with such arguments without running them."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Known] = {}

    def run(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor], key: Hashable
    ) -> tuple[Any, Cost]:
        """The operation's result, and what it takes.

        Args:
            tensors: those among the arguments.
            key: of the operation and its arguments, by `signature`.
        """
        if not tensors or not all(t.is_meta for t in tensors):
            out = func(*args, **kwargs)
            return out, cost_of(func, args, kwargs, tensors, out)
        known = self._known.get(key)
        if known is not None and known.make is not None:
            return known.make(args), known.cost
        before = {t.untyped_storage()._cdata for t in tensors}
        laid = _laid(tensors[0])
        out = func(*args, **kwargs)
        cost = cost_of(func, args, kwargs, tensors, out) if known is None else known.cost
        if known is None:
            changed = args and out is args[0] and (torch.Tag.inplace_view in func.tags or _laid(out) != laid)
            self._known[key] = Known(None if changed else _again(func, args, out, before), cost)
        return out, cost


def signature(tree: Any, found: list[Tensor]) -> Hashable:
    """All of arguments that shapes and number formats of results depend on; their tensors are added to `found`."""
    if isinstance(tree, Tensor):
        found.append(tree)
        return tree.shape, tree.stride(), tree.dtype
    if isinstance(tree, (list, tuple)):
        return tuple([signature(x, found) for x in tree])
    if isinstance(tree, dict):
        return tuple([(name, signature(x, found)) for name, x in tree.items()])
    return type(tree), tree  # 1, 1.0 and True are equal, and make other number formats


def _laid(x: Tensor) -> tuple[Any, ...]:
    storage = x.untyped_storage()
    return storage._cdata, storage.nbytes(), x.storage_offset(), x.shape, x.stride(), x.dtype


def _again(func: Any, args: tuple[Any, ...], out: Any, before: set[int]) -> Callable[[tuple[Any, ...]], Any] | None:
    """How to make such a result without the operation; None for views and whatever else is not simply new."""
    written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
    if any(written):
        return _first if args and written[0] and not any(written[1:]) and out is args[0] else None
    made = [out] if isinstance(out, Tensor) else out
    if not isinstance(made, (list, tuple)) or not all(isinstance(x, Tensor) for x in made):
        return None
    if any(r.alias_info is not None for r in func._schema.returns):
        return None
    if len(before | {x.untyped_storage()._cdata for x in made}) != len(before) + len(made):
        return None
    forms = [(tuple(x.shape), x.stride(), x.dtype) for x in made]
    if not all(x.is_meta and _laid(x)[1:3] == _laid(_new(f))[1:3] for x, f in zip(made, forms, strict=True)):
        return None
    if isinstance(out, Tensor):
        (form,) = forms
        return lambda _: _new(form)
    kind = type(out)
    return lambda _: kind(_new(form) for form in forms)


def _new(form: tuple[Any, Any, torch.dtype]) -> Tensor:
    shape, stride, dtype = form
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def cost_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor], out: Any) -> Cost:
    """What an operation takes; `tensors` are those among its arguments."""
    count = flop_registry.get(func._overloadpacket)
    if count is not None:
        return Cost(int(count(*args, **kwargs, out_val=out)), 0)
    made = [x for x in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(x, Tensor)]
    if not func._schema.is_mutable:
        there = {t.untyped_storage()._cdata for t in tensors}
        made = [x for x in made if x.untyped_storage()._cdata not in there]  # views cost nothing
    if not made or func._overloadpacket in _EMPTY:
        return Cost(0, 0)
    return Cost(0, sum(x.numel() * x.element_size() for x in (*tensors, *made)))
