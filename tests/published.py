"""ModelScope at its published size, without weights: what the bars are measured on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

UNET: dict[str, Any] = {"cross_attention_dim": 1024, "attention_head_dim": 64, "sample_size": 32}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 256,
}
TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}


def ours(dtype: torch.dtype = torch.float16) -> dict[str, nn.Module]:
    """kinema's components, on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from kinema.families.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
    from kinema.families.modelscope import UNet3DConditionModel, UNet3DConfig

    with torch.device("meta"):
        return {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)).to(dtype).eval(),
            "unet": UNet3DConditionModel(UNet3DConfig(**UNET)).to(dtype).eval(),
            "vae": AutoencoderKL(AutoencoderKLConfig(**VAE)).to(dtype).eval(),
        }


def theirs(dtype: torch.dtype = torch.float16) -> dict[str, nn.Module]:
    """The reference's denoiser and autoencoder, on the meta device."""
    from diffusers import AutoencoderKL, UNet3DConditionModel

    with torch.device("meta"):
        return {
            "unet": UNet3DConditionModel(**UNET).to(dtype).eval(),
            "vae": AutoencoderKL(**VAE).to(dtype).eval(),
        }


VISION: dict[str, Any] = {  # OpenCLIP ViT-H/14
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}


def svd_xt(dtype: torch.dtype = torch.float16) -> Any:
    """kinema's image-to-video pipeline, on the meta device."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    import kinema
    from kinema.encoders.vision import FeatureExtractor

    with torch.device("meta"):
        nets = {
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)),
            "unet": kinema.UNetSpatioTemporalConditionModel(),
            "vae": kinema.AutoencoderKLTemporalDecoder(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                layers_per_block=2,
                force_upcast=True,
            ),
        }
    nets = {name: net.to(dtype).eval().requires_grad_(False) for name, net in nets.items()}
    return kinema.StableVideoDiffusionPipeline(
        **nets,
        feature_extractor=FeatureExtractor.of(CLIPImageProcessor()),
        scheduler=kinema.EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
    )
