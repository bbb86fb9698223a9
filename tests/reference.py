"""Tiny random pipelines of the reference, to compare numbers with. Not a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def randomized(module: torch.nn.Module, seed: int = 0) -> Any:
    """Weights large enough that every layer shows in the output; zero initialisations would hide mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=g) * (0.8 / p[0].numel() ** 0.5))
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.05)
            else:
                p.copy_(1 + torch.randn(p.shape, generator=g) * 0.1)
    return module.eval().requires_grad_(False)


def tokenizer(folder: Path, length: int = 77) -> CLIPTokenizer:
    """One token for each printable character, inside and at the end of words."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = [chr(i) for i in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def text_encoder(width: int = 32, layers: int = 3, seed: int = 0) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=layers,
        vocab_size=190,
        bos_token_id=188,
        eos_token_id=189,
        pad_token_id=189,
        projection_dim=width,
    )
    return randomized(CLIPTextModel(config), seed)


def unet3d(seed: int = 0, **fields: Any) -> diffusers.UNet3DConditionModel:
    config = {
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        **fields,
    }
    return randomized(diffusers.UNet3DConditionModel(**config), seed)


def autoencoder(seed: int = 0, **fields: Any) -> diffusers.AutoencoderKL:
    channels = fields.pop("block_out_channels", (32, 64))
    config = {
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(channels),
        "sample_size": 32,
        **fields,
    }
    return randomized(diffusers.AutoencoderKL(**config), seed)


def text_to_video(
    folder: Path, *, scheduler: Any = None, unet: Any = None, vae: Any = None, video: bool = False, seed: int = 0
) -> Any:
    """A pipeline of the reference; saved to `folder` it loads into kinema."""
    cls = diffusers.VideoToVideoSDPipeline if video else diffusers.TextToVideoSDPipeline
    pipe = cls(
        vae=vae or autoencoder(seed),
        text_encoder=text_encoder(seed=seed),
        tokenizer=tokenizer(folder / "_tokenizer"),
        unet=unet or unet3d(seed),
        scheduler=scheduler
        or diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
