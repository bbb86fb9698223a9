"""A pipeline from the one file in which people share an image model: Stable Diffusion 1.5 or SDXL."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoint import originals_image as image
from ...checkpoint.dtypes import to_dtype
from ...checkpoint.files import Weights, open_weights
from ...checkpoint.fill import build, fill
from ...checkpoint.hub import local_folder
from ...checkpoint.pairing import check_pairing
from ...errors import CheckpointError
from ...pipelines import parts
from ...pipelines.originals import Originals
from ...pipelines.parts import Source
from ..autoencoder_kl import AutoencoderKL
from .unet import UNet2DConditionModel

log = logging.getLogger("kinema")

# The betas that motion modules were trained with, whatever the image model's own are.
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
}
SCHEDULER_XL = {**SCHEDULER, "beta_schedule": "scaled_linear", "beta_end": 0.02}  # of the authors' module for SDXL
# Those of the image models, Stable Diffusion 1.x and SDXL, where no motion module has others.
SCHEDULER_STILL = {**SCHEDULER, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}

CLIP = "openai/clip-vit-large-patch14"  # whose tokenizer all of these models use
_BASE = {"tokenizer": "stable-diffusion-v1-5", "tokenizer_2": "stable-diffusion-xl-base-1.0"}
_INSIDE = {
    "unet": ("U-Net", (image.SD,)),
    "vae": ("autoencoder", (image.VAE,)),
    "text_encoder": ("text encoder", image.TEXT),
    "text_encoder_2": ("second text encoder", (image.TEXT_2,)),
}


def from_originals(source: Source, file: Path, wanted: set[str], moving: bool = True) -> dict[str, Any]:
    """The wanted parts of a pipeline that are in one file; tokenizers lie beside it, in the hub's cache, or are passed.

    Args:
        moving: whether a motion module will be put on the image model, whose noise schedule is then taken.

    Raises:
        CheckpointError: a wanted part is not in the file or not beside it; the message says what to pass.
    """
    weights, where = open_weights(file), str(file)
    for name, (what, prefixes) in _INSIDE.items():
        if name in wanted and not any(key.startswith(prefixes) for key in weights):
            raise CheckpointError(f"{where} holds no {what}; pass {name}= too.")
    loaded: dict[str, Any] = {name: _tokenizer(source, name) for name in _BASE if name in wanted}
    dtype = to_dtype(source.dtype)
    if "unet" in wanted:
        found = image.unet(weights, where)
        loaded["unet"] = fill(build(UNet2DConditionModel, found.config, where), found.state, where=where, dtype=dtype)
    if "vae" in wanted:
        found = image.autoencoder(weights, where)
        loaded["vae"] = fill(build(AutoencoderKL, found.config, where), found.state, where=where, dtype=dtype)
    return loaded | _texts(weights, where, wanted, dtype) | _scheduler(weights, wanted, moving)


def check_beside(source: Source, components: Mapping[str, Any]) -> None:
    """Makes sure, by the file's header alone, that what is given beside an image model was made for it.

    Raises:
        CheckpointError: it was made for another one.
    """
    controls = components.get("controlnet")
    nets = controls if isinstance(controls, (list, tuple)) else getattr(controls, "nets", [controls])
    adapters = components.get("motion_adapter")
    several = adapters.values() if isinstance(adapters, Mapping) else [adapters]
    given = [one for one in (*several, *nets) if one is not None]
    if source.file is None or "unet" in components or not given:
        return
    base = image.unet(open_weights(source.file), str(source.file)).config
    for one in given:
        check_pairing(type(one).__name__, one.config, base)


def _texts(weights: Weights, where: str, wanted: set[str], dtype: Any) -> dict[str, Any]:
    from ...encoders.clip import text_encoder_from

    loaded: dict[str, Any] = {}
    if "text_encoder" in wanted:
        found = image.text(weights, where)
        loaded["text_encoder"] = text_encoder_from(found.config, found.state, dtype)
    if "text_encoder_2" in wanted:
        found = image.text_2(weights, where)
        loaded["text_encoder_2"] = text_encoder_from(found.config, found.state, dtype, projected=True)
    return loaded


def _scheduler(weights: Weights, wanted: set[str], moving: bool) -> dict[str, Any]:
    """With the betas of motion modules or images; finetunes that predict velocity say so by names of empty tensors."""
    if "scheduler" not in wanted:
        return {}
    from ...sampling.schedulers import DDIMScheduler

    velocity = {"prediction_type": "v_prediction"} if "v_pred" in weights else {}
    zero = {"rescale_betas_zero_snr": True} if "ztsnr" in weights else {}
    modules = SCHEDULER_XL if image.is_xl(weights, str(weights.path)) else SCHEDULER
    config = modules if moving else SCHEDULER_STILL
    return {"scheduler": DDIMScheduler.from_config({**config, **velocity, **zero})}


def _tokenizer(source: Source, name: str) -> Any:
    """What lies beside the file under this name; else CLIP's own, where this machine has it already."""
    if (source.folder / name).is_dir():
        return parts.tokenizer().load(source, name)
    from ...encoders.clip import load_tokenizer

    try:
        tokenizer = load_tokenizer(local_folder(CLIP, local_files_only=True))
    except CheckpointError:
        raise CheckpointError(
            f"{source.file or source.folder} holds no tokenizer: put the folder {name}/ of {_BASE[name]} beside it, "
            f"or pass {name}=."
        ) from None
    log.info("the %s is that of %s, from the cache of the hub", name, CLIP)
    if name == "tokenizer_2":
        tokenizer.pad_token = "!"  # SDXL's second encoder was trained with zeros behind the text
    return tokenizer


def _none(folder: Path) -> list[Path]:
    """Such files have any name, so a folder does not tell them apart from others; one is named itself."""
    return []


SD15_FILE, SDXL_FILE = "Stable Diffusion 1.x, single file", "SDXL, single file"
ORIGINALS, ORIGINALS_XL = (Originals((kind,), _none, from_originals) for kind in (SD15_FILE, SDXL_FILE))
ORIGINALS_STILL, ORIGINALS_STILL_XL = (
    Originals((kind,), _none, partial(from_originals, moving=False)) for kind in (SD15_FILE, SDXL_FILE)
)
