"""A pipeline from I2VGen-XL's original U-Net and the files its authors took from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoint.dtypes import to_dtype
from ...checkpoint.fill import build, fill
from ...checkpoint.originals_i2vgen import SCHEDULER, i2vgen, i2vgen_files
from ...checkpoint.originals_svd import processor
from ...encoders.clip import text_encoder_from
from ...pipelines.originals import Originals
from ...pipelines.parts import Source
from ..autoencoder_kl import AutoencoderKL
from ..modelscope.original_files import tokenizer_beside
from .unet import I2VGenXLUNet


def from_originals(source: Source, file: Path, wanted: set[str]) -> dict[str, Any]:
    """A pipeline's parts from the U-Net's file and those beside it; the tokenizer lies beside them or is passed."""
    from ...encoders.vision import FeatureExtractor, vision_encoder_from
    from ...sampling.schedulers import DDIMScheduler

    dtype = to_dtype(source.dtype)
    loaded: dict[str, Any] = {}
    if "tokenizer" in wanted:
        loaded["tokenizer"] = tokenizer_beside(source, "I2VGen-XL's", "i2vgen-xl")
    found = i2vgen(file, wanted)
    for name, cls in (("unet", I2VGenXLUNet), ("vae", AutoencoderKL)):
        if name in found:
            model = build(cls, found[name].config, found[name].where)
            loaded[name] = fill(model, found[name].state, where=found[name].where, dtype=dtype)
    for name, encoder in (("text_encoder", text_encoder_from), ("image_encoder", vision_encoder_from)):
        if name in found:
            loaded[name] = encoder(found[name].config, found[name].state, dtype)
    loaded["scheduler"] = DDIMScheduler.from_config(SCHEDULER)
    loaded["feature_extractor"] = FeatureExtractor.read(processor(loaded.get("image_encoder")))
    return loaded


ORIGINALS = Originals(("I2VGen-XL U-Net, original file",), i2vgen_files, from_originals)
