"""What an animation has to draw anew from one frame to the next."""

from __future__ import annotations

from typing import NamedTuple

from kinema.media.frames import Frame


class Box(NamedTuple):
    """A rectangle of pixels; bottom and right are the first row and column outside."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, frame: Frame) -> Frame:
        return frame[self.top : self.bottom, self.left : self.right]


def changed(before: Frame | None, after: Frame, grid: int = 1) -> Box:
    """The smallest rectangle that holds all that differs, its corner on a multiple of `grid`; one pixel if nothing."""
    if before is None:
        return Box(0, 0, *after.shape[:2])
    differs = (before != after).any(-1)
    rows, columns = differs.any(1).nonzero()[0], differs.any(0).nonzero()[0]
    if not len(rows):
        return Box(0, 0, 1, 1)
    top, left = int(rows[0]) // grid * grid, int(columns[0]) // grid * grid
    return Box(top, left, int(rows[-1]) + 1, int(columns[-1]) + 1)
