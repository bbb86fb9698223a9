"""LoRAs on weights that are made anew at each use: the sum is made with them, so what is stored stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from .lora_delta import Delta

# Shape, strides and beginning of a published tensor in a weight; None where it is the weight.
View = tuple[tuple[int, ...], tuple[int, ...], int] | None


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
        here = iter(tensors)
        terms = [(by, delta.of({n: next(here) for n in delta.tensors}), view) for by, delta, view in self.terms]
        views = weight.is_contiguous() or all(view is None for _, _, view in terms)
        if views and all(delta.magnitude is None for _, delta, _ in terms):
            for by, delta, view in terms:
                into = _part(weight, view)
                into.add_(delta.product.made(weight.device).reshape(into.shape), alpha=by * delta.scale)
            return weight
        base, total = weight.contiguous(), torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        for by, delta, view in terms:  # magnitudes go by what they are added to
            _part(total, view).add_(delta(_part(base, view)), alpha=by)
        return weight.add_(total)

    def __deepcopy__(self, memo: Any) -> Self:
        return self


def summing(module: nn.Module) -> dict[str, Summing]:
    """The layers of a network that make their weights, by the names of these."""
    layers: Any = module.named_modules()
    return {f"{name}.weight" if name else "weight": layer for name, layer in layers if hasattr(layer, "sum_up")}


def view_of(published: Mapping[str, Tensor], key: str, shape: torch.Size) -> View:
    """Where a published tensor lies in the weight of this shape that it was made of."""
    x = published[key]
    whole = x.shape == shape and x.is_contiguous()
    return None if whole else (tuple(x.shape), tuple(x.stride()), int(x.storage_offset()))


def _part(weight: Tensor, view: View) -> Tensor:
    return weight if view is None else weight.as_strided(*view)
