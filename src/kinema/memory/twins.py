"""Copies of a module that share its weights, to be set otherwise for one call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .stream import Streamed, tensors_of


def twin(module: nn.Module) -> nn.Module:
    """The same module on the very same tensors; what is set on it does not reach the other."""
    return copy.deepcopy(module, {id(t): t for t in tensors_of(module)})


def set_otherwise(module: Any, setting: Callable[[Any], Any]) -> Any:
    """A twin of a module, or of what stands for one whose weights are brought, with `setting` done to it."""
    made = partial(_set, setting)
    return module.made_into(made) if isinstance(module, Streamed) else made(module)


def _set(setting: Callable[[Any], Any], module: nn.Module) -> nn.Module:
    copied = twin(module)
    setting(copied)
    return copied
