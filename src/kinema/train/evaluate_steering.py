"""Measures the ControlNet in the box: do shapes go where outlines lie, on ways no prompt has words for, and are they
what the outlines are of? `python -m kinema.train.evaluate_steering --n 20` writes numbers."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..toys import scorer
from ..toys.outlines import outlines, overlap
from ..toys.styles import STYLES
from ..toys.world import FRAMES, Scene, draw, some_scene
from .evaluate import FIRST_SEED

MODEL = "kinema/toy-animatediff"
SETTINGS = {"num_frames": FRAMES, "num_inference_steps": 12, "guidance_scale": 4.0}


def around(scene: Scene, first: float, turn: float, far: float) -> NDArray[np.uint8]:
    """A scene's shape on part of a circle about the centre, (f, h, w, 3): from an angle, so many radians on."""
    angles = first + turn * np.arange(FRAMES) / FRAMES
    places = [(0.5 + far * float(np.cos(a)), 0.5 + far * float(np.sin(a))) for a in angles]
    return np.concatenate([draw([replace(scene, start=place)], 1)[0] for place in places])


def some_paths(count: int, seed: int = 2030) -> list[tuple[str, Scene, NDArray[np.uint8]]]:
    """Captions that name no motion, their scenes, and where the shape is to be."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        scene = some_scene(rng, motion="stays still")
        way = float(rng.choice([-1, 1])) * rng.uniform(np.pi, 2 * np.pi)
        clip = around(scene, rng.uniform(0, 2 * np.pi), way, rng.uniform(0.16, 0.22))
        found.append((f"a {scene.colour} {scene.shape} on a {scene.background} background", scene, clip))
    return found


def pipelines(style: str, model: str = MODEL) -> dict[str, Any]:
    """The image model of a style, moving, without the ControlNet and with it."""
    from ..checkpoint.hub import local_folder
    from ..families.animatediff import (
        AnimateDiffControlNetPipeline,
        AnimateDiffPipeline,
        ControlNetModel,
        UNet2DConditionModel,
    )

    folder = local_folder(model)
    more: dict[str, Any] = {}
    if style != "plain":
        more["unet"] = UNet2DConditionModel.from_pretrained(folder, subfolder=style, dtype="float32")
    free: Any = AnimateDiffPipeline.from_pretrained(str(folder), **more)
    net = ControlNetModel.from_pretrained(folder, subfolder="controlnet", dtype="float32")
    both = {"without": free, "with": AnimateDiffControlNetPipeline.from_pipe(free, controlnet=net)}
    for pipe in both.values():
        pipe.set_progress_bar_config(disable=True)
    return both


def made(pipe: Any, caption: str, path: NDArray[np.uint8], seed: int, steered: bool) -> NDArray[np.uint8]:
    shown = {"conditioning_frames": list(outlines(path) / np.float32(255))} if steered else {}
    clip = pipe(caption, generator=FIRST_SEED + seed, output_type="np", **SETTINGS, **shown).frames[0]
    return (np.asarray(clip) * 255).round().astype(np.uint8)


def measured(style: str, count: int) -> dict[str, Any]:
    """With and without the ControlNet: the overlap with what was asked for, and how many shapes are right."""
    out: dict[str, Any] = {"clips": count}
    for name, pipe in pipelines(style).items():
        clips = [made(pipe, c, path, i, name == "with") for i, (c, _, path) in enumerate(some_paths(count))]
        pairs = list(zip(clips, some_paths(count), strict=True))
        covers = [overlap(clip, path) for clip, (_, _, path) in pairs]
        right = [scorer.read(clip, STYLES[style]).shape == scene.shape for clip, (_, scene, _) in pairs]
        out[name] = {"overlap": round(float(np.mean(covers)), 3), "least": round(min(covers), 3), "shape": sum(right)}
    return out


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20, help="clips of each, with and without")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {style: measured(style, args.n) for style in STYLES}
    (args.out / "steering.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
