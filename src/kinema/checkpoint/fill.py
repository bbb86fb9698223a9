"""Giving a module its weights: mapped, renamed, cast and assigned tensor by tensor, strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CheckpointError
from ..finite import finite
from .dtypes import short
from .files import Weights, let_go, open_weights
from .keys import Rule, State, read, write
from .pages import fresh

M = TypeVar("M", bound=nn.Module)

HANDS = 4  # tensors that are made ready at once: each waits for the disk, and for memory, by itself
MANY = 1 << 26  # bytes of weights from which that pays
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # numbers of as many bytes, which are moved fastest


class _Unfilled(TorchFunctionMode):
    """Makes new tensors of nothing or of chance without memory: modules built under it keep only their constants.

    Initialisers are not asked, so they draw from no random stream. The mode belongs to the thread.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLERS or getattr(func, "__module__", "") == nn.init.__name__:
            filled: Tensor = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **(kwargs | {"device": "meta"} if func in _MAKERS else kwargs))


_MAKERS = {torch.empty, torch.randn, torch.rand}
_FILLERS = {Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_}


def build(cls: type[M], config: Mapping[str, Any], where: str = "configuration") -> M:
    """A module of `cls` whose parameters have shapes but no memory, and whose constant buffers are real.

    Raises:
        CheckpointError: the configuration has a wrong value.
    """
    read_config = getattr(cls, "config_class", None)
    with _Unfilled():
        return cls(read_config.read(config, where) if read_config else config)


def gathered(files: Iterable[Path], names: Mapping[str, str] | None = None) -> State:
    """The tensors of all files together, mapped.

    Raises:
        CheckpointError: a tensor that the index promises is not in its file, or two files hold the same one.
    """
    opened: dict[str, Weights] = {file.name: open_weights(file) for file in files}
    state: State = {}
    for file, weights in opened.items():
        for name in weights:
            if names is not None and names.get(name, file) != file:
                continue
            if name in state:
                raise CheckpointError(f"{weights.path.parent} holds {name} in two files; keep one set of shards.")
            state[name] = weights[name]
    if lost := sorted(set(names or ()) - set(state)):
        folder = next(iter(opened.values())).path.parent
        raise CheckpointError(f"The index in {folder} promises {some(lost)}, which the shards do not have.")
    return state


def fill(
    model: M,
    published: State,
    *,
    where: str,
    rules: Iterable[Rule] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    check_finite: bool = True,
) -> M:
    """Gives a built module its weights, exactly all of them; `published` is emptied on the way, to free as it goes.

    Raises:
        CheckpointError: keys are missing or unexpected, a shape differs, or a number is not finite.
    """
    rules = tuple(getattr(model, "KEYS", ()) if rules is None else rules)
    state = read(published, rules)
    published.clear()
    expected = model.state_dict(keep_vars=True)
    if wrong := misfit(state, expected, rules, type(model).__name__, where):
        raise CheckpointError(wrong)
    slots = _slots(model)

    def ready(name: str) -> Tensor:
        return _placed(state.pop(name), expected[name], name, where, dtype, device, check_finite)

    names = list(state)
    for name, value in zip(names, _in_turn(ready, names, expected, device), strict=True):
        old = expected[name]
        if isinstance(old, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        for put in slots[id(old)] if old is not None else ():
            put(value)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                raise CheckpointError(f"{type(model).__name__}.{name} is neither in {where} nor made by the class.")
            module._buffers[name] = buffer.to(device)
    return model.eval().requires_grad_(False)


def _in_turn(
    ready: Callable[[str], Tensor], names: list[str], expected: Mapping[str, Tensor], device: str | torch.device
) -> Iterator[Tensor]:
    """What becomes of each name, in their order; of large models several tensors are made ready at once."""
    if torch.device(device).type != "cpu" or sum(expected[name].nbytes for name in names) < MANY:
        yield from map(ready, names)
        return
    with ThreadPoolExecutor(HANDS, "kinema-load") as hands:
        yield from hands.map(ready, names)


def _slots(model: nn.Module) -> dict[int, list[Callable[[Tensor], None]]]:
    """Where each parameter and buffer is held (by several modules, when tied)."""
    slots: dict[int, list[Callable[[Tensor], None]]] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    slots.setdefault(id(value), []).append(lambda new, held=held, name=name: held.update({name: new}))  # type: ignore[misc]
    return slots


def misfit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], rules: Iterable[Rule], cls: str, where: str
) -> str | None:
    """Why a state dict in our names is not all a module expects and nothing else; None if it is."""
    extra = sorted(set(state) - set(expected))
    missing = [name for name in expected if name not in state]
    if missing or extra:
        missing = sorted(set(write({name: expected[name] for name in missing}, rules)) - set(extra))  # as published
        parts = [f"lacks {some(missing)}"] * bool(missing) + [f"has {some(extra)} too many"] * bool(extra)
        fits = f"{sum(name in state for name in expected)} of {len(expected)} weights fit"
        return f"{where} is not a {cls} as configured: it {' and '.join(parts)} ({fits})."
    wrong = [name for name in expected if expected[name].shape != state[name].shape]
    if not wrong:
        return None
    name, others = wrong[0], f" and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    has, needs = list(state[name].shape), list(expected[name].shape)
    return f"{where}: {name} has the shape {has}, the configuration says {needs}{others}; config and weights differ."


def _placed(
    x: Tensor, old: Tensor, name: str, where: str, dtype: torch.dtype | None, device: str | torch.device, check: bool
) -> Tensor:
    if not x.is_floating_point():
        return x.to(device)
    place, form = torch.device(device), dtype or x.dtype
    if _lies_alike(x, old) and (form == x.dtype or place.type != "cpu"):
        y = (x if x.stride() == old.stride() else x.as_strided(x.shape, old.stride())).to(place, form)
    else:  # a network may want its weights in another order than files have them
        y = _laid(x.to(place), old.stride(), form)
    wider = 1 < x.itemsize < y.itemsize  # which holds whatever the file does
    if check and not finite(x if wider else y):
        if finite(x):
            raise CheckpointError(f"{where}: {name} does not fit {short(y.dtype)}; load it as bfloat16 or float32.")
        raise CheckpointError(f"{where}: {name} holds NaN or infinite numbers; the file is broken, get another copy.")
    if y.data_ptr() != x.data_ptr():
        let_go(x)
    return y


def _lies_alike(x: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape are in the same order in memory; axes of length one say nothing."""
    return all(a == b for n, a, b in zip(x.shape, x.stride(), other.stride(), strict=True) if n > 1)


def _laid(x: Tensor, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The same numbers in another order and format."""
    y = fresh(x.shape, stride, dtype, x.device)
    whole = _WHOLE.get(dtype.itemsize) if dtype == x.dtype and not dtype.is_complex else None
    if whole is None or x.device.type != "cpu":
        return y.copy_(x)
    np.copyto(y.view(whole).numpy(), x.detach().view(whole).numpy())  # by one thread, as there are several hands
    return y


def some(names: list[str], at_most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
