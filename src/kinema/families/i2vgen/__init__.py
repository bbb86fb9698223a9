"""I2VGen-XL: a picture and a text become a clip."""

from .unet import I2VGenXLConfig, I2VGenXLUNet, PictureTextConditions

__all__ = ["I2VGenXLConfig", "I2VGenXLUNet", "PictureTextConditions"]
