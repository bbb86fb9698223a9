"""A pipeline from the single files Stability AI published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoint.dtypes import to_dtype
from ...checkpoint.fill import build, fill
from ...checkpoint.originals_svd import SCHEDULER, processor, stable_video, svd_files
from ...pipelines.originals import Originals
from ...pipelines.parts import Source
from ..autoencoder_kl import AutoencoderKL
from .autoencoder import AutoencoderKLTemporalDecoder
from .unet import UNetSpatioTemporalConditionModel

CLASSES = {cls.__name__: cls for cls in (UNetSpatioTemporalConditionModel, AutoencoderKLTemporalDecoder, AutoencoderKL)}


def from_originals(source: Source, file: Path, wanted: set[str]) -> dict[str, Any]:
    """A pipeline's parts from one file; how pictures and noise are prepared is the same for all of them."""
    from ...encoders.vision import FeatureExtractor, vision_encoder_from
    from ...sampling.schedulers import EulerDiscreteScheduler

    dtype = to_dtype(source.dtype)
    loaded: dict[str, Any] = {}
    for name, part in stable_video(file, wanted).items():
        if name == "image_encoder":
            loaded[name] = vision_encoder_from(part.config, part.state, dtype)
        else:
            model: Any = build(CLASSES[part.config["_class_name"]], part.config, part.where)
            loaded[name] = fill(model, part.state, where=part.where, dtype=dtype)
    loaded["scheduler"] = EulerDiscreteScheduler.from_config(SCHEDULER)
    loaded["feature_extractor"] = FeatureExtractor.read(processor(loaded.get("image_encoder")))
    return loaded


ORIGINALS = Originals(
    (
        "Stable Video Diffusion, original single file",
        "Stable Video Diffusion with image decoder, original single file",
        "Stable Video Diffusion U-Net, original file",
    ),
    svd_files,
    from_originals,
)
