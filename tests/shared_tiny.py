"""Small random models of the reference written as people share them, by the rules the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from kinema.checkpoint.keys import State, write
from kinema.checkpoint.layouts import ldm_vae, open_clip_text
from kinema.checkpoint.layouts_image import control_net, image_unet, motion_module

SD15: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
}
INPAINTING = {**SD15, "in_channels": 9}
SDXL: dict[str, Any] = {
    "block_out_channels": (64, 128, 128),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": (1, 2, 2),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 3),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 16,
}
V1 = {"use_motion_mid_block": False, "motion_max_seq_length": 24}
V2: dict[str, Any] = {}
V3 = {"use_motion_mid_block": False}
MOTION: dict[str, dict[str, Any]] = {
    "v1": V1,
    "v2": V2,
    "v3": V3,
    "64 frames": {"motion_max_seq_length": 64},
    "PIA": {"conv_in_channels": 9},
    "SDXL beta": {**V3, "block_out_channels": (32, 64, 64)},
    "one layer": {"motion_layers_per_block": 1, "block_out_channels": (32, 64)},
    "deep": {"motion_transformer_layers_per_block": 2, "motion_transformer_layers_per_mid_block": 2},
}


def plain(model: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def under(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {prefix + k: v for k, v in state.items()}


def _shape(fields: Mapping[str, Any]) -> tuple[int, int, list[bool]]:
    cross = ["Cross" in name for name in fields["down_block_types"]]
    return len(cross), fields["layers_per_block"], cross


def unet(fields: Mapping[str, Any] = SD15) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**fields).eval()


def unet_file(model: nn.Module, fields: Mapping[str, Any] = SD15) -> State:
    return write(plain(model), image_unet(*_shape(fields)))


def control(fields: Mapping[str, Any] = SD15, **more: Any) -> diffusers.ControlNetModel:
    torch.manual_seed(1)
    model = diffusers.ControlNetModel.from_unet(unet(fields), **more)
    for parameter in model.parameters():  # freshly made, its answers are zeros
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def control_file(model: nn.Module, fields: Mapping[str, Any] = SD15, hints: int = 8) -> State:
    return write(plain(model), control_net(*_shape(fields), hints))


def motion(**fields: Any) -> diffusers.MotionAdapter:
    torch.manual_seed(2)
    return diffusers.MotionAdapter(**{"block_out_channels": (32, 32, 64, 64), **fields}).eval()


def motion_file(model: diffusers.MotionAdapter, hotshot: bool = False) -> State:
    c = model.config
    depth = c.motion_transformer_layers_per_block
    middle = c.motion_mid_block_layers_per_block if c.use_motion_mid_block else 0
    levels = len(c.block_out_channels)
    return write(plain(model), motion_module(levels, c.motion_layers_per_block, middle, depth, hotshot))


def sparse(**fields: Any) -> diffusers.SparseControlNetModel:
    torch.manual_seed(3)
    blocks = ("CrossAttnDownBlockMotion", "DownBlockMotion")
    model = diffusers.SparseControlNetModel(
        block_out_channels=(32, 64), down_block_types=blocks, cross_attention_dim=24, **fields
    )
    for name, parameter in model.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def sparse_file(model: nn.Module) -> State:
    return write(plain(model), motion_module(2, 2, 0, attentions=1))


def vae() -> diffusers.AutoencoderKL:
    torch.manual_seed(4)
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=512,
    ).eval()


def vae_file(model: nn.Module) -> State:
    return write(plain(model), ldm_vae(2, 1))


def text(width: int = 128, projected: bool = False, vocabulary: int = 698, act: str = "quick_gelu") -> Any:
    torch.manual_seed(5)
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        vocab_size=vocabulary,
        max_position_embeddings=32,
        hidden_act=act,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        projection_dim=16 if projected else 768,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config).eval()


def prefixed(model: nn.Module) -> State:
    """Its keys as transformers of all versions read them."""
    state = {k: v for k, v in plain(model).items() if not k.endswith("position_ids")}
    return {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in state.items()}


def open_clip_file(model: nn.Module) -> State:
    state = write(prefixed(model), open_clip_text(2, projected=True))
    return {**{k: v.contiguous() for k, v in state.items()}, "logit_scale": torch.ones(())}


SD, FIRST = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer."
TEXT_XL, TEXT_XL_2 = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."


def sd15_file(fields: Mapping[str, Any] = SD15, encoder: Any = None) -> State:
    """A whole file as model sites have them, with what nothing reads: averages, the schedule, positions' numbers."""
    more = {
        "model_ema.decay": torch.zeros(()),
        "model_ema.diffusion_modelout2bias": torch.zeros(4),
        "betas": torch.zeros(1000),
        f"{TEXT}text_model.embeddings.position_ids": torch.arange(32)[None],
    }
    encoder = text() if encoder is None else encoder
    parts = under(SD, unet_file(unet(fields), fields)) | under(FIRST, vae_file(vae())) | under(TEXT, prefixed(encoder))
    return {k: v.contiguous() for k, v in (parts | more).items()}


def sdxl_file(fields: Mapping[str, Any] = SDXL) -> State:
    parts = (
        under(SD, unet_file(unet(fields), fields)) | under(FIRST, vae_file(vae())) | under(TEXT_XL, prefixed(text()))
    )
    second = under(TEXT_XL_2, open_clip_file(text(projected=True, act="gelu")))
    return {k: v.contiguous() for k, v in (parts | second).items()}
