"""The families of models kinema knows. Importing this makes all of them known to `DiffusionPipeline`."""

from ..pipelines.base import DiffusionPipeline
from .autoencoder_kl import AutoencoderKL
from .modelscope import TextToVideoSDPipeline, UNet3DConditionModel, VideoToVideoSDPipeline

# Older names that published snippets use.
TextToVideoMSPipeline = TextToVideoSDPipeline

__all__ = [
    "AutoencoderKL",
    "DiffusionPipeline",
    "TextToVideoMSPipeline",
    "TextToVideoSDPipeline",
    "UNet3DConditionModel",
    "VideoToVideoSDPipeline",
]
