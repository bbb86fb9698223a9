"""Runs of many steps on tensors without contents, in which each kind of a network's calls is worked out once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partialmethod
from typing import Any

import torch
from torch import Tensor, nn

from .needs import Ledger, Needs, counting
from .stream import tensors_of

Form = tuple[int, torch.Size, tuple[int, ...], int]  # which storage, and how a tensor lies in it


@dataclass(frozen=True)
class Told:
    """What a call made, and what that took."""

    needs: Needs
    read: int  # bytes of weights
    storages: tuple[tuple[int, torch.dtype], ...]  # how many numbers each that is new holds
    forms: tuple[Form, ...]
    kind: type | None  # of the sequence they came in

    def again(self, ledger: Ledger) -> Any:
        """The same once more, without running it."""
        ledger.add(self.needs, self.read)
        flat = [torch.empty(count, device="meta", dtype=dtype) for count, dtype in self.storages]
        made = [flat[i].as_strided(shape, stride, offset) for i, shape, stride, offset in self.forms]
        return made[0] if self.kind is None else self.kind(made)


class Rehearsed:
    """A denoiser in a plan: it runs once on tensors of some shapes, and after that is told from memory.

    What is done at each step, by what is around it, so costs little to find out; and all weights it reads are counted.
    """

    def __init__(self, denoiser: Any):
        self.denoiser = denoiser
        self._known: dict[Hashable, Told] = {}

    def _call(self, name: str, /, *args: Any) -> Any:
        ledger = counting()
        call = getattr(self.denoiser, name)
        if ledger is None:
            return call(*args)
        try:
            key = name, shaped(args)
            known = self._known.get(key)
        except TypeError:  # something that cannot be told from others
            return self._run(ledger, call, args)[0]
        if known is not None:
            return known.again(ledger)
        made, told = self._run(ledger, call, args)
        if told is not None:
            self._known[key] = told
        return made

    __call__ = partialmethod(_call, "__call__")
    begin = partialmethod(_call, "begin")
    denoise_and_keep = partialmethod(_call, "denoise_and_keep")
    denoise_above = partialmethod(_call, "denoise_above")

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        """times (steps,) → the signals of all steps."""
        ledger = counting()
        if ledger is None:
            return self.denoiser.prepare(times, conditions)
        return self._run(ledger, self.denoiser.prepare, (times, conditions))[0]

    def _run(self, ledger: Ledger, call: Any, args: tuple[Any, ...]) -> tuple[Any, Told | None]:
        """What a call makes, and how to make it again; None where it cannot be."""
        given = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(x, Tensor)]
        there = ledger.known() | {x.untyped_storage()._cdata for x in given}
        made, needs, seen = ledger.apart(lambda: call(*args))
        weights = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors_of(self.denoiser)}
        read = sum(size for key, size in weights.items() if key in seen)
        ledger.read += read
        several = isinstance(made, (list, tuple))
        tensors: Sequence[Any] = made if several else [made]
        if not all(isinstance(x, Tensor) for x in tensors):
            return made, None
        held = {x.untyped_storage()._cdata: (x.untyped_storage().nbytes() // x.itemsize, x.dtype) for x in tensors}
        places = list(held)
        if not there.isdisjoint(held):
            return made, None  # it gave back what it was given
        forms = [(places.index(x.untyped_storage()._cdata), x.shape, x.stride(), x.storage_offset()) for x in tensors]
        return made, Told(needs, read, tuple(held.values()), tuple(forms), type(made) if several else None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def shaped(tree: Any) -> Hashable:
    """All of a call's arguments that what it takes depends on; of some, what they say themselves, as `alike`.

    Raises:
        TypeError: something cannot be told from others (when the result is hashed).
    """
    if isinstance(tree, Tensor):
        return tree.shape, tree.stride(), tree.dtype
    if isinstance(tree, nn.Module):
        return tree
    if hasattr(tree, "alike"):
        return type(tree), tree.alike
    if isinstance(tree, Mapping):
        return tuple((shaped(name), shaped(x)) for name, x in tree.items())
    if isinstance(tree, (list, tuple)):
        return type(tree), tuple(shaped(x) for x in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return type(tree), tuple(shaped(getattr(tree, field.name)) for field in fields(tree))
    return type(tree), tree
