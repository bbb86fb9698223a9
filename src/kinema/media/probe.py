"""What a media file is and what made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from kinema.errors import MediaError
from kinema.media import fetch
from kinema.media import metadata as receipts
from kinema.media.clips import is_picture
from kinema.media.load import open_image
from kinema.media.timing import frame_rate, likely_rate

_DECODERS = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx-vp9": "vp9", "libvpx": "vp8"}  # codecs by who reads them
_PRIMARIES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 9: "bt2020", 12: "p3"}
_TRANSFERS = {1: "bt709", 6: "smpte170m", 8: "linear", 13: "srgb", 14: "bt2020", 16: "pq", 18: "hlg"}
_MATRICES = {0: "rgb", 1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}
_RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True)
class Info:
    """What `kinema info FILE` prints. Colour names follow ITU-T H.273; None where the file does not say."""

    path: str
    container: str  # mp4, mov, webm, mkv, gif, png, webp, ...
    codec: str
    pixel_format: str
    width: int
    height: int
    frames: int
    fps: Fraction | None  # None for a single picture
    duration: Fraction | None  # seconds
    primaries: str | None = None
    transfer: str | None = None
    matrix: str | None = None
    range: str | None = None
    receipt: Mapping[str, Any] | None = None  # what made it, as given to the exporter

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.width}×{self.height}, {self._length()}"]
        lines.append(f"  {self.container}, {self.codec}, {self.pixel_format}{self._colour()}")
        if self.receipt is None:
            lines.append("  no note of what made it")
        else:
            width = max(map(len, self.receipt), default=0)
            lines += [f"  {key:{width}}  {_shown(value)}" for key, value in self.receipt.items()]
        return "\n".join(lines)

    def _length(self) -> str:
        if self.fps is None or self.duration is None:
            return "1 picture" if self.frames == 1 else f"{self.frames} pictures"
        return f"{self.frames} frames at {float(self.fps):.6g} fps, {float(self.duration):.6g} s"

    def _colour(self) -> str:
        tags = [self.primaries, self.transfer, self.matrix, self.range]
        return f", colour {'/'.join(tag or '?' for tag in tags)}" if any(tags) else ""


def read_info(path: str | os.PathLike[str]) -> Info:
    """Everything about a video, an animation or a picture that its file says. Frames are counted, not believed.

    Raises MediaError where there is no such file or it is neither.
    """
    name = os.fspath(path)
    return _of_picture(open_image(fetch.read(path), name), name) if is_picture(name, name) else _of_video(name)


def _shown(value: Any) -> str:
    """On one line and without anything a terminal would obey."""
    if isinstance(value, str) and value.isprintable():
        return value
    return receipts.compact(value).encode("utf-8", "backslashreplace").decode()


def _of_picture(picture: Image.Image, name: str) -> Info:
    kind = (picture.format or "unknown").lower()
    count, milliseconds = int(getattr(picture, "n_frames", 1)), Fraction(0)
    receipt = _receipt_of(picture)
    try:
        for i in range(count):
            picture.seek(i)
            picture.load()
            milliseconds += Fraction(picture.info.get("duration", 0) or 0).limit_denominator(1000)
            receipt = receipt or _receipt_of(picture)  # PNG text may lie behind the pixels
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"{name} is damaged or truncated ({error}); get it again.") from error
    length = milliseconds / 1000 if milliseconds else None
    tick = Fraction(1, 100 if kind == "gif" else 1000)
    fps = likely_rate(count, length, tick) if length else None
    return Info(name, kind, kind, picture.mode.lower(), *picture.size, count, fps, length, receipt=receipt)


def _receipt_of(picture: Image.Image) -> dict[str, Any] | None:
    candidates = [picture.info.get("Comment"), picture.info.get("comment"), picture.getexif().get(0x010E)]
    found = (receipts.unpack(text) for text in candidates if isinstance(text, str | bytes))
    return next((receipt for receipt in found if receipt is not None), None)


def _of_video(name: str) -> Info:
    import av

    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise MediaError(f"{name} holds no video or picture; expected a file with one.")
            stream = container.streams.video[0]
            context = stream.codec_context
            count = sum(packet.size > 0 for packet in container.demux(stream))
            if not count or not context.width:
                raise MediaError(f"{name} holds no frame; get it again.")
            fps = frame_rate(float(stream.average_rate)) if stream.average_rate else None
            tags = {key.lower(): value for key, value in {**stream.metadata, **container.metadata}.items()}
            return Info(
                name,
                _container(name, container),
                _DECODERS.get(context.codec.name, context.codec.name),
                context.pix_fmt or "unknown",
                context.width,
                context.height,
                count,
                fps,
                _duration(container, stream, count, fps),
                _PRIMARIES.get(context.color_primaries),
                _TRANSFERS.get(context.color_trc),
                _MATRICES.get(context.colorspace),
                _RANGES.get(context.color_range),
                receipts.unpack(tags.get("comment")),
            )
    except av.error.FFmpegError as error:
        raise MediaError(f"{name} is not a video or picture that can be read ({error.strerror}).") from error


def _container(name: str, container: Any) -> str:
    """FFmpeg names families of formats; the suffix says which of them, where it is one."""
    known = container.format.name.split(",")
    suffix = Path(name).suffix.lower().removeprefix(".")
    aliases = {"mkv": "matroska", "m4v": "mp4"}
    return suffix if suffix in known or aliases.get(suffix) in known else known[0]


def _duration(container: Any, stream: Any, count: int, fps: Fraction | None) -> Fraction | None:
    """Seconds; a length that was rounded to the file's clock is taken back to whole frames."""
    if stream.duration is not None:
        seconds = Fraction(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = Fraction(container.duration, 1_000_000)
    else:
        return count / fps if fps else None
    exact = count / fps if fps else seconds
    return exact if abs(exact - seconds) <= Fraction(1, 500) else seconds
