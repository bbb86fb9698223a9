"""What a clip will need, stage by stage, before it is made; and the fastest way to fit it into a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import nn

from ..errors import MemoryBudgetError
from ..place import standing_for
from .ahead import most
from .needs import Needs, amount, bytes_of, on_meta, trace
from .residency import MODES, Mode
from .speed import Speed

SLACK = 1.1  # what allocators and kernels' workspaces take on top of live tensors


# Ways to run a stage that give the same result in less memory.
APART, SINGLE, SMALL = "branches apart", "clips apart", "small pieces"  # of denoising
ONE, FAR, BANDS = "one by one", "low memory", "in bands"  # of decoding

BOUND = "{} is counted as though every step ran all rows; which do is decided in the run, so it takes that at most"


@dataclass(frozen=True)
class Way:
    """A way to run a stage."""

    name: str
    run: Callable[..., Any]  # as in `Stage`
    times: int = 1  # how often it is done
    rounds: int = 1  # how often it reads all weights each time


@dataclass(frozen=True)
class Stage:
    """A stretch of a run that uses one component, and maybe others beside it."""

    name: str  # "encode", "denoise", "decode"
    component: str
    run: Callable[..., Any]  # given it without contents, and by name those beside, makes the stage's largest step
    times: int = 1  # how often it does
    beside: tuple[str, ...] = ()  # components that are on the device as well meanwhile
    others: tuple[Way, ...] = ()  # with the same result, each smaller and slower than the one before
    entire: bool = False  # whether `run` makes all steps, which are not alike, and so does each of the others
    at_most: bool = False  # whether what it does is only decided in the run, and it is made as the most of that

    @property
    def ways(self) -> tuple[Way, ...]:
        """All ways to run it, the fastest first."""
        return Way("", self.run, self.times), *self.others


@dataclass(frozen=True)
class StageNeeds:
    """What one stage takes."""

    name: str
    component: str
    weights: int  # bytes on the device meanwhile
    needs: Needs
    times: int = 1
    beside: tuple[str, ...] = ()
    way: str = ""  # what is done to take less
    brought: int = 0  # bytes of weights that come from the host in all
    beforehand: bool = False  # whether they come while the device works
    held: int = 0  # bytes that recorded steps have throughout
    at_most: bool = False  # whether it may take less, which only the run decides

    @property
    def peak(self) -> int:
        return self.weights + self.needs.peak + self.held

    def seconds(self, speed: Speed) -> float:
        """At best: products, then what else passes through memory, then weights that come, or beside them."""
        work = (self.needs.flops / speed.flops + self.needs.moved / speed.bytes) * self.times
        way = self.brought / speed.link
        return max(work, way) if self.beforehand else work + way


@dataclass(frozen=True)
class MemoryPlan:
    """How a clip is made and what that takes. `str()` is a table."""

    stages: tuple[StageNeeds, ...]
    mode: Mode  # of residency
    decode_frames: int = 1  # decoded at once
    speed: Speed | None = None  # of the device, where times are wanted
    budget: int | None = None  # bytes it keeps within, with an allocator's slack
    refused: str = ""  # why it cannot, and what could be asked for instead

    @property
    def peak(self) -> int:
        """Bytes on the device at the worst moment: weights and live tensors, without an allocator's slack."""
        return max(stage.peak for stage in self.stages)

    @property
    def worst(self) -> StageNeeds:
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def resident(self) -> frozenset[str]:
        """Components whose weights stay on the device throughout."""
        if self.mode != "resident":
            return frozenset()
        return frozenset(name for stage in self.stages for name in (stage.component, *stage.beside))

    @property
    def streamed(self) -> bool:
        """Whether weights come for one operation at a time."""
        return self.mode == "sequential"

    @property
    def together(self) -> bool:
        """Whether guidance branches go through the denoiser together."""
        return not self.way("denoise")

    @property
    def recorded(self) -> MemoryPlan:
        """The same where denoising steps are recorded as graphs: these hold a step's activations in every stage."""
        held = max((stage.needs.peak for stage in self.stages if stage.name == "denoise"), default=0)
        return replace(self, stages=tuple(replace(stage, held=held) for stage in self.stages))

    @property
    def flops(self) -> int:
        return sum(stage.needs.flops * stage.times for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """How long it takes at best; None without a speed."""
        return None if self.speed is None else sum(stage.seconds(self.speed) for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether it keeps within its budget."""
        return self.budget is None or within(self.peak, self.budget)

    def way(self, name: str) -> str:
        """What is done in the stage of this name to take less, "" for nothing."""
        return next((stage.way for stage in self.stages if stage.name == name and stage.way), "")

    def __str__(self) -> str:
        columns = [
            "stage",
            "component",
            "weights",
            "graphs",
            "activations",
            "together",
            "TFLOP",
            "at best",
            "how",
            "widest at",
        ]
        rows = [columns, *(self._row(stage) for stage in self.stages)]
        named = len(columns) - 1
        kept = [i for i in range(len(columns)) if i == named or any(row[i] for row in rows[1:])]
        widths = {i: max(len(row[i]) for row in rows) for i in kept}
        lines = ["  ".join(row[i].ljust(widths[i]) for i in kept).rstrip() for row in rows]
        said = f"peak {amount(self.peak)} while the {self.worst.name} stage runs; weights: {self.mode}"
        if self.budget is not None:
            held = "within" if self.fits else "which does not fit into"
            said += f"; {held} {amount(self.budget)} with {round(100 * SLACK - 100)} % of slack"
        if self.seconds is not None:
            said += f"; {duration(self.seconds)} at best, of products and memory at this device's measured speed"
        notes = [BOUND.format(s.name) for s in self.stages if s.at_most]
        return "\n".join([*lines, said, *notes, *([self.refused] if self.refused else [])])

    def _row(self, s: StageNeeds) -> list[str]:
        sizes = [amount(size) for size in (s.weights, s.needs.peak, s.peak)]
        time = "" if self.speed is None else duration(s.seconds(self.speed))
        arithmetic = "at most " * s.at_most + f"{s.needs.flops * s.times / 1e12:.3g}"
        sizes.insert(1, amount(s.held) if s.held else "")
        return [s.name, " + ".join((s.component, *s.beside)), *sizes, arithmetic, time, s.way, s.needs.where]


def within(peak: int, budget: int) -> bool:
    """Whether so many bytes of weights and live tensors fit into a budget with an allocator's slack."""
    return peak * SLACK <= budget


def duration(seconds: float) -> str:
    """Seconds, for people: 0.4 s, 35 s, 4.2 min, 1.5 h."""
    for unit, scale in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:.1f} {unit}"
    return f"{seconds:.1g} s" if seconds < 1 else f"{seconds:.0f} s"


class Traces:
    """What stages take in every way, each found by running it once, when it is first asked for."""

    def __init__(
        self,
        stages: Sequence[Stage],
        components: Mapping[str, nn.Module],
        *,
        dtype: torch.dtype | None = None,
        kind: str | None = None,
    ):
        """
        Args:
            stages: in the order they run.
            components: all of them, by name; they keep their weights and are not touched.
            dtype: what to plan for, instead of the components' own.
            kind: of the device to plan for ("cpu", …); by default an accelerator.
        """
        self.stages, self.kind = tuple(stages), kind
        self._twins = {name: on_meta(module, dtype) for name, module in components.items()}
        self._known: dict[tuple[int, int], Needs] = {}
        self._turn = Lock()

    def at(self, stages: Sequence[Stage]) -> Traces:
        """Those of other stages of the same components."""
        other = copy.copy(self)
        other.stages, other._known = tuple(stages), {}
        return other

    def needs(self, stage: int, way: int = 0) -> Needs:
        """What a stage takes in one of its ways."""
        key = stage, way
        with self._turn:
            if key not in self._known:
                here = self.stages[stage]
                main, beside = self._twins[here.component], {name: self._twins[name] for name in here.beside}
                run = partial(here.ways[way].run, main, **beside)
                with standing_for(self.kind):
                    self._known[key] = trace(run, resident=[main, *beside.values()])
            return self._known[key]

    def taken(self, stage: int, way: int, mode: Mode) -> StageNeeds:
        """The same with weights, where these come as `mode` says."""
        s = self.stages[stage]
        chosen, names = s.ways[way], (s.component, *s.beside)
        whole = sum(bytes_of(self._twins[name]) for name in names)
        needs = self.needs(stage, way)
        each = needs.read if s.entire else whole * chosen.times * chosen.rounds
        brought = {"resident": 0, "model": whole, "sequential": each}[mode]
        beforehand = mode == "sequential" and self.kind == "cuda"
        weights = _weights(names, self._twins, mode, beforehand)
        meanwhile = beforehand and s.name == "denoise"
        about = s.name, s.component, weights, needs, chosen.times, s.beside, chosen.name
        return StageNeeds(*about, brought, meanwhile, at_most=s.at_most)

    def plan(self, mode: Mode = "resident", decode_frames: int = 1, speed: Speed | None = None) -> MemoryPlan:
        """Every stage in its fastest way."""
        taken = tuple(self.taken(i, 0, mode) for i in range(len(self.stages)))
        return MemoryPlan(taken, mode, decode_frames, speed)

    def fit(
        self,
        budget: int,
        *,
        modes: Sequence[Mode] = MODES,
        speed: Callable[[], Speed | None] | None = None,
        decode_frames: int = 1,
    ) -> MemoryPlan:
        """The fastest plan whose peak, with an allocator's slack, is within `budget` bytes; else the smallest.

        Args:
            modes: how weights may come to the device, from fast to small.
            speed: of the device, asked for where several plans fit; without it, or where it cannot be told, the first
                that fits is taken.
        """
        found: list[MemoryPlan] = []
        for mode in modes:
            taken = tuple(self._first_within(i, mode, budget) for i in range(len(self.stages)))
            plan = MemoryPlan(taken, mode, decode_frames, None, budget)
            found.append(plan)
            if plan.fits and (speed is None or not any(stage.way for stage in taken)):
                break  # what follows brings weights more often, and does nothing else faster
        fitting = [plan for plan in found if plan.fits]
        if not fitting:
            return min(found, key=lambda plan: plan.peak)
        if len(fitting) == 1 or speed is None:
            return fitting[0]
        measured = speed()
        if measured is None:
            return fitting[0]
        return min((replace(plan, speed=measured) for plan in fitting), key=lambda plan: plan.seconds or 0.0)

    def _first_within(self, stage: int, mode: Mode, budget: int) -> StageNeeds:
        """The fastest way that fits, or else the one that takes least."""
        tried = []
        for way in range(len(self.stages[stage].ways)):
            tried.append(self.taken(stage, way, mode))
            if within(tried[-1].peak, budget):
                return tried[-1]
        return min(tried, key=lambda one: one.peak)


def predict(
    stages: Sequence[Stage],
    components: Mapping[str, nn.Module],
    *,
    mode: Mode = "resident",
    dtype: torch.dtype | None = None,
    decode_frames: int = 1,
) -> MemoryPlan:
    """Run every stage on copies of its component without contents, and say what it takes.

    Args:
        stages: in the order they run.
        components: all of them, by name; they keep their weights and are not touched.
        mode: how weights will come to the device.
        dtype: what to plan for, instead of the components' own.
    """
    return Traces(stages, components, dtype=dtype).plan(mode, decode_frames)


def fit(
    stages: Sequence[Stage],
    components: Mapping[str, nn.Module],
    budget: int,
    *,
    dtype: torch.dtype | None = None,
    decode_frames: int = 1,
    speed: Callable[[], Speed] | None = None,
) -> MemoryPlan:
    """The fastest plan whose peak, with an allocator's slack, is within `budget` bytes.

    Raises:
        MemoryBudgetError: no way of running the stages fits; the message names the stage and what it takes.
    """
    plan = Traces(stages, components, dtype=dtype).fit(budget, speed=speed, decode_frames=decode_frames)
    if not plan.fits:
        raise MemoryBudgetError(f"{too_large(plan, budget)}; ask for fewer frames or a smaller size.")
    return plan


def too_large(plan: MemoryPlan, budget: int) -> str:
    """What does not fit, and by how much: the beginning of a sentence."""
    weights = {"sequential": "even with its weights streamed, ", "model": "with its weights alone, "}.get(plan.mode, "")
    return f"The {plan.worst.name} stage takes {amount(plan.peak * SLACK)} {weights}and there are {amount(budget)}"


def _weights(names: Iterable[str], components: Mapping[str, nn.Module], mode: Mode, beforehand: bool) -> int:
    """Bytes of weights on the device while these components run; `beforehand` if blocks come before they are read."""
    if mode == "resident":
        return sum(bytes_of(module) for module in components.values())
    if mode == "model":
        return sum(bytes_of(components[name]) for name in names)
    found = []
    for name in names:
        leaves = (m for m in components[name].modules() if not any(True for _ in m.children()))
        layer = max(map(bytes_of, leaves), default=0)
        found.append(most(bytes_of(components[name]), layer) if beforehand else layer)
    return sum(found) if beforehand else max(found, default=0)  # blocks of several networks may be there at once
