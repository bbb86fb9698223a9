"""The receipt a file carries: everything that made it, as one line of JSON.

Escaped to ASCII, so that no container, tag or reader can garble a prompt, whatever script it is in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def pack(metadata: Mapping[str, Any] | None) -> str | None:
    """The mapping as one line of ASCII JSON; None for None.

    Numbers, strings, booleans, None, mappings and sequences are kept; anything else (a device, a dtype, a path)
    becomes its text, and so do numbers that are not finite, which JSON does not have.
    """
    return None if metadata is None else json.dumps(_plain(metadata), allow_nan=False)


def unpack(text: str | bytes | None) -> dict[str, Any] | None:
    """What `pack` wrote; None where the text is no receipt (other programs write comments too)."""
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration's value rather than its name
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # a numpy or torch number or array
        return _plain(value.tolist())
    return str(value)


def compact(value: Any) -> str:
    """A value of a receipt for people to read: one line, in its own script."""
    return json.dumps(value, ensure_ascii=False)
