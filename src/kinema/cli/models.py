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
    does: str
    default: str
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
        "text to video with any Stable Diffusion model and what people plug into it",
        "works",
        "guoyww/animatediff-motion-adapter-v1-5-2",
    ),
)


@verb
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models in the box and the families of published models that kinema knows."""
    in_box = list(shipped())
    if as_json:
        emit({"box": in_box, "families": FAMILIES})
        return
    print("In the box")
    table((f"  {' = '.join(m.names)}", m.does, size(m), m.default) for m in in_box)
    print("\nKnown families")
    table((f"  {f.name}", f.does, f.status, f.published) for f in FAMILIES)


def shipped() -> Iterator[Shipped]:
    """The models in the box, the default one first."""
    from ..checkpoint.hub import BOX
    from ..toys import box

    for toy in box.TOYS:
        called = tuple(name for name, place in BOX.items() if place == BOX[toy.name])
        folder = box.path(toy.name)
        files = [file for file in folder.rglob("*") if file.is_file()]
        weight = sum(file.stat().st_size for file in files)
        yield Shipped(called, toy.does, toy.default, str(folder), weight, bool(files))


def size(model: Shipped) -> str:
    """How much a model in the box weighs, for a person."""
    return amount(model.bytes) if model.there else "not in this copy; see kinema train-toy"
