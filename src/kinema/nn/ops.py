"""The few operations everything is computed with, in plain PyTorch or a faster equal that was found to be one here."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..place import kind_of
from .kernels import enlarged, fused, over_time, winograd

PIECE = 1 << 24  # elements an inner activation may have at once; larger inputs go through in pieces
CACHE = 1 << 20  # the same on a CPU, whose pieces are so small that they stay in its cache from layer to layer:
LOCAL = 1024  # tokens for each of its threads
SEQUENCES = 65_535  # the most sequences one attention launch can hold on a GPU's grid


def norm_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """SiLU of the group norm, (n, c, …) → the same."""
    if fused.norms(x):
        return fused.norm_silu(x, norm)
    return F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps), inplace=True)


def norm_silu_conv(x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d, rows: int | None = None) -> Tensor:
    """A 3×3 convolution of the SiLU of the group norm, (n, c, h, w) → (n, c', h, w).

    With `rows`, that many rows at a time: only the input and the result are ever whole, and the norm's statistics are
    still those of the whole picture, so nothing but rounding changes.
    """
    if rows is None or rows >= x.shape[2]:
        return conv3x3(norm_silu(x, norm), conv)
    scale, shift = _scale_and_shift(x, norm, rows)
    bands = []
    for top in range(0, x.shape[2], rows):
        low, high = max(top - 1, 0), min(top + rows + 1, x.shape[2])
        band = F.silu((x[:, :, low:high] * scale).add_(shift), inplace=True)
        edges = (1, 1, int(top == 0), int(top + rows >= x.shape[2]))
        bands.append(F.conv2d(F.pad(band, edges), conv.weight, conv.bias))
    return torch.cat(bands, 2)


def conv3x3(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution that keeps height and width, (n, c, h, w) → (n, c', h, w)."""
    if winograd.worthwhile(x, conv.out_channels):
        return winograd.conv3x3(x, conv.weight, conv.bias)
    out: Tensor = conv(x)
    return out


def _scale_and_shift(x: Tensor, norm: nn.GroupNorm, rows: int) -> tuple[Tensor, Tensor]:
    """The group norm as scale·x + shift, (n, c, 1, 1) each, from merged statistics of bands (Chan et al. 1979)."""
    count, mean, squares = 0, x.new_zeros((), dtype=torch.float32), x.new_zeros((), dtype=torch.float32)
    for band in x.unflatten(1, (norm.num_groups, -1)).split(rows, 3):
        var, here = torch.var_mean(band.float(), (2, 3, 4), correction=0)
        n = band[0, 0].numel()
        apart, total = here - mean, count + n
        squares = squares + var * n + apart.square() * (count * n / total)
        mean, count = mean + apart * (n / total), total
    spread = (squares / count + norm.eps).rsqrt()
    each = x.shape[1] // norm.num_groups
    scale = spread.repeat_interleave(each, 1) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(each, 1) * scale
    return scale[..., None, None].to(x.dtype), shift[..., None, None].to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, heads_at_once: int | None = None, weights: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + weights)·v over (rows, heads, tokens, d): Vaswani et al. 2017, equation 1.

    Rows beyond what one launch can hold, and heads beyond `heads_at_once`, go in turns; the result is the same.
    Weights are (rows, 1, 1, tokens).
    """
    if len(q) > SEQUENCES:
        each = repeat(None) if weights is None else weights.split(SEQUENCES)
        parts = zip(q.split(SEQUENCES), k.split(SEQUENCES), v.split(SEQUENCES), each, strict=False)
        return torch.cat([attend(*part[:3], heads_at_once, part[3]) for part in parts])
    if heads_at_once is None or heads_at_once >= q.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=weights)
    some = zip(*(t.split(heads_at_once, 1) for t in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(a, b, c, attn_mask=weights) for a, b, c in some], 1)


def feed_forward(x: Tensor, up: nn.Linear, down: nn.Linear, gated: bool, piece: int | None = None) -> Tensor:
    """down(gelu(up(x))), or GEGLU (Shazeer 2020): half of up's outputs gate the others. (…, c) → (…, c).

    The inner activation is four times as wide as x, so tokens go through `piece` at a time, by default `at_once`.
    Tokens do not see one another here: the result is the same.
    """
    tokens = x.reshape(-1, x.shape[-1])
    piece = piece or at_once(tokens, down.in_features)
    if len(tokens) <= piece or torch.is_grad_enabled():
        return _feed(tokens, up, down, gated).view(*x.shape[:-1], -1)
    out = tokens.new_empty(len(tokens), down.out_features)
    for start in range(0, len(tokens), piece):
        out[start : start + piece] = _feed(tokens[start : start + piece], up, down, gated)
    return out.view(*x.shape[:-1], -1)


def at_once(tokens: Tensor, width: int) -> int:
    """How many of the tokens (n, c) should go together through layers `width` wide that do not mix them."""
    local = kind_of(tokens) == "cpu"
    if len(tokens) * width <= (CACHE if local else PIECE):
        return max(1, len(tokens))
    most = max(1, PIECE // width)
    return min(most, LOCAL * torch.get_num_threads()) if local else most


def _feed(x: Tensor, up: nn.Linear, down: nn.Linear, gated: bool) -> Tensor:
    if not gated:
        return F.linear(F.gelu(up(x)), down.weight, down.bias)
    (value, gate), (value_bias, gate_bias) = up.weight.chunk(2), up.bias.chunk(2)
    inner = F.linear(x, gate, gate_bias)
    if fused.gates(inner):
        inner = fused.gelu_times(inner, F.linear(x, value, value_bias))
    else:
        inner = F.gelu(inner).mul_(F.linear(x, value, value_bias))
    return F.linear(inner, down.weight, down.bias)


class OverTime:
    """A (k, 1, 1) convolution of clips seen as (b, c, f, n) strips: two-dimensional, so no 3-D kernel is needed.

    What can be prepared is prepared once for all the strips it is called with, which are to be of one length.
    """

    def __init__(self, layer: nn.Conv3d):
        self.layer = layer
        self.weight: Tensor | None = None  # some layers make theirs at each use
        self.kernel: over_time.Kernel | None = None

    def __call__(self, strips: Tensor) -> Tensor:
        length, bias = self.layer.kernel_size[0], self.layer.bias
        if self.weight is None:
            self.weight = self.layer.weight
        if not over_time.worthwhile(strips, self.layer.out_channels, length):
            return F.conv2d(strips, self.weight[..., 0], bias, padding=(length // 2, 0))
        if self.kernel is None:
            self.kernel = over_time.Kernel.fitting(self.weight, bias, strips.shape[2])
        return self.kernel.conv(strips)


def conv_over_time(strips: Tensor, layer: nn.Conv3d) -> Tensor:
    """The same once, (b, c, f, n) → (b, c', f, n)."""
    return OverTime(layer)(strips)


def upsample_conv(x: Tensor, size: tuple[int, int] | torch.Size, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution of the nearest-neighbour enlargement of x, (n, c, h, w) → (n, c', *size)."""
    h, w = x.shape[2:]
    doubled = tuple(size) == (2 * h, 2 * w)
    if doubled and winograd.worthwhile_doubled(x, conv.out_channels):
        return winograd.doubled_conv(x, conv.weight, conv.bias)
    if doubled and len(x) * h * w >= enlarged.LEAST and enlarged.CHOICE.taken(x):
        return enlarged.doubled_conv(x, conv.weight, conv.bias)
    return conv3x3(F.interpolate(x, size=tuple(size), mode="nearest"), conv)


def conv1x1(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution of single pixels, (n, c, h, w) → (n, c', h, w): where channels lie last, a matrix product."""
    if not x.is_contiguous(memory_format=torch.channels_last):
        out: Tensor = conv(x)
        return out
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def lay_out(model: nn.Module) -> None:
    """Puts the weights of convolutions in the order their kernels read them, which would else be done at every call."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
