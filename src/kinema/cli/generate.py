"""`kinema generate`: a video from a sentence, from a picture, from both, or from a sentence and a video."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import lengths, making, names, opening, options, previews
from .exits import verb
from .telling import emit, say


@verb
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    said: Annotated[str | None, typer.Option("--prompt", "-p", help="The same, as an option.")] = None,
    image: Annotated[
        str | None, typer.Option("--image", "-i", help="The picture it starts from: a file or an address.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write; its suffix is its format. [default: kinema-SEED.mp4]"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"A folder, an id on the hub, one in the box (the default), or: {', '.join(names.MODELS)}.",
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option("--negative", "-n", help="What it must not show.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", "-s", help="The same seed, the same video.")] = None,
    steps: options.Steps = None,
    frames: options.Frames = None,
    size: options.Size = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames a second of the file. [default: the model's own, or 8]")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", "-g", help="How closely to follow the prompt.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help=f"One of: {', '.join(names.SCHEDULERS)}; or a class name.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="A LoRA; can be given several times.")
    ] = None,
    video: Annotated[Path | None, typer.Option("--video", help="Start from this video instead of noise.")] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="How far to go from --video; 0 to 1.")] = None,
    motion: Annotated[
        str | None,
        typer.Option(
            "--motion",
            help="For a picture: still, calm, normal, lively, or 0 to 1. For an image model: the motion module that "
            f"moves it, a file, folder or id, or: {', '.join(names.MOTIONS)}.",
        ),
    ] = None,
    motion_lora: Annotated[
        list[str] | None,
        typer.Option(
            "--motion-lora",
            metavar="NAME[:WEIGHT]",
            help=f"A camera motion: {', '.join(names.CAMERAS)}; or a file or id. Can be given several times.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NET:FRAMES",
            help="A ControlNet and the folder or video it is shown, a picture a frame; NET is a file, folder or id, "
            f"or: {', '.join(names.CONTROLS)}. Can be given several times.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="For distilled weights: lightning-4, lcm, animatelcm, tcd, ...")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", help="For clips longer than a model knows: frames that are denoised together."),
    ] = None,
    overlap: options.Overlap = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="2: windows of every second frame too; 3: of every fourth; ...")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="The last frame is followed by the first.")] = False,
    blend: Annotated[
        str | None, typer.Option("--blend", help="How frames of a window count: pyramid, flat or linear.")
    ] = None,
    drift: Annotated[
        bool | None, typer.Option("--drift/--no-drift", help="Whether windows begin elsewhere at each step.")
    ] = None,
    noise_type: Annotated[
        str | None,
        typer.Option("--noise-type", help="What later frames start from: random, shuffle_context, repeat_context."),
    ] = None,
    free_noise: options.FreeNoise = False,
    free_init: options.FreeInit = None,
    numerics: Annotated[
        str | None,
        typer.Option("--numerics", help="How motion modules compute: reference, or original as their authors' code."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other argument of the model's pipeline, by its name."),
    ] = None,
    num: Annotated[int, typer.Option("--num", min=1, help="How many videos, with seeds SEED, SEED + 1, ...")] = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    offload: options.Offload = "none",
    memory: options.Memory = "auto",
    variant: options.Variant = None,
    format: Annotated[str | None, typer.Option("--format", help=f"One of: {', '.join(names.FORMATS)}.")] = None,
    preview: Annotated[
        Path | None,
        typer.Option("--preview", metavar="FILE.gif", help="An animation of the clip so far, written every few steps."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Make a video from a sentence or a picture. Ctrl-C stops within one step and leaves nothing behind but a preview.

    On several devices: torchrun --nproc-per-node 2 -m kinema generate ...
    """
    from .. import distributed
    from ..toys import box

    prompt = _one_prompt(prompt, said, image)
    seed = making.seed_or_random(seed)
    making.check_numbers(steps, frames, guidance, strength)
    length = lengths.asked(
        window=window,
        overlap=overlap,
        stride=stride,
        loop=loop,
        blend=blend,
        drift=drift,
        noise_type=noise_type,
        free_noise=free_noise,
        free_init=free_init,
    )
    module = None
    if motion is not None and image is None and not names.amount_of_motion(motion):
        module = names.MOTIONS.get(motion, motion)
    setup = opening.Setup(
        model or ("toy-animatediff" if motion_lora else box.fitting(image is not None, prompt is not None)),
        device,
        names.dtype(dtype),
        variant,
        names.scheduler(scheduler) if scheduler else None,
        making.loras_of(lora or ()),
        video is not None,
        names.offload(offload),
        module,
        tuple(names.lora(text) for text in motion_lora or ()),
        tuple(names.control(text) for text in control or ()),
        length,
        names.numerics(numerics) if numerics else None,
        names.memory(memory),
    )
    width, height = names.size(size) if size else (None, None)
    asked: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "num_frames": frames,
        "width": width,
        "height": height,
        "guidance_scale": guidance,
        "motion": names.setting(f"motion={motion}")[1] if motion and not module else None,
        "preset": preset,
        **opening.conditioning(setup.controls),
        **_picture(image, video),
        **_start(video, strength, frames),
        **dict(names.setting(text) for text in more or ()),
    }
    paths = names.outputs(output, format, seed, num)
    first = distributed.rank() == 0  # of processes that make a clip together, this one writes it
    if preview is not None:
        previews.check(preview, paths)
    if first:
        making.check_outputs(paths, overwrite)
        if preview is not None:
            making.check_outputs([preview], overwrite or previews.left(preview))
    making.check_fps(8.0 if fps is None else fps)

    began = time.perf_counter()
    pipe = opening.open_pipeline(setup)
    pipe.enable_parallel()
    call = making.arguments(setup, pipe, asked)
    if image is not None and first:
        making.tell_of_pictures(setup.model)
    started = {key: str(value) for key, value in (("video", video), ("image", image)) if value}
    made = []
    for i, path in enumerate(paths):
        label = f"{path}: {', '.join(repr(said) for said in (prompt, image) if said)}, seed {seed + i}"
        with making.keeping(path):
            events = pipe.stream(**call, generator=seed + i, output_type="np")
            if preview is not None and first:
                events = previews.shown(events, pipe, preview, 8.0 if fps is None else fps)
            result = making.watch(events, label, quiet or not first)
        if not first:
            continue
        rate = result.fps if fps is None else fps
        receipt = making.receipt_of(result, setup, seed=seed + i, playback_fps=rate, **started)
        making.write(result, path, rate, receipt)
        made.append({"path": str(path), "seed": seed + i, "receipt": receipt})
    seconds = round(time.perf_counter() - began, 2)
    if not first:
        return
    if as_json:
        emit({"files": made, "seconds": seconds})
    else:
        say(f"{seconds:.1f} s")
        for file in made:
            print(file["path"])


def _one_prompt(prompt: str | None, said: str | None, image: str | None) -> str | None:
    """What the video shows, however it was given.

    Raises:
        typer.BadParameter: nothing to start from is given, or a prompt twice.
    """
    if prompt is not None and said is not None:
        raise typer.BadParameter("The prompt is given twice; write it once, with or without --prompt.")
    if prompt is None and said is None and image is None:
        raise typer.BadParameter(
            'Say what the video shows: kinema generate "a red circle moves left", or give --image.'
        )
    return said if prompt is None else prompt


def _picture(image: str | None, video: Path | None) -> dict[str, Any]:
    """The picture a video starts from.

    Raises:
        typer.BadParameter: a video is given as well.
        MediaError: it cannot be read.
    """
    if image is None:
        return {}
    if video is not None:
        raise typer.BadParameter("Give --image or --video, not both.")
    from ..media import load_image

    return {"image": load_image(image)}


def _start(video: Path | None, strength: float | None, frames: int | None) -> dict[str, Any]:
    """The arguments that only video-to-video has.

    Raises:
        typer.BadParameter: an option is given that goes with the other kind of run.
        MediaError: the video cannot be read.
    """
    if video is None:
        if strength is not None:
            raise typer.BadParameter("--strength says how far to go from a video; give --video too.")
        return {}
    if frames is not None:
        raise typer.BadParameter("--frames cannot be given with --video, whose frames are used.")
    from ..media import load_video

    return {"video": load_video(str(video)), "strength": strength}
