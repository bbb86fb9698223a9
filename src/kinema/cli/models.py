"""`kinema models`: what ships in the box, and which published families are known."""

from __future__ import annotations

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


FAMILIES = (
    Family(
        "ModelScope text-to-video, zeroscope",
        "text to video, video to video",
        "works",
        "ali-vilab/text-to-video-ms-1.7b, cerspense/zeroscope_v2_576w, cerspense/zeroscope_v2_XL",
    ),
    Family(
        "AnimateDiff",
        "text to video with any Stable Diffusion 1.5 model",
        "planned",
        "guoyww/animatediff-motion-adapter-v1-5-2",
    ),
    Family("I2VGen-XL", "picture and text to video", "planned", "ali-vilab/i2vgen-xl"),
    Family("Stable Video Diffusion", "picture to video", "planned", "stabilityai/stable-video-diffusion-img2vid-xt"),
)


@verb
def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the models in the box and the families of published models that kinema knows."""
    from ..checkpoint.hub import BOX, box

    shipped = []
    for place in sorted(set(BOX.values())):
        called = [name for name, where in BOX.items() if where == place]
        folder = box(called[0])
        there = folder is not None and folder.is_dir()
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder and there else 0
        shipped.append({"names": called, "folder": str(folder), "bytes": size, "there": there})
    if as_json:
        emit({"box": shipped, "families": [family._asdict() for family in FAMILIES]})
        return
    print("In the box")
    for model in shipped:
        size_text = amount(float(str(model["bytes"]))) if model["there"] else "not in this copy; see kinema train-toy"
        print(f"  {' = '.join(map(str, model['names']))}  ({size_text})")
    print("\nKnown families")
    table((f"  {f.name}", f.does, f.status, f.published) for f in FAMILIES)
