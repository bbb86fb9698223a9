"""Further motion modules behind the rows of a denoiser, each of which counts where a call says so."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.lora_frames import Numbers
from ...errors import InputError
from ...nn.motion import MotionModule
from ...pipelines import inputs
from .adapter import MotionAdapter
from .configs import check_pair


def join(unet: nn.Module, name: str, adapter: MotionAdapter) -> None:
    """Puts an adapter's modules beside the denoiser's own; weights are shared with it, not copied, where they have one
    number format and place.

    Raises:
        CheckpointError: the adapter was made for another image model.
        InputError: the name is none or taken, or the adapter has a module where the denoiser has none.
    """
    config: Any = unet.config
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"A motion adapter is to be named {name!r}; give letters, digits, - and _.")
    if name in names(unet):
        raise InputError(f"There is a motion adapter named {name!r} already; remove it, or give another name.")
    check_pair(config, adapter.config)
    if adapter.conv_in is not None:
        raise InputError(f"The motion adapter {name!r} is PIA's, whose denoiser sees a picture; it stands alone.")
    theirs = {path: module for path, module in adapter.named_modules() if isinstance(module, MotionModule)}
    places = dict(_own(unet))
    if lacking := [path for path in theirs if path not in places]:
        raise InputError(
            f"The motion adapter {name!r} has a module at {lacking[0]} and the first one has none there; begin with "
            f"{name!r}: motion_adapter={{{name!r}: …, …}}."
        )
    like = next(unet.parameters())
    for path, module in theirs.items():
        shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
        twin = copy.deepcopy(module, shared).to(like.device, like.dtype).train(unet.training)
        places[path].others[name] = twin


def leave(unet: nn.Module, name: str) -> None:
    """Takes an adapter's modules away again.

    Raises:
        InputError: none has this name.
    """
    if name not in names(unet):
        raise InputError(f"No further motion adapter is named {name!r}; there are {', '.join(names(unet)) or 'none'}.")
    for _, module in _own(unet):
        if name in module.others:
            del module.others[name]


def names(unet: nn.Module) -> list[str]:
    """The adapters beside the denoiser's own, in the order they came."""
    return list(dict.fromkeys(name for _, module in _own(unet) for name in module.others))


def places_known(unet: nn.Module) -> int:
    """The most frames that all motion modules have places for."""
    return min(module.length for module in unet.modules() if isinstance(module, MotionModule))


def _own(unet: nn.Module) -> Iterator[tuple[str, MotionModule]]:
    for path, module in unet.named_modules():
        if isinstance(module, MotionModule) and ".others." not in path:
            yield path, module


def motion_scales(value: Any, names: Sequence[str], frames: int) -> dict[str, Tensor]:
    """What `motion_scale` says of each motion adapter, (f,) by name: the first one's under "", left out where it is 1.

    A number, a list or {frame: number} is the first adapter's; {name: one of these} says what each counts for, and
    those that are not named count for nothing, as further ones do by default.

    Raises:
        InputError: it names an adapter that is not there, or cannot be a number for each frame.
    """
    first = names[0]
    by_name = isinstance(value, Mapping) and any(isinstance(key, str) for key in value)
    given = dict(value) if by_name else {first: value}
    if unknown := [name for name in given if name not in names]:
        raise InputError(f"motion_scale names {unknown[0]!r}; the motion adapters are {', '.join(names)}.")
    scales = {name: _each(given[name], frames) for name in given}
    own = scales.pop(first, [0.0] * frames)
    said = scales if all(number == 1 for number in own) else {"": own, **scales}
    return {name: torch.tensor(numbers) for name, numbers in said.items() if any(numbers) or name == ""}


def _each(value: Any, frames: int) -> list[float]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, (list, tuple, Mapping)):
        value = {0: inputs.number("motion_scale", value, 0, 10)}
    return [inputs.number("motion_scale", n, 0, 10) for n in Numbers(value, "motion_scale").along(frames)]
