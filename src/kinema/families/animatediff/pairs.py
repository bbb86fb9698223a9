"""Denoisers and the motion adapters they move by: which belong together, and who gives one that does not."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from ...errors import InputError
from .adapter import MotionAdapter
from .unet import UNetMotionModel

# Pairs that pipelines have, or that one folder holds. LoRAs, eight bits and training tell their weights apart later.
_TOGETHER: WeakKeyDictionary[MotionAdapter, WeakSet[UNetMotionModel]] = WeakKeyDictionary()
_CAME: WeakSet[MotionAdapter] = WeakSet()  # that came with a folder whose denoiser was replaced: nobody gave them


def keep(unet: Any, adapter: Any) -> None:
    """Has a denoiser and an adapter, if they are there, count as a pair whatever becomes of their weights."""
    if isinstance(unet, UNetMotionModel) and isinstance(adapter, MotionAdapter):
        _TOGETHER.setdefault(adapter, WeakSet()).add(unet)


def loaded(parts: Mapping[str, Any], wanted: Container[str]) -> None:
    """Takes note of what a folder's adapter goes with: its denoiser, or whichever is given instead."""
    unet, adapter = parts.get("unet"), parts.get("motion_adapter")
    keep(unet, adapter)
    if "unet" not in wanted and isinstance(adapter, MotionAdapter):
        _CAME.add(adapter)


def check(unet: Any, adapter: Any) -> None:
    """Refuses an adapter beside a denoiser that moves by another: it would be kept, and no clip would show it.

    Raises:
        InputError: it does.
    """
    if not isinstance(unet, UNetMotionModel) or not isinstance(adapter, MotionAdapter) or adapter in _CAME:
        return
    if unet not in _TOGETHER.get(adapter, ()) and not is_of(unet, adapter):
        raise InputError(
            "The denoiser has a motion module already, which is not this motion_adapter's; leave motion_adapter out, "
            "or pass the image model too: unet=UNet2DConditionModel.from_pretrained(…), motion_adapter=…."
        )


def is_of(unet: UNetMotionModel, adapter: MotionAdapter) -> bool:
    """Whether the denoiser moves by this adapter already."""
    own = unet.state_dict()
    theirs = {key: value for key, value in adapter.state_dict().items() if not key.startswith("conv_in.")}
    return all(key in own and own[key].equal(value.to(own[key])) for key, value in theirs.items())


def in_order(adapters: Mapping[str, MotionAdapter], unet: Any) -> dict[str, Any]:
    """Adapters by name, first the one that the denoiser moves by: of an image model, one with modules at all places.

    Raises:
        InputError: there are none, or the denoiser moves by another one already.
    """
    if not adapters:
        raise InputError("motion_adapter is an empty mapping; give {name: adapter, …}, or one adapter.")
    if isinstance(unet, UNetMotionModel):
        own = [name for name, adapter in adapters.items() if is_of(unet, adapter)]
        if not own:
            raise InputError("The denoiser has a motion module that is none of these; pass the image model as unet.")
    else:
        own = [name for name, adapter in adapters.items() if adapter.config.use_motion_mid_block]
    return {**{name: adapters[name] for name in own[:1]}, **adapters}
