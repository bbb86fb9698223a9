"""Calls that keep within a device's memory: what they would take is known before they begin."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..checkpoint.files import mapped
from ..errors import MemoryBudgetError
from ..memory import heap
from ..memory.moving import is_out_of_memory
from ..memory.needs import amount, bytes_of
from ..memory.plan import APART, SLACK, SMALL, MemoryPlan, Stage, Traces, too_large, within
from ..memory.residency import MODES, Mode, Residency
from ..memory.room import Memory, checked, free, numbered
from ..memory.speed import Speed, speed_of
from ..memory.stages import smaller
from ..memory.stream import tensors_of
from ..sampling.wrappers import Apart
from .base import DiffusionPipeline, Networks

log = logging.getLogger("kinema")

KEPT = 8  # traced sizes a pipeline remembers
TRIES = 5  # sizes that are traced to find the largest
AS_SET = "as set"
SWITCHES = ("piece", "heads_at_once", "rows", "use_slicing", "band")  # of modules, that change what they take

# Bytes that activations certainly stay below, for each byte of the denoiser's and the decoder's widest tensor.
DENOISER, DECODER, ALWAYS = 24, 12, 1 << 28


class Remembered:
    """What was traced last, a few sizes; for all threads."""

    def __init__(self) -> None:
        self._lock, self._known = Lock(), OrderedDict[Any, Traces]()

    def of(self, key: Any, make: Callable[[], Traces]) -> Traces:
        """What is known under a key, or else is made now."""
        with self._lock:
            if key not in self._known:
                self._known[key] = make()
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
            return self._known[key]


class Budgeted(DiffusionPipeline):
    """A pipeline that plans its calls."""

    def __init__(self, **components: Any):
        super().__init__(**components)
        self._remembered = Remembered()

    def _stages(self, **asked: Any) -> list[Stage]:
        """What a call of this size goes through, on tensors without contents.

        Args:
            asked: height, width, frames, steps, branches, clips and decode_frames.
        """
        raise NotImplementedError

    def _planned_components(self) -> Mapping[str, nn.Module]:
        return dict(self.modules())

    def run_on(self, device: Any) -> Self:
        """Has calls run on a device: with all weights there if `memory` has room for them, else from the host.

        Raises:
            InputError: the device is not there.
        """
        place, weights = torch.device(device), sum(bytes_of(m) for m in self.modules().values())
        budget = free(place) if self._memory == "auto" else self._memory
        if budget is None or within(weights, budget):  # type: ignore[arg-type]
            try:
                return self.to(place)
            except MemoryBudgetError:
                if self._memory is None:
                    raise
        self.await_weights(place)
        return self

    def await_weights(self, device: Any) -> None:
        """Has calls run on a device whose weights come from the host, unless a plan says otherwise."""
        self._residency, self._moved_by_plan = Residency(Networks(self), numbered(torch.device(device)), "model"), True
        self._residency.settle()

    # ---------------------------------------------------------------- plans

    def _plan_for(self, asked: Mapping[str, Any], memory: Memory = AS_SET) -> MemoryPlan:
        """How a call of this size would be made, fitting or not.

        Raises:
            InputError: memory is no setting.
        """
        self._note_windows(asked["frames"])
        traces, speed = self._traces(asked), self._speed()
        budget = self._budget(self._memory if memory == AS_SET else checked(memory))
        if budget is None:
            return traces.plan(self._modes()[0], asked["decode_frames"], speed)
        plan = traces.fit(budget, modes=self._modes(), speed=lambda: speed, decode_frames=asked["decode_frames"])
        return replace(plan, speed=speed, refused="" if plan.fits else self._refusal(plan, asked, budget))

    def _settled(self, asked: Mapping[str, Any]) -> Mapping[str, str]:
        """Gets everything ready for a call of this size; what is done in which stage to take less.

        Raises:
            MemoryBudgetError: it fits in no way; the message names what does.
        """
        budget = self._budget(self._memory)
        if budget is None:
            return {}
        if self._certainly_takes(asked) <= budget and self._go("resident"):
            return {}
        traces, modes = self._traces(asked), self._modes()
        plan = traces.fit(budget, modes=modes, speed=self._speed)
        if plan.fits and not self._go(plan.mode):
            plan = traces.fit(budget, modes=(self._residency.mode,))
        if not plan.fits:
            raise MemoryBudgetError(self._refusal(plan, asked, budget))
        ways = {stage.name: stage.way for stage in plan.stages if stage.way}
        log.info("memory: weights %s; %s", plan.mode, ways or "nothing else to be done")
        return ways

    def _budget(self, memory: Memory) -> int | None:
        """Bytes that weights and activations may take; None where nobody knows."""
        if memory != "auto":
            return memory  # type: ignore[return-value]
        device = self.execution_device
        room = free(device)
        if room is None:
            return None
        own = {t.data_ptr(): t for m in self.modules().values() for t in tensors_of(m) if t.device == device}
        taken = [t for t in own.values() if not mapped(t)]  # what the system can have back counts as free already
        return room + sum(t.numel() * t.element_size() for t in taken)

    def _keeping(self, latents: Tensor) -> AbstractContextManager[None]:
        """Within, freed memory stays at hand: on a processor, where no size is asked for."""
        freely = latents.device.type == "cpu" and self.memory in ("auto", None)
        return heap.kept() if freely else nullcontext()

    def _modes(self) -> Sequence[Mode]:
        """How weights may come to the device: as somebody said, or else in every way that makes a difference."""
        residency = self._residency
        if self._shares() or (residency.mode != "resident" and not self._moved_by_plan):
            return (residency.mode,)
        elsewhere = residency.bring is not None or self.execution_device != residency.host
        return MODES if elsewhere else ("resident",)

    def _go(self, mode: Mode) -> bool:
        """Has weights come so from now on, unless somebody said how; whether they then do, or need not."""
        residency = self._residency
        if mode == residency.mode or (mode == "resident" and not self._moved_by_plan):
            return True
        if residency.busy or self._shares():  # weights cannot be moved from under another call or pipeline
            return False
        moved = replace(residency, mode=mode, device=self.execution_device)
        moved.settle()
        self._residency, self._moved_by_plan = moved, mode != "resident"
        return True

    def _speed(self) -> Speed | None:
        """How fast the device is; None where it is too full to try."""
        try:
            return speed_of(self.execution_device, self.dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    # ---------------------------------------------------------------- what is known

    def _traces(self, asked: Mapping[str, Any]) -> Traces:
        """What stages take, worked out once for each size and way the pipeline is set."""
        components = self._planned_components()
        kind = self.execution_device.type
        key = (tuple(sorted(asked.items())), self.dtype, kind, self._set_up(components, asked["frames"]))
        return self._remembered.of(key, lambda: Traces(self._stages(**asked), components, kind=kind))

    def _set_up(self, components: Mapping[str, nn.Module], frames: int) -> Any:
        """All else that traces depend on."""
        nets = [
            (name, id(module), bytes_of(module), *(found for m in module.modules() if (found := _switched(m))))
            for name, module in components.items()
        ]
        return tuple(nets), self._settings_said(frames)

    def _note_windows(self, frames: int) -> None:
        """Says where a clip of so many frames is cut, and nobody asked for it."""

    def _copied(self, frames: int) -> int:
        """Bytes of weights that a clip of so many frames has copies of."""
        return 0

    def _settings_said(self, frames: int) -> str:
        """What settings say that change what a call takes."""
        return ""

    def _certainly_takes(self, asked: Mapping[str, Any]) -> float:
        """Bytes that a call with resident weights stays below for certain, known without tracing it."""
        width, channels = getattr(self.unet, "width", None), getattr(self.vae.config, "block_out_channels", None)
        if width is None or not channels:
            return float("inf")
        size = self.dtype.itemsize
        pixels = asked["clips"] * asked["frames"] * asked["height"] * asked["width"]
        denoising = asked["branches"] * pixels // self.vae.stride**2 * width * size * DENOISER
        at_once = pixels / asked["clips"] if hasattr(self.vae, "stream") else asked["height"] * asked["width"]
        decoding = at_once * channels[0] * 4 * DECODER + pixels * 3 * 4 * 3
        if not hasattr(self.vae, "stream"):
            decoding *= min(asked["decode_frames"], asked["frames"])
        weights = sum(bytes_of(module) for module in self._planned_components().values())
        return 1.1 * (weights + self._copied(asked["frames"]) + max(denoising, decoding) + ALWAYS)

    # ---------------------------------------------------------------- refusing

    def _refusal(self, plan: MemoryPlan, asked: Mapping[str, Any], budget: int) -> str:
        """Why a call is not begun, and the longest and the largest clip that could be."""
        over = [i for i, stage in enumerate(plan.stages) if not within(stage.peak, budget)]
        weights = max(stage.weights for stage in plan.stages)
        if not within(weights, budget):
            return f"{too_large(plan, budget)}; the weights alone take {amount(weights)}."
        traces = self._traces(asked)

        def peak(other: Mapping[str, Any]) -> int:
            """At another size what does not fit takes so much, in the ways that take least."""
            there = traces.at(self._stages(**other))
            return max(there.taken(i, len(there.stages[i].ways) - 1, plan.mode).peak for i in over)

        frames = _most_frames(asked, budget, peak)
        size = _most_pixels(asked, budget, peak, self.vae.stride)
        found = []
        if frames:
            found.append(f"{frames} frame{'s' * (frames > 1)} of this size fit")
        if size:
            found.append(f"{asked['frames']} frames of {size[1]}×{size[0]} (width×height) fit")
        hint = "; ".join(found) if found else "not even one frame of this size fits"
        return f"{too_large(plan, budget)}; {hint}."


Peak = Callable[[Mapping[str, Any]], int]  # bytes at another size


def _most_frames(asked: Mapping[str, Any], budget: int, peak: Peak) -> int:
    """As many as fit at this size."""
    sizes = [
        {**asked, "frames": n, "decode_frames": min(asked["decode_frames"], n)} for n in range(1, asked["frames"] + 1)
    ]
    return _most(sizes, budget, peak)


def _most_pixels(asked: Mapping[str, Any], budget: int, peak: Peak, stride: int) -> tuple[int, int] | None:
    """The largest (height, width) of the same proportions that fits as many frames."""
    high, wide = asked["height"], asked["width"]
    unit = 64 if min(high, wide) > 128 else stride
    steps = max(high, wide) // unit
    sizes = [[max(unit, round(n * k / steps / unit) * unit) for n in (high, wide)] for k in range(1, steps + 1)]
    found = _most([{**asked, "height": h, "width": w} for h, w in sizes], budget, peak)
    return (sizes[found - 1][0], sizes[found - 1][1]) if found else None


def _most(sizes: Sequence[Mapping[str, Any]], budget: int, peak: Peak) -> int:
    """How many of ever larger sizes fit, of which the last does not; what they take grows with what they show."""
    shown = [0, *(size["frames"] * size["height"] * size["width"] for size in sizes)]
    low, high, taken = 1, len(sizes), {1: peak(sizes[0])}
    if high == 1 or not within(taken[1], budget):
        return 0
    taken[high] = peak(sizes[-1])
    for _ in range(TRIES):
        if high - low < 2:
            break
        slope = (taken[high] - taken[low]) / max(1, shown[high] - shown[low])
        room = shown[low] + (budget / SLACK - taken[low]) / max(slope, 1e-9)
        here = max((k for k in range(low + 1, high) if shown[k] <= room), default=low + 1)
        taken[here] = peak(sizes[here - 1])
        low, high = (here, high) if within(taken[here], budget) else (low, here)
    return low


def _switched(module: nn.Module) -> tuple[int | None, ...]:
    """What switches of a module say, where they have been touched."""
    own = vars(module)
    return tuple(own[s] for s in SWITCHES if s in own and (own[s] is None or isinstance(own[s], int)))


def frugal(denoiser: Any, telling: Callable[[Any], Any], way: str) -> Any:
    """The denoiser, told what settings say, and shown as little at once as a way of denoising says."""
    if way == SMALL:
        denoiser = smaller(denoiser)
    told = telling(denoiser)
    return Apart(told, single=way != APART) if way else told
