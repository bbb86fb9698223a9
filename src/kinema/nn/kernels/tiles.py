"""How tiles of pixels and kernels get to where their convolution is a product of numbers, and back again.

A row of pixels, or of frames, and a row of a kernel are two polynomials, a convolution is their product, and a product
of polynomials is known from its values at as many points as it has coefficients (Toom 1963, Cook 1966; Winograd 1980).
The points decide how much is lost to rounding: with 0, ±√½, ±√2 and infinity, tiles of four by four lose no more than a
direct convolution does; with the 0, ±1, ±2 and infinity that are usual, five times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # wherever whoever imports this puts new tensors


@dataclass(frozen=True, eq=False)
class Tiles:
    """Tiles of one size for kernels of one size, along one axis or both: matrices for both at once."""

    side: int  # pixels a side that come back
    places: int  # points, and pixels a side that they are worked out from
    there: Tensor  # pixels to values at the points, (placesᵃ, placesᵃ) for a axes
    back: Tensor  # products of values to pixels, (sideᵃ, placesᵃ)
    spread: Tensor  # numbers of a kernel to its values at the points, (placesᵃ, kernelᵃ)

    @classmethod
    def at(cls, points: Sequence[float], kernel: int, axes: int = 2) -> Tiles:
        """At these points and infinity."""
        places = len(points) + 1
        side = places + 1 - kernel
        there, back, spread = torch.zeros(3, places, places, **EXACT).unbind()
        for i, point in enumerate(points):
            others = [*points[:i], *points[i + 1 :]]
            powers = point ** torch.arange(places, **EXACT)
            there[i, : places - 1] = _with_zeros_at(others)
            back[:, i] = powers
            spread[i] = powers / prod(point - other for other in others)
        there[-1] = _with_zeros_at(points)
        back[side - 1, -1] = spread[-1, kernel - 1] = 1
        matrices = (there, back[:side].contiguous(), spread[:, :kernel].contiguous())
        return cls(side, places, *(reduce(torch.kron, [matrix] * axes).float() for matrix in matrices))


def _with_zeros_at(points: Sequence[float]) -> Tensor:
    """Coefficients of the polynomial, the constant one first."""
    found = torch.ones(1, **EXACT)
    for point in points:
        zero = found.new_zeros(1)
        found = torch.cat([zero, found]) - point * torch.cat([found, zero])
    return found


NEAR, FAR = sqrt(0.5), sqrt(2.0)
TWO, FOUR = Tiles.at((0.0, 1.0, -1.0), 3), Tiles.at((0.0, NEAR, -NEAR, FAR, -FAR), 3)  # of kernels of 3×3
THREE = Tiles.at((0.0, 1.0, -1.0), 2)  # of kernels of 2×2
# Of kernels over three frames, by how many frames come back at once.
FRAMES = {
    side: Tiles.at(points, 3, 1)
    for side, points in {
        3: (0.0, 1.0, -1.0, 2.0),
        4: (0.0, NEAR, -NEAR, FAR, -FAR),
        5: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0),
        6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
    }.items()
}
