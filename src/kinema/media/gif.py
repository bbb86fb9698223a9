"""A clip as an animated GIF: one palette for all frames, and delays whose sum is right.

The file is put together here, block by block (GIF89a specification, sections 18-27), because PIL's writer drops
repeated frames and reorders palettes; PIL still does the LZW compression.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image

from kinema.errors import InputError
from kinema.media import metadata as receipts
from kinema.media import palette as palettes
from kinema.media.files import PathLike, appearing, check_writable, temporary
from kinema.media.frames import Frame, Frames, to_frames
from kinema.media.timing import Rate, delays, frame_rate

_FASTEST = 2  # hundredths of a second; viewers slow anything shorter down to 10
_LONGEST = 65535


def export_to_gif(
    image: Frames,  # one clip in any form `kinema.media.frames.to_frames` takes
    output_gif_path: PathLike | None = None,  # a temporary .gif where None
    fps: Rate = 10,
    *,
    dither: bool = False,  # hides steps in smooth gradients behind a fine, steady screen; larger files
    loop: int = 0,  # how often it repeats; 0 is for ever
    metadata: Mapping[str, Any] | None = None,  # what made the clip; `read_info` reads it back
) -> str:
    """Write a clip as an animated GIF and return its path.

    Colours are exact where the clip has at most 256, else the best 256 for the whole clip. Every frame stays, and
    each ends at the hundredth of a second nearest its true end. Above 50 frames a second, which viewers do not
    show, whole frames are left out so that the speed stays right.
    """
    rate = frame_rate(fps)
    if not 0 <= loop <= 65535:
        raise InputError(f"loop {loop} is out of range; expected 0 (for ever) to 65535.")
    path = check_writable(output_gif_path if output_gif_path is not None else temporary(".gif"))
    frames = to_frames(image)
    _fits(frames[0])
    with appearing(path) as partial, partial.open("wb") as file:
        for block in _blocks(frames, rate, dither, loop, receipts.pack(metadata)):
            file.write(block)
    return str(path)


def _fits(frame: Frame) -> None:
    if max(frame.shape) > 65535:
        raise InputError(f"Size {frame.shape[1]}×{frame.shape[0]} is too large for a GIF; its sides end at 65535.")


def _blocks(frames: Sequence[Frame], rate: Fraction, dither: bool, loop: int, comment: str | None) -> Iterator[bytes]:
    height, width, _ = frames[0].shape
    palette = palettes.choose(frames)
    depth = max(1, int(np.ceil(np.log2(len(palette)))))
    yield b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0 | (depth - 1), 0, 0)
    yield palette.tobytes().ljust(3 << depth, b"\0")
    yield b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    if comment is not None:
        yield b"\x21\xfe" + _sub_blocks(comment.encode("ascii")) + b"\0"
    indexed = palettes.dithered if dither else palettes.indices
    before: NDArray[np.uint8] | None = None
    for frame, ticks in shown(frames, rate):
        after = indexed(frame, palette)
        yield b"\x21\xf9\x04\x04" + struct.pack("<H", min(ticks, _LONGEST)) + b"\0\0"  # leave the frame in place
        yield from _changed(before, after)
        before = after
    yield b"\x3b"


def shown(frames: Sequence[Frame], rate: Fraction) -> Iterator[tuple[Frame, int]]:
    """The frames a GIF can show and the hundredths each lasts: all of them up to 50 a second."""
    due = 0
    ticks = delays(len(frames), rate, 100)
    kept: list[tuple[Frame, int]] = []
    for frame, lasts in zip(frames, ticks):
        due += lasts
        if rate <= 50 or due >= _FASTEST:
            kept.append((frame, due))
            due = 0
    if due and kept:
        kept[-1] = (kept[-1][0], kept[-1][1] + due)
    yield from kept or [(frames[0], _FASTEST)]


def _changed(before: NDArray[np.uint8] | None, after: NDArray[np.uint8]) -> Iterator[bytes]:
    """An image block of the rectangle that differs from the frame before; one pixel where none does."""
    top, left, bottom, right = 0, 0, *after.shape
    if before is not None:
        rows, columns = np.any(before != after, axis=1).nonzero()[0], np.any(before != after, axis=0).nonzero()[0]
        top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 1)
        left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 1)
    part = Image.fromarray(np.ascontiguousarray(after[top:bottom, left:right])).convert("P")
    yield from GifImagePlugin.getdata(part, (int(left), int(top)), interlace=0)


def _sub_blocks(data: bytes) -> bytes:
    pieces = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)
