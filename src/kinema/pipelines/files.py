"""Single files of adapters."""

from __future__ import annotations

from typing import Any

from ..checkpoint.files import Weights
from ..checkpoint.sources import weights_file

__all__ = ["nested", "weights_file"]


def nested(weights: Weights) -> dict[str, Any]:
    """The tensors and notes of a file of textual inversion, nested as they were saved."""
    content: dict[str, Any] = {**weights.metadata}
    for name, tensor in weights.items():
        outer, _, inner = name.partition(".")
        if outer == "string_to_param":
            content[outer] = {inner or "*": tensor}
        else:
            content[name] = tensor
    if "string_to_param" in content:
        return {k: content[k] for k in ("string_to_param", "name") if k in content}
    return {k: v for k, v in content.items() if k in weights}
