"""Steps whose numbers overflow: found without waiting for any of them, and done again from the last sound one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .solvers import State


class Draws(Protocol):
    """Where a solver's fresh noise comes from."""

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor: ...


@dataclass
class Spare:
    """What does a step again that overflows in the denoiser's number format."""

    make: Callable[[], tuple[Any, Any]]  # → a denoiser that computes in float32, and its conditions
    # whether each step's numbers are looked at before the next; where a device runs ahead of its program, that would
    # make it wait, so all are looked at after the last
    at_once: bool = True
    steps: list[int] = field(default_factory=list)  # that were done again


class Kept:
    """The last sound state of a run, found where the numbers are: the program need not know which it is."""

    def __init__(self, start: State):
        form, leaves = _apart(start)
        self._forms = [form]  # of the state before each step
        self._states = {form: leaves}
        self._sound: list[Tensor] = []  # whether each step and all before it were

    def keep(self, state: State, predicted: Tensor) -> None:
        """The state after a step, and what was predicted in it; it is kept if that and all before were finite."""
        sound = torch.linalg.vector_norm(predicted, torch.inf).isfinite()
        if self._sound:
            sound = sound & self._sound[-1]
        self._sound.append(sound)
        form, leaves = _apart(state)
        self._forms.append(form)
        old = self._states.get(form)
        self._states[form] = leaves if old is None else [torch.where(sound, x, y) for x, y in zip(leaves, old)]

    def fault(self) -> tuple[int, State] | None:
        """The first step that was not sound and the state before it; None if all were. Waits for all steps."""
        first = sum(torch.stack(self._sound).tolist()) if self._sound else 0
        if first == len(self._sound):
            return None
        form = self._forms[first]
        return first, _together(form, iter(self._states[form]))


class Replaying:
    """Noise that a step gets again when it is done again."""

    def __init__(self, noise: Draws):
        self.noise = noise
        self._drawn: dict[int, list[Tensor]] = {}
        self._step = self._place = 0

    def begin(self, step: int) -> None:
        """What is drawn from now on belongs to this step."""
        self._step, self._place = step, 0

    def draw(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        known = self._drawn.setdefault(self._step, [])
        if self._place == len(known):
            known.append(self.noise.draw(shape, purpose))
        self._place += 1
        return known[self._place - 1]


def _apart(value: Any) -> tuple[Any, list[Tensor]]:
    """A state's form, which can be a key, and its tensors in order."""
    if isinstance(value, State):
        value = (State, value.x, value.history, value.clean)
    if isinstance(value, Tensor):
        return (Tensor, value.shape, value.dtype), [value]
    if isinstance(value, tuple):
        parts = [_apart(v) for v in value]
        return (tuple, *(form for form, _ in parts)), [leaf for _, leaves in parts for leaf in leaves]
    return (None, value), []


def _together(form: Any, leaves: Iterator[Tensor]) -> Any:
    kind, *rest = form
    if kind is Tensor:
        return next(leaves)
    if kind is tuple:
        parts = tuple(_together(one, leaves) for one in rest)
        return State(*parts[1:]) if parts and parts[0] is State else parts
    return rest[0]
