"""`kinema models`: what ships in the box, and which published families are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

import typer

from .exits import verb
from .telling import amount, emit, table


class Family(NamedTuple):
    """A family of published models."""

    name: str
    does: str
    status: str
    published: str


class Shipped(NamedTuple):
    """A model that comes with kinema."""

    names: tuple[str, ...]
    folder: str
    bytes: int
    there: bool


FAMILIES = (
    Family(
        "ModelScope text-to-video, zeroscope",
        "text to video, video to video",
        "works",
        "ali-vilab/text-to-video-ms-1.7b, cerspense/zeroscope_v2_576w, cerspense/zeroscope_v2_XL",
    ),
    Family(
        "Stable Video Diffusion",
        "picture to video",
        "works",
        "stabilityai/stable-video-diffusion-img2vid, stabilityai/stable-video-diffusion-img2vid-xt",
    ),
    Family("I2VGen-XL", "picture and text to video", "works", "ali-vilab/i2vgen-xl"),
    Family(
        "AnimateDiff",
        "text to video with any Stable Diffusion 1.5 model",
        "planned",
        "guoyww/animatediff-motion-adapter-v1-5-2",
    ),
)


@verb
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models in the box and the families of published models that kinema knows."""
    shipped = list(_shipped())
    if as_json:
        emit({"box": shipped, "families": FAMILIES})
        return
    print("In the box")
    for model in shipped:
        size = amount(model.bytes) if model.there else "not in this copy; see kinema train-toy"
        print(f"  {' = '.join(model.names)}  ({size})")
    print("\nKnown families")
    table((f"  {f.name}", f.does, f.status, f.published) for f in FAMILIES)


def _shipped() -> Iterator[Shipped]:
    from ..checkpoint.hub import BOX, box

    for place in sorted(set(BOX.values())):
        called = tuple(name for name, where in BOX.items() if where == place)
        folder = box(called[0])
        files = [file for file in folder.rglob("*") if file.is_file()] if folder else []
        yield Shipped(called, str(folder), sum(file.stat().st_size for file in files), bool(files))
