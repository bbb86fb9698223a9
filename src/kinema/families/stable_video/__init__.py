"""Stable Video Diffusion: a picture becomes a clip."""

from .unet import ImageConditions, UNetSpatioTemporalConditionModel, UNetSpatioTemporalConfig

__all__ = ["ImageConditions", "UNetSpatioTemporalConditionModel", "UNetSpatioTemporalConfig"]
