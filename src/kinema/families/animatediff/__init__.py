"""AnimateDiff: an image model learns to move; and everything people plug into it."""

from .adapter import MotionAdapter
from .unet import MotionConditions, UNet2DConditionModel, UNetMotionModel

__all__ = ["MotionAdapter", "MotionConditions", "UNet2DConditionModel", "UNetMotionModel"]
