"""The command line. This file and everything `kinema --help` reads import neither torch nor anything as heavy."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `kinema` with these arguments (those of the process by default) and exit with a code of `exits.EXITS`."""
    from .app import app, prepare_process

    prepare_process()
    app(args=None if arguments is None else list(arguments), prog_name="kinema")
