"""Stable Video Diffusion: a picture becomes a clip."""

from .autoencoder import AutoencoderKLTemporalDecoder, AutoencoderKLTemporalDecoderConfig
from .image_to_video import StableVideoDiffusionPipeline
from .unet import ImageConditions, UNetSpatioTemporalConditionModel, UNetSpatioTemporalConfig

__all__ = [
    "AutoencoderKLTemporalDecoder",
    "AutoencoderKLTemporalDecoderConfig",
    "ImageConditions",
    "StableVideoDiffusionPipeline",
    "UNetSpatioTemporalConditionModel",
    "UNetSpatioTemporalConfig",
]
