"""Weights that differ from frame to frame: each frame goes through layers that have its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import InputError
from ..layout import put_frames, some_frames, take_frames
from .attention import CrossAttention, Memory

if TYPE_CHECKING:
    from .signal import Signal

Run = Callable[[Any, Tensor, "Signal"], Tensor]  # (a block or layer, what goes through it, what it is told) → result


@dataclass(frozen=True)
class FrameWeights:
    """Several sets of weights for some blocks and layers, none of which mixes frames, and which frame has which set."""

    of: tuple[int, ...]  # each frame's set
    units: Mapping[nn.Module, Sequence[nn.Module]]  # a block or layer → what stands for it in each set
    modules: Sequence[Mapping[nn.Module, nn.Module]]  # in each set: any module within these → what stands for it

    def at_frames(self, frames: Sequence[int]) -> FrameWeights:
        """What holds for some of the frames."""
        return replace(self, of=tuple(self.of[i] for i in frames))

    def memory(self, own: Mapping[nn.Module, Memory], context: Tensor) -> dict[nn.Module, Memory]:
        """What every set's cross-attentions know of the context, beside what the model's own do."""
        told = dict(own)
        for theirs in self.modules:
            for module, other in theirs.items():
                if isinstance(other, CrossAttention) and other is not module:
                    told[other] = other.remember(context).and_beside(own[module].beside)
        return told


def frame_weights(
    model: nn.Module, units: Iterable[nn.Module], of: Sequence[int], sets: Sequence[Mapping[str, Tensor]]
) -> FrameWeights:
    """Weights by frame for a model, made of its own: what a set does not name is shared, not copied.

    Args:
        units: the blocks and layers of the model that frames go through one by one.
        of: each frame's set.
        sets: the parameters in which each differs from the model, by name.

    Raises:
        InputError: a set changes what is in no such block.
    """
    named = dict(model.named_parameters())
    changed = {id(named[name]) for each in sets for name in each}
    found = [unit for unit in dict.fromkeys(units) if any(id(p) in changed for p in unit.parameters())]
    within = {id(p) for unit in found for p in unit.parameters()}
    if beyond := [name for each in sets for name in each if id(named[name]) not in within]:
        raise InputError(
            f"A LoRA with weights by frame changes {beyond[0]}, through which all frames go together; give it one "
            "weight for all."
        )
    alike: dict[nn.Module, list[nn.Module]] = {unit: [] for unit in found}
    modules: list[Mapping[nn.Module, nn.Module]] = []
    for each in sets:
        new = {id(named[name]): nn.Parameter(x, requires_grad=False) for name, x in each.items()}
        pairs: dict[nn.Module, nn.Module] = {}
        for unit, variants in alike.items():
            differs = any(id(p) in new for p in unit.parameters())
            variants.append(_like(unit, new) if differs else unit)
            pairs |= zip(unit.modules(), variants[-1].modules(), strict=True)
        modules.append(pairs)
    return FrameWeights(tuple(of), alike, modules)


def _like(module: nn.Module, new: Mapping[int, nn.Parameter]) -> nn.Module:
    """A module like this one with new parameters in the place of some, which are named by the old ones' ids."""
    twin = copy.copy(module)
    twin._parameters = {name: p if p is None else new.get(id(p), p) for name, p in module._parameters.items()}
    twin._modules = {name: child if child is None else _like(child, new) for name, child in module._modules.items()}
    return twin


def run_alone(unit: Any, x: Tensor, signal: Signal) -> Tensor:
    """A layer that is told nothing."""
    out: Tensor = unit(x)
    return out


def run_block(unit: Any, x: Tensor, signal: Signal) -> Tensor:
    out: Tensor = unit(x, signal)
    return out


def by_frame(unit: nn.Module, x: Tensor, signal: Signal, run: Run = run_alone, axis: int = 0) -> Tensor:
    """What `run` makes of x with a block or layer, of every frame with the weights that are its own.

    Args:
        x: (b·f, …), or with `axis=1` (rows, f, …).
    """
    weights = signal.weights
    if weights is None or unit not in weights.units:
        return run(unit, x, signal)
    variants = weights.units[unit]
    if len(signal.parts) == 1:
        which, _, told = signal.parts[0]
        return run(variants[which], x, told)
    whole: Tensor | None = None
    for which, frames, told in signal.parts:
        some = take_frames(x, frames) if axis else some_frames(x, frames, signal.frames)
        whole = put_frames(whole, run(variants[which], some, told), frames, signal.frames, axis)
    assert whole is not None
    return whole


def parts_of(signal: Signal) -> list[tuple[int, list[int], Signal]]:
    """Each set of weights in force, its frames, and what blocks with these weights are told of these frames."""
    weights = signal.weights
    assert weights is not None
    found: dict[int, list[int]] = {}
    for frame, which in enumerate(weights.of):
        found.setdefault(which, []).append(frame)
    return [(which, frames, _told(signal, weights.modules[which], frames)) for which, frames in found.items()]


def _told(signal: Signal, theirs: Mapping[nn.Module, nn.Module], frames: Sequence[int]) -> Signal:
    memory = {other: signal.memory[other] for other in theirs.values() if other in signal.memory}
    identity = frozenset(theirs[module] for module in signal.identity if module in theirs)
    merging = None if signal.merging is None else signal.merging.among(theirs)
    here = replace(signal, memory=memory, identity=identity, merging=merging, weights=None)
    return here if len(frames) == signal.frames else here.at_frames(frames)
