"""The kernels of `fused`, in Triton's language; imported only where a device is asked what it is better at.

Numbers of a picture lie channel by channel, (pictures, rows, channels); sums are float32 whatever these are stored in.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIECES = 256  # of a picture, whose statistics are taken apart and merged
ROWS, CHANNELS = 32, 64  # a program holds at once
FLAT = 1024  # numbers of one program where they lie in a row


@triton.jit
def _statistics(x, means, squares, rows, channels, span, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of every channel of a piece of a picture: its mean, and the sum of squares around it (Chan et al. 1979)."""
    picture, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    count = 0.0
    mean = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, span, ROWS):
        first = piece * span + start
        r = first + tl.arange(0, ROWS)
        mask = (r < rows)[:, None] & (c < channels)[None, :]
        at = picture * rows * channels + r[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        n = tl.maximum(tl.minimum(rows - first, ROWS), 0).to(tl.float32)
        here = tl.sum(v, 0) / tl.maximum(n, 1.0)
        off = tl.where(mask, v - here[None, :], 0.0)
        share = n / tl.maximum(count + n, 1.0)
        apart = here - mean
        square += tl.sum(off * off, 0) + apart * apart * count * share
        mean += apart * share
        count += n
    to = (picture * tl.num_programs(1) + piece) * channels + c
    tl.store(means + to, mean, mask=c < channels)
    tl.store(squares + to, square, mask=c < channels)


@triton.jit
def _merge(
    means, squares, weight, bias, scale, shift, rows, channels, span, pieces, each, eps,
    PIECES: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """The group norm of a group as scale·x + shift, from the statistics of pieces."""
    picture, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, k = tl.arange(0, PIECES), tl.arange(0, EACH)
    c = group * each + k
    mask = (p < pieces)[:, None] & (k < each)[None, :]
    at = (picture * pieces + p)[:, None] * channels + c[None, :]
    m = tl.load(means + at, mask=mask, other=0.0)
    s = tl.load(squares + at, mask=mask, other=0.0)
    n = tl.where(mask, tl.minimum(rows - p * span, span)[:, None].to(tl.float32), 0.0)
    total = (rows * each).to(tl.float32)
    mean = tl.sum(tl.sum(m * n, 1), 0) / total
    off = m - mean
    spread = tl.sum(tl.sum(s + off * off * n, 1), 0) / total
    a = tl.load(weight + c, mask=k < each, other=0.0).to(tl.float32) / tl.sqrt(spread + eps)
    b = tl.load(bias + c, mask=k < each, other=0.0).to(tl.float32) - mean * a
    tl.store(scale + picture * channels + c, a, mask=k < each)
    tl.store(shift + picture * channels + c, b, mask=k < each)


@triton.jit
def _apply(x, scale, shift, y, rows, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """SiLU of scale·x + shift."""
    picture = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (r < rows)[:, None] & (c < channels)[None, :]
    at = picture * rows * channels + r[:, None] * channels + c[None, :]
    a = tl.load(scale + picture * channels + c, mask=c < channels, other=0.0)
    b = tl.load(shift + picture * channels + c, mask=c < channels, other=0.0)
    v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * a[None, :] + b[None, :]
    tl.store(y + at, (v / (1.0 + tl.exp(-v))).to(y.dtype.element_ty), mask=mask)


@triton.jit
def _gelu_times(gate, value, count, FLAT: tl.constexpr):
    """gate becomes its GELU times value."""
    i = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    g = tl.load(gate + i, mask=i < count, other=0.0).to(tl.float32)
    v = tl.load(value + i, mask=i < count, other=0.0).to(tl.float32)
    gelu = 0.5 * g * (1.0 + tl.erf(g * 0.7071067811865476))
    tl.store(gate + i, (gelu * v).to(gate.dtype.element_ty), mask=i < count)


def norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """SiLU of the group norm of x (n, c, …), whose channels lie last in memory → the same."""
    n, channels = x.shape[:2]
    rows = x[0, 0].numel()
    span = triton.cdiv(triton.cdiv(rows, PIECES), ROWS) * ROWS
    pieces, tiles = triton.cdiv(rows, span), triton.cdiv(channels, CHANNELS)
    means, squares = (x.new_empty(n, pieces, channels, dtype=torch.float32) for _ in range(2))
    scale, shift = (x.new_empty(n, channels, dtype=torch.float32) for _ in range(2))
    y = torch.empty_like(x)
    with _on(x):
        _statistics[(n, pieces, tiles)](x, means, squares, rows, channels, span, ROWS, CHANNELS)
        each = channels // groups
        wide = triton.next_power_of_2(pieces), triton.next_power_of_2(each)
        _merge[(n, groups)](
            means, squares, weight, bias, scale, shift, rows, channels, span, pieces, each, eps, *wide
        )  # fmt: skip
        _apply[(n, triton.cdiv(rows, ROWS), tiles)](x, scale, shift, y, rows, channels, ROWS, CHANNELS)
    return y


def gelu_times(gate: Tensor, value: Tensor) -> Tensor:
    """GELU of gate, times value; gate's memory is used again. Both are in one piece."""
    with _on(gate):
        _gelu_times[(triton.cdiv(gate.numel(), FLAT),)](gate, value, gate.numel(), FLAT)
    return gate


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Within, kernels run on the device where x is."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
