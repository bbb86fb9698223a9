"""Pixels in, pixels out: pictures and clips are read and written here; knows no network."""

from kinema.media.clips import load_video
from kinema.media.files import cannot_write, check_writable
from kinema.media.frames import convert, to_numpy, to_pil, to_tensor, unit_range
from kinema.media.gif import export_to_gif
from kinema.media.images import export_to_apng, export_to_images, export_to_webp, save_picture
from kinema.media.load import load_image
from kinema.media.motion import Motion, measure_motion
from kinema.media.pictures import fit_picture, nearest_trained_size
from kinema.media.probe import Info, read_info
from kinema.media.save import check_suffix, save
from kinema.media.sheet import contact_sheet
from kinema.media.timing import frame_rate
from kinema.media.video import export_to_video

__all__ = [
    "Info",
    "Motion",
    "cannot_write",
    "check_suffix",
    "check_writable",
    "contact_sheet",
    "convert",
    "export_to_apng",
    "export_to_gif",
    "export_to_images",
    "export_to_video",
    "export_to_webp",
    "fit_picture",
    "frame_rate",
    "load_image",
    "load_video",
    "measure_motion",
    "nearest_trained_size",
    "read_info",
    "save",
    "save_picture",
    "to_numpy",
    "to_pil",
    "to_tensor",
    "unit_range",
]
