"""LoRAs on weights that are made anew at each use: the sum is made with them, so what is stored stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from .lora_delta import Delta

View = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and beginning of a published tensor in a weight


class Summing(Protocol):
    """A layer that makes its weight at each use."""

    @property
    def weight_shape(self) -> torch.Size: ...

    def sum_up(self, total: Sum | None) -> None:
        """The weight is made with this from now on."""


@dataclass(frozen=True, eq=False)
class Sum:
    """What LoRAs add to one weight."""

    terms: tuple[tuple[float, Delta, View], ...]

    @property
    def tensors(self) -> list[Tensor]:
        """The matrices of all, which the layer keeps where its weight is."""
        return [x for _, delta, _ in self.terms for x in delta.tensors.values()]

    def __call__(self, weight: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """A weight in float32, and the matrices where they are kept → the weight with all that is added, in place."""
        here, total = iter(tensors), torch.zeros(weight.shape, device=weight.device)
        base = total
        if any(delta.magnitude is not None for _, delta, _ in self.terms):
            base = weight.contiguous()  # some go by what they are added to, others only by its shape
        for scale, delta, view in self.terms:
            delta = delta.of({name: next(here) for name in delta.tensors})
            total.as_strided(*view).add_(delta(base.as_strided(*view)), alpha=scale)
        return weight.add_(total)

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def summing(module: nn.Module) -> dict[str, Summing]:
    """The layers of a network that make their weights, by the names of these."""
    layers: Any = module.named_modules()
    return {f"{name}.weight" if name else "weight": layer for name, layer in layers if hasattr(layer, "sum_up")}


def view_of(published: Mapping[str, Tensor], key: str) -> View:
    """Where a published tensor lies in the weight it was made of."""
    x = published[key]
    return tuple(x.shape), tuple(x.stride()), int(x.storage_offset())
