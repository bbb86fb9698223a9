"""What the sides of several cases share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Side = tuple[Callable[[], Any], int]  # runs once and returns its result; bytes of weights it holds


def random(*shape: int, seed: int = 1) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bytes_of(*modules: Any) -> int:
    return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))


def channels_last(model: Any) -> None:
    """What the reference's documentation advises; as a whole a model with three-dimensional convolutions refuses it."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
