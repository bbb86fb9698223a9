"""What one LoRA adds to one weight.

Hu et al. 2021, equation 3: W + alpha/r · B·A. With a magnitude, Liu et al. 2024 (DoRA), equation 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Delta:
    """What one adapter adds to one weight (o, i, ...)."""

    down: Tensor  # (r, i, ...): A
    up: Tensor  # (o, r, ...): B
    scale: float = 1.0  # alpha / r
    magnitude: Tensor | None = None  # of each output's (or input's) weights, in DoRA
    mid: Tensor | None = None  # (r, r, kh, kw): the taps of a convolution whose down and up are 1×1 (LyCORIS, Tucker)

    def __call__(self, weight: Tensor) -> Tensor:
        """The addition to `weight`, the published tensor in float32, at full strength."""
        up, down = (x.to(weight.device, torch.float32).flatten(1) for x in (self.up, self.down))
        if self.mid is not None:
            taps = self.mid.to(weight.device, torch.float32)
            added = torch.einsum("or,rshw,si->oihw", up, taps, down).view_as(weight) * self.scale
        else:
            added = (up @ down).view_as(weight) * self.scale
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
        up, down = self.up, self.down
        if up.dim() < 2 or down.dim() < 2 or up.shape[1] != down.shape[0] or any(n != 1 for n in up.shape[2:]):
            return f"has parts of shapes {list(down.shape)} and {list(up.shape)}, which do not multiply"
        if self.mid is not None:
            r, taps = down.shape[0], tuple(self.mid.shape)
            if len(taps) == 4 and taps[:2] == (r, r) and shape == (up.shape[0], down[0].numel(), *taps[2:]):
                return None
            return f"has taps of shape {list(taps)} for a weight of shape {list(shape)}"
        if len(shape) < 2 or up.shape[0] != shape[0] or down[0].numel() != torch.Size(shape[1:]).numel():
            return f"makes a change of shape {[up.shape[0], *down.shape[1:]]} for a weight of shape {list(shape)}"
        if self.magnitude is not None and self.magnitude.numel() not in shape[:2]:
            return f"has {self.magnitude.numel()} magnitudes for a weight of shape {list(shape)}"
        return None
