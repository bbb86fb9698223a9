"""Which kind of device a tensor is on, or stands for: tensors without contents are on none, and plans are for some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_stood_for: ContextVar[str | None] = ContextVar("stood_for", default=None)


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
