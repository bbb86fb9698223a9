"""Whether an adapter and a base model are made for each other, told from their published configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError

_BASES = {
    (320, 640, 1280, 1280): "Stable Diffusion 1.5 or 2.x",
    (320, 640, 1280): "SDXL",
}
_TEXTS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class _Thing:
    """One kind of adapter, by its published class."""

    name: str
    channels: str = ""  # the field with channels by level
    layers: str = ""  # that with blocks at each
    context: str = ""  # that with the width of the text


_THINGS = {
    "MotionAdapter": _Thing("motion module", "block_out_channels", "motion_layers_per_block"),
    "ControlNetModel": _Thing("ControlNet", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    "SparseControlNetModel": _Thing("SparseCtrl", "block_out_channels", "layers_per_block", "cross_attention_dim"),
    "IPAdapter": _Thing("IP-Adapter", context="cross_attention_dim"),
}


def check_pairing(what: str, adapter: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Makes sure that an adapter fits an image U-Net, before anything is built.

    Args:
        what: the adapter's published class: "MotionAdapter", "ControlNetModel", "SparseControlNetModel", "IPAdapter".
        adapter: its published configuration; of an IP-Adapter, `{"cross_attention_dim": …}`.
        base: that of the U-Net.

    Raises:
        CheckpointError: they are made for different models; the message names both.
    """
    if (thing := _THINGS.get(what)) is None:
        return  # somebody's own class, of which nothing is known
    levels = tuple(base["block_out_channels"])
    if thing.context and (own := adapter[thing.context]) != base["cross_attention_dim"]:
        _refuse(thing.name, _text(own), _text(base["cross_attention_dim"]))
    if thing.channels and (channels := tuple(adapter[thing.channels])) != levels:
        _refuse(thing.name, _channels(channels), _channels(levels, base))
    if thing.layers:
        own, theirs = (_each(fields, len(levels)) for fields in (adapter[thing.layers], base["layers_per_block"]))
        if own != theirs:
            _refuse(thing.name, f"a model of {_blocks(own)}", f"one of {_blocks(theirs)}")


def _refuse(name: str, own: str, base: str) -> None:
    raise CheckpointError(f"The {name} is for {own} and the base model is {base}; take two that belong together.")


def _text(width: int) -> str:
    return _TEXTS.get(width, f"a model whose text is {width} wide")


def _channels(channels: tuple[int, ...], base: Mapping[str, Any] | None = None) -> str:
    known = base is not None and channels in _BASES and _TEXTS.get(base.get("cross_attention_dim", 0))
    counts = ", ".join(map(str, channels))
    return known or _BASES.get(channels, f"a model of {len(channels)} levels ({counts} channels)")


def _each(layers: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    return (layers,) * levels if isinstance(layers, int) else tuple(layers)


def _blocks(layers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, layers if len(set(layers)) > 1 else layers[:1]))} blocks a level"
