"""What a U-Net's modules are called by tools that know its authors' names (`input_blocks`, `temporal_transformer`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from .keys import Rule, Table, renamed
from .layouts import i2vgen_unet, modelscope_unet, svd_unet
from .layouts_image import image_unet, motion_module

# The mark of each U-Net among its published keys, and the rules from its original file.
_LAYOUTS = (
    ("down_blocks.0.resnets.0.spatial_res_block.", svd_unet),
    ("image_latents_proj_in.", i2vgen_unet),
    ("down_blocks.0.temp_convs.0.", modelscope_unet),
    ("down_blocks.0.resnets.0.conv1.", image_unet),
)


def ldm_names(published: Iterable[str]) -> dict[str, str]:
    """Original module name -> published module name, of a U-Net with these published keys; empty for other networks."""
    keys = list(published)
    layout = next((rules for mark, rules in _LAYOUTS if any(key.startswith(mark) for key in keys)), None)
    levels = _count(r"down_blocks\.(\d+)\.", keys)
    names: dict[str, str] = {}
    if layout is not None:
        cross = [any(key.startswith(f"down_blocks.{i}.attentions.") for key in keys) for i in range(levels)]
        names |= _renamed(keys, layout(levels, _count(r"down_blocks\.0\.resnets\.(\d+)\.", keys), cross))
    if layers := _count(r"down_blocks\.0\.motion_modules\.(\d+)\.", keys):
        middle = _count(r"mid_block\.motion_modules\.(\d+)\.", keys)
        depth = _count(r"down_blocks\.0\.motion_modules\.0\.transformer_blocks\.(\d+)\.", keys)
        modules = [key for key in keys if ".motion_modules." in key]
        for hotshot in (False, True):
            names |= _renamed(modules, motion_module(levels, layers, middle, depth, hotshot))
    return names


def _renamed(keys: Iterable[str], rules: Iterable[Rule]) -> dict[str, str]:
    table = next(rule for rule in rules if isinstance(rule, Table))
    original = partial(renamed, names={ours: theirs for theirs, ours in table.pairs})
    modules = {key.rpartition(".")[0] for key in keys}
    return {name: module for module in modules if (name := original(module)) != module}


def _count(pattern: str, keys: Iterable[str]) -> int:
    """One more than the highest number found at a key's beginning."""
    return 1 + max((int(match[1]) for key in keys if (match := re.match(pattern, key))), default=-1)
