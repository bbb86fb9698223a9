"""`kinema train-toy`: make the weights of the model in the box again, from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exits import verb
from .telling import say


@verb
def train_toy(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for weights, checkpoints and logs.")] = Path(
        "out/toy"
    ),
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same seed, the same weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Go on from checkpoints, or begin anew.")] = True,
) -> None:
    """Train the model in the box from nothing but a seed. Stop it with Ctrl-C; run it again and it goes on."""
    from ..train.recipe import train_toy as train

    train(out, seed=seed, resume=resume)
    say(f"The model is in {out}.")
