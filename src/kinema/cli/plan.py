"""`kinema plan`: what a video would take, stage by stage, before anything is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..errors import MemoryBudgetError
from . import lengths, making, names, opening, options
from .exits import verb
from .telling import emit


@verb
def plan(
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help=f"A folder, an id on the hub, one in the box, or: {', '.join(names.MODELS)}."
        ),
    ] = "toy",
    steps: options.Steps = None,
    frames: options.Frames = None,
    size: options.Size = None,
    guidance: Annotated[
        float | None,
        typer.Option("--guidance", "-g", help="How closely to follow the prompt; 1: not guided."),
    ] = None,
    clips: Annotated[int, typer.Option("--clips", min=1, help="How many videos at once.")] = 1,
    motion: Annotated[
        str | None, typer.Option("--motion", help="The motion module that moves an image model, as for generate.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", metavar="NET", help="A ControlNet, as for generate.")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Start from a video.")] = False,
    window: Annotated[int | None, typer.Option("--window", help="Frames that are denoised together.")] = None,
    overlap: options.Overlap = None,
    free_noise: options.FreeNoise = False,
    free_init: options.FreeInit = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    offload: options.Offload = "none",
    memory: options.Memory = "auto",
    variant: options.Variant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a video would take of memory and time, and how it would be made to fit. Makes nothing."""
    making.check_numbers(steps, frames, guidance)
    setup = opening.Setup(
        model,
        device,
        names.dtype(dtype),
        variant,
        from_video=video,
        offload=names.offload(offload),
        module=names.MOTIONS.get(motion, motion) if motion else None,
        controls=tuple((names.CONTROLS.get(net, net), "") for net in control or ()),
        length=lengths.asked(window=window, overlap=overlap, free_noise=free_noise, free_init=free_init),
        memory=names.memory(memory),
    )
    width, height = names.size(size) if size else (None, None)
    asked = {
        "num_inference_steps": steps,
        "num_frames": frames,
        "width": width,
        "height": height,
        "guidance_scale": guidance,
    }
    pipe = opening.open_pipeline(setup, moved=False)
    found = pipe.plan(**_arguments(setup, pipe, asked), clips=clips)
    if as_json:
        emit({**_facts(found), "where": str(pipe.execution_device)})
    else:
        print(found)
    if found.refused:
        raise MemoryBudgetError(found.refused)


def _arguments(setup: opening.Setup, pipe: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, and else what suits the model, as far as plans depend on it."""
    known = inspect.signature(type(pipe).plan).parameters
    given = {making.OTHER_NAMES.get(k, k) if k not in known else k: v for k, v in asked.items() if v is not None}
    call = {k: v for k, v in making.own_settings(setup).items() if v is not None} | given
    call |= pipe.preset(call)
    least, most = (call.get(f"{which}_guidance_scale") for which in ("min", "max"))
    if least is not None and most is not None:
        call["min_guidance_scale"] = min(least, most)
    if "height" not in call and hasattr(pipe, "trained_sizes"):
        call["width"], call["height"] = pipe.trained_sizes[0]
    return {k: v for k, v in call.items() if k in known}


def _facts(found: Any) -> dict[str, Any]:
    stages = [
        {
            "name": stage.name,
            "components": [stage.component, *stage.beside],
            "weights": stage.weights,
            "activations": stage.needs.peak,
            "peak": stage.peak,
            "flops": stage.needs.flops * stage.times,
            "seconds": None if found.speed is None else stage.seconds(found.speed),
            "at_most": stage.at_most,
            "how": stage.way,
        }
        for stage in found.stages
    ]
    more = {"peak": found.peak, "seconds": found.seconds, "weights": found.mode, "budget": found.budget}
    return {"stages": stages, **more, "fits": found.fits}
