"""`kinema demo`: one clip of the model in the box, as a video, an animation and a contact sheet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import making
from .exits import verb
from .telling import emit, say

PROMPT = "a red square moves left on a dark background"
FPS = 8
ENLARGED = 4  # the model draws small pictures; four pixels for one can be seen without a magnifying glass


@verb
def demo(
    prompt: Annotated[str, typer.Argument(help="What the video shows.")] = PROMPT,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write into.")] = Path("out"),
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same seed, the same video.")] = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many steps of denoising.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Make demo.mp4, demo.gif and the contact sheet demo.png with the model in the box. Needs no download."""
    from .. import media

    seed = making.seed_or_random(seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise media.cannot_write(out, error) from error
    video, animation, sheet = (out / f"demo.{suffix}" for suffix in ("mp4", "gif", "png"))
    making.check_outputs((video, animation, sheet), overwrite=True)

    began = time.perf_counter()
    say("Loading the model in the box (kinema/toy-text-to-video)")
    setup = making.Setup()
    pipe = making.open_pipeline(setup)
    call = {**making.own_settings(setup), "prompt": prompt, "num_inference_steps": steps}
    events = pipe.stream(**call, generator=seed, output_type="pil")
    result = making.watch(events, f"{prompt!r}, seed {seed}, {steps} steps", quiet)
    receipt = making.receipt_of(result, setup, seed=seed, fps=FPS, enlarged=ENLARGED)
    frames = [_enlarged(frame) for frame in result.frames[0]]
    media.save(frames, video, fps=FPS, metadata=receipt)
    media.save(frames, animation, fps=FPS, metadata=receipt)
    media.save_picture(media.contact_sheet([frames], [prompt], scale=1), sheet, metadata=receipt)
    seconds = round(time.perf_counter() - began, 2)
    if as_json:
        emit({"files": [str(video), str(animation), str(sheet)], "seconds": seconds, "receipt": receipt})
        return
    say(f"{len(frames)} frames in {seconds:.1f} s")
    for path in (video, animation, sheet):
        print(path)


def _enlarged(frame: Any) -> Any:
    from PIL import Image

    return frame.resize((frame.width * ENLARGED, frame.height * ENLARGED), Image.Resampling.BICUBIC)
