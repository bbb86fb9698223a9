"""What a U-Net's modules are called by tools that know latent diffusion's names (`input_blocks`, not `down_blocks`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from .keys import Table, renamed
from .layouts import i2vgen_unet, modelscope_unet, svd_unet

# The mark of each U-Net among its published keys, and the rules from its original file.
_LAYOUTS = (
    ("down_blocks.0.resnets.0.spatial_res_block.", svd_unet),
    ("image_latents_proj_in.", i2vgen_unet),
    ("down_blocks.0.temp_convs.0.", modelscope_unet),
)


def ldm_names(published: Iterable[str]) -> dict[str, str]:
    """Original module name -> published module name, of a video U-Net with these published keys; empty for others."""
    keys = list(published)
    layout = next((rules for mark, rules in _LAYOUTS if any(key.startswith(mark) for key in keys)), None)
    if layout is None:
        return {}
    levels = _count(r"down_blocks\.(\d+)\.", keys)
    cross = [any(key.startswith(f"down_blocks.{i}.attentions.") for key in keys) for i in range(levels)]
    rules = layout(levels, _count(r"down_blocks\.0\.resnets\.(\d+)\.", keys), cross)
    table = next(rule for rule in rules if isinstance(rule, Table))
    original = partial(renamed, names={ours: theirs for theirs, ours in table.pairs})
    modules = {key.rpartition(".")[0] for key in keys}
    return {name: module for module in modules if (name := original(module)) != module}


def _count(pattern: str, keys: Iterable[str]) -> int:
    """One more than the highest number found at a key's beginning."""
    return 1 + max((int(match[1]) for key in keys if (match := re.match(pattern, key))), default=-1)
