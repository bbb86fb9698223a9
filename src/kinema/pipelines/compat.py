"""Older and other names of arguments, as data: published snippets keep running whatever they were written for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from ..errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

RENAMED = {
    "torch_dtype": "dtype",
    "mindspore_dtype": "dtype",
    "frames_to_decode_at_once": "decode_chunk_size",
    "num_images_per_prompt": "num_videos_per_prompt",
    "use_auth_token": "token",
}

# Accepted and without effect: what they ask for is always so here, or means nothing to these models.
IGNORED = frozenset(
    {"low_cpu_mem_usage", "safety_checker", "requires_safety_checker", "trust_remote_code", "resume_download"}
)


def familiar_names(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function be called with the names of RENAMED, and refuses unknown ones with the nearest that exist.

    Raises:
        InputError: an argument has no meaning here, or is given under two names.
    """
    known = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for old, new in RENAMED.items():
            if old in kwargs and old not in known and new in known:
                if new in kwargs:
                    raise InputError(f"{old} and {new} are the same argument; give only {new}.")
                kwargs[new] = kwargs.pop(old)
        for name in list(kwargs):
            if name in IGNORED and name not in known:
                del kwargs[name]
            elif name not in known and not open_ended:
                raise InputError(unknown_argument(name, known, function.__qualname__))
        return function(*args, **kwargs)

    return call


def unknown_argument(name: str, known: Iterable[str], where: str) -> str:
    """What to tell somebody who used an argument that does not exist."""
    import difflib

    names = [k for k in known if k not in ("self", "cls")]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names)}."
    return f"{where} has no argument {name}; {hint}"
