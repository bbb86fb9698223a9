"""Clips made by several processes together, each on a device of its own, and equal to those of one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..distributed import ALONE, TIMEOUT, Crew, join, shares
from ..media.frames import unit_range
from ..sampling.guidance import Guidance, PerturbedGuidance
from ..sampling.noise import Noise
from ..sampling.split import SharedNoise, Split
from ..sampling.wrappers import Windowed
from .inputs import number
from .overflow import Lift, Redone, healed, note
from .receipt import asked

log = logging.getLogger("kinema")

T = TypeVar("T")


class SeveralDevices:
    """What a pipeline shares with its like in other processes."""

    inherited: ClassVar[tuple[str, ...]] = ("_crew",)

    _crew: Crew = ALONE

    vae: Any
    execution_device: Any
    decode: Callable[..., Iterator[Tensor]]
    _residency: Any

    def enable_parallel(self, timeout: float = TIMEOUT) -> None:
        """Each clip is made by all processes that `torchrun` started, together. In a process alone nothing changes.

        Every process loads the pipeline, puts it on its own device (`pipe.to(kinema.distributed.device())`), calls this
        and makes the same calls; each gets the whole clip, the one a process alone would make. Windows, guidance
        branches and decoded frames are dealt out; noise is that of process 0, whose latents count. What cannot be dealt
        out is named in the log, and done by all. An error in one process ends the call in all.

        Args:
            timeout: seconds that processes wait for one another before they give up, above 0.

        Raises:
            InputError: the timeout is no such number, or this process has no accelerator of its own.
            ParallelError: the processes did not find one another.
        """
        self._crew = join(number("timeout", timeout, 0))

    def disable_parallel(self) -> None:
        """This process makes its clips alone."""
        self._crew = ALONE

    def _begun(self, begin: Callable[[Mapping[str, Any]], T], call: Mapping[str, Any]) -> T:
        """A checked request, the same in all processes."""
        with self._crew.at_work():
            job = begin(call)
            self._crew.agree(repr([type(self).__name__, asked(call), call.get("output_type")]), self.execution_device)
        return job

    def _together(self, events: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same events; the call ends well in all processes or in none."""
        with self._crew.at_work():
            yield from events

    def _shared(self, noise: Noise) -> Noise:
        """The noise of process 0."""
        return noise if self._crew.size == 1 else SharedNoise(noise, self._crew)

    def _dealt(self, denoiser: Any, guidance: Guidance, *, inside: str | None) -> Any:
        """The denoiser, its windows and guidance branches dealt to all processes as far as they can be.

        An approximation `inside` it remembers or measures what whole steps are.
        """
        if self._crew.size == 1:
            return denoiser
        if inside is not None:
            self._say_whole(f"{inside} goes by what whole steps are, so every process denoises whole clips")
            return denoiser
        inner, windows = (denoiser.denoiser, denoiser.windows) if isinstance(denoiser, Windowed) else (denoiser, None)
        perturbed, branches = isinstance(guidance, PerturbedGuidance), guidance.branches
        if windows is None and perturbed:
            self._say_whole("perturbed attention shares its branches' beginning, so process 0 evaluates them all")
        elif windows is None and branches == 1:
            self._say_whole("without guidance or windows a step has one part, so process 0 evaluates it")
        return Split(inner, self._crew, branches + perturbed, windows, apart=not perturbed)

    def pieces(self, latents: Tensor, chunk: int | None) -> Sequence[Tensor] | None:
        """latents (b, f, c, h, w) as they are decoded, (k, c, h, w) each, none knowing of the others; None as one."""
        return latents.flatten(0, 1).split(chunk or 1)

    def stretch(self, latents: Tensor, low_memory: bool, lift: Lift, line: Crew) -> Iterator[Tensor]:
        """A stretch of a clip, (k, c, h, w) latents, whose other frames are with others in a line → its pictures.

        Only of autoencoders to which frames are no pieces: (some, 3, h, w) at a time, float32, in about [-1, 1].
        """
        raise NotImplementedError

    def _decoded(self, latents: Tensor, chunk: int | None, low_memory: bool) -> Iterator[Tensor]:
        """What `decode` gives, of which each process has decoded its share."""
        if self._crew.size == 1:
            yield from self.decode(latents, chunk, low_memory)
            return
        with self._residency.use("vae"):
            pieces = self.pieces(latents, chunk)
            if pieces is not None:
                yield from self._by_pieces(pieces, low_memory)
            elif latents.shape[1] >= self._crew.size:
                for number, clip in enumerate(latents):
                    yield from self._by_frames(clip, number * len(clip), low_memory)
            else:
                self._say_whole("a clip of fewer frames than processes is decoded by each of them")
                yield from self.decode(latents, chunk, low_memory)

    def _by_pieces(self, pieces: Sequence[Tensor], low_memory: bool) -> Iterator[Tensor]:
        """In turns, a piece each."""
        rank, size, redone = self._crew.rank, self._crew.size, Redone()
        starts = [0, *accumulate(map(len, pieces))]
        for turn in range(0, len(pieces), size):
            made = None
            if turn + rank < len(pieces):
                mine = pieces[turn + rank]
                with redone.here():
                    made = torch.cat([*self.decode(mine[None], len(mine), low_memory, starts[turn + rank])])
            yield from (pictures for pictures in self._all_have(made, pieces[0]) if pictures is not None)
        told = self._crew.texts(json.dumps(redone.stages.get("decode", [])))
        if again := sorted(number for text in told for number in json.loads(text)):
            note("decode", *again)

    def _by_frames(self, clip: Tensor, first: int, low_memory: bool) -> Iterator[Tensor]:
        """A clip (f, c, h, w) whose frames know of one another: neighbours are in one process, and exchange edges."""
        mine = shares(len(clip), self._crew.size, self._crew.rank)

        def pictures(lift: Lift) -> Tensor:
            made = self.stretch(clip[mine.start : mine.stop], low_memory, lift, self._crew)
            ranks: list[list[Tensor]] = [[] for _ in range(self._crew.size)]
            for _ in range(-(-len(clip) // self._crew.size)):
                for rank, some in zip(ranks, self._all_have(next(made, None), clip), strict=True):
                    rank += [] if some is None else [some]
            return torch.cat([some for rank in ranks for some in rank])

        yield from unit_range(healed("decode", range(first, first + len(clip)), self.vae.dtype, pictures)).split(1)

    def _all_have(self, mine: Tensor | None, latents: Tensor) -> Iterator[Tensor | None]:
        """The pictures (k, 3, h·stride, w·stride) that each process has decoded of latents (…, h, w), on the host."""
        high, wide = (n * self.vae.stride for n in latents.shape[-2:])
        host = torch.empty(0)
        return (None if x is None else x.view(-1, 3, high, wide) for x in self._crew.gather(mine, host))

    def _say_whole(self, what: str) -> None:
        if self._crew.rank == 0:
            log.warning("%d processes: %s", self._crew.size, what)
