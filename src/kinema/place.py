"""Which kind of device a tensor is on, or stands for, and how the program's own numbers get there.

Tensors without contents are on none, and plans are for some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_stood_for: ContextVar[str | None] = ContextVar("stood_for", default=None)
_recording: ContextVar[bool] = ContextVar("recording", default=False)


def kind_of(x: Tensor) -> str:
    """The kind of device ("cpu", …) whose ways of working suit a tensor."""
    return (_stood_for.get() or x.device.type) if x.is_meta else x.device.type


@contextmanager
def standing_for(kind: str | None) -> Iterator[None]:
    """Within, in this thread, tensors without contents are treated as those of such a device would be."""
    token = _stood_for.set(kind)
    try:
        yield
    finally:
        _stood_for.reset(token)


@contextmanager
def recording() -> Iterator[None]:
    """Within, in this thread, what is done is recorded to be done again: with the same numbers of the program's."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def sent(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor's copy on a device, which the program does not wait for where that is known to be safe.

    Raises:
        RuntimeError: it would be recorded. A replay copies from the same memory, which is then somebody else's.
    """
    import torch

    compiling = torch.compiler.is_compiling()  # programs are not compiled with pinned memory in them
    if not compiling and x.device != device and _recording.get():
        raise RuntimeError("numbers of the program's come to the device within a step")
    at_once = device.type in ("cuda", "meta")
    if device.type == "cuda" and x.device.type == "cpu" and not compiling:
        x = x.pin_memory()  # else the device would have to have nothing to do when the copy begins
    return x.to(device, dtype, non_blocking=at_once)
