"""Operations of GPUs that pass through memory once instead of several times: GroupNorm with SiLU, GELU with its gate.

The kernels are Triton's, which comes with PyTorch for GPUs. **They have never run on a GPU so far**; tests run them in
Triton's interpreter. So on a GPU, too, each is taken only where its trial found it right and faster, and without Triton
it is none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...choice import Choice, Ways, example

LEAST = 1 << 18  # numbers from which launching more kernels pays
MOST_PLACES = 65_535 * 32  # pixels of a picture: a launch's second axis, by the rows a program holds


def norms(x: Tensor) -> bool:
    """Whether the norm of x (n, c, …) and its SiLU are to be one: on a GPU, for large x whose channels lie last."""
    return x.is_cuda and launchable(x) and channels_last(x) and NORM_SILU.taken(x)


def launchable(x: Tensor) -> bool:
    """Whether pictures (n, c, …) are large enough to pay, and small enough for a launch and its numbers of places."""
    n, c = x.shape[:2]
    places = x.numel() // max(1, n * c)
    return x.numel() >= LEAST and places <= MOST_PLACES and places * c < 1 << 31


def gates(x: Tensor) -> bool:
    """Whether a GELU and its gate are to be one."""
    return x.is_cuda and x.numel() >= LEAST and GEGLU.taken(x)


def channels_last(x: Tensor) -> bool:
    """Whether x (n, c, …) lies in one piece, channel after channel of each place."""
    return x.ndim > 2 and x.movedim(1, -1).is_contiguous()


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU of the group norm, (n, c, …) → the same."""
    from . import programs

    # Weights that are brought for an operation are brought for these two.
    return programs.norm_silu(x, norm.num_groups, norm.weight.detach(), norm.bias.detach(), norm.eps)


def gelu_times(gate: Tensor, value: Tensor) -> Tensor:
    """GELU of gate (rows, c), times value; gate's memory is used again."""
    from . import programs

    return programs.gelu_times(gate, value)


def _norm_sample(device: torch.device, dtype: torch.dtype) -> Ways:
    x, norm = example(device, dtype, 16, 36, 64, 320), nn.GroupNorm(32, 320, device=device, dtype=dtype)
    plain = F.group_norm
    return (
        lambda: F.silu(plain(x, 32, norm.weight, norm.bias, norm.eps), inplace=True),
        lambda: norm_silu(x, norm),
    )


def _gate_sample(device: torch.device, dtype: torch.dtype) -> Ways:
    gate, value = (example(device, dtype, 1, 1, 4096, 1280 + i)[0, :1280, 0].T.contiguous() for i in (0, 1))
    return lambda: F.gelu(gate).mul_(value), lambda: gelu_times(gate.clone(), value)


NORM_SILU = Choice("norm-silu", "group norms with SiLU", _norm_sample)
GEGLU = Choice("geglu", "gated GELUs", _gate_sample, least=1.0)  # its trial copies the gate beside
CHOICES = [NORM_SILU, GEGLU]
