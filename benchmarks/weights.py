"""Random weights at published widths, written once by the reference so that both sides read the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LEVELS: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
    "sample_size": 16,
}
TWO_LEVELS: dict[str, Any] = {
    **LEVELS,
    "block_out_channels": (320, 640),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 256,
}
SPATIO_TEMPORAL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    "num_attention_heads": (5, 10, 20),
    "sample_size": 32,
}
IMAGE: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 32,
}
TEMPORAL_VAE: dict[str, Any] = {k: v for k, v in VAE.items() if k != "up_block_types"}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 190,
    "bos_token_id": 188,
    "eos_token_id": 189,
    "pad_token_id": 189,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "projection_dim": 1024,
}


def _fill(model: Any) -> Any:
    """Weights that keep the spread of what passes through; the reference would start some of them at zero."""
    import torch

    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter.data, a=2.2)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.uniform_(-0.05, 0.05)
    return model.eval()


def _unet(fields: dict[str, Any]) -> Any:
    from diffusers import UNet3DConditionModel

    return _fill(UNet3DConditionModel(**fields))


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return _fill(AutoencoderKL(**VAE))


def unet(folder: str) -> None:
    _unet(LEVELS).save_pretrained(f"{folder}/unet")


def _svd_unet() -> Any:
    from diffusers import UNetSpatioTemporalConditionModel

    return _fill(UNetSpatioTemporalConditionModel(**SPATIO_TEMPORAL))


def svd_unet(folder: str) -> None:
    _svd_unet().save_pretrained(f"{folder}/unet")


def i2vgen_unet(folder: str) -> None:
    from diffusers import I2VGenXLUNet

    _fill(I2VGenXLUNet(**LEVELS)).save_pretrained(f"{folder}/unet")


def motion_unet(folder: str) -> None:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    adapter = MotionAdapter(block_out_channels=IMAGE["block_out_channels"])
    made = _fill(UNetMotionModel.from_unet2d(UNet2DConditionModel(**IMAGE), adapter))
    made.save_pretrained(f"{folder}/unet")


def lora(seed: int, rank: int = 16) -> dict[str, Any]:
    """A LoRA of every spatial attention of that denoiser, under the published keys."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**IMAGE)
    dice, state = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".attn" in name:
            wide, deep = module.weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(rank, deep, generator=dice) / deep**0.5
            state[f"unet.{name}.lora_B.weight"] = torch.randn(wide, rank, generator=dice) * 0.02
    return state


def vae(folder: str) -> None:
    _vae().save_pretrained(f"{folder}/vae")


def _temporal_vae() -> Any:
    from diffusers import AutoencoderKLTemporalDecoder

    return _fill(AutoencoderKLTemporalDecoder(**TEMPORAL_VAE))


def temporal_vae(folder: str) -> None:
    _temporal_vae().save_pretrained(f"{folder}/vae")


def svd_pipeline(folder: str) -> None:
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    StableVideoDiffusionPipeline(
        vae=_temporal_vae(),
        image_encoder=_fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION))),
        unet=_svd_unet(),
        scheduler=EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            timestep_spacing="leading",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            beta_schedule="scaled_linear",
            steps_offset=1,
        ),
        feature_extractor=CLIPImageProcessor(),
    ).save_pretrained(folder)


def pipeline(folder: str) -> None:
    from diffusers import DDIMScheduler, TextToVideoSDPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = Path(folder, "words")
    words.mkdir(parents=True)
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    (words / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "pad_token": "<|endoftext|>"}))
    TextToVideoSDPipeline(
        vae=_vae(),
        text_encoder=_fill(CLIPTextModel(CLIPTextConfig(**TEXT))),
        tokenizer=CLIPTokenizer.from_pretrained(str(words), local_files_only=True),
        unet=_unet(TWO_LEVELS),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    ).save_pretrained(folder)
