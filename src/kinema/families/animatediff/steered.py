"""Pipelines whose denoiser others steer: ControlNets by a picture a frame, SparseCtrl by a few pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError
from ...pipelines import inputs, parts
from ...pipelines.footage import footage
from ...pipelines.picture import PicturePipeline
from ...pipelines.video import Job
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from . import arguments
from .arguments import called_with
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


class SteeredPipeline(MotionPipeline):
    """A pipeline with `controlnet` among its parts, which is shown `conditioning_frames`."""

    controlnet: Any

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], int]:
        start, frames = super()._start(call, clips, schedule, noise)
        call["held"].update(frames=frames, noise=noise)
        return start, frames

    def begin(self, call: Mapping[str, Any]) -> Job:
        held: dict[str, Any] = {}  # of this call alone
        job = super().begin({**call, "held": held})
        shown = self.shown(call, held["frames"])

        def encode() -> tuple[Any, Tensor]:
            looked_at = [self.looked_at(pictures, call, held["noise"]) for pictures in shown]
            conditions, latents = job.encode()
            size = [n * self.vae.stride for n in latents.shape[3:]]
            held["pictures"] = [self.sized(pictures, *size).to(latents.device) for pictures in looked_at]
            return conditions, latents

        def wrap(unet: Any, net: Any) -> Any:
            return Controlled(unet, self.steering(net, held["pictures"], call))

        return replace(job, encode=encode, beside=("controlnet",), wrap=wrap)

    def looked_at(self, pictures: Tensor, call: Mapping[str, Any], noise: Noise) -> Tensor:
        """Pictures (b, f, 3, h, w) → what a net looks at, made before the clip's noise is drawn; by default these."""
        return pictures

    def sized(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """What a net looks at, for a clip of this size."""
        return fitted(pictures, height, width)

    def shown(self, call: Mapping[str, Any], frames: int) -> list[Tensor]:
        """What each net is shown, (b, f, 3, h, w) in [0, 1], of any size.

        Raises:
            InputError: it does not go with the clip, or with the nets.
        """
        raise NotImplementedError

    def steering(self, net: Any, pictures: Sequence[Tensor], call: Mapping[str, Any]) -> list[Steering]:
        """How each net steers by its pictures, which have the clip's size."""
        raise NotImplementedError


class ByControlNets(SteeredPipeline):
    """Steered by one picture a frame, shown to one ControlNet or several."""

    def __init__(self, **components: Any):
        if isinstance(components.get("controlnet"), (list, tuple)):
            components["controlnet"] = MultiControlNetModel(components["controlnet"])
        super().__init__(**components)

    def shown(self, call: Mapping[str, Any], frames: int) -> list[Tensor]:
        nets, given = nets_of(self.controlnet), call["conditioning_frames"]
        if given is None:
            raise InputError(
                "conditioning_frames is missing; give a picture for each frame (for several nets, a list)."
            )
        several = isinstance(self.controlnet, MultiControlNetModel)
        if several and (not isinstance(given, (list, tuple)) or len(given) != len(nets)):
            raise InputError(f"There are {len(nets)} ControlNets; conditioning_frames must be a list of as many clips.")
        each = [pictures_of(one) for one in (given if several else [given])]
        if wrong := [p.shape[1] for p in each if p.shape[1] != frames]:
            raise InputError(f"conditioning_frames has {wrong[0]} frames and the clip has {frames}; give one for each.")
        for name in ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"):
            for_each(name, call[name], len(nets))
        for scale, start, end in zip(*(for_each(name, call[name], len(nets)) for name in RANGES), strict=True):
            check_steering(scale, start, end)
        return each

    def steering(self, net: Any, pictures: Sequence[Tensor], call: Mapping[str, Any]) -> list[Steering]:
        nets = nets_of(net)
        ranges = zip(*(for_each(name, call[name], len(nets)) for name in RANGES), strict=True)
        return [
            Control(one, shown, scale, start, end, bool(call["guess_mode"]))
            for one, shown, (scale, start, end) in zip(nets, pictures, ranges, strict=True)
        ]


RANGES = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")


class AnimateDiffControlNetPipeline(ByControlNets):
    """Text to video with a Stable Diffusion 1.5 model of any style, steered frame by frame by ControlNets."""

    parts = {**PARTS, "controlnet": _controlnets()}

    __call__ = called_with(arguments.CONTROL, "Makes clips of what a text says, frames following given pictures.")


class AnimateDiffVideoToVideoControlNetPipeline(ByControlNets, FromClip):
    """Video to video with such a model, steered frame by frame by ControlNets."""

    parts = {**PARTS, "controlnet": _controlnets()}

    __call__ = called_with(
        arguments.VIDEO_CONTROL, "Makes clips of what a text says, after footage, frames following given pictures."
    )


class AnimateDiffSparseControlNetPipeline(PicturePipeline, SteeredPipeline):
    """Text to video with a Stable Diffusion 1.5 model of any style; a few frames are given, as pictures or sketches."""

    parts = {**PARTS, "controlnet": parts.model(SparseControlNetModel)}

    __call__ = called_with(arguments.SPARSE, "Makes clips of what a text says, through pictures given for some frames.")

    def shown(self, call: Mapping[str, Any], frames: int) -> list[Tensor]:
        given, places = call["conditioning_frames"], call["controlnet_frame_indices"]
        if given is None:
            raise InputError("conditioning_frames is missing; give a picture for each of controlnet_frame_indices.")
        pictures = pictures_of(given if isinstance(given, (list, tuple, Tensor)) else [given])
        places = [inputs.whole("controlnet_frame_indices", place, 0, frames - 1) for place in places]
        if pictures.shape[1] < len(places) or len(set(places)) != len(places) or not places:
            raise InputError(
                f"There are {pictures.shape[1]} conditioning_frames for controlnet_frame_indices {places}; give one "
                "for each, and each frame once."
            )
        check_steering(for_each("controlnet_conditioning_scale", call["controlnet_conditioning_scale"], 1)[0], 0, 1)
        return [pictures[:, : len(places)]]

    def looked_at(self, pictures: Tensor, call: Mapping[str, Any], noise: Noise) -> Tensor:
        pictures = fitted(pictures, *self._size(call["height"], call["width"]))
        if not self.controlnet.config.use_simplified_condition_embedding:
            return pictures
        mean, deviation = self.encode_pictures(pictures.flatten(0, 1) * 2 - 1)
        drawn = noise.aside().draw(mean.shape, "condition").to(mean)
        return (mean + deviation * drawn).unflatten(0, pictures.shape[:2]) * self.vae.config.scaling_factor

    def sized(self, pictures: Tensor, height: int, width: int) -> Tensor:
        return pictures

    def steering(self, net: Any, pictures: Sequence[Tensor], call: Mapping[str, Any]) -> list[Steering]:
        scale = for_each("controlnet_conditioning_scale", call["controlnet_conditioning_scale"], 1)[0]
        places = [int(place) for place in call["controlnet_frame_indices"]]
        return [SparseControl(net, pictures[0], places, scale, guess=bool(call["guess_mode"]))]


def nets_of(controlnet: Any) -> list[ControlNetModel]:
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


def for_each(name: str, value: Any, nets: int) -> list[float]:
    """A number for each net, where one may stand for all.

    Raises:
        InputError: there are not as many as nets, or one is no number.
    """
    each = list(value) if isinstance(value, (list, tuple)) else [value] * nets
    if len(each) != nets:
        raise InputError(f"{name} has {len(each)} numbers for {nets} ControlNets; give one for each, or one.")
    return [inputs.number(name, one) for one in each]
