"""Keys and shapes of published files, and files of such headers that take no space."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from kinema.checkpoint.keys import write

Shapes = dict[str, tuple[int, ...]]


def of(make: Callable[[], torch.nn.Module]) -> Shapes:
    """Keys and shapes of a published model, without memory."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in make().state_dict().items()}


def through(shapes: Shapes, rules: Any) -> Shapes:
    state = {k: torch.empty(v, device="meta") for k, v in shapes.items()}
    return {k: tuple(v.shape) for k, v in write(state, rules).items()}


def vae() -> Shapes:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return of(lambda: diffusers.AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks))


def text(width: int, layers: int = 2, heads: int = 4) -> Shapes:
    config = transformers.CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads)
    return {
        f"text_model.{k.removeprefix('text_model.')}": v
        for k, v in of(lambda: transformers.CLIPTextModel(config)).items()
    }


def motion(**fields: Any) -> Shapes:
    return of(lambda: diffusers.MotionAdapter(**fields))


def original_motion(shapes: Shapes) -> Shapes:
    """AnimateDiff's own names of a motion module."""
    renames = {
        "motion_modules.": "motion_modules.",
        ".attn1.": ".attention_blocks.0.",
        ".attn2.": ".attention_blocks.1.",
        ".norm1.": ".norms.0.",
        ".norm2.": ".norms.1.",
        ".norm3.": ".ff_norm.",
    }
    result: Shapes = {}
    for key, shape in shapes.items():
        key = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", key)
        for ours, theirs in renames.items():
            key = key.replace(ours, theirs)
        result[key.replace("pos_embed.pe", "attention_blocks.0.pos_encoder.pe")] = shape
    return result


def without(shapes: Shapes, pattern: str) -> Shapes:
    return {k: v for k, v in shapes.items() if not re.search(pattern, k)}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + k: v for k, v in shapes.items()}


def lora(pattern: str, width: int, **more: tuple[int, ...]) -> Shapes:
    down, up = ("A", "B") if "lora_X" in pattern else ("down", "up")
    spell = lambda role: pattern.replace("lora_X", f"lora_{role}").replace("{role}", role)  # noqa: E731
    return {spell(down): (4, width), spell(up): (320, 4), **more}


def sparse(**fields: Any) -> Shapes:
    return of(lambda: diffusers.SparseControlNetModel(**fields))


def header_only(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> Path:
    """A safetensors file of these tensors that takes no space: all of its data is a hole."""
    size = {"F16": 2, "F32": 4, "F64": 8}[dtype]
    header, end = {}, 0
    for name, shape in shapes.items():
        n = size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n]}
        end += n
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    return path
