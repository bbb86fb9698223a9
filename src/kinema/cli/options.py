"""Options that several commands have, each spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

from . import names

Steps = Annotated[int | None, typer.Option("--steps", help="How many steps of denoising.")]
Frames = Annotated[int | None, typer.Option("--frames", help="How many frames.")]
Size = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels.")]
Overlap = Annotated[
    int | None, typer.Option("--overlap", help="Frames that neighbouring windows share. [default: a quarter]")
]
FreeNoise = Annotated[bool, typer.Option("--free-noise", help="FreeNoise, instead of windows.")]
FreeInit = Annotated[int | None, typer.Option("--free-init", metavar="ROUNDS", help="FreeInit: denoise so many times.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, or another `kinema doctor` lists.")]
Dtype = Annotated[str, typer.Option("--dtype", help=f"One of: {', '.join(names.DTYPES)}.")]
Offload = Annotated[
    str, typer.Option("--offload", help="Keep only what is at work on the device: none, model or sequential.")
]
Memory = Annotated[
    str, typer.Option("--memory", help="What it may take of the device: auto (what is free), none, or 6GB.")
]
Variant = Annotated[str | None, typer.Option("--variant", help="Which weights of the model, for example fp16.")]
