"""LoRA as arithmetic on weights: W + s·B·A, made once when set, nothing per step on full ones; taken back exactly."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .keys import Rule, write
from .lora_blocks import Blocks, weight_at
from .lora_delta import Delta
from .lora_files import read_lora
from .lora_frames import KEY, Framed, framed
from .lora_ldm import ldm_names
from .lora_names import Names
from .lora_sums import Sum, Summing, summing, view_of

Weights = Mapping[str, float | Mapping[str, Any]]  # adapter -> how much, or part -> how much, a U-Net's by block too
Weight = float | Blocks | Framed

Deltas = Mapping[str, Mapping[str, Delta]]  # part -> published key -> what is added


class Network:
    """One module with its untouched weights; tensors that adapters change are kept as they were, not copied.

    Layers that make their weights at each use are told what to make them with, and have nothing to be kept.
    """

    def __init__(self, module: nn.Module, aliases: Mapping[str, str] | None = None):
        self.module = module
        self.rules: tuple[Rule, ...] = tuple(getattr(module, "KEYS", ()))
        self.summed: set[str] = set()  # what layers make with something of ours
        self.holder: dict[str, str] = {}  # published key -> our parameter
        self.shapes: dict[str, tuple[int, ...]] = {}
        shapes = {name: layer.weight_shape for name, layer in self.summing.items()}
        for name, shape in {**{n: p.shape for n, p in self.parameters.items()}, **shapes}.items():
            for key, view in self._published(name, torch.empty(shape, device="meta")).items():
                self.holder[key], self.shapes[key] = name, tuple(view.shape)
        self.names = Names.of(self.holder, {**ldm_names(self.holder), **(aliases or {})})
        self.pristine: dict[str, Tensor] = {}

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name, as long as this holds on to them."""
        return dict(self.module.named_parameters())

    @cached_property
    def summing(self) -> dict[str, Summing]:
        """The layers that make their weights, by the names of these."""
        return summing(self.module)

    @property
    def changes(self) -> bool:
        """Whether the weights are others than without LoRAs."""
        return bool(self.pristine or self.summed)

    def let_go(self) -> None:
        """Forgets what holds the weights, to look again when it is needed."""
        self.__dict__.pop("parameters", None)
        self.__dict__.pop("summing", None)

    def _published(self, name: str, x: Tensor) -> dict[str, Tensor]:
        return write({name: x}, self.rules)

    def touched(self, additions: Iterable[tuple[Weight, Mapping[str, Delta]]]) -> set[str]:
        """The names of parameters that these adapters change."""
        return {self.holder[key] for weight, deltas in additions for key in deltas if _at(weight, key)}

    def changed(
        self, additions: Iterable[tuple[Weight, Mapping[str, Delta]]], only: Container[str] | None = None
    ) -> dict[str, Tensor | Sum]:
        """Every parameter that these adapters change, with them: (weight, deltas) -> our name -> new tensor, or what
        it is to be made with.

        Weights by frame change nothing that all frames share. `only` leaves out other parameters than these.
        """
        wanted: dict[str, list[tuple[str, float, Delta]]] = {}
        for weight, deltas in additions:
            for key, delta in deltas.items():
                if (here := _at(weight, key)) and (only is None or self.holder[key] in only):
                    wanted.setdefault(self.holder[key], []).append((key, here, delta))
        return {name: self._sum(name, terms) for name, terms in wanted.items()}

    @torch.no_grad()
    def _sum(self, name: str, terms: list[tuple[str, float, Delta]]) -> Tensor | Sum:
        if name in self.summing:
            shape = self.summing[name].weight_shape
            published = self._published(name, torch.empty(shape, device="meta"))
            return Sum(tuple((weight, delta, view_of(published, key, shape)) for key, weight, delta in terms))
        parameter = self.parameters[name]
        base = self.pristine.get(name, parameter.data).to(parameter.device)
        result = base.to(torch.float32, copy=True)
        before, after = self._published(name, base.to(torch.float32)), self._published(name, result)
        for key, weight, delta in terms:
            after[key].add_(delta(before[key]), alpha=weight)
        return result.to(parameter.dtype)

    def put(self, changed: Mapping[str, Tensor | Sum]) -> None:
        """Makes these the module's weights and all others what they were."""
        totals = {name: total for name, total in changed.items() if isinstance(total, Sum)}
        for name in self.summed.union(totals):  # others are not this one's to take off
            self.summing[name].sum_up(totals.get(name))
        self.summed = set(totals)
        for name in [name for name in self.pristine if name not in changed]:
            parameter = self.parameters[name]
            parameter.data = self.pristine.pop(name).to(parameter.device, parameter.dtype)
        for name, new in changed.items():
            if isinstance(new, Sum):
                continue
            self.pristine.setdefault(name, self.parameters[name].data)
            self.parameters[name].data = new
        self.module.__dict__["has_loras"] = self.changes

    def copy_with(self, changed: Mapping[str, Tensor | Sum]) -> nn.Module:
        """A module like this one that has these weights, and shares all others with it."""
        shared: dict[int, Any] = {id(x): x for x in (*self.module.parameters(), *self.module.buffers())}
        for name, old in self.parameters.items():
            new = changed.get(name, self.pristine.get(name))
            if isinstance(new, Tensor):
                new = new.to(old.device, old.dtype)
                shared[id(old)] = nn.Parameter(new, requires_grad=False)
        made = copy.deepcopy(self.module, shared)
        for name, layer in summing(made).items():
            layer.sum_up(changed.get(name))  # type: ignore[arg-type]
        return made


def has_loras(module: nn.Module) -> bool:
    """Whether LoRAs are a part of a network's weights, which only the `Network` that put them there can undo."""
    return bool(module.__dict__.get("has_loras"))


def _at(weight: Weight, key: str) -> float:
    return 0.0 if isinstance(weight, Framed) else weight_at(weight, key)


class Adapters:
    """The LoRAs of a pipeline's networks: several at once, each with its weight, taken off to the bit.

    Change it between calls, not during them. A call's own strength comes from `scaled`, which changes nothing.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        aliases: Mapping[str, Mapping[str, str]] | None = None,
        by_frame: Iterable[str] = (),
    ):
        """Takes networks by part ("unet", "text_encoder").

        Args:
            aliases: further names of a part's modules.
            by_frame: parts whose weights may differ from frame to frame.
        """
        self.by_frame = frozenset(by_frame)
        self.networks = {part: Network(module, (aliases or {}).get(part)) for part, module in modules.items()}
        self.loaded: dict[str, Deltas] = {}
        self.active: dict[str, dict[str, Weight]] = {}  # adapter -> part -> weight
        self.fused: dict[str, dict[str, Weight]] = {}

    def load(self, source: Any, name: str | None = None) -> str:
        """Reads a file, a folder or a dictionary of tensors, and keeps it, inactive, under a name.

        Raises:
            CheckpointError: it is no LoRA, or not one for these networks; nothing has changed then.
            InputError: there is a LoRA of this name already.
        """
        name = name if name is not None else next(f"default_{i}" for i in range(10**6) if self._free(f"default_{i}"))
        if not self._free(name):
            raise InputError(f"There is a LoRA named {name!r} already; unload it, or give another adapter_name.")
        self.loaded[name] = read_lora(source, self.networks)
        return name

    def _free(self, name: str) -> bool:
        return name not in self.loaded

    def set(self, weights: Weights) -> None:
        """Makes exactly these adapters active: {name: weight} or {name: {part: weight}}, a U-Net's weight also by
        block, as `lora_blocks` has it, and by frame, as `lora_frames` has it.

        Raises:
            InputError: a name or part is not known, or a weight is not a finite number.
        """
        self._apply(self._weights(weights), self.fused)

    def remove(self, names: str | Iterable[str]) -> None:
        """Forgets adapters, which takes them off."""
        gone = {names} if isinstance(names, str) else set(names)
        self._known(gone)
        active = {name: by for name, by in self.active.items() if name not in gone}
        fused = {name: by for name, by in self.fused.items() if name not in gone}
        self._apply(active, fused)
        self.loaded = {name: deltas for name, deltas in self.loaded.items() if name not in gone}

    def unload(self) -> None:
        """Forgets all adapters that are not fused; without fused ones the weights are, to the bit, what they were."""
        self._apply({}, self.fused)
        self.loaded = {name: deltas for name, deltas in self.loaded.items() if name in self.fused}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within, weights are what they were, and nothing here holds on to them; afterwards adapters are on again,
        whatever holds the weights by then."""
        active, fused = self.active, self.fused
        self._apply({}, {})
        for network in self.networks.values():
            network.let_go()
        try:
            yield
        finally:
            for network in self.networks.values():
                network.let_go()
            self._apply(active, fused)

    def change(self, part: str) -> bool:
        """Whether any loaded adapter is for this part."""
        return any(deltas.get(part) for deltas in self.loaded.values())

    def by_frame_in(self, part: str) -> str | None:
        """The name of an adapter that is active in this part with weights by frame, if there is one."""
        return next((name for name, by in self.active.items() if isinstance(by.get(part), Framed)), None)

    def fuse(self, names: Iterable[str] | None = None, scale: float = 1.0, parts: Iterable[str] | None = None) -> None:
        """Makes active adapters stay, `scale` times as strong, through `set` and `unload`.

        Args:
            names: these adapters, by default all that are active.
            parts: in these networks, by default in all; in others they stay ordinary ones.

        Raises:
            InputError: a name or part is not known.
        """
        chosen = list(self.active if names is None else names)
        self._known(chosen)
        wanted = set(self.networks if parts is None else parts)
        if unknown := sorted(wanted - set(self.networks)):
            raise InputError(f"There is no part {unknown[0]!r} with LoRAs; there are {', '.join(self.networks)}.")
        active, fused = dict(self.active), dict(self.fused)
        for name in chosen:
            by = active.pop(name, self._full(name))
            if any(isinstance(weight, Framed) for part, weight in by.items() if part in wanted):
                raise InputError(
                    f"LoRA {name!r} has weights by frame, which cannot be fused; give it one weight first."
                )
            fused[name] = {**fused.get(name, {}), **{part: scale * w for part, w in by.items() if part in wanted}}
            if rest := {part: w for part, w in by.items() if part not in wanted}:
                active[name] = rest
        self._apply(active, fused)

    def unfuse(self) -> None:
        """Makes fused adapters plain active ones again, at the strength they were fused with."""
        self._apply({**self.active, **{n: {**self.active.get(n, {}), **by} for n, by in self.fused.items()}}, {})

    def scaled(self, part: str, scale: float) -> nn.Module:
        """A part's module with active adapters `scale` times as strong, sharing all other weights with it."""
        network = self.networks[part]
        if scale == 1 or not any(part in self.loaded[name] for name in self.active):
            return network.module
        active = {name: {p: scale * w for p, w in by.items()} for name, by in self.active.items()}
        return network.copy_with(network.changed(self._additions(part, active, self.fused)))

    def check_frames(self, frames: int) -> None:
        """Refuses weights by frame that do not go with a clip of so many frames.

        Raises:
            InputError: there are some.
        """
        for by in self.active.values():
            for weight in by.values():
                if isinstance(weight, Framed):
                    weight.along(frames)

    def along(self, part: str, frames: int, scale: float = 1.0) -> tuple[list[int], list[dict[str, Tensor]]] | None:
        """Each frame's set of weights, and in which of a part's parameters each set differs from the module's own.

        Frames at which all LoRAs count alike have one set. None where none has weights by frame.
        """
        found = self._mixes(part, frames)
        if found is None:
            return None
        of, sets = found
        return of, [self._set(part, here, scale) for here in sets]

    def along_hollow(self, part: str, frames: int) -> tuple[list[int], list[dict[str, Tensor]]] | None:
        """The same without contents, for plans."""
        found = self._mixes(part, frames)
        if found is None:
            return None
        of, sets = found
        own = self.networks[part].parameters
        touched = [self._touched(part, self._at(part, here, 1.0), here) for here in sets]
        return of, [{name: torch.empty_like(own[name], device="meta") for name in names} for names in touched]

    def _mixes(self, part: str, frames: int) -> tuple[list[int], list[dict[str, float]]] | None:
        """Each frame's mix of LoRAs with weights by frame, and these mixes: how much of each; None without any."""
        weights = {name: by[part] for name, by in self.active.items() if part in by}
        numbers = {name: w.along(frames) for name, w in weights.items() if isinstance(w, Framed)}
        if not numbers:
            return None
        mixes = list(zip(*numbers.values(), strict=True))
        sets = list(dict.fromkeys(mixes))
        return [sets.index(mix) for mix in mixes], [dict(zip(numbers, mix, strict=True)) for mix in sets]

    def _set(self, part: str, here: Mapping[str, float], scale: float) -> dict[str, Any]:
        """What LoRAs with weights by frame change at a frame: each parameter with all that are active there."""
        active = self._at(part, here, scale)
        names = self._touched(part, active, here)
        return self.networks[part].changed(self._additions(part, active, self.fused), names)

    def _at(self, part: str, here: Mapping[str, float], scale: float) -> dict[str, dict[str, Weight]]:
        """How much each LoRA counts for at a frame."""
        active: dict[str, dict[str, Weight]] = {}
        for name, by in self.active.items():
            weight = by.get(part, 0.0)
            at_frame = here[name] * weight.blocks if isinstance(weight, Framed) else weight
            active[name] = {part: scale * at_frame}
        return active

    def _touched(self, part: str, active: Mapping[str, Mapping[str, Weight]], here: Container[str]) -> list[str]:
        """The parameters that LoRAs with weights by frame change."""
        mine = {name: by for name, by in active.items() if name in here}
        return sorted(self.networks[part].touched(self._additions(part, mine)))

    def _full(self, name: str) -> dict[str, Weight]:
        return dict.fromkeys(self.loaded[name], 1.0)

    def _weights(self, weights: Weights) -> dict[str, dict[str, Weight]]:
        self._known(weights)
        result: dict[str, dict[str, Weight]] = {}
        for name, weight in weights.items():
            whole = not isinstance(weight, Mapping) or KEY in weight
            by_part: dict[str, Any] = dict.fromkeys(self.loaded[name], weight) if whole else dict(weight)  # type: ignore[arg-type]
            for part, number in list(by_part.items()):
                if part not in self.networks:
                    raise InputError(f"There is no part {part!r} with LoRAs; there are {', '.join(self.networks)}.")
                if isinstance(number, Mapping):
                    by_part[part] = number = self._read(number, name, part)
                if isinstance(number, Framed) and self.networks[part].summing:
                    raise InputError(
                        f"LoRA {name!r} has weights by frame, which need full weights, and the {part}'s are stored in "
                        "eight bits; give it one weight, or call disable_weight_storage() first."
                    )
                if isinstance(number, (Blocks, Framed)):
                    continue
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < float("inf"):
                    raise InputError(f"The weight of LoRA {name!r} is {number!r}; it must be a finite number.")
            result[name] = by_part
        return result

    def _read(self, weight: Mapping[str, Any], name: str, part: str) -> Weight:
        keys = self.networks[part].holder
        if KEY not in weight:
            return Blocks(weight).checked(name, keys)
        if part not in self.by_frame:
            there = ", ".join(sorted(self.by_frame))
            also = f"; give it one weight there, and {{'frames': …}} for {there}" if there else ""
            raise InputError(f"LoRA {name!r} changes the {part}, which has no weights by frame{also}.")
        return framed(weight, name, keys)

    def _known(self, names: Iterable[str]) -> None:
        if unknown := [name for name in names if name not in self.loaded]:
            there = ", ".join(map(repr, self.loaded)) or "none"
            raise InputError(f"No LoRA is named {unknown[0]!r}; loaded: {there}.")

    def _additions(
        self, part: str, *weights: Mapping[str, Mapping[str, Weight]]
    ) -> list[tuple[Weight, Mapping[str, Delta]]]:
        """In the order of loading, so that the sum does not depend on who was set first."""
        return [
            (by[name].get(part, 0.0), deltas[part])
            for name, deltas in self.loaded.items()
            for by in weights
            if name in by and part in deltas
        ]

    def _apply(self, active: dict[str, dict[str, Weight]], fused: dict[str, dict[str, Weight]]) -> None:
        changes = {p: n.changed(self._additions(p, active, fused)) for p, n in self.networks.items()}
        for part, changed in changes.items():
            self.networks[part].put(changed)
        self.active, self.fused = active, fused
