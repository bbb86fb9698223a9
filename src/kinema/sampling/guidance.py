"""Guidance: how many conditions to evaluate at each step, and how to combine what the network makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Guidance(Protocol):
    """Conditions are ordered as the branches are: the unconditional one first."""

    @property
    def branches(self) -> int: ...

    def __call__(self, predicted: Tensor, step: int) -> Tensor:
        """(branches·b, f, c, h, w) → (b, f, c, h, w)."""
        ...


@dataclass(frozen=True)
class Unguided:
    """The prediction as it is."""

    branches: int = 1

    def __call__(self, predicted: Tensor, step: int) -> Tensor:
        return predicted


@dataclass(frozen=True)
class ClassifierFree:
    """Away from the unconditional prediction (Ho and Salimans 2022, equation 6).

    `scale` is one number, or (f, 1, 1, 1): one of each frame. `rescale` in [0, 1] brings the result's spread back
    towards that of the conditional prediction (Lin et al. 2023, section 3.4).
    """

    scale: float | Tensor
    rescale: float = 0.0
    branches: int = 2

    def __call__(self, predicted: Tensor, step: int) -> Tensor:
        without, within = predicted.chunk(2)
        guided = without + self.scale * (within - without)
        if not self.rescale:
            return guided
        axes = tuple(range(1, within.ndim))
        fitted = guided * (within.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return self.rescale * fitted + (1 - self.rescale) * guided


def guidance_of(scale: float, rescale: float = 0.0) -> Guidance:
    """Guided above 1, as everywhere in the field; at 1 and below the unconditional branch is not evaluated at all."""
    return ClassifierFree(scale, rescale) if scale > 1 else Unguided()
