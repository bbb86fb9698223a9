"""Running a module whose weights stay on the host: each is brought to the device for the operation that reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .ahead import Ahead, Bring

_DEVICE, _DTYPE = (getattr(Tensor, name).__get__ for name in ("device", "dtype"))


def tensors_of(module: nn.Module) -> list[Tensor]:
    """A module's parameters and buffers, each once."""
    return list({id(t): t for t in (*module.parameters(), *module.buffers())}.values())


def as_written(module: nn.Module) -> Callable[..., Any]:
    """The module, not compiled: a compiled one reads its own weights, and nobody can give it others."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return module._call_impl if compiled else module


class Streamed:
    """A stand-in for a module: it is called, and its methods are, as the module's own would be.

    Nothing of the module changes, not even while it runs: operations are given copies of the weights they name, which
    die with the operation. So the module stays usable, by other threads too, and there is nothing to undo.
    """

    def __init__(
        self,
        module: nn.Module,
        bring: Bring,
        device: torch.device | None,
        dtype: torch.dtype | None = None,
        ahead: Ahead | None = None,
    ):
        """
        Args:
            device: without one it runs where the weights are.
            dtype: what `bring` converts numbers to, if it does.
            ahead: brings weights before they are read, while the module or a method of it is called.
        """
        self._module, self._bring, self._device, self._dtype = module, bring, device, dtype
        self._ahead = ahead

    def made_into(self, made: Callable[[nn.Module], nn.Module]) -> Streamed:
        """What is made of the module, its weights brought in the same way."""
        return Streamed(made(self._module), self._bring, self._device, self._dtype, self._ahead)

    def in_dtype(self, dtype: torch.dtype) -> Streamed:
        """The same, its weights converted once they are brought."""
        return Streamed(self._module, partial(_brought, bring=self._bring, dtype=dtype), self._device, dtype)

    @property
    def device(self) -> Any:
        """Where the module runs."""
        return self._device or getattr(self._module, "device", None)

    @property
    def dtype(self) -> Any:
        """What the module computes in."""
        return self._dtype or getattr(self._module, "dtype", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._in_order("__call__"):
            return as_written(self._module)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, nn.Module):
            return Streamed(value, self._bring, self._device, self._dtype)
        if not callable(value) or isinstance(value, type):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            with self._in_order(name):
                made = value(*args, **kwargs)
            return self._stepwise(made) if inspect.isgenerator(made) else made

        return method

    def _stepwise(self, steps: Generator[Any, Any, Any]) -> Iterator[Any]:
        """A method that yields runs between its yields, so that is where it needs its weights."""
        try:
            while True:
                with self._weights():
                    try:
                        made = next(steps)
                    except StopIteration:
                        return
                yield made
        finally:
            steps.close()

    @contextmanager
    def _in_order(self, method: str) -> Iterator[None]:
        """Within, weights come as the method read them when it first ran."""
        if self._ahead is None:
            with self._weights():
                yield
            return
        with self._ahead.run(self._module, method) as bring, _Weights(self._module, bring, self._device, self._dtype):
            yield

    def _weights(self) -> _Weights:
        return _Weights(self._module, self._bring, self._device, self._dtype)


def converted(module: Any, dtype: torch.dtype) -> Streamed:
    """A stand-in for a module, or for a stand-in, that computes in this number format; the weights stay as they are.

    Each operation is given converted copies of the weights it reads, so no more than one operation's are there.
    """
    if isinstance(module, Streamed):
        return module.in_dtype(dtype)
    return Streamed(module, partial(_brought, bring=None, dtype=dtype), None, dtype)


def _brought(tensor: Tensor, bring: Bring | None, dtype: torch.dtype) -> Tensor:
    here = tensor if bring is None else bring(tensor)
    return here.to(dtype) if here.is_floating_point() else here


class _Weights(TorchFunctionMode):
    """Swaps a module's weights for copies on the device, in the arguments of every operation of this thread."""

    def __init__(self, module: nn.Module, bring: Bring, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        self.own = {id(t) for t in tensors_of(module)}
        self.bring, self.device, self.dtype = bring, device, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":  # a property: shapes and number formats need no copy
            return self._property(func, args[0])
        return func(*(self._here(a) for a in args), **{k: self._here(v) for k, v in kwargs.items()})

    def _property(self, get: Any, of: Any) -> Any:
        """What a tensor says of itself: a weight, what is true of its copy."""
        if id(of) in self.own:
            if self.device is not None and get == _DEVICE:
                return self.device
            if self.dtype is not None and get == _DTYPE and of.is_floating_point():
                return self.dtype
        return get(of)

    def _here(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.bring(value) if id(value) in self.own else value
        if type(value) in (list, tuple):
            return type(value)(self._here(v) for v in value)
        return value
