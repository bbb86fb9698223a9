"""AnimateDiff: an image model learns to move; and everything people plug into it."""

from .adapter import MotionAdapter
from .controlled import Control, Controlled, SparseControl
from .controlnet import ControlNetModel, MultiControlNetModel
from .ip_adapter import IPAdapter, Shown
from .pag import AnimateDiffPAGPipeline
from .perturbed import Perturbed
from .pia import PIAPipeline
from .sdxl import AnimateDiffSDXLPipeline
from .sparse_controlnet import SparseControlNetModel
from .steered import (
    AnimateDiffControlNetPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
)
from .text_to_video import AnimateDiffPipeline
from .unet import MotionConditions, UNet2DConditionModel, UNetMotionModel
from .video_to_video import AnimateDiffVideoToVideoPipeline
from .zero import TextToVideoZeroPipeline, TextToVideoZeroSDXLPipeline

__all__ = [
    "AnimateDiffControlNetPipeline",
    "AnimateDiffPAGPipeline",
    "AnimateDiffPipeline",
    "AnimateDiffSDXLPipeline",
    "AnimateDiffSparseControlNetPipeline",
    "AnimateDiffVideoToVideoControlNetPipeline",
    "AnimateDiffVideoToVideoPipeline",
    "Control",
    "ControlNetModel",
    "Controlled",
    "IPAdapter",
    "MotionAdapter",
    "MotionConditions",
    "MultiControlNetModel",
    "PIAPipeline",
    "Perturbed",
    "Shown",
    "SparseControl",
    "SparseControlNetModel",
    "TextToVideoZeroPipeline",
    "TextToVideoZeroSDXLPipeline",
    "UNet2DConditionModel",
    "UNetMotionModel",
]
