"""Tiny Stable Video Diffusion pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from PIL import Image
from tests.reference import autoencoder, randomized
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

import kinema
from kinema.encoders.vision import FeatureExtractor, vision_encoder_from

SIZE = {"height": 16, "width": 32, "num_frames": 3, "num_inference_steps": 2}

# Verbatim from the published checkpoints.
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def vision(width: int = 32, projection: int = 16, side: int = 224, seed: int = 0) -> Any:
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=side,
        patch_size=side // 4,
        projection_dim=projection,
        hidden_act="gelu",
    )
    return randomized(CLIPVisionModelWithProjection(config), seed)


def unet(seed: int = 0, **fields: Any) -> Any:
    config = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "layers_per_block": 1,
        "num_attention_heads": (2, 4),
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "num_frames": 3,
        "sample_size": 96,
        **fields,
    }
    return randomized(diffusers.UNetSpatioTemporalConditionModel(**config), seed)


def vae(seed: int = 0, plain: bool = False, **fields: Any) -> Any:
    channels = fields.pop("block_out_channels", (32, 32))
    if plain:
        return autoencoder(seed, block_out_channels=channels, **fields)
    config = {"block_out_channels": channels, "down_block_types": ["DownEncoderBlock2D"] * len(channels), **fields}
    return randomized(diffusers.AutoencoderKLTemporalDecoder(**config), seed)


def theirs(
    unet_: dict[str, Any] | None = None,
    vae_: dict[str, Any] | None = None,
    vision_: dict[str, Any] | None = None,
    scheduler: Any = None,
    seed: int = 0,
) -> Any:
    """The reference's pipeline."""
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae(seed, **(vae_ or {})),
        image_encoder=vision(seed=seed, **(vision_ or {})),
        unet=unet(seed, **(unet_ or {})),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**SCHEDULER),
        feature_extractor=CLIPImageProcessor(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(other: Any) -> Any:
    """kinema's pipeline on the weights of a pipeline of the reference."""
    networks = {}
    for name in ("unet", "vae"):
        part = getattr(other, name)
        networks[name] = getattr(kinema, type(part).__name__)(dict(part.config)).eval().requires_grad_(False)
        networks[name].load_state_dict(part.state_dict())
    seer = other.image_encoder
    pipe = kinema.StableVideoDiffusionPipeline(
        **networks,
        image_encoder=vision_encoder_from(seer.config.to_dict(), seer.state_dict()),
        feature_extractor=FeatureExtractor.of(other.feature_extractor),
        scheduler=getattr(kinema, type(other.scheduler).__name__).from_config(dict(other.scheduler.config)),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(**options: Any) -> Any:
    """kinema's tiny pipeline alone."""
    return twin(theirs(**options))


def picture(seed: int = 0, width: int = 32, height: int = 16, mode: str = "RGB") -> Image.Image:
    """Smooth colours, as photographs have, and some grain."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height))
    grain = random.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + grain).clip(0, 255).astype(np.uint8)).convert(mode)
