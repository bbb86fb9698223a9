"""Pixels in, pixels out: pictures and clips are read and written here; knows no network."""

from kinema.media.files import check_writable
from kinema.media.frames import to_numpy, to_pil, to_tensor
from kinema.media.gif import export_to_gif
from kinema.media.load import load_image
from kinema.media.video import export_to_video

__all__ = ["check_writable", "export_to_gif", "export_to_video", "load_image", "to_numpy", "to_pil", "to_tensor"]
