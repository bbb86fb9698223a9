"""Running a module whose weights stay on the host: each is brought to the device for the operation that reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Bring = Callable[[Tensor], Tensor]  # a host tensor → its copy on the execution device


def tensors_of(module: nn.Module) -> list[Tensor]:
    """A module's parameters and buffers, each once."""
    return list({id(t): t for t in (*module.parameters(), *module.buffers())}.values())


class Streamed:
    """A stand-in for a module: it is called, and its methods are, as the module's own would be.

    Nothing of the module changes, not even while it runs: operations are given copies of the weights they name, which
    die with the operation. So the module stays usable, by other threads too, and there is nothing to undo.
    """

    def __init__(self, module: nn.Module, bring: Bring, device: torch.device | None):
        self._module, self._bring, self._device = module, bring, device  # without a device: where the weights are

    def made_into(self, made: Callable[[nn.Module], nn.Module]) -> Streamed:
        """What is made of the module, its weights brought in the same way."""
        return Streamed(made(self._module), self._bring, self._device)

    @property
    def device(self) -> Any:
        """Where the module runs."""
        return self._device or getattr(self._module, "device", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Weights(self._module, self._bring, self._device):
            return self._module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, nn.Module):
            return Streamed(value, self._bring, self._device)
        if not callable(value) or isinstance(value, type):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            with _Weights(self._module, self._bring, self._device):
                made = value(*args, **kwargs)
            return self._stepwise(made) if inspect.isgenerator(made) else made

        return method

    def _stepwise(self, steps: Generator[Any, Any, Any]) -> Iterator[Any]:
        """A method that yields runs between its yields, so that is where it needs its weights."""
        try:
            while True:
                with _Weights(self._module, self._bring, self._device):
                    try:
                        made = next(steps)
                    except StopIteration:
                        return
                yield made
        finally:
            steps.close()


class _Weights(TorchFunctionMode):
    """Swaps a module's weights for copies on the device, in the arguments of every operation of this thread."""

    def __init__(self, module: nn.Module, bring: Bring, device: torch.device | None):
        super().__init__()
        self.own = {id(t) for t in tensors_of(module)}
        self.bring, self.device = bring, device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.device is not None and func is Tensor.device.__get__ and id(args[0]) in self.own:
            return self.device
        if getattr(func, "__name__", "") == "__get__":  # a property: shapes and dtypes need no copy
            return func(*args, **kwargs)
        return func(*(self._here(a) for a in args), **{k: self._here(v) for k, v in kwargs.items()})

    def _here(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.bring(value) if id(value) in self.own else value
        if type(value) in (list, tuple):
            return type(value)(self._here(v) for v in value)
        return value
