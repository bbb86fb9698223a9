"""Small image models and motion adapters with random weights, as the reference has them and as kinema has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinema.checkpoint.fill import fill
from kinema.families.animatediff import (
    ControlNetModel,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNetMotionModel,
)

SD15: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
# Two levels, for tests that make many.
SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SDXL: dict[str, Any] = {
    **SD15,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}
ADAPTER: dict[str, Any] = {
    "block_out_channels": (16, 32, 32),
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 4,
    "motion_norm_num_groups": 4,
}


def reference_image_model(seed: int = 0, **config: Any) -> Any:
    from diffusers import UNet2DConditionModel as Reference

    return _shaken(Reference(**{**SD15, **config}).eval(), seed)


def reference_adapter(seed: int = 1, **config: Any) -> Any:
    from diffusers import MotionAdapter as Reference

    return _shaken(Reference(**{**ADAPTER, **config}).eval(), seed)


def reference_control(seed: int = 2, xl: bool = False, **config: Any) -> Any:
    from diffusers import ControlNetModel as Reference

    fields = {**(SDXL if xl else SD15), **config}
    config = {k: v for k, v in fields.items() if k not in ("sample_size", "up_block_types")}
    widths = {"conditioning_embedding_out_channels": (4, 8, 12, 16)}
    return _shaken(Reference(**{**widths, **config}).eval(), seed)


def reference_sparse_control(seed: int = 3, **config: Any) -> Any:
    from diffusers import SparseControlNetModel as Reference

    fields = {k: v for k, v in SD15.items() if k not in ("sample_size", "up_block_types")}
    fields["down_block_types"] = [kind.replace("2D", "Motion") for kind in SD15["down_block_types"]]
    more = {"conditioning_embedding_out_channels": (4, 8, 12, 16), "motion_num_attention_heads": 4}
    return _shaken(Reference(**{**fields, **more, **config}).eval(), seed)


def reference_motion_model(image: Any, adapter: Any | None) -> Any:
    """What the reference makes of both, with the weights of the image model that it forgets."""
    from diffusers import UNetMotionModel as Reference

    made = Reference.from_unet2d(image, adapter).eval()
    if getattr(image, "add_embedding", None) is not None:
        made.add_embedding.load_state_dict(image.add_embedding.state_dict())
    return made


def _shaken(model: Any, seed: int) -> Any:
    """Random weights for all that is new at zero, so that no part of a model goes untested."""
    dice = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        spread = 0.3 / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        centre = 1.0 if "norm" in name and name.endswith("weight") and p.ndim == 1 else 0.0
        p.data = centre + spread * 3 * torch.randn(p.shape, generator=dice)
    return model


def ours(reference: Any) -> Any:
    """kinema's model with the weights of the reference's."""
    kinds = {
        c.__name__: c
        for c in (UNet2DConditionModel, UNetMotionModel, MotionAdapter, ControlNetModel, SparseControlNetModel)
    }
    cls = kinds[type(reference).__name__]
    return fill(cls(reference.config), dict(reference.state_dict()), where="the reference").eval()


def told(frames: int = 5, channels: int = 4, size: tuple[int, int] = (12, 8)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents (b, c, f, h, w), text (b, k, c), pooled text and numbers of two clips."""
    dice = torch.Generator().manual_seed(7)
    numbers = torch.randint(0, 500, (2, 6), generator=dice).float()
    latents = torch.randn(2, channels, frames, *size, generator=dice)
    return latents, torch.randn(2, 7, 16, generator=dice), torch.randn(2, 20, generator=dice), numbers


def text_attentions(unet: Any) -> list[Any]:
    """The attentions that look at text, ours or the reference's, in the order of IP-Adapters' files."""
    return [
        module
        for stage in ("down_blocks", "up_blocks", "mid_block")
        for name, module in unet.named_modules()
        if name.startswith(stage) and name.endswith("attn2") and "motion" not in name
    ]


def text_widths(unet: Any) -> list[int]:
    """How wide they are."""
    return [attention.to_q.out_features for attention in text_attentions(unet)]
