"""ModelScope text-to-video (and zeroscope): a text becomes a clip, or changes one."""

from .text_to_video import TextToVideoSDPipeline
from .unet import TextConditions, UNet3DConditionModel, UNet3DConfig
from .video_to_video import VideoToVideoSDPipeline

__all__ = ["TextConditions", "TextToVideoSDPipeline", "UNet3DConditionModel", "UNet3DConfig", "VideoToVideoSDPipeline"]
