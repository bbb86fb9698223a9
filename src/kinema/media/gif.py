"""A clip as an animated GIF: one palette for all frames, and delays whose sum is right.

The file is put together here, block by block (GIF89a specification, sections 18-27), because PIL's writer drops
repeated frames and reorders palettes; PIL still does the LZW compression.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from PIL import GifImagePlugin, Image

from kinema.errors import InputError
from kinema.media import metadata as receipts
from kinema.media import palette as palettes
from kinema.media.changes import changed
from kinema.media.files import PathLike, appearing, check_writable, temporary
from kinema.media.frames import Frame, Frames, to_frames
from kinema.media.palette import Colours
from kinema.media.timing import Rate, delays, frame_rate

_FASTEST = 2  # hundredths of a second; viewers slow anything shorter down to 10
_LONGEST = 65535
_VISIBLE = 3.0  # levels of root mean square error from which one palette is not enough


def export_to_gif(
    image: Frames,  # one clip in any form `kinema.media.frames.to_frames` takes
    output_gif_path: PathLike | None = None,  # a temporary .gif where None
    fps: Rate = 10,
    *,
    palette: Literal["auto", "clip", "frame"] = "auto",  # one for the clip, one a frame, or what the colours need
    dither: bool = False,  # hides steps in smooth gradients behind a fine, steady screen; larger files
    loop: int = 0,  # how often it repeats; 0 is for ever
    metadata: Mapping[str, Any] | None = None,  # what made the clip; `read_info` reads it back
) -> str:
    """Write a clip as an animated GIF and return its path.

    Colours are exact where the clip has at most 256. Else one palette serves the whole clip, or, where that would
    be seen (more than 3 levels of 255, root mean square), every frame has its own. Every frame stays, and
    each ends at the hundredth of a second nearest its true end. Above 50 frames a second, which viewers do not
    show, whole frames are left out so that the speed stays right.
    """
    rate = frame_rate(fps)
    if palette not in ("auto", "clip", "frame"):
        raise InputError(f"palette {palette!r} is unknown; expected auto, clip or frame.")
    if not 0 <= loop <= 65535:
        raise InputError(f"loop {loop} is out of range; expected 0 (for ever) to 65535.")
    path = check_writable(output_gif_path if output_gif_path is not None else temporary(".gif"))
    frames = to_frames(image)
    _fits(frames[0])
    with appearing(path) as partial, partial.open("wb") as file:
        for block in _blocks(frames, rate, palette, dither, loop, receipts.pack(metadata)):
            file.write(block)
    return str(path)


def _fits(frame: Frame) -> None:
    if max(frame.shape) > 65535:
        raise InputError(f"Size {frame.shape[1]}×{frame.shape[0]} is too large for a GIF; its sides end at 65535.")


def _blocks(
    frames: Sequence[Frame], rate: Fraction, palette: str, dither: bool, loop: int, comment: str | None
) -> Iterator[bytes]:
    height, width, _ = frames[0].shape
    common = palettes.choose(frames)
    own = palette == "frame" or (palette == "auto" and _error(frames, common) > _VISIBLE)
    depth = _depth(common)
    yield b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0 | (depth - 1), 0, 0)
    yield common.tobytes().ljust(3 << depth, b"\0")
    yield b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loop) + b"\0"
    if comment is not None:
        yield b"\x21\xfe" + _sub_blocks(comment.encode("ascii")) + b"\0"
    before = None
    for frame, ticks in shown(frames, rate):
        still = before is not None and np.array_equal(before, frame)
        leave = 0x05 if still else 0x04  # leave the frame in place when the next is drawn; 1: colour 0 is transparent
        yield b"\x21\xf9\x04" + struct.pack("<BHB", leave, min(ticks, _LONGEST), 0) + b"\0"
        yield from _pixel() if still else _image(before, frame, None if own else common, dither)
        before = frame
    yield b"\x3b"


def _depth(palette: Colours) -> int:
    """Bits of an index into it, at least one."""
    return max(1, (len(palette) - 1).bit_length())


def _error(frames: Sequence[Frame], palette: Colours) -> float:
    """Root mean square error of a few frames under a palette, in levels of 255."""
    few = frames[:: max(1, len(frames) // 4)]
    return float(np.mean([(palette[palettes.indices(f, palette)].astype(float) - f) ** 2 for f in few]) ** 0.5)


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


def _pixel() -> Iterator[bytes]:
    """One pixel of colour 0, for a frame that adds nothing but time."""
    yield from GifImagePlugin.getdata(Image.new("P", (1, 1)), (0, 0), interlace=0)


def _image(before: Frame | None, after: Frame, common: Colours | None, dither: bool) -> Iterator[bytes]:
    """An image block of the rectangle that differs from the frame before.

    Comparing true colours rather than indices lets every block have its own palette, and what stands still keeps
    the colours it had.
    """
    box = changed(before, after)
    part = box.of(after)
    palette = palettes.choose([part]) if common is None else common
    indexed = palettes.dithered(part, palette, (box.top, box.left)) if dither else palettes.indices(part, palette)
    picture = Image.fromarray(indexed).convert("P")
    picture.putpalette(palette.tobytes().ljust(3 << _depth(palette), b"\0"))
    yield from GifImagePlugin.getdata(picture, (box.left, box.top), interlace=0, include_color_table=common is None)


def _sub_blocks(data: bytes) -> bytes:
    pieces = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)
