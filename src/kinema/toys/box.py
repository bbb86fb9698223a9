"""The models that ship with kinema: small, trained on the drawn world, there without any download."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.hub import BOX, box
from ..errors import InputError

DEFAULT = "kinema/toy-text-to-video"


def path(name: str = DEFAULT) -> Path:
    """The folder of a model in the box, by its full name or its short one, "toy".

    Raises:
        InputError: there is none of that name.
    """
    folder = box(name)
    if folder is None:
        raise InputError(f"There is no model {name!r} in the box; there are {', '.join(sorted(BOX))}.")
    return folder
