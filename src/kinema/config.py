"""Configurations: frozen dataclasses with the published field names, read from JSON with every value checked."""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import CheckpointError

log = logging.getLogger("kinema")


@dataclass(frozen=True, kw_only=True)
class Config(Mapping[str, Any]):
    """What a model or scheduler was built with; reads like an object (`c.x`) and like a mapping (`c["x"]`)."""

    unknown: Mapping[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # published keys with no field here

    skipped: ClassVar[frozenset[str]] = frozenset({"unknown"})

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str = "configuration") -> Self:
        """Builds from published keys. Unknown ones are kept aside and noted.

        Raises:
            CheckpointError: a value has the wrong type or is not one of those allowed; the message names it.
        """
        known, unknown = {}, dict(getattr(data, "unknown", {}))
        hints = _hints(cls)
        for key, value in data.items():
            if key in hints:
                known[key] = _checked(value, hints[key], f"{where}: {key}")
            else:
                unknown[key] = value
        odd = sorted(k for k in unknown if not k.startswith("_"))
        if odd:
            log.info("%s: ignored %s, which %s does not use", where, ", ".join(odd), cls.__name__)
        return cls(**known, unknown=unknown)

    def write(self) -> dict[str, Any]:
        """A JSON-able dictionary of every published field."""
        return {key: _plain(self[key]) for key in self}

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked like any other."""
        return type(self).read({**self.unknown, **dict(self), **changes}, type(self).__name__)

    def __getitem__(self, key: str) -> Any:
        if key in self.skipped or key not in _hints(type(self)):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if f.name not in self.skipped)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@cache
def _hints(cls: type[Config]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)} - cls.skipped
    return {k: v for k, v in get_type_hints(cls).items() if k in names}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value as the annotation says it should be: lists become tuples, whole floats ints, ints floats."""
    fit = _fit(value, hint)
    if fit is _MISFIT:
        raise CheckpointError(f"{where} is {value!r}; it must be {_says(hint)}.")
    return fit


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        return value if value in args else _MISFIT
    if origin in (Union, types.UnionType):
        return next((fit for fit in (_fit(value, arg) for arg in args) if fit is not _MISFIT), _MISFIT)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(args) != len(value)):
            return _MISFIT
        parts = tuple(_fit(v, args[0] if args[-1] is Ellipsis else args[i]) for i, v in enumerate(value))
        return _MISFIT if any(p is _MISFIT for p in parts) else parts
    if hint is type(None):
        return None if value is None else _MISFIT
    if hint is bool:
        return value if isinstance(value, bool) else _MISFIT
    if hint is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if whole and not isinstance(value, bool) else _MISFIT
    if hint is float:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _MISFIT
    return value if isinstance(hint, type) and isinstance(value, hint) else _MISFIT


def _says(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_says(a) for a in args)
    if origin is tuple:
        return f"a list of {_says(args[0])}"
    names = {type(None): "null", int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, str(hint))
