"""A clip as a video file that plays everywhere, with its exact speed, its true colours and its receipt."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from kinema.errors import InputError, MediaError
from kinema.media import codecs
from kinema.media import metadata as receipts
from kinema.media.codecs import PixelFormat
from kinema.media.colour import to_yuv
from kinema.media.files import PathLike, appearing, check_writable, temporary
from kinema.media.frames import Frame, Frames, to_frames
from kinema.media.timing import Rate, frame_rate

log = logging.getLogger("kinema.media")

_BT709 = 1  # primaries, transfer and matrix alike, ITU-T H.273 tables 2, 3 and 4
_RGB_MATRIX = 0
_LIMITED, _FULL = 1, 2


def export_to_video(
    video_frames: Frames,  # one clip in any form `kinema.media.frames.to_frames` takes
    output_video_path: PathLike | None = None,  # a temporary .mp4 where None
    fps: Rate = 10,  # 23.976 and 29.97 mean 24000/1001 and 30000/1001
    quality: float = 5.0,  # 0 worst to 10 best; 5 is the codec's usual CRF
    bitrate: int | None = None,  # bits a second, instead of constant quality
    macro_block_size: int | None = 16,  # taken for compatibility; frames are never rescaled
    *,
    codec: str | None = None,  # h264, vp9, av1, prores, ffv1, h264rgb; by the file's suffix where None
    crf: float | None = None,  # constant quality in the codec's own scale: 18 for h264, 24 for vp9 and av1
    pixel_format: str | None = None,  # yuv420p plays everywhere; yuv444p keeps fine colour
    metadata: Mapping[str, Any] | None = None,  # what made the clip; `read_info` reads it back
) -> str:
    """Write a clip as a video file and return its path.

    H.264 High, 4:2:0, BT.709 in limited range, index first (it plays while it loads), constant quality. A side that
    4:2:0 cannot hold is padded by one edge pixel, with a warning in the log. The file appears whole or not at all.

    Raises InputError for arguments that do not fit, MediaError for frames without a picture or a file that cannot
    be written, both before encoding where that can be known.
    """
    rate = frame_rate(fps)
    path = Path(output_video_path) if output_video_path is not None else temporary(".mp4")
    name, row = codecs.choose(path, codec)
    pixels = codecs.pixel_format(name, row, pixel_format)
    options = _options(name, row, pixels, quality, crf, bitrate, rate)
    check_writable(path)
    frames = _padded(to_frames(video_frames), pixels)
    with appearing(path) as partial:
        _encode(partial, frames, rate, options, codecs.encoder(name, row), pixels, bitrate, metadata)
        _check(partial, len(frames))
    return str(path)


def _options(
    name: str,
    row: codecs.Codec,
    pixels: PixelFormat,
    quality: float,
    crf: float | None,
    bitrate: int | None,
    rate: Fraction,
) -> dict[str, str]:
    """The encoder's options; a picture that needs no other at least every two seconds, so that seeking is quick."""
    level = codecs.constant_quality(name, row, quality, crf)
    options = {**row.options.get(codecs.encoder(name, row), {}), "g": str(max(1, math.ceil(2 * rate)))}
    if name == "h264" and pixels.name == "yuv420p" and level:  # at crf 0 it is lossless, which High cannot be
        options["profile"] = "high"
    if bitrate is not None:
        if row.crf is None:
            raise InputError(f"Codec {name} has no bitrate to choose; leave bitrate out.")
        if bitrate <= 0:
            raise InputError(f"bitrate {bitrate} is not positive; expected bits a second, for example 4_000_000.")
    elif level is not None:
        options["crf"] = f"{level:g}"
    return options


def _padded(frames: Sequence[Frame], pixels: PixelFormat) -> Sequence[Frame]:
    """Frames with each side a multiple of what the chroma grid needs, the last row or column repeated."""
    height, width, _ = frames[0].shape
    down, right = -height % pixels.rows, -width % pixels.columns
    if not (down or right):
        return frames
    log.warning(
        "Size %d×%d has an odd side, which %s cannot hold: padded by one edge pixel to %d×%d.",
        width, height, pixels.name, width + right, height + down,
    )  # fmt: skip
    return [np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge") for frame in frames]


def _encode(
    path: Path,
    frames: Sequence[Frame],
    rate: Fraction,
    options: Mapping[str, str],
    encoder: str,
    pixels: PixelFormat,
    bitrate: int | None,
    receipt: Mapping[str, Any] | None,
) -> None:
    import av

    os.environ.setdefault("SVT_LOG", "1")  # or the AV1 encoder tells its life on standard error
    try:
        with av.open(str(path), "w", options=_container_options(path)) as container:
            if (comment := receipts.pack(receipt)) is not None:
                container.metadata["comment"] = comment
            stream = container.add_stream(encoder, rate=rate, options=dict(options))
            context = stream.codec_context
            context.height, context.width, _ = frames[0].shape
            context.pix_fmt, context.time_base = pixels.name, 1 / rate
            context.bit_rate = bitrate or 0  # 0 leaves libvpx to constant quality
            context.color_primaries = context.color_trc = _BT709
            context.colorspace = _RGB_MATRIX if pixels.packed else _BT709
            context.color_range = _FULL if pixels.packed else _LIMITED
            for packet in _packets(stream, frames, pixels):
                container.mux(packet)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise MediaError(f"The encoder {encoder} failed: {error.strerror}; try another codec.") from error


def _container_options(path: Path) -> dict[str, str]:
    """Index first; the same bytes for the same clip; and in .mov a comment of any length."""
    options = {"fflags": "+bitexact"}
    if path.suffix.lower() in (".mp4", ".m4v"):
        options["movflags"] = "+faststart"
    if path.suffix.lower() == ".mov":
        options["movflags"] = "+faststart+use_metadata_tags"
    return options


def _packets(stream: Any, frames: Sequence[Frame], pixels: PixelFormat) -> Iterator[Any]:
    for i, pixels_of_frame in enumerate(frames):
        yield from stream.encode(_picture(pixels_of_frame, i, stream.codec_context, pixels))
    yield from stream.encode(None)


def _picture(frame: Frame, index: int, context: Any, pixels: PixelFormat) -> Any:
    """One frame as the encoder takes it, timed and tagged."""
    import av

    height, width, _ = frame.shape
    picture = av.VideoFrame(width, height, pixels.name)
    picture.pts, picture.time_base = index, context.time_base
    picture.colorspace, picture.color_range = context.colorspace, context.color_range
    if hasattr(picture, "color_primaries"):  # since PyAV 17; ProRes takes its tags from here
        picture.color_primaries, picture.color_trc = context.color_primaries, context.color_trc
    for plane, values in zip(picture.planes, _planes(frame, pixels)):
        room = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        room[:, : values.shape[1]] = values
        plane.update(room)
    return picture


def _planes(frame: Frame, pixels: PixelFormat) -> Sequence[Any]:
    if not pixels.packed:
        return to_yuv(frame, rows=pixels.rows, columns=pixels.columns, bits=pixels.bits)
    blank = np.zeros_like(frame[..., :1])
    bands = {"R": frame[..., :1], "G": frame[..., 1:2], "B": frame[..., 2:], "0": blank}
    return [np.concatenate([bands[band] for band in pixels.packed], axis=2).reshape(len(frame), -1)]


def _check(path: Path, count: int) -> None:
    """A file that lost frames on its way to the disk must not take the place of anything."""
    import av

    try:
        with av.open(str(path)) as container:
            written = sum(packet.size > 0 for packet in container.demux(video=0))
    except av.error.FFmpegError as error:
        raise MediaError(f"The file just written cannot be read back ({error.strerror}); is the disk full?") from error
    if written != count:
        raise MediaError(f"The file just written holds {written} of {count} frames; is the disk full?")
