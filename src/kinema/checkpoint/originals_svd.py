"""Stable Video Diffusion's original single files (`svd_xt.safetensors` and its kin), read as they are."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import open_weights
from .keys import State, read
from .layouts import svd_unet, temporal_vae
from .originals import Original, count, shapes, structure, under, vae, vision

log = logging.getLogger("kinema")

FILES = re.compile(r"(stable[-_]?video[-_]?diffusion|svd|stable[-_]?vid)[\w.-]*\.(safetensors|ckpt)$", re.IGNORECASE)
FRAMES = 25  # of most of them, where a file's name does not say

# As published beside the folder layout of the same weights.
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "trained_betas": None,
    "use_karras_sigmas": True,
}

# What OpenCLIP's pictures are prepared with, in the published spelling of `feature_extractor/`.
PROCESSOR: Mapping[str, Any] = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}

# The part of the conditioner that encodes the picture: an encoder with its own quant_conv. The first stage's encoder
# has none (it is folded into its last layer), so the two must not be mixed.
PARTS = ("unet", "vae", "image_encoder")
_CONDITIONER = re.compile(r"^conditioner\.embedders\.\d+\.encoder\.(?=(encoder|quant_conv)\.)")


def processor(encoder: Any = None) -> dict[str, Any]:
    """How pictures are prepared for an image encoder, as published; what it sees is as large as it was trained on."""
    side = getattr(getattr(encoder, "config", None), "image_size", None) or PROCESSOR["size"]["shortest_edge"]
    return {**PROCESSOR, "crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}


def svd_files(folder: str | Path) -> list[Path]:
    """The files of a folder that are named like Stable Video Diffusion's original ones."""
    named = (path for path in Path(folder).glob("*") if FILES.match(path.name) and "lora" not in path.name.lower())
    return sorted(path for path in named if path.is_file())


def stable_video(file: str | Path, wanted: Collection[str] = PARTS) -> dict[str, Original]:
    """The wanted components of one original file, by name, mapped, not copied.

    The autoencoder is an `AutoencoderKL` where the file is one of the `*_image_decoder` kind.

    Raises:
        CheckpointError: the file is broken, has only some of them, or is not what its name says.
    """
    weights, where = open_weights(file), str(file)
    found = {"unet": unet(weights, where, frames_of(Path(file).name))} if "unet" in wanted else {}
    inside = {"vae": "first_stage_model.", "image_encoder": "conditioner."}
    if lost := [part for part, prefix in inside.items() if part in wanted and not _has(weights, prefix)]:
        raise CheckpointError(f"{where} holds only the U-Net; pass {' and '.join(f'{part}=' for part in lost)} too.")
    readers = {"vae": autoencoder, "image_encoder": vision}
    return found | {part: read_part(weights, where) for part, read_part in readers.items() if part in wanted}


def frames_of(name: str) -> int:
    """How many frames a file of this name was trained on, which its weights do not say."""
    words = re.split(r"[^a-z0-9]+", Path(name).stem.lower())
    if "xt" in words or "svdxt" in words:
        return 25
    if "svd" in words or "img2vid" in words:
        return 14
    log.warning(
        "%s does not say whether it was trained on 14 or 25 frames; %d is taken. Where that is wrong, give num_frames.",
        name,
        FRAMES,
    )
    return FRAMES


def unet(weights: Mapping[str, Tensor], where: str, frames: int = FRAMES) -> Original:
    """VideoUNet in the published form, its configuration read off the shapes."""
    state = under(weights, "model.diffusion_model.")
    first, last, numbers = shapes(state, where, "input_blocks.0.0.weight", "out.2.weight", "label_emb.0.0.weight")
    made = structure(state, where, "0.op")
    config = {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "sample_size": 96,
        "in_channels": first[1],
        "out_channels": last[0],
        "addition_time_embed_dim": numbers[1] // 3,  # three numbers: frames a second, motion, noise augmentation
        "projection_class_embeddings_input_dim": numbers[1],
        "cross_attention_dim": made.context,
        "num_attention_heads": [max(1, width // 64) for width in made.widths],
        "transformer_layers_per_block": max(1, count(state, r"middle_block\.1\.transformer_blocks\.(\d+)\.")),
        "num_frames": frames,
        **made.config("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    }
    return Original(config, read(state, svd_unet(made.levels, made.layers, made.cross)), where)


def autoencoder(weights: Mapping[str, Tensor], where: str) -> Original:
    """The autoencoder in the published form: the encoder that reads the picture, the decoder that writes the clip."""
    if not any(".time_stack." in key and key.startswith(("first_stage_model.", "decoder.")) for key in weights):
        return vae(weights, where)
    state = {key: value for key, value in under(weights, "first_stage_model.").items() if key.startswith("decoder.")}
    state |= _encoder(weights, where)
    first, last, latent = shapes(
        state, where, "encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_in.weight"
    )
    levels = count(state, r"encoder\.down\.(\d+)\.")
    layers = count(state, r"encoder\.down\.0\.block\.(\d+)\.")
    config = {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "sample_size": 768,
        "in_channels": first[1],
        "out_channels": last[0],
        "latent_channels": latent[1],
        "block_out_channels": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "scaling_factor": 0.18215,
        "force_upcast": True,
    }
    return Original(config, read(state, temporal_vae(levels, layers)), where)


def _has(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in weights)


def _encoder(weights: Mapping[str, Tensor], where: str) -> State:
    """`encoder.` and `quant_conv.` as the conditioner has them; else the first stage's, which needs no quant_conv."""
    if found := {_CONDITIONER.sub("", key): weights[key] for key in weights if _CONDITIONER.match(key)}:
        return found
    found = {key: value for key, value in under(weights, "first_stage_model.").items() if key.startswith("encoder.")}
    if "encoder.conv_out.bias" not in found:
        raise CheckpointError(f"{where} has no encoder for pictures; take a whole original file, or pass vae=.")
    bias = found["encoder.conv_out.bias"]
    same = torch.eye(len(bias), dtype=bias.dtype)[:, :, None, None]
    return {**found, "quant_conv.weight": same, "quant_conv.bias": torch.zeros_like(bias)}
