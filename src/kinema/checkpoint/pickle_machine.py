"""Follows a pickle without running anything in it: a pickle is a program, and only a few of its words are understood
here: numbers, texts, lists, dictionaries, and which part of which storage a tensor is."""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

from .files import Stored

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}

# Things trainers leave beside the weights. They become placeholders that do nothing.
_IDLE = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_IDLE_NAMES = {
    "_codecs.encode",
    "argparse.Namespace",
    "collections.Counter",
    "collections.defaultdict",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "typing.Any",
    *(f"builtins.{name}" for name in ("dict", "list", "set", "int", "float")),
    *(f"torch.{name}" for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
}


@dataclass(frozen=True)
class Idle:
    """What stands for an object that is not needed."""

    name: str


@dataclass(frozen=True)
class _Named:
    """A name the pickle asks for."""

    name: str


@dataclass(frozen=True)
class Storage:
    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0  # elements into the storage that is in the file


class _Mark:
    pass


class Refused(Exception):
    """Why a pickle is not read on."""


class Located:
    """A tensor whose storage is known by name; the place in the file comes later (in old files, behind the pickle)."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None):
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise Refused("describes a tensor in no storage or of no size")
        self.storage, self.offset = storage, offset
        self.dtype = storage.dtype if dtype is None else dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        available = storage.numel * storage.dtype.itemsize // self.dtype.itemsize
        reach = offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        numel = math.prod(self.shape)
        if len(self.shape) != len(self.strides) or (numel and (reach > available or numel > max(available, 10**6))):
            raise Refused(f"describes a tensor of shape {list(shape)} that its storage does not hold")

    def at(self, start: int) -> Stored:
        """The same, once it is known at which byte the storage starts."""
        skip = self.storage.offset * self.storage.dtype.itemsize + self.offset * self.dtype.itemsize
        plain: list[int] = []
        step = 1
        for n in reversed(self.shape):
            plain.insert(0, step)
            step *= n
        row_by_row = all(a == b or n == 1 for a, b, n in zip(self.strides, plain, self.shape))
        return Stored(self.dtype, self.shape, start + skip, None if row_by_row else self.strides)


def _v3(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Located:
    found = getattr(torch, dtype.name.removeprefix("torch."), None) if isinstance(dtype, _Named) else None
    if not isinstance(found, torch.dtype):
        raise Refused("describes a tensor of an unknown number format")
    return Located(storage, offset, shape, strides, found)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *pairs: dict(*pairs),
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: Located(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: Located(
        storage, offset, shape, strides
    ),
    "torch._utils._rebuild_tensor_v3": _v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda build, _type, args, _state: _called(build, args),
}


def _named(module: str, name: str) -> _Named:
    full = f"{module}.{name}".replace("__builtin__.", "builtins.")  # as Python 2 called them
    storage = module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES
    if not (storage or full in _BUILDERS or full in _IDLE_NAMES or full.startswith(_IDLE)):
        raise Refused(f"asks for {full}, which is no part of a tensor; it may be hostile")
    return _Named(full)


def _called(what: Any, args: Any) -> Any:
    if isinstance(what, Idle):
        return what
    if not isinstance(what, _Named) or not isinstance(args, tuple):
        raise Refused("calls something that is no name")
    return _BUILDERS[what.name](*args) if what.name in _BUILDERS else Idle(what.name)


def _persistent(what: Any) -> Storage:
    kind, storage_type, key, _place, numel, *view = what
    if kind != "storage" or not isinstance(storage_type, _Named) or type(numel) is not int or not 0 <= numel < 2**48:
        raise Refused("points at a storage in an unknown manner")
    name = storage_type.name.rpartition(".")[2]
    if name not in _STORAGES:
        raise Refused(f"keeps numbers as {storage_type.name}, which is not known")
    offset = view[0][1] if view and view[0] is not None else 0
    if type(offset) is not int or not 0 <= offset < 2**48:
        raise Refused("points at a storage in an unknown manner")
    return Storage(str(key), _STORAGES[name], numel, offset)


class Machine:
    """Follows a pickle's instructions over plain values; nothing in it can call, import or set an attribute."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: IO[bytes]) -> Any:
        for op, arg, _ in pickletools.genops(file):
            if op.name == "STOP":
                return self.stack[-1]
            self.step(op.name, arg)
        return None

    def step(self, name: str, arg: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case _ if name in _LITERALS:
                push(arg)
            case "MARK":
                push(_Mark)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET":
                push({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                self.stack[-n:] = [tuple(self.stack[-n:])]
            case "TUPLE":
                push(tuple(self.marked()))
            case "LIST":
                push(self.marked())
            case "DICT":
                items = self.marked()
                push(dict(zip(items[::2], items[1::2])))
            case "APPEND":
                self.extend([pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.marked())
            case "SETITEM":
                value, key = pop(), pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.marked())
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[arg])
            case "POP":
                pop()
            case "POP_MARK":
                self.marked()
            case "DUP":
                push(self.stack[-1])
            case "GLOBAL":
                push(_named(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(_named(str(module), str(attribute)))
            case "REDUCE" | "NEWOBJ":
                args, what = pop(), pop()
                push(_called(what, args))
            case "BUILD":
                pop()  # attributes of an object: none of ours has any
            case "BINPERSID":
                push(_persistent(pop()))
                self.storages[self.stack[-1].key] = self.stack[-1]
            case _:
                raise Refused(f"uses the instruction {name}, which no file of tensors needs")

    def marked(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _Mark:  # an IndexError if there is none
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(items[::2], items[1::2]))


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
