"""A clip as an animated picture without GIF's limits (WebP, APNG) or as a folder of pictures.

Both animations are put together here from pictures that PIL compresses (RFC 9649 for WebP, the PNG specification's
third edition for APNG), because PIL's own writers merge repeated frames and round delays to milliseconds.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from kinema.errors import InputError, MediaError
from kinema.media import metadata as receipts
from kinema.media.changes import changed
from kinema.media.files import PathLike, appearing, check_writable, temporary
from kinema.media.frames import Frame, Frames, to_frames
from kinema.media.timing import Rate, delays, frame_rate

KEY = "Comment"  # the PNG text field of the receipt
_DESCRIPTION = 0x010E  # the EXIF tag of the receipt
_PNG = b"\x89PNG\r\n\x1a\n"


def export_to_webp(
    frames: Frames,
    path: PathLike | None = None,
    fps: Rate = 10,
    *,
    quality: float = 90,  # 0 worst to 100 best
    lossless: bool = False,
    loop: int = 0,  # 0 is for ever
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write a clip as an animated WebP and return its path. Each frame ends at the millisecond nearest its true end.

    Raises InputError for arguments that do not fit, MediaError for frames without a picture or a file that cannot
    be written; so do the other two exporters here.
    """
    rate, loop = frame_rate(fps), _loops(loop)
    if not 0 <= quality <= 100:
        raise InputError(f"quality {quality} is out of range; expected 0 (worst) to 100 (best).")
    target = check_writable(path if path is not None else temporary(".webp"))
    clip = to_frames(frames)
    if max(clip[0].shape) > 16383:
        raise InputError(f"Size {clip[0].shape[1]}×{clip[0].shape[0]} is too large for WebP; its sides end at 16383.")
    chunks = [*_webp(clip, rate, loop, receipts.pack(metadata), {"quality": quality, "lossless": lossless})]
    body = b"WEBP" + b"".join(chunks)
    with appearing(target) as partial:
        partial.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return str(target)


def export_to_apng(
    frames: Frames,
    path: PathLike | None = None,
    fps: Rate = 10,
    *,
    loop: int = 0,  # 0 is for ever
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write a clip as an animated PNG, lossless and with exact delays, and return its path."""
    rate, loop = frame_rate(fps), _loops(loop)
    target = check_writable(path if path is not None else temporary(".png"))
    clip = to_frames(frames)
    with appearing(target) as partial, partial.open("wb") as file:
        for block in _apng(clip, rate, loop, receipts.pack(metadata)):
            file.write(block)
    return str(target)


def export_to_images(
    frames: Frames,
    folder: PathLike,
    *,
    name: str = "frame-{:04d}.png",  # the number starts at 0; the suffix chooses the format
    metadata: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write each frame as a picture into a new or empty folder and return their paths, in order.

    The folder appears with all pictures in it or not at all. PNG pictures carry the receipt.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MediaError(f"{target} exists and is not an empty folder; choose another name.")
    clip = to_frames(frames)
    names = [name.format(i) for i in range(len(clip))]
    if len(set(names)) < len(names):
        raise InputError(f"name {name!r} is the same for every frame; put a number in it, as in frame-{{:04d}}.png.")
    text = _text(receipts.pack(metadata))
    with appearing(target) as partial:
        partial.mkdir()
        for frame, file in zip(clip, names):
            try:
                Image.fromarray(frame).save(partial / file, pnginfo=text)
            except (ValueError, KeyError) as error:
                raise InputError(f"{file} has no picture suffix PIL can write; try frame-{{:04d}}.png.") from error
    return [str(target / file) for file in names]


def save_picture(picture: Image.Image, path: PathLike, *, metadata: Mapping[str, Any] | None = None) -> str:
    """Write one picture, a contact sheet say, as a PNG file with its receipt, whole or not at all; return its path.

    Raises MediaError where it cannot be written.
    """
    with appearing(path) as partial:
        picture.save(partial, "PNG", pnginfo=_text(receipts.pack(metadata)))
    return str(path)


def _loops(loop: int) -> int:
    if not 0 <= loop <= 65535:
        raise InputError(f"loop {loop} is out of range; expected 0 (for ever) to 65535.")
    return loop


def _text(comment: str | None) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if comment is not None:
        info.add_itxt(KEY, comment)
    return info


def _encoded(frame: Frame, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def _webp(
    clip: Sequence[Frame], rate: Fraction, loop: int, comment: str | None, options: dict[str, Any]
) -> Iterator[bytes]:
    height, width, _ = clip[0].shape
    animated, described = 0x02, 0x08 if comment is not None else 0
    yield _riff(b"VP8X", struct.pack("<I", animated | described) + _u24(width - 1) + _u24(height - 1))
    yield _riff(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, loop))
    before = None
    for frame, lasts in zip(clip, delays(len(clip), rate, 1000)):
        box = changed(before, frame, grid=2)
        part = box.of(frame)
        place = _u24(box.left // 2) + _u24(box.top // 2) + _u24(part.shape[1] - 1) + _u24(part.shape[0] - 1)
        replace = 0x02  # the rectangle's pixels replace what was there
        timing = _u24(min(lasts, 0xFFFFFF)) + bytes([replace])
        yield _riff(b"ANMF", place + timing + _encoded(part, "WEBP", **options)[12:])
        before = frame
    if comment is not None:
        exif = Image.Exif()
        exif[_DESCRIPTION] = comment
        yield _riff(b"EXIF", exif.tobytes().removeprefix(b"Exif\0\0"))


def _riff(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _apng(clip: Sequence[Frame], rate: Fraction, loop: int, comment: str | None) -> Iterator[bytes]:
    delay = (1 / rate).limit_denominator(65535)
    if delay.numerator > 65535:
        raise InputError(f"fps {rate} is too slow for APNG; a frame lasts at most 65535 seconds.")
    header, _ = _png_parts(_encoded(clip[0], "PNG"))
    yield _PNG + _chunk(b"IHDR", header) + _chunk(b"acTL", struct.pack(">II", len(clip), loop))
    for text in _text(comment).chunks:
        yield _chunk(text[0], text[1])
    before, number = None, 0
    for frame in clip:
        box = changed(before, frame)
        part = box.of(frame)
        _, pixels = _png_parts(_encoded(part, "PNG"))
        place = struct.pack(">5I", number, part.shape[1], part.shape[0], box.left, box.top)
        yield _chunk(b"fcTL", place + struct.pack(">HHBB", delay.numerator, delay.denominator, 0, 0))
        number += 1
        if before is None:  # the first frame is also what programs that know no animation show
            yield _chunk(b"IDAT", pixels)
        else:
            yield _chunk(b"fdAT", struct.pack(">I", number) + pixels)
            number += 1
        before = frame
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_parts(png: bytes) -> tuple[bytes, bytes]:
    """A PNG file's header and its compressed pixels."""
    header, pixels, at = b"", b"", len(_PNG)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        header, pixels = (data if kind == b"IHDR" else header), (pixels + data if kind == b"IDAT" else pixels)
        at += 12 + length
    return header, pixels
