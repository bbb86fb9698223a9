"""The optimiser: Muon for matrices and kernels, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Momentum whose updates of matrices are made orthogonal (Jordan et al. 2024), and Adam for all other weights.

    Kernels count as matrices, (out, everything else). Every direction of a matrix then learns at the same pace, which
    on these small networks reaches a given loss in about half the steps of AdamW (docs/toy-model.md).
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, adam: float = 0.1, decay: float = 1e-4):
        self.adam = adam  # the learning rate of the rest, as a share of that of matrices
        super().__init__(weights, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                p.mul_(1 - group["lr"] * group["decay"])
                if p.ndim >= 2 and min(len(p), p[0].numel()) >= 8:
                    p.add_(self.matrix(p.grad, state), alpha=-group["lr"])
                else:
                    p.add_(self.other(p.grad, state), alpha=-group["lr"] * self.adam)

    def matrix(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(grad))
        mean.lerp_(grad, 0.05)
        update = orthogonal(grad.lerp(mean, 0.95).flatten(1))
        out: Tensor = (update * max(1.0, len(update) / update.shape[1]) ** 0.5).view(grad.shape)
        return out

    def other(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(grad))
        square = state.setdefault("square", torch.zeros_like(grad))
        mean.lerp_(grad, 0.1)
        square.lerp_(grad.square(), 0.01)
        n = state["step"]
        out: Tensor = (mean / (1 - 0.9**n)) / ((square / (1 - 0.99**n)).sqrt() + 1e-8)
        return out


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrix whose singular values are all about one, by Newton-Schulz iteration.

    Each round multiplies by a polynomial of x·xᵀ, so the rounds run on that small square alone.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    square, one = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    product = one
    for _ in range(rounds):
        factor = 3.4445 * one - 4.7750 * square + 2.0315 * square @ square
        product = factor @ product
        square = factor @ square @ factor
    x = product @ x
    out: Tensor = x.T if matrix.shape[0] > matrix.shape[1] else x
    return out
