"""One way to write a clip whatever the format: the file's name chooses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kinema.errors import InputError
from kinema.media import codecs
from kinema.media.files import PathLike
from kinema.media.frames import Frames
from kinema.media.gif import export_to_gif
from kinema.media.images import export_to_apng, export_to_images, export_to_webp
from kinema.media.timing import Rate
from kinema.media.video import export_to_video

_ANIMATIONS: dict[str, Callable[..., str]] = {
    ".gif": export_to_gif,
    ".webp": export_to_webp,
    ".png": export_to_apng,
    ".apng": export_to_apng,
}
SUFFIXES = (*codecs.DEFAULT, *_ANIMATIONS)


def save(
    frames: Frames,  # one clip in any form `kinema.media.frames.to_frames` takes
    path: PathLike,  # .mp4 .m4v .mov .mkv .webm .gif .webp .png .apng, or a folder's name without a suffix
    fps: Rate = 10,
    metadata: Mapping[str, Any] | None = None,
    **options: Any,  # of the exporter for this suffix
) -> str:
    """Write a clip in the format its path names and return the path. Raises as that exporter does."""
    check_suffix(path)
    suffix = Path(path).suffix.lower()
    if not suffix:
        export_to_images(frames, path, metadata=metadata, **options)
        return str(path)
    if suffix in _ANIMATIONS:
        return _ANIMATIONS[suffix](frames, path, fps, metadata=metadata, **options)
    return export_to_video(frames, path, fps, metadata=metadata, **options)


def check_suffix(path: PathLike) -> None:
    """Raise InputError unless `save` knows what to write at this path; a name without a suffix is a folder."""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix}, which is no format known here; expected {', '.join(SUFFIXES)}.")
