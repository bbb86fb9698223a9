"""How a command ends: one exit code for each kind of trouble, one line on standard error, no traceback."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, ParamSpec

import typer

from .. import errors

P = ParamSpec("P")


class Exit(NamedTuple):
    """One way to end."""

    code: int
    error: type[BaseException] | None
    meaning: str


EXITS = (
    Exit(0, None, "done"),
    Exit(1, Exception, "something unexpected went wrong inside kinema; `--debug` shows where"),
    Exit(2, None, "the command line itself is wrong: an unknown option, a missing argument"),
    Exit(3, errors.InputError, "an argument cannot be used: a size, a count, a name"),
    Exit(4, errors.CheckpointError, "a model, LoRA or configuration is missing, broken or not what was asked for"),
    Exit(5, errors.MediaError, "a picture or video cannot be read or written"),
    Exit(6, errors.MemoryBudgetError, "what was asked for does not fit into memory"),
    Exit(7, errors.NumericsError, "the model produced numbers that are not finite"),
    Exit(8, errors.ParallelError, "of processes that make a clip together, another one failed, stopped or is gone"),
    Exit(130, KeyboardInterrupt, "stopped with Ctrl-C (143: by a request to terminate); no file is left half-written"),
)

_debug = False


def show_tracebacks(on: bool) -> None:
    """Whether `verb` lets errors through with their traceback."""
    global _debug
    _debug = on


def code_of(error: BaseException) -> int:
    """The exit code of an error: that of its nearest parent in the table."""
    for parent in type(error).__mro__:
        for row in EXITS:
            if row.error is parent:
                return row.code
    return 1


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors become one line and an exit code; with `--json` a JSON object on standard output too."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            print("kinema: stopped; nothing half-written is left.", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of our output has gone, which is its right
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):  # a usage error: typer prints it and exits 2
                raise
            code = code_of(error)
            if _debug:
                traceback.print_exc()
            print(f"kinema: {sentence(error)}", file=sys.stderr)
            if kwargs.get("as_json"):
                print(json.dumps({"error": {"kind": type(error).__name__, "message": str(error), "exit_code": code}}))
            raise typer.Exit(code) from None

    return run


def sentence(error: Exception) -> str:
    """What to tell a person: kinema's own errors say it themselves."""
    text = " ".join(str(error).split())
    if isinstance(error, errors.KinemaError):
        return text
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return "there is not enough memory for this; ask for fewer frames or a smaller size."
    return f"unexpected {type(error).__name__}: {text or 'no message'} (kinema --debug ... shows where)."
