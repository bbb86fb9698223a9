"""Everything that made a clip, as plain values that fit into a file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .base import DiffusionPipeline

_SAID_ELSEWHERE = {"generator", "callback", "callback_steps", "callback_on_step_end", "return_dict", "output_type"}


def receipt(pipe: DiffusionPipeline, call: Mapping[str, Any], scheduler: Any) -> dict[str, Any]:
    """The call's arguments, the seed, the model, the scheduler it ran with and the versions."""
    from .. import __version__

    return {
        **asked(call),
        "seed": seeds(call.get("generator")),
        "pipeline": type(pipe).__name__,
        "model": pipe.name_or_path,
        "scheduler": {"_class_name": type(scheduler).__name__, **plain(dict(scheduler.config))},
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": pipe.execution_device.type,
        "kinema": __version__,
        "torch": torch.__version__,
    }


def asked(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments, but for those that say nothing of what is made or of which a receipt says more."""
    arguments = {k: plain(v) for k, v in call.items() if k not in _SAID_ELSEWHERE and v is not None}
    arguments.pop("callback_on_step_end_tensor_inputs", None)
    return arguments


def seeds(generator: Any) -> Any:
    """What a generator, or each of a list, was started with; None where that cannot be told."""
    if isinstance(generator, (list, tuple)):
        return [seeds(g) for g in generator]
    if isinstance(generator, torch.Generator):
        return generator.initial_seed()
    return index(generator) if hasattr(generator, "__index__") else None


def plain(value: Any) -> Any:
    """Anything as values that fit into a file: what is too large, or no value at all, by its name."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, np.generic):  # a number all the same
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value] if len(value) <= 64 else f"{len(value)} values"
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__
