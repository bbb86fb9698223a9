"""The original files of I2VGen-XL: its own U-Net, and the autoencoder and encoders its authors took from others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .files import open_weights
from .folder import present
from .keys import read
from .layouts import i2vgen_unet
from .originals import INNER, TEXT, Original, shapes, structure, text, under, vae, vision

FILES = re.compile(r"i2vgen[-_]?xl[\w.-]*\.(pth|safetensors)$", re.IGNORECASE)
VAES = ("v2-1_512-ema-pruned.ckpt", "v2-1_512-ema-pruned.safetensors")
PARTS = ("unet", "vae", "text_encoder", "image_encoder")
ENCODERS = (TEXT, "open_clip_pytorch_model.safetensors", "open_clip_model.safetensors")

# As published beside the folder layout of the same weights.
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def i2vgen_files(folder: str | Path) -> list[Path]:
    """The files of a folder that are named like I2VGen-XL's original U-Net."""
    return sorted(path for path in Path(folder).glob("*") if path.is_file() and FILES.match(path.name))


def i2vgen(file: str | Path, wanted: Collection[str] = PARTS) -> dict[str, Original]:
    """The wanted components of an original U-Net file and of the files beside it, by name, mapped, not copied.

    Raises:
        CheckpointError: a file is missing, broken, or not what its name says.
    """
    file = Path(file)
    found: dict[str, Original] = {}
    if "unet" in wanted:
        found["unet"] = unet(open_weights(file), str(file))
    if "vae" in wanted:
        path = _beside(file, VAES, "vae", "the autoencoder of Stable Diffusion 2.1")
        found["vae"] = vae(open_weights(path), str(path))
    if towers := {"text_encoder", "image_encoder"} & set(wanted):
        path = _beside(file, ENCODERS, " and ".join(sorted(towers)), "OpenCLIP ViT-H-14 of LAION")
        weights = open_weights(path)
        if "text_encoder" in wanted:
            found["text_encoder"] = text(weights, str(path), unused=0)  # which layers count is the pipeline's to say
        if "image_encoder" in wanted:
            found["image_encoder"] = vision(weights, str(path))
    return found


def unet(weights: Mapping[str, Tensor], where: str) -> Original:
    """UNetSD_I2VGen in the published form, its configuration read off the shapes."""
    state = under(weights, "model.diffusion_model.")
    first, inner, last, _ = shapes(
        state, where, "input_blocks.0.0.weight", INNER, "out.2.weight", "local_image_concat.0.weight"
    )
    made = structure(state, where, "op")
    config = {
        "_class_name": "I2VGenXLUNet",
        "sample_size": 32,
        "in_channels": first[1] // 2,  # the picture's own channels ride along with as many of noise
        "out_channels": last[0],
        "cross_attention_dim": made.context,
        "attention_head_dim": inner[0] // 8,  # the first temporal transformer always has eight heads
        **made.config("CrossAttnDownBlock3D", "DownBlock3D"),
    }
    return Original(config, read(state, i2vgen_unet(made.levels, made.layers, made.cross)), where)


def _beside(file: Path, names: tuple[str, ...], part: str, what: str) -> Path:
    """The first of these files beside the U-Net's."""
    for name in names:
        if (file.parent / name).is_file():
            return file.parent / name
    raise CheckpointError(
        f"{file.name} holds only I2VGen-XL's U-Net, and {what} is missing: put {names[0]} beside it, or pass "
        f"{part}=; {present(file.parent)}."
    )
