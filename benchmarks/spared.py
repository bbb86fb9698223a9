"""Approximations beside kinema's own exact clips: at Stable Video Diffusion's widths, and of the trained model in the
box, by which alone the PSNR says something."""

from __future__ import annotations

from typing import Any

from .tools import Side, bytes_of

REUSE: dict[str, Any] = {"every": 5}
TRIGGER: dict[str, Any] = {"threshold": 0.3}

CLIP: dict[str, Any] = {"height": 128, "width": 128, "num_frames": 4, "num_inference_steps": 10}
TOY_CLIP: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 8,
    "num_inference_steps": 25,
    "min_guidance_scale": 3.0,
    "motion_bucket_id": 150,
}


def wide(folder: str, **reuse: Any) -> Side:
    """From a picture to latents, since of so small a clip decoding is more than it is of a published one's."""
    from kinema import StableVideoDiffusionPipeline

    return _calls(StableVideoDiffusionPipeline.from_pretrained(folder), {**CLIP, "output_type": "latent"}, reuse)


def toy(folder: str, **reuse: Any) -> Side:
    """From a picture to frames."""
    from kinema import StableVideoDiffusionPipeline

    return _calls(StableVideoDiffusionPipeline.from_pretrained("toy-svd"), {**TOY_CLIP, "output_type": "np"}, reuse)


def nothing(folder: str) -> None:
    """The weights are in the box."""


def _calls(pipe: Any, call: dict[str, Any], reuse: dict[str, Any]) -> Side:
    import numpy as np

    from kinema.toys.world import draw, some_scene

    pipe.set_progress_bar_config(disable=True)
    picture = draw([some_scene(np.random.default_rng(0), motion="moves left")], 1, call["height"])[0, 0]
    if reuse:
        pipe.enable_deep_reuse(**reuse)
    return lambda: pipe(picture, generator=0, **call).frames, bytes_of(pipe.unet)
