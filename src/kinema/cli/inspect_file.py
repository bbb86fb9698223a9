"""`kinema inspect PATH`: what a file or folder of weights is, from its headers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .exits import verb
from .telling import emit

if TYPE_CHECKING:
    from ..checkpoint.identify import Report


@verb
def inspect(
    path: Annotated[str, typer.Argument(help="A weights file, a folder in the published layout, or `toy`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file or folder of weights is, what it fits, its dtype and size. Exits with 4 if something is wrong."""
    from .. import families
    from ..checkpoint.identify import inspect as identify

    public = {name: getattr(families, name) for name in families.__all__}
    found = identify(path, {name: cls for name, cls in public.items() if hasattr(cls, "config_class")})
    if as_json:
        emit(found)
    else:
        print(found)
    if _sick(found):
        raise typer.Exit(4)


def _sick(report: Report) -> bool:
    return bool(report.problems) or any(_sick(part) for part in report.parts)
