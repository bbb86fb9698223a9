"""Moving networks: all of them, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..errors import MemoryBudgetError

_SAID = ("out of memory", "not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the host has no room; each says it in its own way."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


def move(modules: Mapping[str, nn.Module], device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Moves and converts networks. If one does not fit, all are again where and what they were.

    Where only the number format changes, old weights are given up network by network, to need no more room than that;
    the networks before the one that does not fit then keep the new format.

    Raises:
        MemoryBudgetError: there is no room for the network that the message names.
        RuntimeError: the device is not there, as PyTorch says it.
    """
    undo: list[Callable[[], None]] = []
    for name, module in modules.items():
        if device is None:
            undo.clear()
        undo.append(_as_it_is(module))
        try:
            module.to(device=device, dtype=dtype)
        except (RuntimeError, AssertionError, MemoryError) as error:
            for back in undo:
                back()
            if not is_out_of_memory(error):
                raise
            place = "memory" if device is None else f"the memory of {device}"
            raise MemoryBudgetError(
                f"{name} does not fit into {place}; nothing has moved there. Use dtype float16, "
                "enable_model_cpu_offload(), or a device with more memory."
            ) from error


def _as_it_is(module: nn.Module) -> Callable[[], None]:
    """How to give a module the very tensors it has now."""
    held = [
        (store, name, tensor, tensor.data)
        for part in module.modules()
        for store in (part._parameters, part._buffers)
        for name, tensor in store.items()
        if tensor is not None
    ]

    def back() -> None:
        for store, name, tensor, data in held:
            tensor.data = data
            store[name] = tensor  # type: ignore[assignment]

    return back
