"""PIA: a picture begins to move as a text says (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...layout import to_frames, to_video
from ...memory.plan import Stage
from ...memory.stages import encoding_stage
from ...pipelines import inputs
from ...pipelines.picture import PicturePipeline, pictures
from ...pipelines.text_to_video import Shape
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from . import arguments
from .arguments import called_with
from .pipeline import PARTS, MotionPipeline
from .unet import MotionConditions

# How like the picture each frame is to stay, from the first on; the last number holds for all frames after it.
# Published as motion_scale 0 to 8: little, some and much motion; the same as a loop; the same in another style.
LIKENESS = (
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8),
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75),
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5),
    (1.0, 0.9, 0.85, 0.85, 0.85, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.85, 0.85, 0.9, 1.0),
    (1.0, 0.8, 0.8, 0.8, 0.79, 0.78, 0.75, 0.75, 0.75, 0.75, 0.75, 0.78, 0.79, 0.8, 0.8, 1.0),
    (1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8, 1.0),
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.3),
    (0.5, 0.4, 0.4, 0.4, 0.35, 0.35, 0.3, 0.25, 0.2),
    (0.5, 0.2),
)


class PIAPipeline(PicturePipeline, MotionPipeline):
    """Image to video with a Stable Diffusion 1.5 model of any style and PIA's condition adapter."""

    parts = dict(PARTS)
    beside_latents = 5  # how like the picture a frame is to stay, and the picture's latents

    __call__ = called_with(
        arguments.PIA,
        "Brings pictures to life; motion_scale is a whole number here, 0 to 2 for more motion, 3 to 5 for the same as "
        "a loop, 6 to 8 for the same in another style.",
        motion_scale=0,
        strength=1.0,
    )

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], Shape]:
        if call["latents"] is not None and call["strength"] != 1:
            raise InputError("With a strength below 1 a clip starts from its picture; leave latents out.")
        found = pictures(call["image"])
        if len(found) not in (1, clips // call["num_videos_per_prompt"]):
            raise InputError(f"There are {len(found)} pictures for {clips} clips; give one, or one for each prompt.")
        size = self._size(call["height"], call["width"])
        start, shape = super()._start(call, clips, schedule, noise)
        frames = shape[1]
        begun = cache(start)  # what the picture's latents draw comes after this noise

        @cache
        def latents() -> Tensor:
            begun()
            return self._sampled(torch.stack([p.fitted(*size) for p in found]), noise, clips)

        call["shown"].append(latents)
        if call["strength"] == 1:
            return begun, shape

        def noised() -> Tensor:
            still = to_frames(latents()[:, None].expand(-1, frames, -1, -1, -1))
            drawn = (clips, latents().shape[1], frames, *latents().shape[2:])
            fresh = noise.draw(drawn, "noised", time=2).transpose(1, 2).flatten(0, 1)
            return to_video(schedule.add_noise(still.cpu(), fresh, 0), frames)

        return noised, shape

    def _sampled(self, fitted: Tensor, noise: Noise, clips: int) -> Tensor:
        """Pictures (n, 3, h, w) in [0, 1] → scaled latents sampled from their distributions, (clips, c, h, w)."""
        mean, deviation = (x.float().cpu() for x in self.encode_pictures(fitted * 2 - 1))
        mean, deviation = (x.repeat_interleave(clips // len(x), 0) for x in (mean, deviation))
        return (mean + deviation * noise.draw(mean.shape, "picture")) * self.vae.config.scaling_factor

    def begin(self, call: Mapping[str, Any]) -> Any:
        return super().begin({**call, "shown": []})

    def _hollow(self, **asked: Any) -> Callable[[Tensor], MotionConditions]:
        plain = super()._hollow(**asked)
        h, w = (asked[side] // self.vae.stride for side in ("height", "width"))
        shape = (asked["clips"], asked["frames"], self.beside_latents, h, w)
        return lambda text: replace(plain(text), extra=text.new_empty(shape))

    def _stages(self, **asked: Any) -> list[Stage]:
        """The picture's encoding before the others."""
        first, *rest = super()._stages(**asked)
        return [first, encoding_stage(asked["clips"], asked["height"], asked["width"], high=True), *rest]

    def _motion(self, call: Mapping[str, Any], frames: int) -> Mapping[str, Tensor]:
        inputs.whole("motion_scale", call["motion_scale"], 0, len(LIKENESS) - 1)
        return {}  # here it is how unlike the picture frames may become

    def _conditions(self, call: Mapping[str, Any], clips: int, frames: int, noise: Noise) -> Callable[[Any], Any]:
        told = super()._conditions(call, clips, frames, noise)
        return partial(self._shown, told, likeness(call["motion_scale"], frames), call["shown"][0])

    def _shown(
        self, told: Callable[[Any], MotionConditions], like: Tensor, latents: Callable[[], Tensor], text: Any
    ) -> MotionConditions:
        """The conditions with what rides along: how like the picture frames stay, and the picture's latents."""
        conditions = told(text)
        picture = latents()[:, None].expand(-1, len(like), -1, -1, -1)
        mask = like[None, :, None, None, None].expand(len(picture), -1, 1, *picture.shape[3:])
        extra = torch.cat([mask, picture], dim=2).to(conditions.text)
        return replace(conditions, extra=extra)


def likeness(motion_scale: int, frames: int) -> Tensor:
    """(f,): how like the picture each frame is to stay."""
    first = LIKENESS[motion_scale]
    return torch.tensor([*first, *[first[-1]] * frames][:frames])
