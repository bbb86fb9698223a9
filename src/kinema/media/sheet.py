"""Several clips on one picture, to be taken in at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kinema.errors import InputError
from kinema.media.frames import Frame, Frames, to_frames

_GAP = 4
_PAPER, _INK = "white", "black"


def contact_sheet(
    clips: Sequence[Frames],  # each in any form `kinema.media.frames.to_frames` takes
    labels: Sequence[str] | None = None,  # one above each clip
    columns: int = 8,  # frames shown of each clip, evenly spread, first and last among them
    scale: int | None = None,  # whole-number enlargement; small frames are made at least 96 pixels wide where None
) -> Image.Image:
    """One row a clip, its frames from left to right, its label above. Raises InputError for counts that differ."""
    if not len(clips):
        raise InputError("There are no clips; expected at least one.")
    if labels is not None and len(labels) != len(clips):
        raise InputError(f"There are {len(clips)} clips but {len(labels)} labels; expected one for each.")
    if columns < 1 or (scale is not None and scale < 1):
        raise InputError(f"columns {columns} and scale {scale} must be at least 1.")
    rows = [_row(to_frames(clip), columns, scale) for clip in clips]
    text = list(labels) if labels is not None else None
    font = ImageFont.load_default(14)
    headroom = 20 if text is not None else 0
    sheet = Image.new("RGB", _size(rows, headroom), _PAPER)
    draw, top = ImageDraw.Draw(sheet), _GAP
    for i, row in enumerate(rows):
        if text is not None:
            draw.text((_GAP, top), " ".join(text[i].split()), fill=_INK, font=font)
            top += headroom
        for j, picture in enumerate(row):
            sheet.paste(picture, (_GAP + j * (picture.width + _GAP), top))
        top += row[0].height + _GAP
    return sheet


def _size(rows: Sequence[Sequence[Image.Image]], headroom: int) -> tuple[int, int]:
    width = max(len(row) * (row[0].width + _GAP) for row in rows) + _GAP
    return width, sum(row[0].height + _GAP + headroom for row in rows) + _GAP


def _row(frames: Sequence[Frame], columns: int, scale: int | None) -> list[Image.Image]:
    """The frames shown of one clip, enlarged without blur."""
    picked = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    height, width, _ = frames[0].shape
    times = scale or max(1, -(-96 // width))
    return [
        Image.fromarray(frames[i]).resize((width * times, height * times), Image.Resampling.NEAREST) for i in picked
    ]
