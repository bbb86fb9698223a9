"""Video to video with image models that learnt to move: a clip, noised part of the way, is denoised towards a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...layout import swap_time
from ...pipelines import inputs
from ...pipelines.video_to_video import FromFootage
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from . import arguments
from .arguments import called_with
from .pipeline import PARTS, MotionPipeline


class FromClip(FromFootage, MotionPipeline):
    """Starts from footage; latents are taken to be as noisy as `strength` says already, as in the reference."""

    def _plan(self, call: Mapping[str, Any]) -> Any:
        if not call["enforce_inference_steps"]:
            return super()._plan(call)
        strength = inputs.number("strength", call["strength"], 0, 1)
        steps = inputs.whole("num_inference_steps", call["num_inference_steps"])
        if strength == 0:
            raise InputError("strength is 0, which leaves nothing to do; it must be above 0 and at most 1.")
        whole = {k: v for k, v in call.items() if k != "strength"}
        plan = super()._plan({**whole, "num_inference_steps": int(steps / strength)})
        return plan._replace(schedule=plan.schedule.after(max(plan.schedule.steps - steps, 0)))

    def _noised(self, call: Mapping[str, Any], clean: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        if call["latents"] is None:
            return super()._noised(call, clean, schedule, noise)
        if not call["enforce_inference_steps"]:
            return clean
        clips = swap_time(clean)
        return swap_time(schedule.add_noise(clips, noise.draw(clips.shape, "noised", time=2), 0))


class AnimateDiffVideoToVideoPipeline(FromClip):
    """Video to video with a Stable Diffusion 1.5 model of any style and a motion adapter."""

    parts = dict(PARTS)

    __call__ = called_with(arguments.VIDEO, "Makes clips of what a text says, after footage.")
