"""`kinema demo`: one clip of a model in the box, as a video, an animation and a contact sheet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import InputError, MediaError
from . import making, opening
from .exits import verb
from .telling import emit, say

PROMPT = "a red square moves left on a dark background"
MOTION = "lively"  # of a picture without a prompt
ENLARGED = 4  # the models draw small pictures; four pixels for one can be seen without a magnifying glass
IMAGE, DRAWN = ("--image", "-i"), "(drawn)"


@dataclass(frozen=True)
class Start:
    """What a clip starts from, and what its files are called."""

    model: str
    told: str  # above the contact sheet
    asked: Mapping[str, Any]
    name: str = "demo"
    sheet: str = "demo.png"
    picture: Any = None  # PIL

    def files(self, folder: Path) -> list[Path]:
        """The video, the animation and the contact sheet; the picture, if there is one."""
        own = [] if self.picture is None else [f"{self.name}.png"]
        return [folder / file for file in (f"{self.name}.mp4", f"{self.name}.gif", self.sheet, *own)]


class Command(TyperCommand):
    """A command whose `--image` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spelled_out(args))


def spelled_out(words: Sequence[str]) -> list[str]:
    """Words of a command, with a value for an `--image` that has none, which typer does not provide for."""
    out = []
    for word, following in zip(words, (*words[1:], "-")):
        out += [word, DRAWN] if word in IMAGE and following.startswith("-") else [word]
    return out


@verb
def demo(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=PROMPT)] = None,
    image: Annotated[
        str | None,
        typer.Option(*IMAGE, metavar="[PICTURE]", help="Start from a picture: this one, or one that is drawn."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write into.")] = Path("out"),
    seed: Annotated[int, typer.Option("--seed", "-s", help="The same seed, the same video.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="How many steps of denoising. [default: 30, or 12 from a picture]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Make a clip with a model in the box. Needs no download.

    Writes demo.mp4, demo.gif and the contact sheet demo.png; from a picture demo-image.mp4, demo-image.gif, the contact
    sheet demo-image-sheet.png and demo-image.png, which is what the model sees of the picture.
    """
    from .. import media

    seed = making.seed_or_random(seed)
    start = _from_text(prompt or PROMPT) if image is None else _from_picture(image, prompt, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise media.cannot_write(out, error) from error
    video, animation, sheet, *own = files = start.files(out)
    making.check_outputs(files, overwrite=True)
    if image is not None and Path(image).resolve() in [file.resolve() for file in files]:
        raise InputError(f"{image} is one of the files this writes; give another --out.")

    began = time.perf_counter()
    say(f"Loading a model in the box ({start.model})")
    setup = opening.Setup(start.model)
    pipe = opening.open_pipeline(setup)
    call = making.arguments(setup, pipe, {**start.asked, "num_inference_steps": steps})
    result = making.watch(pipe.stream(**call, generator=seed, output_type="pil"), f"{start.told}, seed {seed}", quiet)
    receipt = making.receipt_of(result, setup, seed=seed, enlarged=ENLARGED, **({"image": image} if image else {}))
    frames = [_enlarged(frame) for frame in result.frames[0]]
    media.save(frames, video, fps=result.fps, metadata=receipt)
    media.save(frames, animation, fps=result.fps, metadata=receipt)
    wide, high = result.frames[0][0].size
    shown = [_enlarged(media.fit_picture(start.picture, high, wide)) for _ in own]
    row = [*shown, *frames]
    media.save_picture(media.contact_sheet([row], [start.told], len(row), scale=1), sheet, metadata=receipt)
    for path, picture in zip(own, shown):
        media.save_picture(picture, path)
    seconds = round(time.perf_counter() - began, 2)
    if as_json:
        emit({"files": [str(file) for file in files], "seconds": seconds, "receipt": receipt})
        return
    say(f"{len(frames)} frames in {seconds:.1f} s")
    for path in files:
        print(path)


def _from_text(prompt: str) -> Start:
    from ..toys import box

    return Start(box.fitting(picture=False, text=True), repr(prompt), {"prompt": prompt})


def _from_picture(image: str, prompt: str | None, seed: int) -> Start:
    """A picture brought to life as a prompt says, or else as it suggests.

    Raises:
        MediaError: it cannot be read.
        InputError: it cannot be drawn as the prompt says.
    """
    from PIL import Image

    from ..media import load_image
    from ..toys import box
    from ..toys.moving import some_picture

    model = box.fitting(picture=True, text=prompt is not None)
    if image == DRAWN:
        picture = Image.fromarray(some_picture(seed, prompt or ""))
    elif not image or ("://" not in image and not Path(image).exists()):
        raise MediaError(f"There is no picture {image}; check the path, and put a prompt before --image.")
    else:
        picture = load_image(image)
        making.tell_of_pictures(model)
    told = f"a {MOTION} picture" if prompt is None else f"a picture, {prompt!r}"
    asked = {"image": picture, "fit": "crop", **({"motion": MOTION} if prompt is None else {"prompt": prompt})}
    return Start(model, told, asked, "demo-image", "demo-image-sheet.png", picture)


def _enlarged(frame: Any) -> Any:
    from PIL import Image

    return frame.resize((frame.width * ENLARGED, frame.height * ENLARGED), Image.Resampling.BICUBIC)
