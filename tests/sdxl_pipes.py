"""Tiny SDXL pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

from typing import Any

import diffusers
from tests import animatediff_pipes, pipelines_tiny, reference
from tests import animatediff_tiny as tiny
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import kinema

WIDTHS = (32, 16)  # of the two text encoders' embeddings
POOLED = 20
CALL: dict[str, Any] = {**animatediff_pipes.CALL, "negative_prompt": None, "num_inference_steps": 2}
IMAGE: dict[str, Any] = {
    **tiny.SDXL,
    "cross_attention_dim": sum(WIDTHS),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
}
ADAPTER = {"block_out_channels": (16, 32), "motion_layers_per_block": 1, "use_motion_mid_block": False}


def text_encoder_2(layers: int = 4, **fields: Any) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        hidden_size=WIDTHS[1],
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=layers,
        vocab_size=190,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=0,
        projection_dim=POOLED,
        hidden_act="gelu",
        **fields,
    )
    return reference.randomized(CLIPTextModelWithProjection(config), 5)


def tokenizer_2() -> Any:
    made = reference.tokenizer(pipelines_tiny._folder())
    made.pad_token = "!"
    return made


def parts(**changes: Any) -> dict[str, Any]:
    """The reference's parts that a pipeline of SDXL has, without a denoiser."""
    return {
        "vae": pipelines_tiny.small_vae(),
        "text_encoder": reference.text_encoder(WIDTHS[0]),
        "text_encoder_2": text_encoder_2(),
        "tokenizer": reference.tokenizer(pipelines_tiny._folder()),
        "tokenizer_2": tokenizer_2(),
        "scheduler": diffusers.DDIMScheduler(**animatediff_pipes.DDIM),
        **changes,
    }


def theirs(**changes: Any) -> Any:
    """The reference's pipeline, with the weights of the image model that it forgets."""
    image, adapter = tiny.reference_image_model(**IMAGE), tiny.reference_adapter(**ADAPTER)
    pipe = diffusers.AnimateDiffSDXLPipeline(
        unet=tiny.reference_motion_model(image, adapter), motion_adapter=adapter, **parts(**changes)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(other: Any, **changes: Any) -> Any:
    """kinema's pipeline of the same name on the weights of the reference's."""
    vae = kinema.AutoencoderKL(dict(other.vae.config)).eval().requires_grad_(False)
    vae.load_state_dict(other.vae.state_dict())
    shared = {n: getattr(other, n) for n in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    pipe = getattr(kinema, type(other).__name__)(
        vae=vae,
        unet=tiny.ours(other.unet),
        scheduler=pipelines_tiny.scheduler_like(other.scheduler),
        **{**shared, **changes},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
