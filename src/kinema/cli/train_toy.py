"""`kinema train-toy`: make the weights of the models in the box again, from a seed."""

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
    model: Annotated[
        str, typer.Option("--model", "-m", help="text-to-video, image-to-video or i2vgen; they share stages.")
    ] = "text-to-video",
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same seed, the same weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--restart", help="Go on from checkpoints, or begin anew.")] = True,
    scale: Annotated[float, typer.Option("--scale", help="Multiplies the steps; 0.01 is a quick rehearsal.")] = 1.0,
    stage: Annotated[
        list[str] | None, typer.Option("--stage", help="Train only this stage; can be given several times.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train a model in the box from nothing but a seed. Stop it with Ctrl-C; run it again and it goes on."""
    from ..train.recipe import train_toy as train

    train(out, model=model, seed=seed, resume=resume, scale=scale, stages=stage or None, progress=not quiet)
    say(f"The weights, logs and curves are in {out}.")
