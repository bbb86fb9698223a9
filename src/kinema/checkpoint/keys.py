"""How published state dicts differ from ours, said as data and applied in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class Rule(Protocol):
    """One difference; `write` undoes `read`."""

    def read(self, state: State) -> State:
        """Published to ours."""

    def write(self, state: State) -> State:
        """Ours to published."""


@dataclass(frozen=True)
class Rename:
    """One part of a key has two names. The name of either side must not occur on the other for another thing."""

    published: str
    ours: str

    def read(self, state: State) -> State:
        return {k.replace(self.published, self.ours): v for k, v in state.items()}

    def write(self, state: State) -> State:
        return {k.replace(self.ours, self.published): v for k, v in state.items()}


@dataclass(frozen=True)
class Alias:
    """An older name of a part of a key: read, never written."""

    old: str  # a regular expression
    new: str  # its replacement, in the manner of `re.sub`

    def read(self, state: State) -> State:
        return {re.sub(self.old, self.new, k): v for k, v in state.items()}

    def write(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class Drop:
    """Published keys that say nothing (`position_ids`, stored constants): read past, never written."""

    keys: str  # a regular expression

    def read(self, state: State) -> State:
        return {k: v for k, v in state.items() if not re.search(self.keys, k)}

    def write(self, state: State) -> State:
        return state


@dataclass(frozen=True)
class Keep:
    """Keys of ours that are kept elsewhere: never read, never written."""

    keys: str  # a regular expression

    def read(self, state: State) -> State:
        return state

    def write(self, state: State) -> State:
        return {k: v for k, v in state.items() if not re.search(self.keys, k)}


@dataclass(frozen=True)
class Again:
    """Published twice: what lies under `second` is what lies under `first`, so it is read past and written again."""

    first: str
    second: str

    def read(self, state: State) -> State:
        return {k: v for k, v in state.items() if self.second not in k}

    def write(self, state: State) -> State:
        return state | {k.replace(self.first, self.second): v for k, v in state.items() if self.first in k}


@dataclass(frozen=True)
class Squeeze:
    """Published with `axes` trailing axes of length one (a 1×1 convolution) where ours has none (a linear layer)."""

    keys: str  # a regular expression
    axes: int = 2

    def read(self, state: State) -> State:
        return {k: self._less(v) if re.search(self.keys, k) else v for k, v in state.items()}

    def write(self, state: State) -> State:
        more = (...,) + (None,) * self.axes
        return {k: v[more] if re.search(self.keys, k) else v for k, v in state.items()}

    def _less(self, x: Tensor) -> Tensor:
        kept = x.dim() - self.axes
        return x.reshape(x.shape[:kept]) if kept > 0 and all(n == 1 for n in x.shape[kept:]) else x


@dataclass(frozen=True)
class Transpose:
    """A matrix is published the other way round."""

    keys: str  # a regular expression

    def read(self, state: State) -> State:
        return {k: v.mT if re.search(self.keys, k) and v.dim() == 2 else v for k, v in state.items()}

    write = read


@dataclass(frozen=True)
class Fuse:
    """Several projections of one input are published apart; we keep them as one, stacked along the output."""

    published: tuple[str, ...]
    ours: str

    def read(self, state: State) -> State:
        fused: State = {}
        for key, value in state.items():
            part = next((part for part in self.published if part in key), None)
            names = [key.replace(part, name) for name in self.published] if part else []
            if part is None or not all(name in state for name in names):
                fused[key] = value  # a part alone stays as it is, so that the strict assignment names what is missing
            elif key == names[0]:
                fused[key.replace(part, self.ours)] = torch.cat([state[name] for name in names])
        return fused

    def write(self, state: State) -> State:
        split: State = {}
        for key, value in state.items():
            if self.ours in key:
                parts = value.chunk(len(self.published))
                split |= {key.replace(self.ours, name): part for name, part in zip(self.published, parts)}
            else:
                split[key] = value
        return split


@dataclass(frozen=True)
class Split:
    """Published as one (`in_proj_weight`), kept apart by us: `Fuse` the other way round."""

    published: str
    ours: tuple[str, ...]

    def read(self, state: State) -> State:
        return Fuse(self.ours, self.published).write(state)

    def write(self, state: State) -> State:
        return Fuse(self.ours, self.published).read(state)


@dataclass(frozen=True)
class Table:
    """Whole prefixes have two names, one to one; the longest that fits a key up to a dot counts, others stay."""

    pairs: tuple[tuple[str, str], ...]  # (published, ours)

    def read(self, state: State) -> State:
        return _moved(state, dict(self.pairs))

    def write(self, state: State) -> State:
        return _moved(state, {ours: published for published, ours in self.pairs})


def renamed(key: str, names: Mapping[str, str]) -> str:
    """A key by its other name: the longest of `names` that it begins with, up to a dot, is replaced."""
    head = key
    while head and head not in names:
        head = head.rpartition(".")[0]
    return names[head] + key[len(head) :] if head else key


def _moved(state: State, names: Mapping[str, str]) -> State:
    return {renamed(key, names): value for key, value in state.items()}


# What the attention of published image autoencoders was called before 2023.
OLD_ATTENTION: tuple[Rule, ...] = tuple(
    Alias(rf"(\bmid_block\.attentions\.0)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)


def read(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> State:
    """Published names and shapes to ours. Tensors are viewed, not copied, except by `Fuse`."""
    ours = dict(state)
    for rule in rules:
        ours = rule.read(ours)
    return ours


def write(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> State:
    """Ours to published: the same rules, last one first."""
    published = dict(state)
    for rule in reversed(list(rules)):
        published = rule.write(published)
    return published
