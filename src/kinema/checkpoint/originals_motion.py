"""Motion modules and SparseCtrl as their authors and finetuners share them, read as they are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .keys import State, read
from .layouts_image import motion_module
from .originals import Original, count, shapes

LENGTH = 32  # frames, where a file (AnimateLCM's) has no positions that would say it
MOTION = re.compile(r"\.(motion_modules|temporal_attentions)\.\d+\.")
_IMAGE = "down_blocks.0.resnets.0.conv1.weight"


def motion_adapter(weights: Mapping[str, Tensor], where: str) -> Original:
    """A motion module in the published form of a MotionAdapter, from AnimateDiff's spelling, HotshotXL's or diffusers'.

    Of a file that holds more (a whole U-Net), only the motion is taken; of PIA's also its first layer, which reads
    the mask and the picture beside the latents.

    Raises:
        CheckpointError: it holds no motion module, or one that needs more than a MotionAdapter.
    """
    state = _plain(weights)
    if any(key.startswith("img_encoder.") for key in state):
        raise CheckpointError(
            f"{where} is AnimateLCM-I2V, whose own picture encoder no published class has; take AnimateLCM_sd15_t2v."
        )
    kept = {key: value for key, value in state.items() if MOTION.search(key)}
    if not kept:
        raise CheckpointError(f"{where} holds no motion module; `kinema inspect` says what it is.")
    if _IMAGE not in state:
        kept |= {key: value for key, value in state.items() if key.startswith("conv_in.")}
    ours = _read(kept, where)
    if "conv_in.weight" in ours and ours["conv_in.weight"].shape[1] == 4:
        ours = {key: value for key, value in ours.items() if not key.startswith("conv_in.")}
    made = _Made.of(ours, where)
    config: dict[str, Any] = {
        "_class_name": "MotionAdapter",
        "block_out_channels": made.widths,
        "motion_layers_per_block": made.layers,
        "motion_transformer_layers_per_block": made.depth,
        "motion_mid_block_layers_per_block": max(1, made.middle),
        "motion_transformer_layers_per_mid_block": made.depth,
        "motion_num_attention_heads": 8,
        "motion_norm_num_groups": 32,
        "motion_max_seq_length": made.length,
        "use_motion_mid_block": made.middle > 0,
        "conv_in_channels": ours["conv_in.weight"].shape[1] if "conv_in.weight" in ours else None,
    }
    return Original(config, positioned(ours, made.length), where)


def sparse_control(weights: Mapping[str, Tensor], where: str) -> Original:
    """SparseCtrl, RGB or scribble, in the published form of a SparseControlNetModel.

    Raises:
        CheckpointError: it is no SparseCtrl.
    """
    state = _read(_plain(weights), where, attentions=1)
    simple = "controlnet_cond_embedding.weight" in state
    read_by = "controlnet_cond_embedding." + ("weight" if simple else "conv_in.weight")
    first, hint = shapes(state, where, "conv_in.weight", read_by)
    made = _Made.of(state, where)
    queries = "down_blocks.{}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    cross = [queries.format(i) in state for i in range(len(made.widths))]
    inner = count(state, r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    widths = [hint[0]] + [state[f"controlnet_cond_embedding.blocks.{i}.weight"].shape[0] for i in range(1, inner, 2)]
    config: dict[str, Any] = {
        "_class_name": "SparseControlNetModel",
        "in_channels": first[1],
        "conditioning_channels": hint[1] - 1,  # beside a mask of the frames that are given
        "concat_conditioning_mask": True,
        "use_simplified_condition_embedding": simple,
        "conditioning_embedding_out_channels": [16, 32, 96, 256] if simple else widths,
        "block_out_channels": made.widths,
        "layers_per_block": made.layers,
        "down_block_types": ["CrossAttnDownBlockMotion" if attends else "DownBlockMotion" for attends in cross],
        "cross_attention_dim": next((state[queries.format(i)].shape[1] for i in range(len(cross)) if cross[i]), 768),
        "attention_head_dim": 8,
        "motion_max_seq_length": made.length,
        "motion_num_attention_heads": 8,
    }
    return Original(config, positioned(state, made.length), where)


@dataclass(frozen=True)
class _Made:
    """What the keys and shapes of motion modules in the published spelling say of them."""

    widths: list[int]
    layers: int  # at each level, on the way down
    middle: int
    depth: int  # transformer blocks in a module
    length: int  # frames

    @classmethod
    def of(cls, state: State, where: str) -> _Made:
        """Reads it off.

        Raises:
            CheckpointError: levels are missing.
        """
        levels = count(state, r"down_blocks\.(\d+)\.motion_modules\.")
        norms = [f"down_blocks.{i}.motion_modules.0.norm.weight" for i in range(levels)]
        if lacking := [key for key in norms if key not in state] or ["down_blocks"] * (not levels):
            raise CheckpointError(f"{where} has no {lacking[0]}, so it is no whole motion module.")
        lengths = [value.shape[1] for key, value in state.items() if key.endswith(".pos_embed.pe")]
        return cls(
            [state[key].shape[0] for key in norms],
            count(state, r"down_blocks\.0\.motion_modules\.(\d+)\."),
            count(state, r"mid_block\.motion_modules\.(\d+)\."),
            count(state, r"down_blocks\.0\.motion_modules\.0\.transformer_blocks\.(\d+)\."),
            lengths[0] if lengths else LENGTH,
        )


def positions(length: int, width: int) -> Tensor:
    """Sinusoidal positions (1, length, width), sines and cosines in turn (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).reshape(1, length, -1)[..., :width]


def positioned(state: State, length: int) -> State:
    """With the positions of every module: exact where a file has none or rounded ones, its own where they differ."""
    made: dict[int, Tensor] = {}
    result = dict(state)
    for key, value in state.items():
        if not (MOTION.search(key) and key.endswith(".norm1.weight")):
            continue
        name, width = key.replace(".norm1.weight", ".pos_embed.pe"), len(value)
        exact = made.setdefault(width, positions(length, width))
        given = result.get(name)
        if given is None or (given.shape == exact.shape and torch.allclose(given.float(), exact, atol=5e-3, rtol=0)):
            result[name] = exact
    return result


def _plain(weights: Mapping[str, Tensor]) -> State:
    """Without the name that training on several devices puts before every key, and without notes among the tensors."""
    keys = {key.removeprefix("module."): key for key in weights}
    return {name: weights[key] for name, key in keys.items() if name != "animatediff_config"}


def _read(state: State, where: str, attentions: int = 2) -> State:
    """Motion modules in the published spelling; what is no motion module stays."""
    hotshot = any(".temporal_attentions." in key for key in state)
    if not hotshot and not any(".temporal_transformer." in key for key in state):
        return state
    name = "temporal_attentions" if hotshot else "motion_modules"
    levels, layers = count(state, rf"down_blocks\.(\d+)\.{name}\."), count(state, rf"down_blocks\.0\.{name}\.(\d+)\.")
    middle = count(state, rf"mid_block\.{name}\.(\d+)\.")
    depth = 1 + max(
        (int(m[1]) for key in state if MOTION.search(key) and (m := re.search(r"transformer_blocks\.(\d+)\.", key))),
        default=0,
    )
    return read(state, motion_module(levels, layers, middle, depth, hotshot, attentions))
