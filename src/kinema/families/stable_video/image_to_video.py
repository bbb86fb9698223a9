"""Image to video: a picture comes to life."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...media.frames import unit_range
from ...media.motion import BUCKETS, motion_bucket
from ...media.pictures import FITS, Fit, nearest_trained_size
from ...memory.plan import BANDS, FAR, MemoryPlan, Stage
from ...memory.room import Memory
from ...memory.stages import clip_stages, in_bands
from ...nn.line import Line
from ...pipelines import inputs, parts
from ...pipelines.adapters import AdaptablePipeline
from ...pipelines.budget import AS_SET
from ...pipelines.compat import familiar_names
from ...pipelines.decoding import Decodes
from ...pipelines.output import VideoOutput
from ...pipelines.overflow import Lift, healed_frames
from ...pipelines.picture import (
    CENTRE,
    FirstFrame,
    Focus,
    Picture,
    PicturePipeline,
    beginning,
    draw_for_pictures,
    pictures,
    playback,
    spread,
    tell_cuts,
)
from ...pipelines.video import Job
from ...sampling.guidance import ClassifierFree, Guidance, Unguided
from ...sampling.noise import Generators, Noise
from ..autoencoder_kl import AutoencoderKL
from .autoencoder import AutoencoderKLTemporalDecoder
from .original_files import ORIGINALS
from .presets import align_your_steps, preset, presets_fill
from .unet import ImageConditions, UNetSpatioTemporalConditionModel

log = logging.getLogger("kinema")

# What the published models were trained on: (width, height), and the numbers they are told.
SIZES = ((1024, 576), (576, 1024), (768, 768))
# Outside of these the authors' own program warns as well (its frame rate is one less).
RANGES = {"fps": (6, 31), "motion_bucket_id": BUCKETS, "noise_aug_strength": (0, 1)}


class StableVideoDiffusionPipeline(AdaptablePipeline, PicturePipeline):
    """Image to video with `stable-video-diffusion-img2vid`, `-xt`, `-xt-1-1`, and models of their architecture."""

    parts = {
        "image_encoder": parts.image_encoder(),
        "feature_extractor": parts.feature_extractor(),
        "unet": parts.model(UNetSpatioTemporalConditionModel),
        "vae": parts.model(AutoencoderKLTemporalDecoder, AutoencoderKL),
        "scheduler": parts.scheduler(),
    }
    published: ClassVar[tuple[str, ...]] = ("StableDiffusionVideoPipeline",)
    originals = ORIGINALS
    adapted = ("unet",)
    latent_axes = "b, f, c, h, w"
    preset = staticmethod(preset)

    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder | AutoencoderKL

    @familiar_names
    @presets_fill
    def __call__(
        self,
        image: Any,
        height: int | None = 576,
        width: int | None = 1024,
        num_frames: int | None = None,
        num_inference_steps: int = 25,
        sigmas: Sequence[float] | Literal["ays"] | None = None,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = "pil",
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ["latents"],
        return_dict: bool = True,
        *,
        preset: Literal["svd", "svd_xt", "svd_xt_1_1"] | None = None,
        fit: Fit | None = None,
        focus: Focus = CENTRE,
        motion: Literal["still", "calm", "normal", "lively"] | float | None = None,
        first_frame: FirstFrame = "free",
        playback_fps: float | None = None,
        low_memory: bool | None = None,
    ) -> VideoOutput:
        """Brings pictures to life.

        Args:
            image: what each clip starts from: a PIL picture, a path, an array (h, w, 3), a tensor (3, h, w) in [0, 1]
                of any size, or a batch of these.
            height, width: of the clip in pixels, multiples of 8; None for both takes the trained size whose proportions
                are nearest the picture's (1024×576, 576×1024 or 768×768, width×height).
            num_frames: how many frames, 1 or more; as many as the model was trained on by default (14, or 25 for xt).
            num_inference_steps: more is slower and up to a point better; 20 to 50.
            sigmas: noise levels of one's own, noisiest first, the last being where the clip ends (0); or "ays", Align
                Your Steps' for `num_inference_steps`, which needs only 10.
            min_guidance_scale, max_guidance_scale: how closely to follow the picture, in the first frame and in the
                last, evenly rising between them; where neither is above 1, nothing is guided, in half the time.
            fps: what the model is told of the frame rate, 6 to 31: fewer frames a second move further apart.
            motion_bucket_id: what the model is told of motion, 1 (still) to 255 (as lively as trained).
            noise_aug_strength: noise added to the picture, 0 to 1: more strays further from it and moves more.
            decode_chunk_size: frames decoded at once. None decodes the clip as one in little memory; a number makes
                pieces that know nothing of one another, as the reference does, which changes the clip.
            num_videos_per_prompt: clips of each picture; those of one picture lie next to each other.
            generator: an int seed, a torch or numpy generator, or a list of these, one a clip.
            latents: noise to start from, (b, f, c, h/8, w/8), c 4 in the published models, instead of drawing it.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as f(pipe, step, time, {"latents": …}) after every step; latents
                (b, f, c, h, w) in the mapping it returns are gone on with.
            return_dict: kept for old code; the output is a tuple and has `.frames` either way.
            preset: what a checkpoint does best with, where the call says nothing else: "svd" (14 frames, 25 steps,
                guidance 1 to 2.5), "svd_xt" or "svd_xt_1_1" (25 frames, 30 steps, guidance 1.5 to 3).
            fit: how pictures of other proportions become the clip's: "crop" fills the frame, "pad" shows all with
                bars, "stretch" squashes, as in the reference. By default "crop", and a note if something is cut.
            focus: which point of the picture "crop" keeps and "pad" moves: (across, down), 0 to 1 each.
            motion: instead of the bucket, "still", "calm", "normal", "lively", or 0 to 1.
            first_frame: "free" leaves the clip as it is made; "exact" begins it with the picture itself and fades what
                that changes over the next frames. How near the made one comes is in the receipt either way, in dB.
                Latents have no pictures, so "latent" goes with "free" alone.
            playback_fps: frames a second at which the output is saved; `fps` by default.
            low_memory: whether decoding keeps large activations in the host's memory or on disk, for the same clip; by
                default where it would else not fit into `memory` or, without a limit, while weights are offloaded.

        Raises:
            InputError: an argument cannot be used.
            MediaError: a picture cannot be read.
            NumericsError: a stage produced numbers that are not finite.
        """
        return self.complete({k: v for k, v in locals().items() if k != "self"})

    @property
    def trained_frames(self) -> int:
        return self.unet.config.num_frames

    @staticmethod
    def at_edge(latents: Tensor) -> Tensor:
        """SVD's latents are published as they lie inside."""
        return latents

    def begin(self, call: Mapping[str, Any]) -> Job:
        found = pictures(call["image"])
        copies = inputs.whole("num_videos_per_prompt", call["num_videos_per_prompt"] or 1)
        height, width = self._size(call["height"], call["width"], found[0])
        asked = self.unet.config.num_frames if call["num_frames"] is None else call["num_frames"]
        frames = inputs.whole("num_frames", asked)
        guidance = self._guidance(call, frames)
        numbers = _numbers(call)
        noise = self._noise(call["generator"], len(found), copies)
        schedule, solver = self._plan(call)
        clips, stride = len(found) * copies, self.vae.stride
        shape = (clips, frames, self.unet.config.out_channels, height // stride, width // stride)
        given = None if call["latents"] is None else inputs.latents(call["latents"], shape, self.latent_axes)
        chunk = call["decode_chunk_size"]
        fitted, views = self._shown(found, height, width, call["fit"], call["focus"])
        strength = float(numbers[0, 2])

        def encode() -> tuple[ImageConditions, Tensor]:
            tokens = spread(self.embed_pictures(views), clips)[:, None]
            beside = spread(self._picture_latents(fitted, strength, noise, copies), clips)[:, None]
            if guidance.branches > 1:
                tokens, beside = (torch.cat([torch.zeros_like(x), x]) for x in (tokens, beside))
            start = noise.draw(shape, "start", time=1) if given is None else given.float()
            device, dtype = self.execution_device, self.unet.dtype
            told = numbers.to(device)
            conditions = ImageConditions(tokens.to(device, dtype), beside.to(device, dtype), told, frames)
            return conditions, start.to(device) * schedule.init_noise_sigma

        return Job(
            encode,
            schedule,
            solver,
            guidance,
            noise,
            decode_chunk=None if chunk is None else inputs.whole("decode_chunk_size", chunk),
            low_memory=self._low(call["low_memory"]),
            shape=shape,
            output_type=self._check_output(call),
            order=self.scheduler.order,
            finish=beginning(call, fitted),
            told={
                "height": height,
                "width": width,
                "num_frames": frames,
                "motion_bucket_id": numbers[0, 1].item(),
                "playback_fps": playback(call, call["fps"]),
            },
        )

    def _low(self, asked: Any) -> bool | None:
        """Whether decoding is to take little; None where a plan says."""
        if asked is None:
            return self._residency.moves if self._budget(self._memory) is None else None
        return bool(asked)

    def _size(self, height: Any, width: Any, picture: Picture) -> tuple[int, int]:
        """The clip's height and width."""
        if height is None and width is None:
            high, wide = picture.size
            width, height = nearest_trained_size(wide, high, self.trained_sizes)
        if height is None or width is None:
            raise InputError("Give both height and width, or None for both to follow the picture.")
        return inputs.size(height, width, self.vae.stride)

    @property
    def trained_sizes(self) -> Sequence[tuple[int, int]]:
        """(width, height) in pixels that suit the model."""
        own = self.unet.config.sample_size
        if own is None or own == 96:  # what published models say, whose sizes are more than this square
            return SIZES
        high, wide = (own, own) if isinstance(own, int) else own
        return ((wide * self.vae.stride, high * self.vae.stride),)

    def _shown(
        self, found: Sequence[Picture], height: int, width: int, fit: Fit | None, focus: Focus
    ) -> tuple[Tensor, list[Tensor]]:
        """Pictures for the autoencoder, (n, 3, height, width), and for CLIP, (3, h, w) each, all in [0, 1]."""
        if fit is None:
            tell_cuts(found, height, width, self.trained_sizes)
        how: Any = "crop" if fit is None else inputs.choice("fit", fit, FITS)
        fitted = torch.stack([picture.fitted(height, width, how, focus) for picture in found])
        return fitted, [picture.viewed(height, width, how, focus) for picture in found]

    def _guidance(self, call: Mapping[str, Any], frames: int) -> Guidance:
        least, most = (inputs.number(n, call[n], 0) for n in ("min_guidance_scale", "max_guidance_scale"))
        scale = torch.linspace(least, most, frames)
        if scale.max() <= 1:
            return Unguided()
        return ClassifierFree(scale.view(-1, 1, 1, 1).to(self.execution_device))

    def _plan(self, call: Mapping[str, Any]) -> Any:
        """The levels to visit and how to move between them."""
        steps, sigmas = inputs.whole("num_inference_steps", call["num_inference_steps"]), call["sigmas"]
        if isinstance(sigmas, str):
            inputs.choice("sigmas", sigmas, ("ays",))
            sigmas = align_your_steps(steps)
        return self.planner().plan(steps) if sigmas is None else self.planner().plan(sigmas=sigmas)

    def _picture_latents(self, fitted: Tensor, strength: float, noise: Noise, copies: int) -> Tensor:
        """Pictures in [0, 1] → their noised latents, unscaled as the model knows them, one row or `copies` each."""
        drawn = draw_for_pictures(noise, fitted.shape, copies, "picture")
        pixels = spread(fitted, len(drawn)) * 2 - 1
        return self.encode_pictures(pixels + strength * drawn)[0]

    def pieces(self, latents: Tensor, chunk: int | None) -> Sequence[Tensor] | None:
        if isinstance(self.vae, AutoencoderKL):
            return super().pieces(latents, chunk)
        return None if chunk is None else [piece for clip in latents for piece in clip.split(chunk)]

    def stretch(self, latents: Tensor, low_memory: bool, lift: Lift, line: Line) -> Iterator[Tensor]:
        with self._residency.use("vae") as resident:
            vae, scaled = lift(resident), latents / resident.config.scaling_factor
            yield from (x.float() for x in vae.stream(scaled.to(vae.dtype), low_memory=low_memory, line=line))

    def decode(
        self,
        latents: Tensor,
        chunk: int | None = None,
        low_memory: bool = False,
        first: int = 0,
        bands: bool = False,
    ) -> Iterator[Tensor]:
        """(b, f, c, h, w) latents → their pictures (1 or `chunk`, 3, h, w) on the host, float32 in [0, 1].

        Each clip as one, frame by frame in little memory; or with a `chunk`, in pieces of so many frames. With
        `low_memory`, large activations wait elsewhere; with `bands`, the widest layers work on bands of a picture.
        Frames that are made again are told by their number, which begins with `first`.

        Raises:
            NumericsError: a picture is not finite, in float32 either.
        """
        if isinstance(self.vae, AutoencoderKL):  # its frames know nothing of one another either way
            yield from super().decode(latents, chunk, low_memory, first, bands)
            return
        with self._residency.use("vae") as resident:
            scaled = latents / resident.config.scaling_factor
            for number, clip in enumerate(scaled):
                made = partial(self._frames, resident, clip, chunk, low_memory, bands)
                for pictures in healed_frames(first + number * len(clip), resident.dtype, made):
                    yield unit_range(pictures).cpu()

    @staticmethod
    def _frames(
        resident: Any, clip: Tensor, chunk: int | None, low_memory: bool, bands: bool, lift: Lift
    ) -> Iterator[Tensor]:
        """One clip's latents (f, c, h, w) → its pictures, some at a time, float32."""
        vae = lift(in_bands(resident) if bands else resident)
        yield from (pictures.float() for pictures in _pieces(vae, clip.to(vae.dtype), chunk, low_memory))

    def _decodings(self, job: Decodes) -> Mapping[str, Mapping[str, Any]]:
        if isinstance(self.vae, AutoencoderKL):
            return super()._decodings(job)
        asked = {"chunk": job.decode_chunk, "low_memory": bool(job.low_memory)}
        least = {**asked, "low_memory": True}
        return {"": asked, **({} if job.low_memory else {FAR: least}), BANDS: {**least, "bands": True}}

    def plan(
        self,
        height: int | None = 576,
        width: int | None = 1024,
        num_frames: int | None = None,
        *,
        num_inference_steps: int = 25,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        clips: int = 1,
        decode_chunk_size: int | None = None,
        low_memory: bool | None = None,
        memory: Memory = AS_SET,
    ) -> MemoryPlan:
        """What a call would take, stage by stage, predicted on tensors without contents; `print` it for a table.

        Args:
            memory: what it may take, as `memory` has it; by default what the pipeline is set to. Where it fits in no
                way, the plan's `fits` is False.

        Raises:
            InputError: the size or a count cannot be used.
        """
        if height is None or width is None:
            raise InputError("Give height and width to plan for; which fits a picture is known when there is one.")
        height, width = inputs.size(height, width, self.vae.stride)
        frames = inputs.whole("num_frames", self.unet.config.num_frames if num_frames is None else num_frames)
        said = {"min_guidance_scale": min_guidance_scale, "max_guidance_scale": max_guidance_scale}
        asked = {
            "height": height,
            "width": width,
            "frames": frames,
            "steps": inputs.whole("num_inference_steps", num_inference_steps),
            "branches": self._guidance(said, frames).branches,
            "clips": inputs.whole("clips", clips),
            "decode_frames": frames
            if decode_chunk_size is None
            else inputs.whole("decode_chunk_size", decode_chunk_size),
            "in_pieces": decode_chunk_size is not None,
            "low_memory": low_memory,
        }
        return self._plan_for(asked, memory)

    def _asked_of(self, job: Job) -> dict[str, Any]:
        asked = super()._asked_of(job)
        together = asked["frames"] if job.decode_chunk is None else job.decode_chunk
        more = {"in_pieces": job.decode_chunk is not None, "low_memory": job.low_memory}
        return {**asked, "decode_frames": together, **more}

    def _stages(self, **asked: Any) -> list[Stage]:
        clips, frames, height, width = (asked[name] for name in ("clips", "frames", "height", "width"))
        rows, stride = clips * asked["branches"], self.vae.stride
        one = self.unet.config.out_channels, height // stride, width // stride
        chunk = asked["decode_frames"] if asked["in_pieces"] else None
        alone, low = isinstance(self.vae, AutoencoderKL), asked["low_memory"]
        spared, branches = self._spared(asked["branches"]), asked["branches"]
        decoding: dict[str, Any] = {
            "wrapped": lambda unet, way: self._planned(unet, way, spared, branches, frames),
            "entire": bool(spared.settings),
            "at_most": spared.adaptive,
            "rounds": self._planned_rounds(asked["steps"]),
        }
        if not alone:
            decoding |= {
                "decode": lambda vae, latents, way: _pieces(
                    in_bands(vae) if way == BANDS else vae, latents, chunk, bool(low) or way in (FAR, BANDS)
                ),
                "decode_ways": (FAR, BANDS) if low is None else (BANDS,) if low else (),
                "clip_by_clip": True,
            }

        return [
            *self.picture_stages(clips, height, width),
            *clip_stages(
                partial(self._hollow, rows, one, frames),
                shape=(clips, frames, *one),
                steps=asked["steps"],
                branches=branches,
                dtype=self.dtype,
                decode_frames=1 if alone and chunk is None else asked["decode_frames"],
                **decoding,
            ),
        ]

    def _hollow(self, rows: int, one: tuple[int, int, int], frames: int, denoiser: Any) -> ImageConditions:
        """What the denoiser is told, on tensors without contents, of clips whose latents are `one` each (c, h, w)."""
        shapes = (rows, 1, denoiser.context), (rows, 1, *one), (1, 3)
        token, beside, numbers = (torch.empty(s, device="meta", dtype=self.dtype) for s in shapes)
        return ImageConditions(token, beside, numbers, frames)

    def _denoising(self, frames: int, side: int) -> Stage:
        one = self.unet.config.out_channels, side, side
        shape = (1, frames, *one)
        told = partial(self._hollow, 1, one, frames)
        return clip_stages(told, shape=shape, steps=1, branches=1, dtype=self.dtype, decode_frames=1)[0]


def _pieces(vae: Any, clip: Tensor, chunk: int | None, low_memory: bool) -> Iterator[Tensor]:
    """A clip's latents (f, c, h, w), unscaled → its pictures: as one, or in pieces that know nothing of one another."""
    if chunk is None:
        return vae.stream(clip, low_memory=low_memory)
    pieces = clip.split(chunk)
    if low_memory:
        return chain.from_iterable(vae.stream(piece, low_memory=True) for piece in pieces)
    return (vae.decode(piece, num_frames=len(piece)).sample for piece in pieces)


def _numbers(call: Mapping[str, Any]) -> Tensor:
    """(1, 3): what the model is told of frame rate, motion and noise. Notes those it was not trained with."""
    fps = inputs.number("fps", call["fps"], 1)
    bucket = inputs.number("motion_bucket_id", call["motion_bucket_id"], 0)
    strength = inputs.number("noise_aug_strength", call["noise_aug_strength"], 0)
    if call["motion"] is not None:
        if bucket != 127:
            raise InputError("Give motion or motion_bucket_id, not both: they are the same number.")
        bucket = motion_bucket(call["motion"])
    for (name, (least, most)), value in zip(RANGES.items(), (fps, bucket, strength), strict=True):
        if not least <= value <= most:
            log.warning("%s is %g; the models were trained with %g to %g, expect odd clips", name, value, least, most)
    return torch.tensor([[fps - 1, bucket, strength]])  # trained on one less than the frame rate
