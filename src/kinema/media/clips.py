"""Clips from wherever people keep them, as lists of RGB pictures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Literal, TypeAlias, overload

from PIL import Image, UnidentifiedImageError

from kinema.errors import InputError, MediaError
from kinema.media import fetch
from kinema.media.frames import Frames, to_frames
from kinema.media.load import MAX_PIXELS, open_image, upright
from kinema.media.rgb import to_rgb

VideoInput: TypeAlias = Frames  # str | PathLike | anything `kinema.media.frames.to_frames` takes
Pictures: TypeAlias = list[Image.Image]

MAX_CLIP_PIXELS = 1 << 30  # 3 GiB as RGB; 1,820 frames of 1024×576
_STILL = ("MPO",)  # several views of one picture, not a clip


@overload
def load_video(
    video: VideoInput,
    convert_method: Callable[[Pictures], Pictures] | None = None,
    return_fps: Literal[False] = False,
    *,
    max_frames: int | None = None,
) -> Pictures: ...
@overload
def load_video(
    video: VideoInput,
    convert_method: Callable[[Pictures], Pictures] | None = None,
    *,
    return_fps: Literal[True],
    max_frames: int | None = None,
) -> tuple[Pictures, float]: ...
def load_video(
    video: VideoInput,  # a path, an http(s) address, or frames in any form
    convert_method: Callable[[Pictures], Pictures] | None = None,  # applied to the list
    return_fps: bool = False,  # a file's frames a second too
    *,
    max_frames: int | None = None,  # stop after so many
) -> Pictures | tuple[Pictures, float]:
    """A clip as a list of RGB pictures: any video FFmpeg knows, GIF, animated WebP or PNG, or frames at hand.

    Raises MediaError where there is no readable clip, where it is cut off, or where its frames would not fit in
    about 3 GiB (`max_frames` then helps).
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames {max_frames} is not positive; expected at least 1.")
    if isinstance(video, str | os.PathLike):
        pictures, fps = _read(video, max_frames)
    else:
        if return_fps:
            raise InputError("Frames at hand have no frame rate; leave return_fps out.")
        pictures, fps = [Image.fromarray(frame) for frame in to_frames(video)[:max_frames]], None
    if convert_method is not None:
        pictures = convert_method(pictures)
    return (pictures, float(fps or 0)) if return_fps else pictures


def _read(source: str | os.PathLike[str], max_frames: int | None) -> tuple[Pictures, Fraction | None]:
    name = os.fspath(source)
    if fetch.is_url(source):
        content = fetch.read(source)
        if is_picture(io.BytesIO(content), name):
            return _read_animation(open_image(content, name), name, max_frames)
        return _read_video(io.BytesIO(content), name, max_frames)
    if is_picture(name, name):
        return _read_animation(open_image(fetch.read(source), name), name, max_frames)
    return _read_video(name, name, max_frames)


def is_picture(source: str | io.BytesIO, name: str) -> bool:
    """Whether a file is for PIL (a picture, still or moving) rather than for FFmpeg."""
    if isinstance(source, str):
        fetch.check(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                return opened.format != "MPEG"  # which PIL knows by its header only
    except UnidentifiedImageError:
        return False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True  # reading it will say what is wrong


def _read_animation(animation: Image.Image, name: str, max_frames: int | None) -> tuple[Pictures, Fraction | None]:
    total = 1 if animation.format in _STILL else int(getattr(animation, "n_frames", 1))
    count = min(total, max_frames or total)
    _bound(animation.width, animation.height, count, name)
    pictures, milliseconds = [], Fraction(0)
    try:
        for i in range(count):
            animation.seek(i)
            animation.load()
            pictures.append(upright(animation, to_rgb).copy())
            milliseconds += Fraction(animation.info.get("duration", 0) or 0).limit_denominator(1000)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"{name} is damaged or truncated at frame {len(pictures)} ({error}); get it again.") from error
    return pictures, (count * 1000 / milliseconds if milliseconds else None)


def _read_video(source: str | io.BytesIO, name: str, max_frames: int | None) -> tuple[Pictures, Fraction | None]:
    import av

    pictures: Pictures = []
    try:
        with av.open(source) as container:
            if not container.streams.video:
                raise MediaError(f"{name} holds no video; expected a file with one.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for picture in _decoded(container, name):
                pictures.append(picture)
                if len(pictures) == max_frames:
                    break
            else:
                _complete(container, stream, len(pictures), name)
            return pictures, stream.average_rate
    except av.error.FFmpegError as error:
        what = f"is damaged or truncated at frame {len(pictures)}" if pictures else "is not a video that can be read"
        raise MediaError(f"{name} {what} ({error.strerror}); expected MP4, WebM, GIF or the like.") from error


def _decoded(container: Any, name: str) -> Iterator[Image.Image]:
    for i, frame in enumerate(container.decode(video=0)):
        _bound(frame.width, frame.height, i + 1, name)
        # PyAV before 14 heeds the matrix only where source and target differ; RGB has none, so any other will do.
        tagged = {"src_colorspace": "ITU709", "dst_colorspace": "ITU601"} if frame.colorspace == 1 else {}
        picture = Image.fromarray(frame.to_ndarray(format="rgb24", **tagged))
        turn = round(getattr(frame, "rotation", 0)) % 360  # as phones note it, counter-clockwise
        yield picture.rotate(turn, expand=True) if turn else picture


def _bound(width: int, height: int, frames: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name} has {width}×{height} pixels a frame, above {MAX_PIXELS:,}; resize it first.")
    if width * height * frames > MAX_CLIP_PIXELS:
        raise MediaError(f"{name} has more than {MAX_CLIP_PIXELS // (width * height)} frames of {width}×{height}, too "
                         "many to hold at once; pass max_frames.")  # fmt: skip


def _complete(container: Any, stream: Any, count: int, name: str) -> None:
    """FFmpeg ends quietly where a file is cut; its index or its length tells."""
    if not count:
        raise MediaError(f"{name} holds no frame that can be read; get it again.")
    promised = stream.frames
    if not promised and container.duration and stream.average_rate and container.format.name != "gif":
        promised = int(container.duration * stream.average_rate / 1_000_000 * Fraction(9, 10))  # lengths are rounded
    if count < promised:
        raise MediaError(f"{name} ends after {count} of about {promised} frames; get it again.")
