"""Steps recorded once and replayed: a device that is handed a whole step at a time does not wait for its launches.

A recorded step reads and writes the same memory each time, so what the network is told is copied to where the step
reads it, and its result is copied from where it lies. One recording does for everything that is told in the same form:
all steps of a clip, its windows, later clips of that size. Each is compared with the plain way when it is made and when
it is first told something else; what raises or is wrong is dropped, and the log says so.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..choice import RIGHT, apart
from ..place import recording as once_recorded
from .forms import Unrecordable, anew, form_of, network_of, once, places_of, room_for, unseen

log = logging.getLogger("kinema")

MOST = 8  # recordings kept, those used last
PROOFS = 2  # comparisons with the plain way before a recording is trusted
PARTS = ("begin", "down", "denoise_and_keep", "denoise_above")  # of steps, that a network can be asked for


class Recorder(Protocol):
    """How a device records what it is asked to do."""

    held: int  # bytes of memory that recordings have

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Records a step → what does the same again on the same memory; its result is always the same tensor."""

    def turn(self) -> AbstractContextManager[Any]:
        """Within, what is asked of the device comes after what others asked for within."""

    def forget(self) -> None:
        """Gives back the memory of recordings, of which nobody has any left."""


@dataclass(frozen=True)
class Run:
    """A pass over steps, of a network as it was set when that began."""

    number: int
    network: int


@dataclass
class Recording:
    """A step that can be replayed."""

    inputs: list[Tensor]  # where it reads what it is told
    run: Run  # the last that used it
    replay: Callable[[], Tensor] = field(init=False)
    proofs: int = 0  # how often it was found right
    last: list[Any] = field(default_factory=list)  # what was copied there, and in which version

    def bring(self, tensors: list[Tensor]) -> bool:
        """Copies what a step is told to where it reads it; whether any of it is new."""
        changed, last, self.last = False, self.last, []
        for i, (to, tensor) in enumerate(zip(self.inputs, tensors, strict=True)):
            version = None if tensor.is_inference() else tensor._version
            known, seen = last[i] if last else (None, None)
            if version is None or known is None or known() is not tensor or seen != version:
                once(to).copy_(once(tensor))
                changed = True
        self.last = [(weakref.ref(x), None if x.is_inference() else x._version) for x in tensors]
        return changed


class Graphs:
    """The recorded steps of a network, those of several sizes; for all threads, which take turns."""

    def __init__(self, recorder: Callable[[torch.device], Recorder | None], most: int = MOST):
        """
        Args:
            recorder: of a device; None where it has none.
            most: recordings kept.
        """
        self._make, self._most = recorder, most
        self._recorder: Recorder | None = None
        self._kept: OrderedDict[Any, Recording] = OrderedDict()
        self._refused: set[Any] = set()
        self._network: list[Any] = []
        self._unseen, self._number = "", 0  # of networks there were
        self._weights: list[weakref.ref[Tensor]] = []
        self._where: list[Any] = []
        self._said: set[str] = set()
        self._turn, self._runs = Lock(), count()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def held(self) -> int:
        """Bytes of a device's memory that recordings have."""
        return 0 if self._recorder is None else self._recorder.held

    def begin(self, network: nn.Module) -> Run:
        """Before a run's first step: forgets what was recorded of another network, or of this one otherwise set."""
        with self._turn:
            self._unseen = unseen(network)
            found = list(network_of(network))
            weights = [weakref.ref(x) for x in (*network.parameters(), *network.buffers())]
            where = places_of(weights)
            if found != self._network or where != self._where:
                self._forget()
                self._network, self._weights, self._where = found, weights, where
                self._number += 1
            return Run(next(self._runs), self._number)

    def clear(self) -> None:
        """Gives up all recordings and their memory; later steps are recorded anew."""
        with self._turn:
            self._forget()

    def say(self, why: str) -> None:
        """Says once why steps are not recorded."""
        if why not in self._said:
            self._said.add(why)
            log.warning("cuda_graphs: steps are not recorded, since %s", why)

    def step(self, denoiser: Callable[[Tensor, Any], Tensor], latents: Tensor, signal: Any, run: Run) -> Tensor:
        """What the denoiser predicts: replayed where that was recorded, and recorded where it can be."""
        try:
            form, tensors = form_of((latents, signal))
        except Unrecordable as error:
            self.say(str(error))
            return denoiser(latents, signal)
        with self._turn:
            if run.network != self._number or self._unseen:
                self.say(self._unseen or "calls with other networks run meanwhile")
                return denoiser(latents, signal)
            if self._where != places_of(self._weights):  # changed under way
                self._forget()
                self._where = places_of(self._weights)
            form = (*form, torch.is_autocast_enabled(latents.device.type))
            if form in self._kept:
                return self._replayed(form, tensors, lambda: denoiser(latents, signal), run)
            if form in self._refused or not self._room(run):
                return denoiser(latents, signal)
            return self._recorded(form, tensors, denoiser, (latents, signal), run)

    def _forget(self) -> None:
        self._kept.clear()
        self._refused.clear()
        self._give_back()

    def _give_back(self) -> None:
        """The memory of recordings, once there is none."""
        if not self._kept and self._recorder is not None:
            self._recorder.forget()
            self._recorder = None

    def _replayed(self, form: Any, tensors: list[Tensor], plain: Callable[[], Tensor], run: Run) -> Tensor:
        recording = self._kept[form]
        self._kept.move_to_end(form)
        recording.run = run
        assert self._recorder is not None
        with self._recorder.turn():
            fresh = recording.bring(tensors)
            made = recording.replay().clone()  # the next step writes there again
        if recording.proofs >= PROOFS or not fresh:
            return made
        return self._proved(form, made, plain())

    def _recorded(
        self, form: Any, tensors: list[Tensor], denoiser: Callable[..., Tensor], told: tuple[Tensor, Any], run: Run
    ) -> Tensor:
        """The plain way, and a recording of it."""
        plain = denoiser(*told)  # also settles what is tried once, before it is recorded
        self._recorder = self._recorder or self._make(plain.device)
        if self._recorder is None:
            self.say(f"{plain.device} has no graphs")
            self._refused.add(form)
            return plain
        if not torch.isfinite(plain).all():  # nothing to compare with; a later step may be
            return plain
        try:
            with torch.inference_mode(False), torch.no_grad(), self._recorder.turn():
                recording = Recording([room_for(x) for x in tensors], run)
                recording.bring(tensors)
                each = iter(recording.inputs)
                there = anew(told, lambda leaf: next(each) if isinstance(leaf, Tensor) else leaf)
                with once_recorded():
                    recording.replay = self._recorder.record(lambda: denoiser(*there))
                made = recording.replay().clone()
        except Exception as error:  # whatever cannot be recorded, the plain way is there
            self._drop(form, f"recording one raised {_cause(error)}")
            return plain
        self._kept[form] = recording
        return self._proved(form, made, plain)

    def _proved(self, form: Any, made: Tensor, plain: Tensor) -> Tensor:
        """Compares a replayed step with the plain one, which is the answer."""
        off = 0.0 if torch.equal(plain, made) else apart(plain, made)
        if off <= RIGHT.get(plain.dtype, 1e-4):
            self._kept[form].proofs += 1
        elif torch.isfinite(plain).all():
            self._drop(form, f"a replayed one had wrong numbers, {off:.2g} of their spread")
        return plain

    def _drop(self, form: Any, why: str) -> None:
        self._kept.pop(form, None)
        self._refused.add(form)
        self._give_back()
        self.say(why)

    def _room(self, run: Run) -> bool:
        """Makes room for another recording: the one whose use was longest ago goes, unless this run uses it."""
        if len(self._kept) < self._most:
            return True
        oldest = next(iter(self._kept))
        if self._kept[oldest].run == run:
            self.say(f"a clip has more than {self._most} kinds of them; those beyond are not")
            return False
        del self._kept[oldest]
        return True


def _cause(error: BaseException) -> str:
    """What went wrong first: that a recording was broken off is said by another error."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class Graphed:
    """A denoiser whose steps are replayed; in all else it is that one."""

    def __init__(self, denoiser: Any, network: nn.Module, graphs: Graphs):
        """
        Args:
            denoiser: asked for steps.
            network: in it, whose weights they read.
        """
        self.denoiser, self.network, self.graphs = denoiser, network, graphs
        self._run = Run(-1, -1)

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        """times (steps,) → the signals of all steps."""
        self._run = self.graphs.begin(self.network)
        return self.denoiser.prepare(times, conditions)

    def __call__(self, latents: Tensor, signal: Any) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        return self.graphs.step(self.denoiser, latents, signal, self._run)

    def __getattr__(self, name: str) -> Any:
        if name in PARTS:
            self.graphs.say("the network is asked for parts of them")
        return getattr(self.denoiser, name)
