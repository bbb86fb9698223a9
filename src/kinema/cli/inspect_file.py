"""`kinema inspect PATH`: what a file or folder of weights is, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exits import verb
from .telling import emit, show


@verb
def inspect(
    path: Annotated[Path, typer.Argument(help="A weights file, or a folder in the published layout.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file or folder of weights is, what it fits, its dtype and size, and what is wrong with it."""
    from ..checkpoint.identify import inspect as identify

    found = identify(path)
    emit(found) if as_json else show(found)
