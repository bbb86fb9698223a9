"""The families of models kinema knows. Importing this makes all of them known to `DiffusionPipeline`."""

from ..pipelines.base import DiffusionPipeline
from .animatediff import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    ControlNetModel,
    MotionAdapter,
    MultiControlNetModel,
    PIAPipeline,
    SparseControlNetModel,
    TextToVideoZeroPipeline,
    TextToVideoZeroSDXLPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from .autoencoder_kl import AutoencoderKL
from .i2vgen import I2VGenXLPipeline, I2VGenXLUNet
from .modelscope import TextToVideoSDPipeline, UNet3DConditionModel, VideoToVideoSDPipeline
from .stable_video import (
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)

# Older names that published snippets use.
StableDiffusionVideoPipeline = StableVideoDiffusionPipeline
TextToVideoMSPipeline = TextToVideoSDPipeline

__all__ = [
    "AnimateDiffControlNetPipeline",
    "AnimateDiffPAGPipeline",
    "AnimateDiffPipeline",
    "AnimateDiffSDXLPipeline",
    "AnimateDiffSparseControlNetPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
    "AnimateDiffVideoToVideoPipeline",
    "AutoencoderKL",
    "AutoencoderKLTemporalDecoder",
    "ControlNetModel",
    "DiffusionPipeline",
    "I2VGenXLPipeline",
    "I2VGenXLUNet",
    "MotionAdapter",
    "MultiControlNetModel",
    "PIAPipeline",
    "SparseControlNetModel",
    "StableDiffusionVideoPipeline",
    "StableVideoDiffusionPipeline",
    "TextToVideoMSPipeline",
    "TextToVideoSDPipeline",
    "TextToVideoZeroPipeline",
    "TextToVideoZeroSDXLPipeline",
    "UNet2DConditionModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "VideoToVideoSDPipeline",
]
