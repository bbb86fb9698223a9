"""Tiny I2VGen-XL networks and pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from PIL import Image
from tests import reference
from tests.pipelines_tiny import _folder, scheduler_like, small_vae
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import kinema

SCHEDULER: dict[str, Any] = {  # as published
    "beta_schedule": "squaredcos_cap_v2",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "v_prediction",
}
SIZE = {"height": 16, "width": 24, "num_frames": 3, "num_inference_steps": 3}


def unet(seed: int = 0, **fields: Any) -> diffusers.I2VGenXLUNet:
    """The reference's denoiser."""
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        **fields,
    }
    return reference.randomized(diffusers.I2VGenXLUNet(**config), seed)


def our_unet(other: Any) -> Any:
    """kinema's denoiser on the weights of the reference's."""
    model = kinema.I2VGenXLUNet(dict(other.config)).eval().requires_grad_(False)
    model.load_state_dict(other.state_dict())
    return model


def image_encoder(width: int = 32, side: int = 30, seed: int = 0) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        image_size=side,
        patch_size=10,
        projection_dim=width,
    )
    return reference.randomized(CLIPVisionModelWithProjection(config), seed)


def theirs(
    unet_fields: dict[str, Any] | None = None,
    vae_fields: dict[str, Any] | None = None,
    width: int = 32,
    side: int = 30,
    seed: int = 0,
) -> Any:
    """The reference's pipeline, its scheduler the published one."""
    pipe = diffusers.I2VGenXLPipeline(
        vae=small_vae(seed, **(vae_fields or {})),
        text_encoder=reference.text_encoder(width, seed=seed),
        tokenizer=reference.tokenizer(_folder()),
        image_encoder=image_encoder(width, side, seed),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        unet=unet(seed, **{"cross_attention_dim": width, **(unet_fields or {})}),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(other: Any) -> Any:
    """kinema's pipeline on the weights of a pipeline of the reference."""
    vae = kinema.AutoencoderKL(dict(other.vae.config)).eval().requires_grad_(False)
    vae.load_state_dict(other.vae.state_dict())
    pipe = kinema.I2VGenXLPipeline(
        unet=our_unet(other.unet),
        vae=vae,
        scheduler=scheduler_like(other.scheduler),
        **{name: getattr(other, name) for name in ("text_encoder", "tokenizer", "image_encoder", "feature_extractor")},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height: int = 24, width: int = 40, seed: int = 0) -> Image.Image:
    """Smooth, so that resizing it in one way or another matters little, but where matters much."""
    random = np.random.default_rng(seed)
    rough = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return rough.resize((width, height), Image.Resampling.BICUBIC)
