"""Text to video with image models that learnt to move."""

from __future__ import annotations

from . import arguments
from .arguments import called_with
from .pipeline import PARTS, MotionPipeline


class AnimateDiffPipeline(MotionPipeline):
    """Text to video with a Stable Diffusion 1.5 model of any style and a motion adapter (Guo et al. 2023)."""

    parts = dict(PARTS)

    __call__ = called_with(arguments.TEXT, "Makes clips of what a text says.")
