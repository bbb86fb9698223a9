"""From published files to modules and back: folders, the hub, original files, LoRA, and what a file is."""

from .files import open_weights
from .hub import local_folder
from .load import Pretrained, build, load_model, save_model

__all__ = ["Pretrained", "build", "load_model", "local_folder", "open_weights", "save_model"]
