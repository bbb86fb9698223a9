"""What overflows in few bits is made again in float32 and named: no stage hands on numbers that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import NumericsError
from ..memory.stream import Streamed, converted
from ..products import FEW

log = logging.getLogger("kinema")

HIGH = torch.float32

Lift = Callable[[Any], Any]  # a network → how it is to run
T = TypeVar("T")

lifted: Lift = partial(converted, dtype=HIGH)


def as_it_is(module: Any) -> Any:
    """The network in its own number format."""
    return module


@dataclass
class Redone:
    """What one call made again in float32."""

    stages: dict[str, list[Any]] = field(default_factory=dict)  # stage → the networks, steps or frames

    def note(self, stage: str, *what: Any) -> None:
        """What of a stage it was; names and numbers."""
        self.stages.setdefault(stage, []).extend(what)

    def receipt(self) -> dict[str, Any]:
        """For a clip's receipt; nothing where nothing overflowed."""
        return {"redone_in_float32": self.stages} if self.stages else {}

    @contextmanager
    def here(self) -> Iterator[None]:
        """What overflows within is noted here."""
        token = _noting.set(self)
        try:
            yield
        finally:
            _noting.reset(token)

    def along(self, pieces: Iterable[T]) -> Iterator[T]:
        """The pieces, made as they are asked for; what overflows on the way is noted here."""
        each, end = iter(pieces), object()
        while True:
            with self.here():
                piece: Any = next(each, end)
            if piece is end:
                return
            yield piece


_noting: ContextVar[Redone | None] = ContextVar("redone", default=None)


def note(stage: str, *what: Any) -> None:
    """What of a stage was made again, where that is noted."""
    redone = _noting.get()
    if redone is not None:
        redone.note(stage, *what)


_WHAT = {"encode": "{}", "denoise": "step {}", "decode": "frame {}"}


def tell(stage: str, dtype: torch.dtype, what: Sequence[Any], redone: Redone | None = None) -> None:
    """Says what of a stage was made again in float32, in the log and to whoever notes it."""
    redone = _noting.get() if redone is None else redone
    if redone is not None:
        redone.note(stage, *what)
    named = _WHAT[stage].format(", ".join(map(str, what[:8])) + (f" and {len(what) - 8} more" if what[8:] else ""))
    short = str(dtype).removeprefix("torch.")
    log.warning("The %s stage overflowed in %s: %s was made again in float32", stage, short, named)


def sound(stage: str, x: Tensor) -> Tensor:
    """What a stage produced.

    Raises:
        NumericsError: it is not finite.
    """
    if not torch.isfinite(x).all():
        raise NumericsError(
            f"The {stage} stage produced numbers that are not finite: {x.dtype} overflowed, or weights are broken; "
            "try dtype='bfloat16' or 'float32'."
        )
    return x


def healed(stage: str, what: Sequence[Any], dtype: torch.dtype, make: Callable[[Lift], T]) -> T:
    """What a part of a stage makes with its networks as they are; where that is not finite, with them in float32.

    Args:
        what: the names or numbers by which it is told.
        dtype: the networks' own number format.
        make: given how networks are to run, makes a tensor or a tuple of them, from the same inputs each time.

    Raises:
        NumericsError: it is not finite in float32 either.
    """
    made = make(as_it_is)
    if dtype not in FEW or _finite(made):
        return _sound(stage, made)
    made = _sound(stage, make(lifted))
    tell(stage, dtype, what)
    return made


def healed_frames(
    first: int, dtype: torch.dtype, make: Callable[[Lift], Iterable[Tensor]], stage: str = "decode"
) -> Iterator[Tensor]:
    """Frames (some, …) as a decoder gives them; from the first that are not finite on, those it gives in float32.

    Args:
        first: the number of the first frame.

    Raises:
        NumericsError: they are not finite in float32 either.
    """
    done = 0
    for frames in make(as_it_is):
        if dtype in FEW and not _finite(frames):
            break
        yield sound(stage, frames)
        done += len(frames)
    else:
        return
    seen, again = 0, 0
    for frames in make(lifted):
        rest = frames[max(0, done - seen) :]
        seen += len(frames)
        if len(rest):
            again += len(rest)
            yield sound(stage, rest)
    tell(stage, dtype, range(first + done, first + done + again))


def in_float32(told: Any) -> Any:
    """What a denoiser is told, its numbers float32, and networks among it ready to run so; nothing given changes."""
    if isinstance(told, Tensor):
        return told.to(HIGH) if told.dtype in FEW else told
    if isinstance(told, nn.Module | Streamed):
        return lifted(told)
    if is_dataclass(told) and not isinstance(told, type):
        return replace(told, **{f.name: in_float32(getattr(told, f.name)) for f in fields(told) if f.init})
    if isinstance(told, tuple) and hasattr(told, "_fields"):
        return type(told)(*map(in_float32, told))
    if isinstance(told, (list, tuple)):
        return type(told)(map(in_float32, told))
    if isinstance(told, dict):
        return {key: in_float32(value) for key, value in told.items()}
    return told


def _each(made: Any) -> list[Tensor]:
    """A tensor, or those of a tuple."""
    return [made] if isinstance(made, Tensor) else [x for x in made if x is not None]


def _finite(made: Any) -> bool:
    return all(bool(torch.isfinite(x).all()) for x in _each(made))


def _sound(stage: str, made: T) -> T:
    for x in _each(made):
        sound(stage, x)
    return made
