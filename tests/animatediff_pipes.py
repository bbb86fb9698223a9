"""Tiny AnimateDiff pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

from typing import Any

import diffusers
from PIL import Image
from tests import animatediff_tiny as tiny
from tests import pipelines_tiny, reference

import kinema

WIDTH = 32  # of the text's embeddings
CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "dull",
    "num_frames": 4,
    "height": 16,
    "width": 24,
    "num_inference_steps": 3,
    "guidance_scale": 5.0,
    "output_type": "np",
}
DDIM: dict[str, Any] = {
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}


def theirs(
    name: str = "AnimateDiffPipeline",
    image: dict[str, Any] | None = None,
    adapter: dict[str, Any] | None = None,
    scheduler: Any = None,
    **parts: Any,
) -> Any:
    """The reference's pipeline of this name."""
    pipe = getattr(diffusers, name)(
        vae=pipelines_tiny.small_vae(),
        text_encoder=reference.text_encoder(WIDTH),
        tokenizer=reference.tokenizer(pipelines_tiny._folder()),
        unet=tiny.reference_image_model(**{"cross_attention_dim": WIDTH, **(image or {})}),
        motion_adapter=tiny.reference_adapter(**(adapter or {})),
        scheduler=scheduler or diffusers.DDIMScheduler(**DDIM),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(other: Any, **parts: Any) -> Any:
    """kinema's pipeline of the same name on the weights of the reference's."""
    cls = getattr(kinema, type(other).__name__)
    vae = kinema.AutoencoderKL(dict(other.vae.config)).eval().requires_grad_(False)
    vae.load_state_dict(other.vae.state_dict())
    pipe = cls(
        vae=vae,
        text_encoder=other.text_encoder,
        tokenizer=other.tokenizer,
        unet=tiny.ours(other.unet),
        scheduler=pipelines_tiny.scheduler_like(other.scheduler),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(frames: int = 4, height: int = 16, width: int = 24) -> list[Image.Image]:
    drawn = pipelines_tiny.clip(frames, height, width)
    return [Image.fromarray((frame * 255).astype("uint8")) for frame in drawn]
