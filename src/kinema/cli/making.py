"""From the words of a command to a clip: open a pipeline, run it under a progress bar, write the file."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputError
from . import names
from .opening import Setup
from .telling import say

if TYPE_CHECKING:
    from ..pipelines.output import Event, VideoOutput

# What suits the models in the box better than the defaults of large ones, where nothing is asked for.
BOX_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "text-to-video": {"num_frames": 8, "num_inference_steps": 30, "guidance_scale": 4.0},
    "image-to-video": {
        "height": None,
        "width": None,
        "num_frames": 8,
        "num_inference_steps": 12,
        "min_guidance_scale": 3.0,
    },
    "i2vgen": {
        "height": 64,
        "width": 64,
        "num_frames": 8,
        "num_inference_steps": 12,
        "guidance_scale": 2.0,
        "target_fps": 8,
    },
    "animatediff": {"num_frames": 8, "num_inference_steps": 12, "guidance_scale": 4.0},
}

# What the command line calls an argument -> what families call it that have another name for it.
OTHER_NAMES = {"guidance_scale": "max_guidance_scale"}

# What to do instead where a model has no such argument.
HINTS = {
    "image": "Of the models in the box, toy-svd starts from a picture, and toy-i2vgen from a picture and a prompt.",
    "motion": "Motion is for models without a prompt (toy-svd, svd, svd-xt); with a prompt, say in it what moves.",
}

STAGES = {"encode": "reading the request", "denoise": "denoising", "decode": "decoding frames"}


def seed_or_random(seed: int | None) -> int:
    """A seed short enough to type again.

    Raises:
        InputError: it is negative or longer than 63 bits.
    """
    if seed is None:
        return random.SystemRandom().randrange(10**6)
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed is {seed}; it must be from 0 to 2^63 - 1.")
    return seed


def own_settings(setup: Setup) -> dict[str, Any]:
    """Arguments of a call that suit a model and are not its pipeline's defaults."""
    from ..checkpoint.hub import BOX

    if setup.model in BOX:
        settings = BOX_SETTINGS.get(Path(BOX[setup.model]).name, {})
    else:
        settings = {} if Path(setup.model).exists() else names.MODELS.get(setup.model, ("", {}))[1]
    return {key: value for key, value in settings.items() if not (setup.from_video and key == "num_frames")}


def arguments(setup: Setup, pipe: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments: what is asked for, and else what suits the model.

    Raises:
        InputError: the model has no such argument, or needs a picture or a prompt that is not given.
    """
    call = own_settings(setup) | taken(pipe, asked)
    least, most = (call.get(f"{which}_guidance_scale") for which in ("min", "max"))
    if least is not None and most is not None and "min_guidance_scale" not in asked:
        call["min_guidance_scale"] = min(least, most)  # what suits a model is no reason to guide more than asked for
    return call


def tell_of_pictures(model: str) -> None:
    """Say, where a model in the box is given somebody's picture, what to expect and what else there is."""
    from ..checkpoint.hub import BOX

    if model in BOX:
        say(
            f"Note: {model} knows only drawn shapes on plain backgrounds; for photos, "
            "kinema generate with --model svd, svd-xt or i2vgen-xl."
        )


def taken(pipe: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked for, under the names this pipeline has for it; what is None is left out.

    Raises:
        InputError: the model has no such argument, or needs a picture or a prompt that is not given.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    found = {}
    for name, value in asked.items():
        if value is None:
            continue
        here = name if name in known else OTHER_NAMES.get(name, name)
        if here not in known:
            words = ", ".join(k for k in known if k not in ("self", "return_dict") and "callback" not in k)
            hint = f" {HINTS[name]}" if name in HINTS else ""
            raise InputError(f"This model ({type(pipe).__name__}) takes no {name}; it takes {words}.{hint}")
        found[here] = value
    for name, option in (("image", "--image"), ("prompt", "a prompt")):
        if name in known and name not in found:
            raise InputError(f"This model ({type(pipe).__name__}) needs {option}.")
    return found


def watch(events: Iterable[Event], label: str, quiet: bool = False) -> VideoOutput:
    """Consume a pipeline's events under a progress bar on standard error; the clip it ends with.

    An interrupt falls through between two events: not asking for more is all it takes to stop.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    output = None
    if label and not quiet:
        console.print(label, highlight=False, markup=False)
    with Progress(*columns, console=console, disable=quiet) as progress:
        bars: dict[str, Any] = {}
        for event in events:
            if event.output is not None:
                output = event.output
            if event.stage not in STAGES:
                continue
            if event.stage not in bars:
                bars[event.stage] = progress.add_task(STAGES[event.stage], total=event.total)
            progress.update(bars[event.stage], completed=event.step, total=event.total)
    if output is None:
        raise RuntimeError("the pipeline ended without a clip")
    return output


def receipt_of(output: VideoOutput, setup: Setup, **more: Any) -> dict[str, Any]:
    """Everything that made a clip, for the file's metadata."""
    loras = [{"file": file, "weight": weight} for file, weight in (*setup.loras, *setup.cameras)]
    plugged = {"loras": loras, "motion_module": setup.module, "controls": [list(control) for control in setup.controls]}
    return {**output.receipt, **{name: what for name, what in plugged.items() if what}, **more}


def write(output: VideoOutput, path: Path, fps: float, receipt: Mapping[str, Any]) -> Path:
    """The first clip of an output as a file, or as a folder of PNG files where the path has no suffix."""
    from .. import media

    media.save(output.frames[0], path, fps=fps, metadata=receipt)
    return path


@contextmanager
def keeping(path: Path) -> Iterator[None]:
    """Where there is no room to decode a clip, its latents are written beside the file it was to become.

    Raises:
        ClipKeptError: there was none; the message names the file.
    """
    from ..errors import ClipKeptError

    try:
        yield
    except ClipKeptError as error:
        from safetensors.torch import save_file

        kept = path.with_name(f"{path.name}.latents.safetensors")
        save_file({"latents": error.latents.contiguous()}, kept)
        raise ClipKeptError(
            f"The clip is denoised, and there is no room to decode it in any way. Its latents are in {kept}: "
            f"pipe.decode_latents(safetensors.torch.load_file({str(kept)!r})['latents']) makes it when there is.",
            error.latents,
        ) from None


def check_outputs(paths: Iterable[Path], overwrite: bool) -> None:
    """Make sure, before time is spent, that every file can be written.

    Raises:
        InputError: a file is there already, or its suffix is no known format.
        MediaError: no file can be made there.
    """
    from ..media import check_suffix, check_writable

    for path in paths:
        check_suffix(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already; give another name, or --overwrite.")
        check_writable(path)


def check_fps(fps: float) -> None:
    """Raise InputError, before time is spent, unless a file can have this many frames a second."""
    from ..media import frame_rate

    frame_rate(fps)


def check_numbers(
    steps: int | None = None, frames: int | None = None, guidance: float | None = None, strength: float | None = None
) -> None:
    """Raise InputError, before the model is loaded, for a number that no model can be asked for."""
    from ..pipelines import inputs

    for option, count in (("--steps", steps), ("--frames", frames)):
        if count is not None:
            inputs.whole(option, count)
    if guidance is not None:
        inputs.number("--guidance", guidance, 0)
    if strength is not None:
        inputs.number("--strength", strength, 0, 1)


def loras_of(texts: Iterable[str]) -> tuple[tuple[str, float], ...]:
    """Files, folders or ids of LoRAs and their weights.

    Raises:
        CheckpointError: a name that can only be a file is none that is there.
    """
    found = tuple(names.lora(text) for text in texts)
    for file, _ in found:
        path = Path(file).expanduser()
        if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and not path.exists():
            raise CheckpointError(f"The LoRA {file} does not exist; check the path.")
    return found
