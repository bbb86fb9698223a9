"""Text to video from an image model that never saw one (Khachatryan et al. 2023): a frame, moved and loosened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError
from ...layout import to_frames, to_video
from ...nn.signal import Prepared, Signal
from ...pipelines import inputs, parts
from ...pipelines.output import Event
from ...pipelines.text_to_video import Shape, TextToVideo
from ...pipelines.video import Job, following
from ...sampling import schedulers
from ...sampling.base import Plan
from ...sampling.guidance import Guidance
from ...sampling.loop import denoise
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from ..autoencoder_kl import AutoencoderKL
from . import arguments
from .arguments import DEFAULTS, REQUIRED, called_with
from .original_files import ORIGINALS_STILL, ORIGINALS_STILL_XL
from .pipeline import PARTS
from .sdxl import PARTS_XL, SDXL
from .unet import MotionConditions, UNet2DConditionModel

log = logging.getLogger("kinema")

_WHAT = "Makes clips of what a text says."
FIELD = 512  # what motion is measured in: so much is a whole picture's width or height


class CrossFrame:
    """An image denoiser whose frames look at the first one of their clip instead of at themselves."""

    def __init__(self, unet: UNet2DConditionModel):
        self.unet = unet

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        return replace(self.unet.prepare(times, conditions), to_first=True)

    def __call__(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c, h, w)."""
        return self.unet(latents, signal)


def moved(latents: Tensor, by: Tensor) -> Tensor:
    """One frame (b, c, h, w), moved by each of (f, 2) right and down, in 512ths: (b, f, c, h, w).

    Each place shows what lies so far to its right and below it; beyond the border the picture is mirrored.
    """
    h, w = latents.shape[-2:]
    y, x = (((torch.arange(n) + 0.5) * FIELD / n - 0.5) for n in (h, w))
    places = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], dim=-1)  # (h, w, 2)
    grids = (places + by[:, None, None]) / FIELD * 2 - 1
    show = partial(F.grid_sample, mode="nearest", padding_mode="reflection", align_corners=False)
    frames = [show(latents, g.to(latents).expand(len(latents), h, w, 2)) for g in grids]
    return torch.stack(frames, dim=1) if frames else latents[:, None][:, :0]


@dataclass(frozen=True)
class ByFrame:
    """A guidance to which every frame is a picture of its own."""

    guidance: Guidance

    @property
    def branches(self) -> int:
        return self.guidance.branches

    def __call__(self, predicted: Tensor, step: int) -> Tensor:
        """predicted (branches·b, f, c, h, w) → (b, f, c, h, w)."""
        return to_video(self.guidance(to_frames(predicted), step), predicted.shape[1])


@dataclass(frozen=True, kw_only=True)
class Loosened(Job):
    """A request whose other frames are made of the first."""

    motion: Tensor  # (f - 1, 2): how far they are from it, in 512ths
    late: int  # evaluations after which the first is moved
    early: int  # and those after which all go on from there

    @property
    def steps(self) -> int:
        """Those of the first frame, then those of all."""
        return self.late + super().steps


class FromOneFrame(TextToVideo):
    """Denoises the first frame a little, moves it to make the others, noises those again, and denoises all."""

    told = MotionConditions
    frames_as_batch = True
    wraps = True

    unet: UNet2DConditionModel
    vae: AutoencoderKL

    def begin(self, call: Mapping[str, Any]) -> Job:
        call = {**DEFAULTS, **call, "num_frames": inputs.whole("video_length", call["video_length"])}
        call["output_type"] = "np" if call["output_type"] == "tensor" else call["output_type"]
        job = super().begin(call)
        steps, name = len(job.schedule), type(self).__name__
        if self._free_init is not None or self._windows is not None:
            raise InputError(f"{name} makes its frames of the first one; FreeInit and windows do not go with it.")
        t0, t1 = inputs.whole("t0", call["t0"], 0), inputs.whole("t1", call["t1"])
        if not t0 < t1 < steps:
            raise InputError(
                f"t0 is {t0} and t1 is {t1} for {steps} steps; t0 must be less than t1, and t1 less than the steps."
            )
        fields = {**vars(job), "wrap": CrossFrame}
        return Loosened(**fields, motion=self._motion(call), late=steps - 1 - t0, early=steps - 1 - t1)

    def _planner(self, call: Mapping[str, Any]) -> Any:
        """The scheduler; one that takes several evaluations for a step cannot stop where frames are made of the first,
        so DDIM is taken in its place, on the same noise."""
        own = super()._planner(call)
        if own.order == 1 and not isinstance(own, schedulers.PNDMScheduler):
            return own
        log.info("%s is not of one evaluation a step; DDIMScheduler is taken on its noise schedule", type(own).__name__)
        return schedulers.DDIMScheduler.from_config(own.config)

    def _steered(self, denoiser: Any, asked: Mapping[str, int], **beside: Any) -> Any:
        return CrossFrame(denoiser)

    def _guidance(self, call: Mapping[str, Any], scale: float, rescale: float) -> Guidance:
        return ByFrame(super()._guidance(call, scale, rescale))

    def _motion(self, call: Mapping[str, Any]) -> Tensor:
        frames = call["num_frames"]
        numbers = list(range(frames)) if call["frame_ids"] is None else list(call["frame_ids"])
        if len(numbers) != frames:
            raise InputError(f"frame_ids has {len(numbers)} numbers for {frames} frames; give one for each.")
        strengths = [inputs.number(n, call[n]) for n in ("motion_field_strength_x", "motion_field_strength_y")]
        return torch.tensor(numbers[1:], dtype=torch.float32)[:, None] * torch.tensor(strengths)

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], Shape]:
        given = call["latents"]
        one = {**call, "num_frames": 1, "latents": given[:, :, None] if isinstance(given, Tensor) else given}
        start, shape = super()._start(one, clips, schedule, noise)
        return start, (shape[0], call["num_frames"], *shape[2:])

    def _rounds(self, first: Plan, call: Mapping[str, Any]) -> tuple[Plan, ...]:
        early = len(first.schedule) - 1 - int(call["t1"])
        return (first._replace(schedule=first.schedule.after(early)),)

    def _denoised(
        self, job: Job, denoiser: Any, latents: Tensor, conditions: Any, dtype: torch.dtype, done: int = 0
    ) -> Generator[Event, Tensor | None, Tensor]:
        assert isinstance(job, Loosened)
        kept, total = latents, job.late + sum(job.calls)
        steps = denoise(
            denoiser,
            latents,
            replace(conditions, frames=1),
            schedule=job.schedule,
            solver=job.solver,
            guidance=job.guidance,
            noise=job.noise,
            dtype=dtype,
            calls=job.late,
            spare=job.spare and replace(job.spare, make=partial(_of_one, job.spare.make)),
        )
        edited, step = None, next(steps, None)
        while step is not None:
            edited = yield from self._heard(step, step.index, step.index + 1, total)
            latents = step.latents if edited is None else edited
            kept = latents if step.index + 1 == job.early else kept
            step = following(steps, edited)
        all_of_them = torch.cat([kept, self._others(job, latents[:, 0])], 1)
        return (yield from super()._denoised(job, denoiser, all_of_them, conditions, dtype, job.late))

    def _others(self, job: Loosened, first: Tensor) -> Tensor:
        """The first frame (b, c, h, w) after `late` evaluations → the others (b, f - 1, c, h, w) after `early`."""
        others = moved(first / job.schedule.spread(job.late), job.motion)
        if not others.numel():
            return others
        times = (int(job.schedule.times[i]) for i in (job.late, job.early))
        clean, noisy = (float(self.scheduler.alphas_cumprod[t - 1]) if t else 1.0 for t in times)
        share = noisy / clean
        flat = others.flatten(0, 1)
        noise = job.noise.draw(tuple(flat.shape), "loosened", time=0).to(flat)
        loose: Tensor = (flat * share**0.5 + noise * (1 - share) ** 0.5) * job.schedule.spread(job.early)
        return loose.view(others.shape)


def _of_one(make: Callable[[], tuple[Any, MotionConditions]]) -> tuple[Any, MotionConditions]:
    """What denoises in float32, and what it is told of the first frame alone."""
    denoiser, conditions = make()
    return denoiser, replace(conditions, frames=1)


_LACK = ("motion_adapter", "unet")


def _parts(moving: Mapping[str, parts.Part]) -> dict[str, parts.Part]:
    """The same, with an image model's denoiser."""
    kept = {name: part for name, part in moving.items() if name not in _LACK}
    return {**kept, "unet": parts.model(UNet2DConditionModel)}


class TextToVideoZeroPipeline(FromOneFrame):
    """Text to video with a Stable Diffusion 1.5 model of any style and nothing else (Khachatryan et al. 2023)."""

    parts = _parts(PARTS)
    accepts = frozenset({"StableDiffusionPipeline"})
    originals = ORIGINALS_STILL

    __call__ = called_with(arguments.ZERO, _WHAT, ours=arguments.OURS_ZERO, output_type="tensor", prompt=REQUIRED)


class TextToVideoZeroSDXLPipeline(SDXL, FromOneFrame):
    """Text to video with an SDXL model of any style and nothing else (Khachatryan et al. 2023)."""

    parts = _parts(PARTS_XL)
    accepts = frozenset({"StableDiffusionXLPipeline"})
    originals = ORIGINALS_STILL_XL

    __call__ = called_with(arguments.ZERO_SDXL, _WHAT, ours=arguments.OURS_ZERO, output_type="tensor", prompt=REQUIRED)
