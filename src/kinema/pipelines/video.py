"""From a request to a clip: what every family's pipeline does once it knows what was asked."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..layout import to_frames
from ..media.frames import convert, unit_range
from ..memory.stages import in_bands
from ..products import FEW
from ..sampling.base import Plan
from ..sampling.free_init import FreeInit
from ..sampling.guidance import Guidance
from ..sampling.loop import Step, denoise
from ..sampling.noise import Noise
from ..sampling.schedule import Schedule
from ..sampling.solvers import Solver
from ..sampling.watch import Spare
from ..sampling.wrappers import Telling
from .approximate import Approximated, Approximations
from .budget import frugal
from .compat import RENAMED
from .compiled import Compiling
from .decoding import Decodable
from .graphs import StepGraphs
from .inputs import OUTPUT_TYPES, called, choice, whole
from .inputs import latents as checked_latents
from .length import SETTINGS, LongClips
from .output import Event, VideoOutput
from .overflow import Lift, Redone, healed, in_float32, lifted, sound, tell
from .preview import Previews
from .receipt import receipt
from .several import SeveralDevices
from .storage import WeightStorage

Finish = Callable[[Tensor], tuple[Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class Job:
    """A checked request, ready to run."""

    encode: Callable[[], tuple[Any, Tensor]]  # → the denoiser's conditions, and latents (b, f, c, h, w) to start from
    schedule: Schedule
    solver: Solver
    guidance: Guidance
    noise: Noise
    decode_chunk: int | None = None  # frames decoded at once; by default as few as the autoencoder can
    low_memory: bool | None = None  # whether decoding takes longer to take less; None: where it has to
    shape: tuple[int, int, int, int, int] | None = None  # of the latents, (b, f, c, h, w), where known beforehand
    ways: Mapping[str, str] = field(default_factory=dict)  # what is done in which stage to take less memory
    output_type: str = "np"
    lora_scale: float | None = None
    order: int = 1  # evaluations of the network a step
    until: float | None = None  # the noise level to stop before, as the network is told it, where not that of none
    finish: Finish | None = None  # what becomes of decoded clips (b, f, 3, h, w) in [0, 1], and what to tell of it
    beside: tuple[str, ...] = ()  # networks that work beside the denoiser
    wrap: Callable[..., Any] | None = None  # makes a denoiser of it and of those
    guided: Callable[[Schedule], Guidance] | None = None  # the guidance of each round, where levels decide about it
    told: Mapping[str, Any] = field(default_factory=dict)  # what a clip's receipt says beside the call's arguments
    rounds: tuple[Plan, ...] = ()  # the levels of each time the clip is denoised, where the pipeline's settings say so
    free_init: FreeInit | None = None  # what each of them but the first begins with
    approximated: Approximated = field(default_factory=lambda: Approximated({}))  # what it leaves out
    spare: Spare | None = None  # what does steps again that overflow

    @property
    def calls(self) -> list[int]:
        """The network's evaluations in each round. Only the last stops early: others show what the next begins with."""
        whole = [len(plan.schedule) for plan in self.rounds]
        if self.until is None:
            return whole
        return [*whole[:-1], int((self.rounds[-1].schedule.times >= self.until).sum())]

    @property
    def steps(self) -> int:
        """The steps of all rounds."""
        called = zip(self.rounds, self.calls, strict=True)
        return sum(min(plan.schedule.left, -(-calls // self.order)) for plan, calls in called)


class VideoPipeline(
    SeveralDevices, Approximations, WeightStorage, LongClips, Previews, Compiling, StepGraphs, Decodable
):
    """A pipeline whose calls end in clips. A family says how a call's arguments become a Job."""

    inherited: ClassVar[tuple[str, ...]] = SETTINGS

    callback_inputs: tuple[str, ...] = ("latents", "clean")  # fields of events

    decodes_high: ClassVar[bool] = False  # whether autoencoders that say they overflow in float16 decode in float32

    @abstractmethod
    def begin(self, call: Mapping[str, Any]) -> Job:
        """Checks a call's arguments, all of them given, and gets everything ready that takes no time."""

    def stream(self, *args: Any, **kwargs: Any) -> Generator[Event, Tensor | None, None]:
        """The call as a stream of events; takes what calling the pipeline takes.

        Inputs are checked at once. Stop by not asking for more. `send` latents after a denoising event, laid out as
        those in it, to go on from them. The last event carries the output.

        Raises:
            InputError: an argument cannot be used.
            NumericsError: on the way, a stage produced numbers that are not finite.
        """
        call = self._bind(args, kwargs)
        self._wished(call)
        if idle := [name for name in ("callback", "callback_on_step_end") if call.get(name) is not None]:
            raise InputError(f"A stream calls no {idle[0]}; use the events it yields, or call the pipeline.")
        return self._together(self._run(self._begun(self._begin, call), call))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        function = inspect.unwrap(type(self).__call__)
        signature = inspect.signature(function)
        named = {RENAMED.get(k, k) if k not in signature.parameters else k: v for k, v in kwargs.items()}
        try:
            bound = signature.bind(self, *args, **named)
        except TypeError as error:
            raise InputError(f"{type(self).__name__}: {error}.") from None
        bound.arguments.update(self.preset(bound.arguments))
        bound.apply_defaults()
        return {k: v for k, v in bound.arguments.items() if k != "self"}

    @staticmethod
    def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a family fills in for arguments left out, going by those that are given."""
        return {}

    def planner(self) -> Any:
        """The scheduler.

        Raises:
            InputError: it is another library's, which keeps its state on itself.
        """
        if not hasattr(self.scheduler, "plan"):
            name = type(self.scheduler).__name__
            raise InputError(f"The scheduler is not kinema's; use kinema.{name}.from_config(scheduler.config).")
        return self.scheduler

    def _planner(self, call: Mapping[str, Any]) -> Any:
        """The scheduler of a call."""
        return self.planner()

    def complete(self, call: Mapping[str, Any]) -> VideoOutput:
        """Runs a call to its end, with a progress bar and the callbacks it names."""
        every = whole("callback_steps", 1 if call.get("callback_steps") is None else call["callback_steps"])
        old, new = (called(name, call.get(name)) for name in ("callback", "callback_on_step_end"))
        names = self._wished(call)
        job = self._begun(self._begin, call)
        events = self._together(self._run(job, call))
        output = None
        with self._crew.at_work(), closing(events), self._bar(job.steps) as bar:
            event = next(events, None)
            while event is not None:
                edited = None
                if event.index is not None:
                    bar.update()
                    if old is not None and event.index % every == 0:
                        old(event.index, event.time, event.latents)
                    if new is not None:
                        given = {name: getattr(event, name) for name in names}
                        edited = _edited(new(self, event.index, event.time, given))
                if event.output is not None:
                    output = event.output
                event = following(events, None if edited is event.latents else edited)
        assert output is not None
        return output

    def _wished(self, call: Mapping[str, Any]) -> tuple[str, ...]:
        """What `callback_on_step_end` is to be given."""
        argument = "callback_on_step_end_tensor_inputs"
        given = call.get(argument)
        names = (given,) if isinstance(given, str) else () if given is None else given
        if not isinstance(names, (list, tuple, set, frozenset)):
            raise InputError(f"{argument} is {given!r}; it must be a list of names.")
        if strange := [n for n in names if n not in self.callback_inputs]:
            raise InputError(f"{argument} names {strange[0]}; it can be {', '.join(self.callback_inputs)}.")
        return tuple(names)

    def _bar(self, total: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(total=total, **{"disable": self._crew.rank > 0, **self._progress})

    @torch.no_grad()
    def _run(self, job: Job, call: Mapping[str, Any]) -> Generator[Event, Tensor | None, None]:
        yield Event("encode", 0, 1)
        redone = Redone()
        with redone.here():
            conditions, latents = job.encode()
        latents = self._crew.first(sound("encode", latents))
        yield Event("encode", 1, 1)
        self._note_windows(latents.shape[1])

        with ExitStack() as places:
            resident = places.enter_context(self._residency.use("unet"))
            unet = self._with_lora("unet", resident, job.lora_scale, latents.shape[1])
            beside = [places.enter_context(self._residency.use(name)) for name in job.beside]
            told = frugal(unet, self._telling, job.ways.get("denoise", ""))
            told = self._replayed(told, unet, None if job.shape is None else self._asked_of(job), self._unreplayed(job))
            denoiser = self._denoiser(job, told, beside, latents.shape[1])
            places.enter_context(self._keeping(latents))
            dtype, spare = unet.dtype, None
            if dtype in FEW:
                spare = Spare(
                    partial(self._high, job, unet, beside, conditions, latents.shape[1]),
                    at_once=latents.device.type == "cpu",
                )
            latents = yield from self._denoised(replace(job, spare=spare), denoiser, latents, conditions, dtype)
            if spare is not None and spare.steps:
                tell("denoise", dtype, spare.steps, redone)
            del denoiser, told, unet, resident, beside, spare
        del conditions
        latents = self._crew.first(sound("denoise", latents))
        if self._crew.rank == 0:
            job.approximated.say()

        also: Mapping[str, Any] = {}
        if job.output_type == "latent":
            frames: Any = self.at_edge(latents)
        else:
            made = yield from self._made(latents, *self._agreed(job), redone.along)
            if job.finish is not None:
                made, also = job.finish(made)
            frames = convert(made, job.output_type)
        settings = {**self._length_receipt(latents.shape[1]), **self._receipt(), **job.approximated.receipt()}
        settings |= redone.receipt()
        said = {**receipt(self, call, self._planner(call)), **job.told, **also, **settings}
        yield Event("done", 1, 1, output=VideoOutput(frames, said, job.output_type == "latent"))

    def _unreplayed(self, job: Job) -> str:
        """Why steps of a call are not to be recorded, if anything speaks against it."""
        if self._crew.size > 1:
            return "several processes make the clip"
        if inside := job.approximated.inside:
            return f"{inside} does not ask for whole ones"
        way = job.ways.get("denoise", "")
        return f"memory is short ({way})" if way else ""

    def _telling(self, unet: Any) -> Any:
        """The network, told what this pipeline's settings say, which changes nothing for others that use it."""
        told = self._told()
        return Telling(unet, **told) if told else unet

    def _told(self) -> dict[str, Any]:
        """What settings tell the denoiser's blocks: fields of the signals it prepares."""
        return {} if self._free_windows is None else {"windows": self._free_windows}

    def _begin(self, call: Mapping[str, Any]) -> Job:
        """The request, with what the pipeline's settings add to it."""
        job = self.begin(call)
        job = replace(
            job,
            rounds=self._rounds(Plan(job.schedule, job.solver), call),
            free_init=self._free_init,
            approximated=self._approximated(job.guidance, wrapped=job.wrap is not None),
        )
        return job if job.shape is None else replace(job, ways=self._settled(self._asked_of(job)))

    def _asked_of(self, job: Job) -> dict[str, Any]:
        """What a plan has to know of a request."""
        assert job.shape is not None
        clips, frames, _, high, wide = job.shape
        return {
            "height": high * self.vae.stride,
            "width": wide * self.vae.stride,
            "frames": frames,
            "steps": len(job.schedule),
            "branches": job.guidance.branches,
            "clips": clips,
            "decode_frames": job.decode_chunk or 1,
        }

    def _agreed(self, job: Job) -> tuple[Mapping[str, Mapping[str, Any]], str]:
        """In which ways to decode, and where to begin; several processes decode in one, that of the least room."""
        ways, way = self._decodings(job), job.ways.get("decode", "")
        if self._crew.size == 1:
            return ways, way
        way = max(self._crew.texts(way), key=list(ways).index)
        return {way: ways[way]}, way

    def _decode_all(self, latents: Tensor, **how: Any) -> Iterator[Tensor]:
        if self._crew.size == 1 or not self._crew.working or how.get("bands"):  # in bands each makes all of it
            return self.decode(latents, **how)
        return self._decoded(latents, how.get("chunk"), bool(how.get("low_memory")))

    def _settings_said(self, frames: int) -> str:
        return repr((self._length_receipt(frames), self._receipt(), self._approximations))

    def _certainly_takes(self, asked: Mapping[str, Any]) -> float:
        kept = "deep_reuse" in self._approximations and self._windows_for(asked["frames"]) is not None
        return math.inf if kept else super()._certainly_takes(asked)  # deep features, of every window

    def _denoiser(self, job: Job, unet: Any, beside: Sequence[Any], frames: int) -> Any:
        """What denoises a clip of so many frames: the U-Net, with all that was asked for around it."""
        spared = job.approximated
        denoiser = spared.inner(unet, job.guidance, self._windows_for(frames) is not None)
        if job.wrap is not None:
            denoiser = job.wrap(denoiser, *beside)
        cut = self._cut(denoiser, frames, still=spared.still)
        return spared.outer(self._dealt(cut, job.guidance, inside=spared.inside), job.guidance)

    def _high(self, job: Job, unet: Any, beside: Sequence[Any], conditions: Any, frames: int) -> tuple[Any, Any]:
        """What denoises in float32, for steps that overflow in fewer bits, and what it is told."""
        apart = replace(job, approximated=replace(job.approximated, spent={}))
        told = frugal(lifted(unet), self._telling, job.ways.get("denoise", ""))
        denoiser = self._denoiser(apart, told, [lifted(net) for net in beside], frames)
        return denoiser, in_float32(conditions)

    def _denoised(
        self, job: Job, denoiser: Any, latents: Tensor, conditions: Any, dtype: torch.dtype, done: int = 0
    ) -> Generator[Event, Tensor | None, Tensor]:
        """From what a call starts with to its latents, (b, f, c, h, w), as often as it is to be denoised.

        So many evaluations of the network were `done` before.
        """
        start, total = latents, done + sum(job.calls)
        for number, ((schedule, solver), calls) in enumerate(zip(job.rounds, job.calls, strict=True)):
            if number and job.free_init is not None:
                latents = self._again(job, latents, start)
            steps = denoise(
                denoiser,
                latents,
                conditions,
                schedule=schedule,
                solver=solver,
                guidance=job.guidance if job.guided is None else job.guided(schedule),
                noise=job.noise,
                dtype=dtype,
                calls=calls,
                spare=job.spare,
            )
            before = done
            step: Step | None = next(steps, None)
            while step is not None:
                latents, done = step.latents, before + step.index + 1
                edited = yield from self._heard(step, _ended(step, schedule, job.order), done, total)
                latents = latents if edited is None else edited
                step = following(steps, edited)
        return latents

    def _heard(self, step: Step, index: int | None, done: int, total: int) -> Generator[Event, Tensor | None, Any]:
        """Tells of an evaluation of the network; the latents (b, f, c, h, w) to go on with instead, if any."""
        seen = self.at_edge(step.latents), self.at_edge(step.clean)
        edited = yield Event("denoise", done, total, step.time, *seen, index=index)
        if edited is None:
            return None
        return self.at_edge(checked_latents(edited, tuple(seen[0].shape), self.latent_axes)).to(step.latents)

    def _again(self, job: Job, latents: Tensor, start: Tensor) -> Tensor:
        """What another round of a clip starts from."""
        assert job.free_init is not None
        edge = self.at_edge(latents)
        fresh = self.at_edge(job.noise.draw(edge.shape, "again", time=self.latent_axes.split(", ").index("f")))
        spread, kept = job.schedule.init_noise_sigma, float(self.scheduler.alphas_cumprod[-1])
        return spread * job.free_init.again(latents, start / spread, fresh.to(latents.device), kept)

    def decode(
        self,
        latents: Tensor,
        chunk: int | None = None,
        low_memory: bool = False,
        first: int = 0,
        bands: bool = False,
    ) -> Iterator[Tensor]:
        """(b, f, c, h, w) latents → their pictures (chunk, 3, h, w) on the host, float32 in [0, 1], `chunk` at a time.

        One at a time by default, which takes little enough for `low_memory` to change nothing; with `bands`, the
        widest layers work on bands of a picture. Frames that are made again are told by their number, which begins
        with `first`.

        Raises:
            NumericsError: a picture is not finite, in float32 either.
        """
        high = self.decodes_high and self.vae.dtype == torch.float16 and self.vae.config.force_upcast
        with self._keeping(latents), self._residency.use("vae", torch.float32 if high else None) as resident:
            decoder = in_bands(resident) if bands else resident
            for part in to_frames(latents / resident.config.scaling_factor).split(chunk or 1):

                def pictures(lift: Lift, part: Tensor = part) -> Tensor:
                    vae = lift(decoder)
                    made: Tensor = vae.decode(part.to(vae.dtype)).sample.float()
                    return made

                yield unit_range(healed("decode", range(first, first + len(part)), resident.dtype, pictures)).cpu()
                first += len(part)

    def _with_lora(self, part: str, module: Any, scale: float | None, frames: int = 0) -> Any:
        """The network a call works with on so many frames; pipelines that take LoRAs may give another one."""
        return module

    def _receipt(self) -> dict[str, Any]:
        """What a pipeline's own settings add to a clip's receipt."""
        return self._storage_receipt()

    def _check_output(self, call: Mapping[str, Any]) -> str:
        return choice("output_type", call["output_type"], OUTPUT_TYPES)


def _ended(step: Step, schedule: Schedule, order: int) -> int | None:
    """The number of the step that an evaluation of the network ended, if it did; some at the start belong to none.

    The reference's callbacks do not hear of these either.
    """
    if step.index < schedule.extra or ((step.index + 1) % order and step.index + 1 < step.total):
        return None
    return step.index // order


def _edited(answer: Any) -> Any:
    """The latents that a callback wants to go on with, if any.

    Raises:
        InputError: it returned something other than None or a mapping.
    """
    if answer is not None and not isinstance(answer, Mapping):
        raise InputError(f"callback_on_step_end returned a {type(answer).__name__}; it can return {{'latents': …}}.")
    return None if answer is None else answer.get("latents")


def following(steps: Generator[Any, Tensor | None, None], value: Tensor | None) -> Any:
    """The generator's next value, None at its end."""
    try:
        return steps.send(value)
    except StopIteration:
        return None
