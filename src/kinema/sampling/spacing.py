"""Which noise levels to visit: spacings of timesteps and of sigmas, and the way from a sigma back to a timestep.

Here a sigma is noise over signal. Everything is NumPy on a few hundred numbers, done once for a clip; arrays run from
noisy to clean.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from ..errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Spacing = Literal["linspace", "leading", "trailing"]


def spaced_times(
    spacing: Spacing, steps: int, train: int, *, offset: int = 0, last: int | None = None, beyond: bool = False
) -> Array:
    """Timesteps from noisy to clean, (steps,), float64 (Lin et al. 2023, table 2).

    Args:
        train: how many timesteps training had.
        offset: added to "leading" timesteps.
        last: how many of the training timesteps may be used, from the clean end.
        beyond: divide as if there were one step more, and leave out its end, which is where the last step lands.
    """
    last = train if last is None else last
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + beyond)[::-1][:steps]
    if spacing == "leading":
        stride = last // (steps + beyond)
        if stride == 0:
            raise InputError(f"{steps} steps do not fit {last} training timesteps; ask for at most {last - beyond}.")
        return np.arange(steps + beyond, dtype=np.float64)[::-1][:steps] * stride + offset
    # Counted, not left to a float range, whose end is off by one for some numbers of steps.
    times = np.round(last - np.arange(steps) * (train / steps))
    return times[times >= 1] - 1


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> Array:
    """Karras et al. 2022, equation 5."""
    start, end = high ** (1 / rho), low ** (1 / rho)
    even: Array = np.linspace(0, 1, steps)
    return (start + even * (end - start)) ** rho


def exponential(high: float, low: float, steps: int) -> Array:
    """Even in the logarithm."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def lu_lambdas(high: float, low: float, steps: int) -> Array:
    """Even in the log of signal over noise, between log sigmas `high` and `low` (Lu et al. 2022)."""
    return np.exp(high + np.linspace(0, 1, steps) * (low - high))


def beta_quantiles(high: float, low: float, steps: int) -> Array:
    """By quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024)."""
    return low + (high - low) * np.array([_beta_quantile(p, 0.6) for p in 1 - np.linspace(0, 1, steps)])


def flow(steps: int, train: int, shift: float) -> Array:
    """Noise shares of straight paths between clean and noise, shifted towards noise."""
    even = 1 - np.linspace(1, 1 / train, steps + 1)
    return (shift * even / (1 + (shift - 1) * even))[::-1][:-1].copy()


def time_of(sigma: Array, log_sigmas: Array) -> Array:
    """The fractional timestep of each sigma, by its logarithm among those of training (clean to noisy, (train,))."""
    log_sigma = np.log(np.maximum(sigma, np.asarray(1e-10, dtype=sigma.dtype)))
    below = log_sigmas <= log_sigma[:, None]
    # The last that is below: with no signal left at the end, training's last sigma is not always its largest.
    last = np.where(below.any(1), len(log_sigmas) - 1 - below[:, ::-1].argmax(1), 0)
    low = last.clip(0, len(log_sigmas) - 2)
    share = (log_sigmas[low] - log_sigma) / (log_sigmas[low] - log_sigmas[low + 1])
    share = share.clip(0, 1)
    times: Array = (1 - share) * low + share * (low + 1)
    return times


def _beta_quantile(p: float, a: float) -> float:
    """Where the symmetric Beta(a, a) distribution function reaches p, by halving."""
    if p <= 0 or p >= 1:
        return min(max(p, 0.0), 1.0)
    if p > 0.5:
        return 1 - _beta_quantile(1 - p, a)
    low, high = 0.0, 0.5
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _beta_below(middle, a) < p else (low, middle)
    return (low + high) / 2


def _beta_below(x: float, a: float) -> float:
    """Beta(a, a)'s distribution function for x <= 1/2, by its continued fraction (DLMF 8.17.22), Lentz's method."""
    front = math.exp(math.lgamma(2 * a) - 2 * math.lgamma(a) + a * math.log(x * (1 - x))) / a
    c, d = 1.0, 1 / (1 - 2 * a * x / (a + 1))
    total = d
    for m in range(1, 200):
        even = m * (a - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / (1 + even * d), 1 + even / c
        total *= d * c
        odd = -(a + m) * (2 * a + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + odd * d), 1 + odd / c
        total *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return front * total
