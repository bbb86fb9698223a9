"""How pictures are compressed: one row a codec, and which file may hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kinema.errors import InputError, MediaError


@dataclass(frozen=True)
class PixelFormat:
    """How a frame's pixels lie: chroma rows and columns that share a value, bits, or packed RGB."""

    name: str
    rows: int = 1
    columns: int = 1
    bits: int = 8
    packed: str = ""  # the order of bytes in a pixel where it is RGB, such as "BGR0"


_FORMATS = {
    f.name: f
    for f in (
        PixelFormat("yuv420p", 2, 2),
        PixelFormat("yuv444p"),
        PixelFormat("yuv422p10le", 1, 2, bits=10),
        PixelFormat("rgb24", packed="RGB"),
        PixelFormat("bgr0", packed="BGR0"),
    )
}


@dataclass(frozen=True)
class Codec:
    """A codec by its everyday name. `crf` is the constant quality it uses unless told: lower is better and larger."""

    encoders: tuple[str, ...]  # the first that this build of FFmpeg has
    suffixes: tuple[str, ...]
    formats: tuple[str, ...] = ("yuv420p",)  # the first is the default
    crf: float | None = None
    worst_crf: float = 63
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by encoder


CODECS: Mapping[str, Codec] = {
    "h264": Codec(
        ("libx264",),
        (".mp4", ".m4v", ".mov", ".mkv"),
        ("yuv420p", "yuv444p"),
        crf=18,
        worst_crf=51,
        options={"libx264": {"preset": "medium"}},
    ),
    "vp9": Codec(
        ("libvpx-vp9",),
        (".webm", ".mp4", ".mkv"),
        ("yuv420p", "yuv444p"),
        crf=24,
        options={"libvpx-vp9": {"deadline": "good", "cpu-used": "2", "row-mt": "1"}},
    ),
    "av1": Codec(
        ("libsvtav1", "libaom-av1"),
        (".mp4", ".webm", ".mkv"),
        crf=24,
        options={"libsvtav1": {"preset": "6"}, "libaom-av1": {"cpu-used": "6", "row-mt": "1"}},
    ),
    "prores": Codec(
        ("prores_ks",), (".mov", ".mkv"), ("yuv422p10le",), options={"prores_ks": {"profile": "hq", "vendor": "apl0"}}
    ),
    "ffv1": Codec(("ffv1",), (".mkv",), ("bgr0",), options={"ffv1": {"level": "3", "slicecrc": "1"}}),
    "h264rgb": Codec(
        ("libx264rgb",),
        (".mp4", ".mov", ".mkv"),
        ("rgb24",),
        options={"libx264rgb": {"preset": "medium", "crf": "0"}},
    ),
}
DEFAULT = {".mp4": "h264", ".m4v": "h264", ".mov": "h264", ".mkv": "h264", ".webm": "vp9"}


def choose(path: Path, codec: str | None) -> tuple[str, Codec]:
    """The codec for this file, by its suffix unless one is named. Raises InputError for what does not fit."""
    suffix = path.suffix.lower()
    if suffix not in DEFAULT:
        raise InputError(f"{path.name} does not end in a video suffix; expected one of {', '.join(DEFAULT)}.")
    name = (codec or DEFAULT[suffix]).lower()
    if name not in CODECS:
        raise InputError(f"Codec {codec!r} is unknown; expected one of {', '.join(CODECS)}.")
    if suffix not in CODECS[name].suffixes:
        raise InputError(f"Codec {name} does not go into {suffix}; it goes into {', '.join(CODECS[name].suffixes)}.")
    return name, CODECS[name]


def pixel_format(name: str, codec: Codec, wanted: str | None) -> PixelFormat:
    """How pixels are stored. Raises InputError for a format this codec does not take here."""
    chosen = wanted or codec.formats[0]
    if chosen not in codec.formats:
        raise InputError(f"Codec {name} does not store {chosen} here; it stores {', '.join(codec.formats)}.")
    return _FORMATS[chosen]


def encoder(name: str, codec: Codec) -> str:
    """The encoder to use. Raises MediaError that lists what this build of FFmpeg offers instead."""
    for candidate in codec.encoders:
        if _has(candidate):
            return candidate
    offered = [other for other, row in CODECS.items() if any(map(_has, row.encoders))]
    raise MediaError(
        f"This build of FFmpeg has no {' or '.join(codec.encoders)} to write {name}; "
        f"choose another codec ({', '.join(offered) or 'there is none'}) or install the wheel of PyAV."
    )


def constant_quality(name: str, codec: Codec, quality: float, crf: float | None) -> float | None:
    """The CRF to encode with; None for codecs that have none.

    `quality` is the reference's 0..10 scale: 5 is the codec's default CRF, 10 nearly lossless, 0 the worst.
    An explicit `crf` wins.
    """
    if crf is not None:
        if codec.crf is None:
            raise InputError(f"Codec {name} has no CRF; leave crf out.")
        if not 0 <= crf <= codec.worst_crf:
            raise InputError(f"crf {crf} is out of range; {name} takes 0 (best) to {codec.worst_crf:g}.")
        return float(crf)
    if not 0 <= quality <= 10:
        raise InputError(f"quality {quality} is out of range; expected 0 (worst) to 10 (best).")
    if codec.crf is None:
        return None
    if quality >= 5:
        return max(1.0, codec.crf * (10 - quality) / 5)
    return codec.crf + (codec.worst_crf - codec.crf) * (5 - quality) / 5


def _has(encoder_name: str) -> bool:
    import av

    try:
        av.Codec(encoder_name, "w")
    except (av.error.FFmpegError, ValueError):  # an unknown name is a ValueError
        return False
    return True
