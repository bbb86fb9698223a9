"""The original files of ModelScope's text-to-video, as its authors first published them, read as they are."""

from __future__ import annotations

import math
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
from .layouts import ldm_vae, modelscope_unet, open_clip_text, open_clip_vision

UNET = "text2video_pytorch_model.pth"
VAE = "VQGAN_autoencoder.pth"
TEXT = "open_clip_pytorch_model.bin"
CONFIGURATION = "configuration.json"

INNER = "input_blocks.0.1.proj_in.weight"  # of the temporal transformer a clip first meets
_PICTURES = re.compile(r"^(conditioner\.embedders\.\d+\.open_clip\.)?(model\.)?visual\.")

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


def modelscope(folder: str | Path, unet_name: str = UNET) -> dict[str, Original]:
    """The components "unet", "vae" and "text_encoder" of a folder of original files, mapped, not copied.

    Raises:
        CheckpointError: a file is missing, broken, or not what its name says.
    """
    folder = Path(folder)
    if missing := [name for name in (unet_name, VAE, TEXT) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)} of ModelScope's original files; {present(folder)}.")
    latent = 0.18215
    if (folder / CONFIGURATION).is_file():
        model = read_json(folder / CONFIGURATION).get("model")
        latent = (model.get("model_args") or {}).get("scale_factor", latent) if isinstance(model, dict) else latent
    return {
        "unet": unet(open_weights(folder / unet_name), str(folder / unet_name)),
        "vae": vae(open_weights(folder / VAE), str(folder / VAE), latent),
        "text_encoder": text(open_weights(folder / TEXT), str(folder / TEXT)),
    }


def unet(weights: Mapping[str, Tensor], where: str) -> Original:
    """UNetSD in the published form, its configuration read off the shapes."""
    state = under(weights, "model.diffusion_model.")
    first, inner, last = shapes(state, where, "input_blocks.0.0.weight", INNER, "out.2.weight")
    made = structure(state, where, "op")
    config = {
        "_class_name": "UNet3DConditionModel",
        "sample_size": 32,
        "in_channels": first[1],
        "out_channels": last[0],
        "cross_attention_dim": made.context,
        "attention_head_dim": inner[0] // 8,  # the first temporal transformer always has eight heads
        **made.config("CrossAttnDownBlock3D", "DownBlock3D"),
    }
    return Original(config, read(state, modelscope_unet(made.levels, made.layers, made.cross)), where)


def vae(weights: Mapping[str, Tensor], where: str, scaling_factor: float = 0.18215) -> Original:
    """Latent diffusion's autoencoder in the published form."""
    state = under(weights, "first_stage_model.")
    names = ("encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight")
    first, last, latent = shapes(state, where, *names)
    levels = count(state, r"encoder\.down\.(\d+)\.")
    layers = count(state, r"encoder\.down\.0\.block\.(\d+)\.")
    config = {
        "_class_name": "AutoencoderKL",
        "sample_size": 512,
        "in_channels": first[1],
        "out_channels": last[0],
        "latent_channels": latent[1],
        "block_out_channels": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": scaling_factor,
    }
    return Original(config, read(state, ldm_vae(levels, layers)), where)


def text(weights: Mapping[str, Tensor], where: str, unused: int = 1) -> Original:
    """OpenCLIP's text tower without its last `unused` layers; ModelScope's conditioning never uses the last one."""
    state = under(weights, "model.")
    vocabulary, positions = shapes(state, where, "token_embedding.weight", "positional_embedding")
    used = count(state, r"transformer\.resblocks\.(\d+)\.") - unused
    hidden = vocabulary[1]
    config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary[0],
        "hidden_size": hidden,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] if used > 0 else 4 * hidden,
        "num_hidden_layers": used,
        "num_attention_heads": max(1, hidden // 64),
        "max_position_embeddings": positions[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 512,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return Original(config, read(state, open_clip_text(used)), where)


def vision(weights: Mapping[str, Tensor], where: str) -> Original:
    """OpenCLIP's picture tower in the published form, from all of OpenCLIP or from a file that has it inside."""
    state = {key.partition("visual.")[2]: weights[key] for key in weights if _PICTURES.match(key)}
    patch, positions, projection = shapes(state, where, "conv1.weight", "positional_embedding", "proj")
    layers = count(state, r"transformer\.resblocks\.(\d+)\.")
    hidden = positions[1]
    config = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] if layers else 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16 if hidden >= 1024 else max(1, hidden // 64),  # all published large towers have 16
        "num_channels": patch[1],
        "patch_size": patch[2],
        "image_size": patch[2] * math.isqrt(positions[0] - 1),
        "projection_dim": projection[1],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
    ours = read(state, open_clip_vision(layers))
    ours["visual_projection.weight"] = ours["visual_projection.weight"].contiguous()  # as it lies where published
    return Original(config, ours, where)


@dataclass(frozen=True)
class Structure:
    """What the keys and shapes of a U-Net in latent diffusion's layout say of it."""

    levels: int
    layers: int  # at each level
    cross: list[bool]  # which levels attend, finest first
    widths: list[int]
    context: int

    def config(self, cross: str, plain: str) -> dict[str, Any]:
        """The published fields it determines, from the names of the two kinds of stages down."""
        down = [cross if attends else plain for attends in self.cross]
        return {
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": down,
            "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        }


def structure(state: State, where: str, op: str) -> Structure:
    """Levels, layers, widths and attention; `op` is what the files call a level's last block.

    Raises:
        CheckpointError: its blocks are not those of such a U-Net.
    """
    downs = [i for i in range(1, 1000) if f"input_blocks.{i}.{op}.weight" in state]
    blocks = count(state, r"input_blocks\.(\d+)\.")
    levels, layers = len(downs) + 1, (downs[0] if downs else blocks) - 1
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    widths = [f"input_blocks.{first}.0.out_layers.3.weight" for first in firsts]
    if layers < 1 or blocks != firsts[-1] + layers or any(key not in state for key in widths):
        raise CheckpointError(f"{where} has {blocks} input blocks, which make no U-Net of these models.")
    contexts = [key for key in state if key.endswith(".1.transformer_blocks.0.attn2.to_k.weight")]
    return Structure(
        levels,
        layers,
        [f"input_blocks.{first}.1.proj_in.weight" in state for first in firsts],
        [state[key].shape[0] for key in widths],
        next((state[key].shape[1] for key in contexts if not key.startswith("input_blocks.0.")), 1024),
    )


def under(weights: Mapping[str, Tensor], prefix: str) -> State:
    """The entries under a prefix, without it; all of them where none has it."""
    under = {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
    return under or dict(weights)


def count(state: State, pattern: str) -> int:
    """One more than the highest number the pattern finds at a key's beginning."""
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)


def shapes(state: State, where: str, *keys: str) -> list[tuple[int, ...]]:
    if lacking := [key for key in keys if key not in state or state[key].dim() < 2]:
        raise CheckpointError(f"{where} has no {lacking[0]}, so it is not what its name says; download it again.")
    return [tuple(state[key].shape) for key in keys]
