"""What in a step is the same each time: the form of what a network is told, and how the network is set.

Nothing here keeps a network or a tensor alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (int, float, str, bool, type, type(None), torch.dtype, torch.device)


def _unmarked(made_of: Any) -> None:
    """Nobody asks what there is around leaves."""


def anew(told: Any, change: Callable[[Any], Any], mark: Callable[[Any], None] = _unmarked) -> Any:
    """What a denoiser is told, with `change` done to whatever in it holds nothing else; `mark` hears of what does."""
    if is_dataclass(told) and not isinstance(told, type):
        mark(type(told))
        return replace(told, **{f.name: anew(getattr(told, f.name), change, mark) for f in fields(told) if f.init})
    if isinstance(told, Mapping):
        mark(tuple(map(_known, told)))
        return {key: anew(value, change, mark) for key, value in told.items()}
    if isinstance(told, (tuple, list)):
        mark((type(told), len(told)))
        parts = [anew(value, change, mark) for value in told]
        return type(told)(*parts) if hasattr(told, "_fields") else type(told)(parts)
    return change(told)


class Unrecordable(Exception):
    """What cannot be replayed, and why."""


def form_of(told: Any) -> tuple[tuple[Any, ...], list[Tensor]]:
    """All that a recording of a step has in it of what the step was told, and the tensors, which it reads.

    Raises:
        Unrecordable: a network is among it.
    """
    form: list[Any] = []
    tensors: list[Tensor] = []

    def note(leaf: Any) -> Any:
        if isinstance(leaf, nn.Module):
            raise Unrecordable("weights are made for this clip")
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            form.append((leaf.shape, once(leaf).shape, leaf.dtype, leaf.device))
        else:
            form.append(_known(leaf))
        return leaf

    anew(told, note, form.append)
    if len({x.device for x in tensors}) > 1:
        raise Unrecordable("what the network is told lies on several devices")
    return tuple(form), tensors


def once(x: Tensor) -> Tensor:
    """What of a tensor is in memory: one of each of its repeats."""
    for axis, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        if stride == 0 and size > 1:
            x = x.narrow(axis, 0, 1)
    return x


def room_for(x: Tensor) -> Tensor:
    """A tensor like this one, laid out as it is: programs compiled for one are those for the other."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _known(value: Any) -> Any:
    """What tells a value from others, and keeps nothing large alive."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple):
        return tuple(map(_known, value))
    if isinstance(value, Set):
        return frozenset(map(_known, value))
    try:
        found = weakref.ref(value)
        hash(found)
    except TypeError:
        raise Unrecordable(f"the network is told a {type(value).__name__}, which is not known") from None
    return found


def network_of(network: nn.Module) -> Iterator[Any]:
    """Whatever a recording has of a network beside the memory of its weights."""
    for module in network.modules():
        yield weakref.ref(module)
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield name, *_set_to(value)


def _set_to(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Tensor):
        return id(value), value.data_ptr()
    try:
        return (_known(value),)
    except Unrecordable:
        return type(value), repr(value)


def unseen(network: nn.Module) -> str:
    """Why a replay would not do all that running the network does; "" if it would."""
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in network.modules()):
        return "hooks look into the network"
    if len({x.device for x in (*network.parameters(), *network.buffers())}) > 1:
        return "its weights are on several devices"
    return ""


def places_of(weights: Sequence[weakref.ref[Tensor]]) -> list[Any]:
    """Where weights lie, and how."""
    found = (ref() for ref in weights)
    return [None if x is None else (x.data_ptr(), x.dtype, x.stride()) for x in found]
