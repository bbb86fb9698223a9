"""The models that ship with kinema: small, trained on the drawn world, there without any download."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..checkpoint.hub import BOX, box
from ..errors import InputError

DEFAULT = "kinema/toy-text-to-video"


class Toy(NamedTuple):
    """A model in the box."""

    name: str  # the short one
    does: str
    default: str  # where the command line takes it unasked


TOYS = (
    Toy("toy", "text to video", "the default"),
    Toy("toy-svd", "picture to video", "the default with --image"),
    Toy("toy-i2vgen", "picture and text to video", "the default with --image and a prompt"),
    Toy("toy-animatediff", "text to video by an image model that learnt to move", "the default with --motion-lora"),
)


def fitting(picture: bool, text: bool) -> str:
    """The short name of the model in the box that starts from what there is."""
    return ("toy-i2vgen" if text else "toy-svd") if picture else "toy"


def path(name: str = DEFAULT) -> Path:
    """The folder of a model in the box, by its full name or its short one, as `TOYS` has them.

    Raises:
        InputError: there is none of that name.
    """
    folder = box(name)
    if folder is None:
        raise InputError(f"There is no model {name!r} in the box; there are {', '.join(sorted(BOX))}.")
    return folder
