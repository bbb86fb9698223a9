"""Steps recorded once and replayed, for every family: before calls, off unless asked for, the same clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from ..memory.plan import MemoryPlan, within
from ..memory.recording import recorder_of
from ..memory.residency import Mode
from ..memory.room import Memory
from ..sampling.graphs import Graphed, Graphs
from .budget import AS_SET, Budgeted


class StepGraphs(Budgeted):
    """A pipeline whose steps may be recorded."""

    inherited: ClassVar[tuple[str, ...]] = ("_graphs",)

    _graphs: Graphs | None = None

    def enable_cuda_graphs(self) -> None:
        """Records a denoising step as a CUDA graph for each size and replays it, so that no step waits for launches.

        The first clip of a size records, which takes about five steps' time; later ones of that size only replay, and
        the last eight kinds of steps are kept. Each recording is compared with the plain way; one that raises or is
        wrong is dropped. Where steps cannot be recorded (without CUDA, with weights from the host, in too little
        memory, on several devices, with hooks in the network, with deep reuse or token merging) they run as before, and
        the log says why. Recordings share memory as large as a step's activations, and keep it; `plan` counts it.
        """
        self._graphs = self._graphs or Graphs(recorder_of)

    def disable_cuda_graphs(self) -> None:
        """Gives recordings and their memory up."""
        self._forget_graphs()
        self._graphs = None

    def _forget_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _replayed(self, denoiser: Any, unet: Any, asked: Mapping[str, Any] | None, why: str = "") -> Any:
        """The denoiser of a call, its steps replayed where they can be; it asks `unet` for them.

        Args:
            asked: what a plan has to know of the call, if that is known.
            why: they cannot be, if somebody knows.
        """
        if self._graphs is None:
            return denoiser
        if self._residency.moves:
            why = "weights come from the host"
        elif not isinstance(unet, nn.Module) or unet is not self.unet:
            why = "weights are made for this call"
        elif not why and asked is not None and not self._has_room(asked):
            why = "recordings need more memory than there is"
        if not why:
            return Graphed(denoiser, unet, self._graphs)
        self._graphs.clear()
        self._graphs.say(why)
        return denoiser

    def _has_room(self, asked: Mapping[str, Any]) -> bool:
        """Whether recordings fit beside a call of this size."""
        budget = self._budget(self._memory)
        if budget is None or 2 * self._certainly_takes(asked) <= budget:
            return True
        return within(self._traces(asked).plan().recorded.peak, self._with_held(budget, self._memory))

    def _with_held(self, budget: int, memory: Memory) -> int:
        """What there is, with what recordings have already."""
        return budget + (self._graphs.held if self._graphs is not None and memory == "auto" else 0)

    # ---------------------------------------------------------------- plans

    def _plan_for(self, asked: Mapping[str, Any], memory: Memory = AS_SET) -> MemoryPlan:
        plan = super()._plan_for(asked, memory)
        if self._graphs is None or plan.mode != "resident" or not plan.together:
            return plan
        there = None
        if plan.budget is not None:
            there = self._with_held(plan.budget, self._memory if memory == AS_SET else memory)
        recorded = plan.recorded
        return recorded if there is None or within(recorded.peak, there) else plan

    # ---------------------------------------------------------------- weights move: recordings are of where they were

    def to(self, *target: Any, device: Any = None, dtype: Any = None) -> Self:
        self._forget_graphs()
        return super().to(*target, device=device, dtype=dtype)

    def _offload_to(self, mode: Mode, index: int | None, device: Any) -> None:
        self._forget_graphs()
        super()._offload_to(mode, index, device)

    def await_weights(self, device: Any) -> None:
        self._forget_graphs()
        super().await_weights(device)

    def _go(self, mode: Mode) -> bool:
        if mode != self._residency.mode:
            self._forget_graphs()
        return super()._go(mode)
