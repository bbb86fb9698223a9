"""Pipelines whose denoiser others steer: ControlNets by a picture a frame, SparseCtrl by a few pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError
from ...memory.plan import Stage
from ...memory.stages import encoding_stage
from ...pipelines import inputs, parts
from ...pipelines.footage import footage
from ...pipelines.picture import PicturePipeline
from ...pipelines.text_to_video import Shape
from ...pipelines.video import Job
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from . import arguments
from .arguments import DEFAULTS, called_with
from .controlled import Control, Controlled, SparseControl, Steering, check_steering
from .controlnet import ControlNetModel, MultiControlNetModel
from .pipeline import PARTS, MotionPipeline
from .sparse_controlnet import SparseControlNetModel
from .video_to_video import FromClip


def _controlnets() -> parts.Part:
    """A ControlNet, or several in folders side by side."""
    one = parts.model(ControlNetModel)

    def load(source: parts.Source, name: str) -> Any:
        if not Path(source.folder, f"{name}_1").is_dir():
            return one.load(source, name)
        options = {"variant": source.variant, "dtype": source.dtype, "use_safetensors": source.use_safetensors}
        return MultiControlNetModel.from_pretrained(source.folder / name, **options)

    return parts.Part("diffusers", ("ControlNetModel", "MultiControlNetModel"), load, one.save, is_module=True)


class SteeredPipeline(PicturePipeline, MotionPipeline):
    """A pipeline with `controlnet` among its parts: one net or several, ControlNets and SparseCtrls side by side."""

    beside = ("controlnet",)
    wraps = True

    controlnet: Any

    def __init__(self, **components: Any):
        if isinstance(components.get("controlnet"), (list, tuple)):
            components["controlnet"] = MultiControlNetModel(components["controlnet"])
        super().__init__(**components)

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], Shape]:
        start, shape = super()._start(call, clips, schedule, noise)
        call["held"].update(frames=shape[1], noise=noise, clips=clips)
        return start, shape

    def _receipt(self) -> dict[str, Any]:
        return {**super()._receipt(), "controlnets": [type(net).__name__ for net in nets_of(self.controlnet)]}

    @property
    def frame_limit(self) -> int:
        """As many as all networks over time have places for."""
        nets = (net for net in nets_of(self.controlnet) if isinstance(net, SparseControlNetModel))
        return min(super().frame_limit, *(net.config.motion_max_seq_length for net in nets), 10**6)

    def enable_free_noise(self, *settings: Any, **named: Any) -> None:
        """As for every pipeline.

        Raises:
            InputError: a SparseCtrl steers, whose own blocks over time would see the whole clip.
        """
        self._check_free_noise()
        super().enable_free_noise(*settings, **named)

    def _check_free_noise(self) -> None:
        if any(isinstance(net, SparseControlNetModel) for net in nets_of(self.controlnet)):
            raise InputError("FreeNoise does not go with SparseCtrl; use enable_windows for long clips.")

    def begin(self, call: Mapping[str, Any]) -> Job:
        if self.free_noise_enabled:  # it may have been on a pipeline that this one comes from
            self._check_free_noise()
        held: dict[str, Any] = {}  # of this call alone
        asked = {**DEFAULTS, **call}
        job = super().begin({**call, "held": held})
        noise, nets = held["noise"], nets_of(self.controlnet)
        shown = self._shown(asked, held["frames"], held["clips"])
        known = None if "strength" in call else self._size(call["height"], call["width"])

        def looked_at(size: Sequence[int]) -> list[Tensor]:
            return [self._looked_at(net, pictures, size, noise) for net, pictures in zip(nets, shown, strict=True)]

        def encode() -> tuple[Any, Tensor]:
            early = None if known is None else looked_at(known)  # drawn before the clip's noise, as in the reference
            conditions, latents = job.encode()
            found = early or looked_at([n * self.vae.stride for n in latents.shape[3:]])
            held["pictures"] = [pictures.to(latents.device) for pictures in found]
            return conditions, latents

        def wrap(unet: Any, net: Any) -> Any:
            each = zip(nets_of(net), held["pictures"], strengths(asked, len(nets)), strict=True)
            return Controlled(unet, [steering(one, pictures, given, asked) for one, pictures, given in each])

        return replace(job, encode=encode, beside=self.beside, wrap=wrap)

    def _steered(self, denoiser: Any, asked: Mapping[str, int], **beside: Any) -> Any:
        nets = nets_of(beside["controlnet"])
        each = [steering(net, self._hollow_pictures(net, asked), (1.0, 0.0, 1.0), DEFAULTS) for net in nets]
        return Controlled(super()._steered(denoiser, asked, **beside), each)

    def _hollow_pictures(self, net: Any, asked: Mapping[str, int]) -> Tensor:
        """What a net looks at, without contents: of a SparseCtrl one picture, since it makes as many of any number."""
        sparse = isinstance(net, SparseControlNetModel)
        scale = self.vae.stride if sparse and net.reads_latents else 1
        frames, size = 1 if sparse else asked["frames"], (asked["height"] // scale, asked["width"] // scale)
        return torch.empty(1, frames, net.config.conditioning_channels, *size, device="meta")

    def _stages(self, **asked: Any) -> list[Stage]:
        """The encoding of pictures, where nets look at latents, before the others."""
        first, *rest = super()._stages(**asked)
        sparse = [net for net in nets_of(self.controlnet) if isinstance(net, SparseControlNetModel)]
        if not any(net.reads_latents for net in sparse):
            return [first, *rest]
        return [first, encoding_stage(1, asked["height"], asked["width"], high=True), *rest]

    def _shown(self, call: Mapping[str, Any], frames: int, clips: int) -> list[Tensor]:
        """What each net is shown, (1 or clips, f, 3, h, w) in [0, 1], of any size.

        Raises:
            InputError: it does not go with the clip, or with the nets.
        """
        nets, given = nets_of(self.controlnet), call["conditioning_frames"]
        if given is None:
            raise InputError("conditioning_frames is missing; give a picture for each frame (for several nets a list).")
        several = isinstance(self.controlnet, MultiControlNetModel)
        if several and (not isinstance(given, (list, tuple)) or len(given) != len(nets)):
            raise InputError(f"There are {len(nets)} ControlNets; conditioning_frames must be a list of as many clips.")
        for strength in strengths(call, len(nets)):
            check_steering(*strength)
        asked = call["controlnet_frame_indices"]
        if not isinstance(asked, (list, tuple)):
            raise InputError(f"controlnet_frame_indices is {asked!r}; it must be a list of frames, from 0.")
        places = [inputs.whole("controlnet_frame_indices", i, 0, frames - 1) for i in asked]
        shown = [
            some_frames(one, places) if isinstance(net, SparseControlNetModel) else every_frame(one, frames)
            for net, one in zip(nets, given if several else [given], strict=True)
        ]
        return [for_clips(pictures, clips, call["num_videos_per_prompt"]) for pictures in shown]

    def _looked_at(self, net: Any, pictures: Tensor, size: Sequence[int], noise: Noise) -> Tensor:
        """Pictures (b, n, 3, h, w) in [0, 1] → what a net looks at: these at the clip's size, or their latents."""
        sized = fitted(pictures, *size)
        if not (isinstance(net, SparseControlNetModel) and net.reads_latents):
            return sized
        mean, deviation = self.encode_pictures(sized.flatten(0, 1) * 2 - 1)
        drawn = noise.aside().draw(mean.shape, "condition").to(mean)
        return (mean + deviation * drawn).unflatten(0, sized.shape[:2]) * self.vae.config.scaling_factor


class AnimateDiffControlNetPipeline(SteeredPipeline):
    """Text to video with a Stable Diffusion 1.5 model of any style, steered frame by frame by ControlNets."""

    parts = {**PARTS, "controlnet": _controlnets()}

    __call__ = called_with(
        arguments.CONTROL,
        "Makes clips of what a text says, frames following given pictures.",
        more="controlnet_frame_indices",
    )


class AnimateDiffVideoToVideoControlNetPipeline(SteeredPipeline, FromClip):
    """Video to video with such a model, steered frame by frame by ControlNets."""

    parts = {**PARTS, "controlnet": _controlnets()}

    __call__ = called_with(
        arguments.VIDEO_CONTROL,
        "Makes clips of what a text says, after footage, frames following given pictures.",
        more="controlnet_frame_indices",
    )


class AnimateDiffSparseControlNetPipeline(SteeredPipeline):
    """Text to video with a Stable Diffusion 1.5 model of any style; a few frames are given, as pictures or sketches."""

    parts = {**PARTS, "controlnet": parts.model(SparseControlNetModel)}

    __call__ = called_with(
        arguments.SPARSE,
        "Makes clips of what a text says, through pictures given for some frames.",
        more="control_guidance_start control_guidance_end",
    )


Strength = tuple[float, float, float]  # how much a net counts for, and the shares of the steps it does so between


def strengths(call: Mapping[str, Any], nets: int) -> list[Strength]:
    """How strongly and when each net steers."""
    names = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
    return list(zip(*(for_each(name, call[name], nets) for name in names), strict=True))


def steering(net: Any, pictures: Tensor, strength: Strength, call: Mapping[str, Any]) -> Steering:
    """How a net steers by what it looks at."""
    guess = bool(call["guess_mode"])
    if isinstance(net, SparseControlNetModel):
        return SparseControl(net, pictures, [int(i) for i in call["controlnet_frame_indices"]], *strength, guess)
    return Control(net, pictures, *strength, guess)


def every_frame(given: Any, frames: int) -> Tensor:
    """A picture for each frame of a clip.

    Raises:
        InputError: there are more or fewer.
    """
    pictures = pictures_of(given)
    if pictures.shape[1] != frames:
        raise InputError(
            f"conditioning_frames has {pictures.shape[1]} frames and the clip has {frames}; give one for each."
        )
    return pictures


def some_frames(given: Any, places: Sequence[int]) -> Tensor:
    """A picture for each of these frames.

    Raises:
        InputError: there are fewer, or a frame is named twice.
    """
    pictures = pictures_of(given if isinstance(given, (list, tuple, Tensor)) else [given])
    if pictures.shape[1] < len(places) or len(set(places)) != len(places) or not places:
        raise InputError(
            f"There are {pictures.shape[1]} conditioning_frames for controlnet_frame_indices {list(places)}; give one "
            "for each, and each frame once."
        )
    return pictures[:, : len(places)]


def nets_of(controlnet: Any) -> list[Any]:
    """One ControlNet or several, as a list."""
    nets: list[Any] = list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]
    return nets


def pictures_of(video: Any) -> Tensor:
    """Footage in any usual form → (b, f, 3, h, w) in [0, 1]."""
    return (footage(video, 1, -1) + 1) / 2


def fitted(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures (b, f, 3, h, w) in [0, 1] at the clip's size; those that have it come untouched."""
    if tuple(pictures.shape[3:]) == (height, width):
        return pictures
    sized = F.interpolate(pictures.flatten(0, 1), (height, width), mode="bicubic", antialias=True)
    return sized.clamp(0, 1).unflatten(0, pictures.shape[:2])


def for_clips(pictures: Tensor, clips: int, copies: int) -> Tensor:
    """One clip of pictures for all clips to make, or one for each, those of one prompt next to each other.

    Raises:
        InputError: there are as many as neither prompts nor clips.
    """
    if len(pictures) == 1:
        return pictures
    if len(pictures) not in (clips, clips // copies):
        raise InputError(
            f"There are {len(pictures)} clips of conditioning_frames for {clips} to make; give one, or one for each "
            "prompt."
        )
    return pictures.repeat_interleave(clips // len(pictures), 0)


def for_each(name: str, value: Any, nets: int) -> list[float]:
    """A number for each net, where one may stand for all.

    Raises:
        InputError: there are not as many as nets, or one is no number.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    each = list(value) if isinstance(value, (list, tuple)) else [value] * nets
    if len(each) != nets:
        raise InputError(f"{name} has {len(each)} numbers for {nets} ControlNets; give one for each, or one.")
    return [inputs.number(name, one) for one in each]
