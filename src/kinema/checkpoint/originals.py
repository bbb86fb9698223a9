"""The original files of ModelScope's text-to-video, as its authors first published them, read as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .files import open_weights
from .folder import present, read_json
from .keys import State, read
from .layouts import ldm_vae, modelscope_unet, open_clip_text

UNET = "text2video_pytorch_model.pth"
VAE = "VQGAN_autoencoder.pth"
TEXT = "open_clip_pytorch_model.bin"
CONFIGURATION = "configuration.json"

# DDIM over the betas the authors call linear_sd.
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Original:
    """One component of an original release in the published form: config.json's content, and keys -> tensors."""

    config: Mapping[str, Any]
    state: State
    where: str


def is_modelscope(folder: str | Path) -> bool:
    """Whether a folder holds ModelScope's original U-Net file."""
    return (Path(folder) / UNET).is_file()


def modelscope(folder: str | Path) -> dict[str, Original]:
    """The components "unet", "vae" and "text_encoder" of a folder of original files, mapped, not copied.

    Raises:
        CheckpointError: a file is missing, broken, or not what its name says.
    """
    folder = Path(folder)
    if missing := [name for name in (UNET, VAE, TEXT) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)} of ModelScope's original files; {present(folder)}.")
    latent = 0.18215
    if (folder / CONFIGURATION).is_file():
        model = read_json(folder / CONFIGURATION).get("model")
        latent = (model.get("model_args") or {}).get("scale_factor", latent) if isinstance(model, dict) else latent
    return {
        "unet": unet(open_weights(folder / UNET), str(folder / UNET)),
        "vae": vae(open_weights(folder / VAE), str(folder / VAE), latent),
        "text_encoder": text(open_weights(folder / TEXT), str(folder / TEXT)),
    }


def unet(weights: Mapping[str, Tensor], where: str) -> Original:
    """UNetSD in the published form, its configuration read off the shapes."""
    state = _under(weights, "model.diffusion_model.")
    shapes = _shapes(state, where, "input_blocks.0.0.weight", "input_blocks.0.1.proj_in.weight", "out.2.weight")
    downs = [i for i in range(1, 1000) if f"input_blocks.{i}.op.weight" in state]
    count = _count(state, r"input_blocks\.(\d+)\.")
    levels, layers = len(downs) + 1, (downs[0] if downs else count) - 1
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    if layers < 1 or count != firsts[-1] + layers:
        raise CheckpointError(f"{where} has {count} input blocks, which is no U-Net of ModelScope.")
    cross = [f"input_blocks.{first}.1.proj_in.weight" in state for first in firsts]
    contexts = [key for key in state if key.endswith(".1.transformer_blocks.0.attn2.to_k.weight")]
    config = {
        "_class_name": "UNet3DConditionModel",
        "sample_size": 32,
        "in_channels": shapes[0][1],
        "out_channels": shapes[2][0],
        "block_out_channels": [state[f"input_blocks.{first}.0.out_layers.3.weight"].shape[0] for first in firsts],
        "layers_per_block": layers,
        "cross_attention_dim": next((state[k].shape[1] for k in contexts if not k.startswith("input_blocks.0.")), 1024),
        "attention_head_dim": shapes[1][0] // 8,  # the first temporal transformer always has eight heads
        "down_block_types": ["CrossAttnDownBlock3D" if c else "DownBlock3D" for c in cross],
        "up_block_types": ["CrossAttnUpBlock3D" if c else "UpBlock3D" for c in reversed(cross)],
    }
    return Original(config, read(state, modelscope_unet(levels, layers, cross)), where)


def vae(weights: Mapping[str, Tensor], where: str, scaling_factor: float = 0.18215) -> Original:
    """Latent diffusion's autoencoder in the published form."""
    state = _under(weights, "first_stage_model.")
    shapes = _shapes(state, where, "encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight")
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    layers = _count(state, r"encoder\.down\.0\.block\.(\d+)\.")
    config = {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "in_channels": shapes[0][1],
        "out_channels": shapes[1][0],
        "latent_channels": shapes[2][1],
        "block_out_channels": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling_factor,
    }
    return Original(config, read(state, ldm_vae(levels, layers)), where)


def text(weights: Mapping[str, Tensor], where: str) -> Original:
    """OpenCLIP's text tower without its last layer, as all of ModelScope's conditioning uses it."""
    state = _under(weights, "model.")
    shapes = _shapes(state, where, "token_embedding.weight", "positional_embedding")
    used = _count(state, r"transformer\.resblocks\.(\d+)\.") - 1
    hidden = shapes[0][1]
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": shapes[0][0],
        "hidden_size": hidden,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] if used > 0 else 4 * hidden,
        "num_hidden_layers": used,
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": shapes[1][0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return Original(config, read(state, open_clip_text(used)), where)


def _under(weights: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under a prefix, without it; all of them where none has it."""
    under = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
    return under or dict(weights)


def _count(state: State, pattern: str) -> int:
    """One more than the highest number the pattern finds at a key's beginning."""
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)


def _shapes(state: State, where: str, *keys: str) -> list[tuple[int, ...]]:
    if lacking := [key for key in keys if key not in state or state[key].dim() < 2]:
        raise CheckpointError(f"{where} has no {lacking[0]}, so it is not what its name says; download it again.")
    return [tuple(state[key].shape) for key in keys]
