"""How much signal is left at each training timestep: the beta schedules models were trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"]

TINY = 2.0**-24  # stands for "no signal left" where a ratio of noise to signal must stay finite


def training_betas(schedule: BetaSchedule, start: float, end: float, steps: int) -> Tensor:
    """The noise added by each training step, (steps,), float32 as models saw it."""
    match schedule:
        case "linear":
            return torch.linspace(start, end, steps, dtype=torch.float32)
        case "scaled_linear":  # latent diffusion (Rombach et al. 2022): linear in the square root
            return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
        case "sigmoid":  # GeoDiff
            return torch.sigmoid(torch.linspace(-6, 6, steps)) * (end - start) + start
        case _:
            return _from_curve(_CURVES[schedule], steps)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """The same betas, stretched until nothing of the signal is left at the end (Lin et al. 2023, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    kept = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])


def _laplace(t: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


_CURVES: dict[str, Callable[[float], float]] = {  # share of the signal's variance left at time t in [0, 1]
    "squaredcos_cap_v2": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,  # Nichol & Dhariwal 2021
    "exp": lambda t: math.exp(-12.0 * t),
    "laplace": _laplace,
}


def _from_curve(curve: Callable[[float], float], steps: int, most: float = 0.999) -> Tensor:
    left = [curve(i / steps) for i in range(steps + 1)]
    return torch.tensor([min(1 - b / a, most) for a, b in pairwise(left)], dtype=torch.float32)
