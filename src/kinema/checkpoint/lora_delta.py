"""What one LoRA adds to one weight.

Hu et al. 2021, equation 3: W + alpha/r · B·A. With a magnitude, Liu et al. 2024 (DoRA), equation 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora_products import Product


@dataclass(frozen=True)
class Delta:
    """What one adapter adds to one weight (o, i, ...)."""

    product: Product
    scale: float = 1.0  # alpha / r
    magnitude: Tensor | None = None  # of each output's (or input's) weights, in DoRA

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All it is made of, by name."""
        own = {} if self.magnitude is None else {"magnitude": self.magnitude}
        return {**self.product.tensors, **own}

    def of(self, tensors: Mapping[str, Tensor]) -> Delta:
        """The same of other tensors."""
        return Delta(self.product.of(tensors), self.scale, tensors.get("magnitude"))

    def __call__(self, weight: Tensor) -> Tensor:
        """The addition to `weight`, the published tensor in float32, at full strength."""
        added = self.product.made(weight.device).reshape(weight.shape) * self.scale
        if self.magnitude is None:
            return added
        whole = weight + added
        size = self.magnitude.to(weight.device, torch.float32)
        per_output = size.numel() == len(weight) and not (size.dim() > 1 and size.shape[0] == 1 != len(weight))
        kept = 0 if per_output else 1  # the axis along which magnitudes differ
        others = [axis for axis in range(weight.dim()) if axis != kept]
        shape = [-1 if axis == kept else 1 for axis in range(weight.dim())]
        length = torch.linalg.vector_norm(whole, dim=others, keepdim=True)
        return size.reshape(shape) * whole / length - weight

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why it cannot be added to a weight of this shape; None if it can."""
        if wrong := self.product.misfit(shape):
            return wrong
        if self.magnitude is not None and self.magnitude.numel() not in shape[:2]:
            return f"has {self.magnitude.numel()} magnitudes for a weight of shape {list(shape)}"
        return None
