"""Tiny I2VGen-XL networks and pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

from typing import Any

import diffusers
from tests import reference

import kinema


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
