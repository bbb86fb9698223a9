"""How commands talk: results go to standard output, everything else to standard error."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any


def say(text: str) -> None:
    """A line for the person, not part of the result."""
    print(text, file=sys.stderr, flush=True)


def emit(result: Any) -> None:
    """The result as one JSON document."""
    print(json.dumps(plain(result), indent=2, ensure_ascii=False))


def show(result: Any, indent: str = "") -> None:
    """The result for a person: one `name  value` line each, nested ones indented; text as it is."""
    facts = plain(result)
    if not isinstance(facts, Mapping):
        print(f"{indent}{facts}")
        return
    facts = {key.replace("_", " "): value for key, value in facts.items() if value not in (None, [], {}, "")}
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key}")
            show(value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{key}")
            for item in value:
                print(f"{indent}  {_one_line(item)}")
        else:
            print(f"{indent}{key:<{width}}  {value}")


def _one_line(item: Any) -> str:
    return "; ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, Mapping) else str(item)


def table(rows: Iterable[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def plain(value: Any) -> Any:
    """Dataclasses, paths and the like as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def amount(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
