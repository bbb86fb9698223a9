"""Small random models of the reference written as their authors' original files, by the rules the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet
from torch import Tensor, nn

from kinema.checkpoint.keys import State, write
from kinema.checkpoint.layouts import (
    i2vgen_unet,
    ldm_vae,
    open_clip_text,
    open_clip_vision,
    svd_unet,
    temporal_vae,
)

UNET = "model.diffusion_model."
FIRST = "first_stage_model."
CONDITIONER = "conditioner.embedders.3.encoder."
PICTURES = "conditioner.embedders.0.open_clip.model."

# As published, but narrow; and one of another shape in everything that can differ.
SVD = {"block_out_channels": (64, 64, 128, 128), "num_attention_heads": (1, 1, 2, 2)}
SMALL_SVD = {
    "block_out_channels": (64, 128),
    "num_attention_heads": (1, 2),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}
ODD_SVD = {
    "block_out_channels": (64, 128),
    "num_attention_heads": (1, 2),
    "layers_per_block": 1,
    "transformer_layers_per_block": 2,
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
    "in_channels": 10,
    "out_channels": 5,
    "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
    "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
}
I2VGEN = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 8, "cross_attention_dim": 1024}
ODD_I2VGEN = {
    "block_out_channels": (32, 64),
    "cross_attention_dim": 128,
    "attention_head_dim": 8,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


def plain(model: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def under(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


def svd_net(fields: dict[str, Any] = SVD) -> diffusers.UNetSpatioTemporalConditionModel:
    torch.manual_seed(1)
    return diffusers.UNetSpatioTemporalConditionModel(cross_attention_dim=24, **fields).eval()


def svd_rules(fields: dict[str, Any] = SVD) -> Any:
    levels = len(fields["block_out_channels"])
    types = fields.get("down_block_types", ("CrossAttn",) * (levels - 1) + ("",))
    return svd_unet(levels, fields.get("layers_per_block", 2), ["Cross" in name for name in types])


def temporal_net() -> diffusers.AutoencoderKLTemporalDecoder:
    torch.manual_seed(2)
    return diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 2
    ).eval()


def picture_net(layers: int = 2, width: int = 24) -> transformers.CLIPVisionModelWithProjection:
    torch.manual_seed(3)
    config = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        projection_dim=width,
        hidden_act="gelu",
    )
    return transformers.CLIPVisionModelWithProjection(config).eval()


def text_net(layers: int = 2) -> transformers.CLIPTextModel:
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        vocab_size=698,  # the tokenizer's of the model in the box
        max_position_embeddings=32,
        hidden_act="gelu",
    )
    return transformers.CLIPTextModel(config).eval()


def prefixed(model: nn.Module, prefix: str = "text_model.") -> State:
    state = {k: v for k, v in plain(model).items() if not k.endswith("position_ids")}
    whole = ("visual_projection.",)
    return {k if k.startswith((prefix, *whole)) else f"{prefix}{k}": v for k, v in state.items()}


def pictures_half(model: transformers.CLIPVisionModelWithProjection) -> State:
    rules = open_clip_vision(model.config.num_hidden_layers)
    return under("visual.", write(prefixed(model, "vision_model."), rules))


def svd_file(
    unet: diffusers.UNetSpatioTemporalConditionModel,
    vae: nn.Module,
    encoder: transformers.CLIPVisionModelWithProjection,
    rules: Any = None,
) -> State:
    """All that such a file holds: also what nothing reads, and a first stage whose encoder is another one."""
    state = under(UNET, write(plain(unet), svd_rules() if rules is None else rules))
    if isinstance(vae, diffusers.AutoencoderKLTemporalDecoder):
        original = write(plain(vae), temporal_vae(2, 2))
        read = {k: v for k, v in original.items() if not k.startswith("decoder.")}
        state |= under(CONDITIONER, read)
        state |= {
            f"{CONDITIONER}decoder.conv_in.weight": torch.randn(3),
            f"{CONDITIONER}post_quant_conv.bias": torch.randn(4),
        }
        state |= under(FIRST, {k: v for k, v in original.items() if k.startswith("decoder.")})
        state |= under(FIRST, {k: torch.randn_like(v) for k, v in read.items() if k.startswith("encoder.")})
    else:
        original = write(plain(vae), ldm_vae(2, 2))
        state |= under(FIRST, original) | under(CONDITIONER, {k: torch.randn_like(v) for k, v in original.items()})
    state |= under(PICTURES, pictures_half(encoder))
    state |= under(PICTURES, {"token_embedding.weight": torch.randn(5, 4), "text_projection": torch.eye(4)})
    return {k: v.contiguous() for k, v in state.items()}


def write_svd(path: Path, fields: dict[str, Any] = SVD) -> Path:
    state = svd_file(svd_net(fields), temporal_net(), picture_net(), svd_rules(fields))
    safetensors.torch.save_file(state, path)
    return path


def i2vgen_net(fields: dict[str, Any] = I2VGEN) -> I2VGenXLUNet:
    torch.manual_seed(5)
    return I2VGenXLUNet(**fields).eval()


def i2vgen_rules(fields: dict[str, Any] = I2VGEN) -> Any:
    levels = len(fields["block_out_channels"])
    types = fields.get("down_block_types", ("CrossAttn",) * (levels - 1) + ("",))
    return i2vgen_unet(levels, fields.get("layers_per_block", 2), ["Cross" in name for name in types])


def image_vae() -> diffusers.AutoencoderKL:
    torch.manual_seed(6)
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def open_clip(text: transformers.CLIPTextModel, pictures: transformers.CLIPVisionModelWithProjection) -> State:
    state = write(prefixed(text), open_clip_text(text.config.num_hidden_layers)) | pictures_half(pictures)
    return {**state, "text_projection": torch.eye(128), "logit_scale": torch.ones(())}


def write_i2vgen(folder: Path, fields: dict[str, Any] = I2VGEN) -> Path:
    """The U-Net's file; beside it the two its authors took from others."""
    unet = write(plain(i2vgen_net(fields)), i2vgen_rules(fields))
    torch.save({"state_dict": unet, "step": 854500}, folder / "i2vgen_xl_00854500.pth")
    vae = under(FIRST, write(plain(image_vae()), ldm_vae(2, 2)))
    other: dict[str, Tensor] = {"model.diffusion_model.out.2.bias": torch.zeros(4), "model_ema.decay": torch.zeros(())}
    torch.save({"state_dict": vae | other}, folder / "v2-1_512-ema-pruned.ckpt")
    torch.save(open_clip(text_net(), picture_net(width=128)), folder / "open_clip_pytorch_model.bin")
    return folder / "i2vgen_xl_00854500.pth"
