"""Guidance: how many conditions to evaluate at each step, and how to combine what the network makes of them."""

from __future__ import annotations

from collections.abc import Sequence
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
        return rescaled(without + self.scale * (within - without), within, self.rescale)


@dataclass(frozen=True)
class PerturbedGuidance:
    """Away from a prediction made with less attention, and where guided from the unconditional one (Ahn et al. 2024).

    What is predicted has one branch more than there are conditions: that of the perturbed prediction, the last.
    """

    scale: float | Tensor  # as of `ClassifierFree`; not guided without the second branch
    away: Sequence[float]  # from the perturbed prediction, at each step
    rescale: float = 0.0
    branches: int = 2

    def __call__(self, predicted: Tensor, step: int) -> Tensor:
        *without, within, perturbed = predicted.chunk(self.branches + 1)
        guided = without[0] + self.scale * (within - without[0]) if without else within
        return rescaled(guided + self.away[step] * (within - perturbed), within, self.rescale)


def perturbed_guidance(
    scale: float, pag_scale: float, adaptive: float, times: Tensor, rescale: float = 0.0
) -> PerturbedGuidance:
    """Guided away from the perturbed prediction `pag_scale` strong, less the less noise is left.

    Args:
        scale: of classifier-free guidance; at 1 and below there is none.
        adaptive: how fast `pag_scale` falls, 0 (not) and up: by so much at each of the 1000 times of training.
        times: (steps,): what the network is told of the noise level.
    """
    away = [max(0.0, pag_scale - adaptive * (1000 - t)) if adaptive > 0 else pag_scale for t in times.tolist()]
    return PerturbedGuidance(scale, away, rescale, 2 if scale > 1 else 1)


def rescaled(guided: Tensor, within: Tensor, rescale: float) -> Tensor:
    """The guided prediction with its spread brought back towards the conditional one's, as far as `rescale` says."""
    if not rescale:
        return guided
    axes = tuple(range(1, within.ndim))
    fitted = guided * (within.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
    return rescale * fitted + (1 - rescale) * guided


def guidance_of(scale: float, rescale: float = 0.0) -> Guidance:
    """Guided above 1, as everywhere in the field; at 1 and below the unconditional branch is not evaluated at all."""
    return ClassifierFree(scale, rescale) if scale > 1 else Unguided()
