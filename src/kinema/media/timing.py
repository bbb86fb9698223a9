"""Exact frame rates, and frame delays that add up."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from numbers import Rational

from kinema.errors import InputError

Rate = int | float | str | Fraction

_NTSC = [Fraction(1000 * nominal, 1001) for nominal in (24, 30, 48, 60, 120)]  # written 23.976, 29.97, ...


def frame_rate(fps: Rate) -> Fraction:
    """The exact rational rate that `fps` means, in frames a second.

    Integers, fractions and strings such as "30000/1001" are exact already. Floats are snapped: 23.976 and 29.97 to
    24000/1001 and 30000/1001, others to the nearest fraction with a small denominator. Raises InputError for rates
    that are not a positive number or exceed 1000.
    """
    try:
        if isinstance(fps, bool):
            raise TypeError
        value = Fraction(fps) if isinstance(fps, str | Rational) else _snapped(float(fps))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise InputError(f"fps {fps!r} is not a frame rate; expected a number above 0, for example 8.") from None
    if not 0 < value <= 1000:
        raise InputError(f"fps {fps!r} is out of range; expected more than 0 and at most 1000 frames a second.")
    if max(value.numerator, value.denominator) >= 2**31:  # what a file can hold
        value = value.limit_denominator(10**6)
    return value


def likely_rate(count: int, seconds: Fraction, tick: Fraction) -> Fraction:
    """The rate of `count` frames that last `seconds`, give or take half a `tick`: whole or broadcast where one fits."""
    slowest, fastest = (count / (seconds + error) for error in (tick / 2, -min(tick, seconds) / 2))
    measured = count / seconds
    return next((r for r in (Fraction(round(measured)), *_NTSC) if r and slowest <= r <= fastest), measured)


def _snapped(fps: float) -> Fraction:
    if not math.isfinite(fps):
        raise ValueError
    for rate in _NTSC:
        if abs(fps - rate) < 0.005:
            return rate
    return Fraction(fps).limit_denominator(1001)


def delays(count: int, rate: Fraction, ticks: int) -> list[int]:
    """How many ticks of 1/`ticks` second each of `count` frames lasts, so that their sum is right to one tick.

    Each frame ends at the tick nearest its true end, so no error piles up: 24 frames a second in hundredths are
    4, 4, 5, 4, 4, 4, ... and 24 of them make 100.
    """
    ends = [round(Fraction(ticks * i) / rate) for i in range(count + 1)]
    return [b - a for a, b in pairwise(ends)]
