"""Long clips as windows of a length a model knows: which frames it sees together, and what each of them counts for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd
from typing import Literal, NamedTuple, get_args

from ..errors import InputError

Blend = Literal["pyramid", "flat", "linear"]
GOLDEN = (5**0.5 - 1) / 2  # its multiples fill an interval more evenly than those of any other number


class Window(NamedTuple):
    """Frames that are denoised together."""

    frames: tuple[int, ...]  # counted from 0, in playing order; those of a loop may pass the clip's end
    weights: tuple[float, ...]  # what they count for; over all windows those of a frame sum to 1


@dataclass(frozen=True)
class Windows:
    """How a clip is cut into windows, the same for the same step of any run.

    Raises:
        InputError: settings cannot be used; the message says what can.
    """

    length: int = 16  # frames of a window, as many as the model was trained on; clips no longer than that are one
    overlap: int = 4  # frames neighbours share, at least; 0 to length - 1. More is smoother and slower
    stride: int = 1  # 1: windows of neighbouring frames; 2: of every second frame too; 3: of every fourth; and so on
    loop: bool = False  # whether the last frame is followed by the first
    blend: Blend = "pyramid"  # how frames count: most in a window's middle, all alike, or less only where windows meet
    drift: bool = True  # whether windows begin elsewhere at each step, so that no place is always a border

    def __post_init__(self) -> None:
        _whole("length", self.length, 1)
        _whole("overlap", self.overlap, 0, self.length - 1)
        _whole("stride", self.stride, 1)
        if self.blend not in get_args(Blend):
            raise InputError(f"blend is {self.blend!r}; it must be one of {', '.join(get_args(Blend))}.")

    def plan(self, frames: int, step: int = 0) -> tuple[Window, ...]:
        """The windows of a clip of so many frames at a step of its denoising."""
        return _plan(self, frames, step if self.drift else 0)

    def cuts(self, frames: int) -> bool:
        """Whether a clip of so many frames is anything but one window, as it is."""
        return frames > self.length or (self.loop and frames > 1)

    @property
    def hop(self) -> int:
        """Frames from one window's first to the next one's, at most."""
        return self.length - self.overlap


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    span = f"at least {least}" if most is None else f"from {least} to {most}, less than the length"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise InputError(f"{name} is {value!r}; it must be a whole number, {span}.")


@lru_cache(maxsize=1024)
def _plan(windows: Windows, frames: int, step: int) -> tuple[Window, ...]:
    scales = [2**k for k in range(windows.stride) if k == 0 or windows.length * 2 ** (k - 1) < frames]
    found = []
    for scale in scales:
        for track in _tracks(frames, scale, windows.loop):
            spans = (_closed if windows.loop else _open)(windows, len(track), (step * GOLDEN) % 1)
            found += [_named(window, track, len(scales)) for window in _weighted(spans, len(track), windows)]
    return tuple(found)


def _tracks(frames: int, scale: int, loop: bool) -> list[tuple[int, ...]]:
    """Every `scale`-th frame, from each of the first few on. In a loop such a track may go around more than once."""
    if not loop:
        return [tuple(range(first, frames, scale)) for first in range(min(scale, frames))]
    rounds = gcd(scale, frames)
    return [tuple((first + scale * i) % frames for i in range(frames // rounds)) for first in range(rounds)]


def _open(windows: Windows, n: int, drift: float) -> list[tuple[int, ...]]:
    """Windows over n places with two ends: without drift evenly spread; with it, those at the ends stay within."""
    length, hop = windows.length, windows.hop
    if n <= length:
        return [tuple(range(n))]
    if windows.drift:
        shift = int(drift * hop)
        starts = [min(max(k * hop - shift, 0), n - length) for k in range(ceil((n - length + shift) / hop) + 1)]
    else:
        last = ceil((n - length) / hop)
        starts = [k * (n - length) // last for k in range(last + 1)]
    return [tuple(range(start, start + length)) for start in dict.fromkeys(starts)]


def _closed(windows: Windows, n: int, drift: float) -> list[tuple[int, ...]]:
    """Windows over n places in a ring, evenly spread; where one window holds them all, only where it begins differs."""
    count = ceil(n / windows.hop) if n > windows.length else 1
    first = int(drift * n / count)
    length = min(windows.length, n)
    return [tuple((first + k * n // count + i) % n for i in range(length)) for k in range(count)]


def _weighted(spans: Sequence[tuple[int, ...]], n: int, windows: Windows) -> list[Window]:
    """Places with weights that sum to 1 at each place."""
    shapes = [BLENDS[windows.blend](len(span), windows.overlap) for span in spans]
    total = [0.0] * n
    for span, shape in zip(spans, shapes, strict=True):
        for place, weight in zip(span, shape, strict=True):
            total[place] += weight
    return [
        Window(span, tuple(w / total[p] for p, w in zip(span, shape, strict=True)))
        for span, shape in zip(spans, shapes, strict=True)
    ]


def _named(window: Window, track: Sequence[int], scales: int) -> Window:
    """A window over places of a track as one over frames, counting for its scale's share."""
    return Window(tuple(track[place] for place in window.frames), tuple(w / scales for w in window.weights))


def pyramid(n: int, overlap: int = 0) -> list[float]:
    """1, 2, 3, …, 3, 2, 1 (Qiu et al. 2023, equation 9)."""
    return [float(min(i + 1, n - i)) for i in range(n)]


def flat(n: int, overlap: int = 0) -> list[float]:
    """1 everywhere."""
    return [1.0] * n


def linear(n: int, overlap: int = 0) -> list[float]:
    """1, with ramps at both ends as long as the overlap."""
    return [min(1.0, weight / (overlap + 1)) for weight in pyramid(n)]


BLENDS: dict[Blend, Callable[[int, int], list[float]]] = {"pyramid": pyramid, "flat": flat, "linear": linear}
