"""`kinema info FILE`: what a picture or video is, and what made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exits import verb
from .telling import emit


@verb
def info(
    file: Annotated[Path, typer.Argument(help="A video or picture.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a video or picture file is, and what made it, from the metadata kinema writes into its files."""
    from ..media import read_info

    found = read_info(file)
    if as_json:
        emit(found)
    else:
        print(found)
