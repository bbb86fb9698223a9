"""Weights kept in eight bits and computed in more: whole numbers or small floats, each output channel with a scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError

Format = Literal["int8", "float8"]
FORMATS: tuple[Format, ...] = get_args(Format)

# What a format keeps a number in, and the largest of these.
_CODES: Mapping[str, tuple[torch.dtype, float]] = {"int8": (torch.int8, 127), "float8": (torch.float8_e4m3fn, 448)}


@dataclass(frozen=True)
class Stored:
    """How a network's weights are stored."""

    format: Format
    before: int  # bytes of its weights in the format it computes in
    after: int  # and as they are stored
    error: float  # of the weights: the size of all differences as a share of the size of all weights
    worst: tuple[str, float]  # the layer whose weights differ most, and how much


class Held:
    """A tensor that copies of a module have in common, which else would be as large again."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Total(Protocol):
    """What is summed on a weight."""

    @property
    def tensors(self) -> Sequence[Tensor]: ...

    def __call__(self, weight: Tensor, tensors: Sequence[Any], /) -> Tensor:
        """A weight in float32, and these tensors where they are kept → the weight with the sum, in place."""
        ...


class Packed:
    """A layer whose weight is made anew at each use, and lives no longer than that.

    Buffers hold it, as bits that no conversion of the layer touches: `codes` (out, …), bytes; `scales` (out,), the bits
    of float32; and `like`, empty, which says in what number format and where the layer computes. What is summed on it
    is made with it, in float32, of matrices that are buffers too.
    """

    codes: Tensor
    scales: Tensor
    like: Tensor
    format: Format
    original: Held | None  # on the host, if it is kept
    total: Total | None = None  # what is summed on it

    @property
    def weight(self) -> Tensor:
        """(out, …), in the number format the layer computes in."""
        if self.total is None:
            return self.alone
        wide = unpacked(self.codes, self.scales, self.format, torch.float32)
        return self.total(wide, [self._buffers[name] for name in self._summed]).to(self.like.dtype)  # type: ignore[attr-defined]

    @property
    def alone(self) -> Tensor:
        """The same without what is summed on it."""
        return unpacked(self.codes, self.scales, self.format, self.like.dtype)

    @property
    def weight_shape(self) -> torch.Size:
        """What shape it has, without making it."""
        return self.codes.shape

    def sum_up(self, total: Total | None) -> None:
        """The weight is made with this from now on."""
        layer: Any = self
        for name in self._summed:
            del layer._buffers[name]
            layer._non_persistent_buffers_set.discard(name)
        layer.__dict__.pop("total", None)
        if total is not None:
            for i, tensor in enumerate(total.tensors):
                layer.register_buffer(f"summed_{i}", tensor.to(self.codes.device), persistent=False)
            layer.__dict__["total"] = total

    @property
    def _summed(self) -> list[str]:
        return [] if self.total is None else [f"summed_{i}" for i in range(len(self.total.tensors))]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        if (given := state_dict.pop(f"{prefix}weight", None)) is None:
            more[2].append(f"{prefix}weight")  # of those missing
        elif self.total is not None:  # it may be in the given weight already
            raise InputError("LoRAs are on these weights; call unload_lora_weights() before loading others into them.")
        else:
            self.keep(given, None)
        super()._load_from_state_dict(state_dict, prefix, *more)  # type: ignore[misc]

    def keep(self, weight: Tensor, original: Tensor | None) -> None:
        """Holds this weight (out, …) from now on."""
        codes, scales = packed(weight.to(self.like.device), self.format)
        self.codes, self.scales, self.original = codes, scales, None if original is None else Held(original)


class PackedLinear(Packed, nn.Linear):  # type: ignore[override]
    """A linear layer."""


class PackedConv2d(Packed, nn.Conv2d):  # type: ignore[override]
    """A convolution over pictures."""


class PackedConv3d(Packed, nn.Conv3d):  # type: ignore[override]
    """A convolution over clips."""


_PACKED: Mapping[type[nn.Module], type[Any]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    nn.Conv3d: PackedConv3d,
}
_PLAIN: Mapping[type[Any], type[nn.Module]] = {packed: plain for plain, packed in _PACKED.items()}


@torch.no_grad()
def packed(weight: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """A weight (out, …) → its codes, bytes of the same shape and layout, and its scales (out,), the bits of float32.

    The largest number of a channel becomes the format's largest; others are rounded to the nearest there is.
    """
    dtype, most = _CODES[format]
    wide = weight.float()
    scales = wide.abs().amax(tuple(range(1, wide.ndim))).div_(most)
    scales[scales == 0] = 1.0  # a channel of zeros
    codes = wide / _along(scales, wide.ndim)
    codes = codes.round_().to(dtype) if dtype == torch.int8 else codes.clamp_(-most, most).to(dtype)
    return codes.view(torch.uint8), scales.view(torch.int32)


def unpacked(codes: Tensor, scales: Tensor, format: Format, dtype: torch.dtype) -> Tensor:
    """The other way round: (out, …) in this number format, rounded once."""
    numbers = codes.view(_CODES[format][0]).to(dtype)  # exact: all formats have digits enough for a byte
    return numbers.mul_(_along(scales.view(torch.float32), codes.ndim))


def _along(scales: Tensor, axes: int) -> Tensor:
    return scales.view(-1, *(1,) * (axes - 1))


def store(module: nn.Module, format: Format, keep_originals: bool = False) -> Stored:
    """Stores the weights of a network's linear layers and convolutions in eight bits, one layer after the other.

    Args:
        keep_originals: whether what they were stays on the host, for `restore`.

    Raises:
        InputError: the format is not known, or they are stored already.
    """
    if format not in FORMATS:
        raise InputError(f"The storage format is {format!r}; it must be one of {', '.join(map(repr, FORMATS))}.")
    if stored(module) is not None:
        raise InputError("Weights are stored in eight bits already; call disable_weight_storage() first.")
    before = after = 0
    wrong, size, worst = 0.0, 0.0, ("", 0.0)
    for name, layer in list(_layers(module, _PACKED)):
        weight = layer.weight
        off, whole = _store(layer, format, keep_originals)
        before += weight.nbytes
        after += layer.codes.nbytes + layer.scales.nbytes
        wrong, size = wrong + off**2, size + whole**2
        worst = max(worst, (name, off / max(whole, 1e-30)), key=lambda pair: pair[1])
    said = Stored(format, before, after, math.sqrt(wrong / max(size, 1e-30)), worst)
    module.__dict__["stored"] = said
    return said


def stored(module: nn.Module) -> Stored | None:
    """How a network's weights are stored, if they are in eight bits."""
    found: Stored | None = module.__dict__.get("stored")
    return found


def restore(module: nn.Module) -> bool:
    """Makes stored weights plain ones again; whether they are, to the bit, what they were."""
    exact = True
    for _, layer in list(_layers(module, _PLAIN)):
        layer.sum_up(None)
        weight, original = layer.weight, layer.original
        exact &= original is not None
        if original is not None:
            weight = original.tensor.to(weight.device, weight.dtype)
        for name in ("codes", "scales", "like"):
            del layer._buffers[name]
            layer._non_persistent_buffers_set.discard(name)
        del layer.__dict__["original"], layer.__dict__["format"]
        layer.__class__ = _PLAIN[type(layer)]
        bias = dict(layer._parameters)
        layer._parameters.clear()
        layer._parameters.update(weight=nn.Parameter(weight, requires_grad=False), **bias)  # in the usual order
    module.__dict__.pop("stored", None)
    return exact


def _layers(module: nn.Module, kinds: Mapping[type[Any], Any]) -> Iterator[tuple[str, Any]]:
    return ((name, layer) for name, layer in module.named_modules() if type(layer) in kinds)


@torch.no_grad()
def _store(layer: Any, format: Format, keep_originals: bool) -> tuple[float, float]:
    """Stores one layer's weight; the size of what that changes, and of the weight."""
    weight: Tensor = layer._parameters.pop("weight").data
    layer.__class__ = _PACKED[type(layer)]
    layer.format = format
    codes, scales = packed(weight, format)
    for name, buffer in (("codes", codes), ("scales", scales), ("like", weight.new_empty(0))):
        layer.register_buffer(name, buffer, persistent=False)
    layer.__dict__["original"] = Held(weight.cpu()) if keep_originals else None
    there = unpacked(codes, scales, format, torch.float32)
    return float((there - weight.float()).norm()), float(weight.float().norm())
