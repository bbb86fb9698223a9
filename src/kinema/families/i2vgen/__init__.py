"""I2VGen-XL: a picture and a text become a clip."""

from .image_to_video import I2VGenXLPipeline
from .unet import I2VGenXLConfig, I2VGenXLUNet, PictureTextConditions

__all__ = ["I2VGenXLConfig", "I2VGenXLPipeline", "I2VGenXLUNet", "PictureTextConditions"]
