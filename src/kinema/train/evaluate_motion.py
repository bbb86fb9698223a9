"""Measures the models in the box that plug into one another: does the same motion adapter move both image models as
asked, do they keep their styles, and does each LoRA move the camera? `python -m kinema.train.evaluate_motion --n 160`
writes numbers, tables and contact sheets."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..toys import scorer
from ..toys.camera import CAMERAS, Camera
from ..toys.captions import plain, some_caption
from ..toys.global_motion import camera_of, named, shows
from ..toys.styles import STYLES
from ..toys.world import ATTRIBUTES, DIRECTIONS, Scene, some_scene
from .evaluate import BATCH, FIRST_SEED, Share

PAIRS = (
    *((pan, zoom) for pan in ("pan-left", "pan-right") for zoom in ("zoom-in", "zoom-out")),
    *(("roll", zoom) for zoom in ("zoom-in", "zoom-out")),
)
PARTS = ("styles", "others", "cameras", "together")
OTHERS = tuple(m for m in ATTRIBUTES["motion"] if m not in DIRECTIONS)


@dataclass(frozen=True)
class Ask:
    """Clips to make in one call: prompts, one seed each, by which image model and with which LoRAs."""

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    style: str = "plain"
    loras: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a clip shows."""

    read: scorer.Reading
    camera: Camera
    style: str


Made = Callable[..., list[Found]]  # (prompts, style, loras) → what the clips show


def clips(ask: Ask) -> np.ndarray:
    """What the models make of it, (b, f, h, w, 3) bytes."""
    pipe = _pipeline(ask.model, ask.style)
    pipe.set_adapters(list(ask.loras))
    seeds = [FIRST_SEED + s for s in ask.seeds]
    out = pipe(list(ask.prompts), generator=seeds, output_type="np", **ask.settings).frames
    return (np.asarray(out) * 255).round().astype(np.uint8)


def findings(ask: Ask) -> list[Found]:
    style = STYLES[ask.style]
    return [Found(scorer.read(clip, style), camera_of(clip), scorer.style_of(clip)) for clip in clips(ask)]


def scenes_for(count: int, motions: Sequence[str], seed: int) -> list[tuple[str, Scene]]:
    """Whole captions of scenes with these motions, each equally often, some in other words than the plain ones."""
    rng = np.random.default_rng(seed)
    scenes = [some_scene(rng, motion=str(m)) for m in rng.permutation(np.resize(motions, count))]
    return [(some_caption(rng, s, keep=1.0)[0], s) for s in scenes]


def adherence(found: Sequence[Found], scenes: Sequence[Scene], style: str) -> dict[str, Share]:
    """How often clips show what was asked for, and look as their image model draws."""
    pairs = list(zip(found, scenes, strict=True))
    right = {name: [getattr(f.read, name) == getattr(s, name) for f, s in pairs] for name in ATTRIBUTES}
    right["style"] = [f.style == style for f in found]
    return {name: Share(sum(hits), len(hits)) for name, hits in right.items()}


def evaluate(made: Made, n: int, few: int, parts: Sequence[str] = PARTS) -> Iterator[dict[str, Any]]:
    """The measurements so far, more each time.

    Both image models are asked for the same directions; LoRAs get captions in which nothing moves, so that all motion
    is the camera's.
    """
    out: dict[str, Any] = {"clips": n, "few": few, "styles": {}, "others": {}, "cameras": {}, "together": {}}
    directed, rest = scenes_for(n, list(DIRECTIONS), 2027), scenes_for(few, OTHERS, 2028)
    at_rest = scenes_for(n, ["stays still"], 2029)
    for key, pairs in (("styles", directed), ("others", rest)):
        for style in STYLES if key in parts else ():
            found = made([p for p, _ in pairs], style, ())
            out[key][style] = _plain(adherence(found, [s for _, s in pairs], style))
            yield out
    if "cameras" in parts:
        yield from _cameras(made, at_rest, "plain", n, few, out)
    for pair in PAIRS if "together" in parts else ():
        found = made([p for p, _ in at_rest[:few]], "plain", pair)
        hits = {name: [shows(f.camera, name) for f in found] for name in pair}
        hits["both"] = [all(both) for both in zip(*hits.values(), strict=True)]
        out["together"][" + ".join(pair)] = _plain({k: Share(sum(v), len(v)) for k, v in hits.items()})
        yield out
    if "cameras" in parts:
        yield from _cameras(made, at_rest, "chalk", few, few, out)


def _cameras(
    made: Made, at_rest: Sequence[tuple[str, Scene]], style: str, count: int, few: int, out: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Each LoRA by itself, and none."""
    prompts = [p for p, _ in at_rest]
    rows: dict[str, Any] = {}
    out["cameras"][style] = rows
    for name in ("", *CAMERAS):
        found = made(prompts[:count] if name else prompts[:few], style, (name,) if name else ())
        rows[name or "none"] = _plain(
            {
                "named": Share(sum(named(f.camera) == (name or "still") for f in found), len(found)),
                "there": Share(sum(bool(name) and shows(f.camera, name) for f in found), len(found)),
                "style": Share(sum(f.style == style for f in found), len(found)),
                **{k: Share(v, len(found)) for k, v in _tally(named(f.camera) for f in found).items()},
            }
        )
        yield out


def tables(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""

    def share(x: dict[str, Any]) -> str:
        return str(Share(x["right"], x["of"]))

    lines = []
    for key, title in (("styles", "asked to go somewhere"), ("others", "asked for another motion")):
        columns = list(next(iter(found[key].values()), {}))
        if columns:
            clips = next(iter(found[key].values()))["style"]["of"]
            lines += [f"| {title} ({clips} clips) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            lines += [
                f"| {name} | " + " | ".join(share(x[c]) for c in columns) + " |" for name, x in found[key].items()
            ]
            lines.append("")
    for style, rows in found["cameras"].items():
        head = f"| LoRA, {style} | its motion is the main one | is there | clips | style kept | main ones measured |"
        lines += [head, "|---" * 6 + "|"]
        for name, x in rows.items():
            wanted = "still" if name == "none" else name
            rest = [f"{k} {v['right']}" for k, v in x.items() if k not in ("named", "there", "style", wanted)]
            there = "" if name == "none" else share(x["there"])
            cells = [name, share(x["named"]), there, x["named"]["of"], f"{x['style']['share']:.1%}", ", ".join(rest)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    if found["together"]:
        lines += ["| two LoRAs | the one | the other | both | clips |", "|---" * 5 + "|"]
        for name, x in found["together"].items():
            cells = [share(v) for v in x.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {x['both']['of']} |")
    return "\n".join(lines).strip() + "\n"


def sheets(made: Callable[..., np.ndarray], out: Path) -> None:
    """Contact sheets: the first prompts and seeds, not chosen."""
    rng = np.random.default_rng(5)
    motions = [*DIRECTIONS, *OTHERS]
    prompts = [plain(some_scene(rng, motion=m)) for m in motions]
    drawn = {style: made(prompts, style, ()) for style in STYLES}
    rows = [(f"{style}: {p}", drawn[style][i]) for i, p in enumerate(prompts) for style in STYLES]
    page(rows, out / "animatediff-contact-sheet.png")
    rows, still = [], [plain(some_scene(rng, motion="stays still")) for _ in range(2)]
    for loras in (*((name,) for name in CAMERAS), *PAIRS):
        asked = still[: 3 - len(loras)]
        for style in STYLES:
            for prompt, clip in zip(asked, made(asked, style, loras)):
                rows.append((f"{' + '.join(loras)}, {style}: {prompt}", clip))
    page(rows, out / "animatediff-cameras.png")


def page(rows: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    import textwrap

    from PIL import Image, ImageDraw

    size, text = rows[0][1].shape[1], 230
    page = Image.new("RGB", (text + len(rows[0][1]) * (size + 2), len(rows) * (size + 2)), "white")
    pen = ImageDraw.Draw(page)
    for j, (words, clip) in enumerate(rows):
        pen.multiline_text((4, j * (size + 2) + 12), "\n".join(textwrap.wrap(words, 36)), fill="black")
        for i, frame in enumerate(clip):
            page.paste(Image.fromarray(frame), (text + i * (size + 2), j * (size + 2)))
    page.save(path, optimize=True)


def _tally(names: Iterator[str] | Sequence[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name in names:
        out[name] = out.get(name, 0) + 1
    return out


_open: dict[tuple[str, str], Any] = {}


def _pipeline(model: str, style: str) -> Any:
    """The pipeline with the image model of this style and all LoRAs loaded, opened once a process."""
    if (model, style) not in _open:
        import torch

        from ..checkpoint.hub import local_folder
        from ..families import DiffusionPipeline
        from ..families.animatediff import UNet2DConditionModel

        torch.set_num_threads(1)
        folder = local_folder(model)
        other: dict[str, Any] = {}
        if style != "plain":
            other["unet"] = UNet2DConditionModel.from_pretrained(folder, subfolder=style, torch_dtype=torch.float32)
        pipe: Any = DiffusionPipeline.from_pretrained(str(folder), dtype=torch.float32, **other)
        pipe.set_progress_bar_config(disable=True)
        for name in CAMERAS:
            pipe.load_lora_weights(folder / "loras", name, weight_name=f"{name}.safetensors")
        _open[model, style] = pipe
    return _open[model, style]


def _plain(shares: dict[str, Share]) -> dict[str, Any]:
    return {name: share.plain() for name, share in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="kinema/toy-animatediff")
    parser.add_argument("--n", type=int, default=160, help="clips for each main measurement")
    parser.add_argument("--few", type=int, default=64, help="clips for each further one")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which to measure")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args()
    settings = {
        "height": 64,
        "width": 64,
        "num_frames": 8,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def asks(prompts: Sequence[str], style: str, loras: tuple[str, ...]) -> list[Ask]:
        parts = [(tuple(prompts[i : i + BATCH]), i) for i in range(0, len(prompts), BATCH)]
        return [Ask(args.model, p, tuple(range(i, i + len(p))), style, loras, settings) for p, i in parts]

    with ProcessPoolExecutor(args.workers, get_context("spawn")) as workers:

        def made(*what: Any) -> list[Found]:
            return [found for part in workers.map(findings, asks(*what)) for found in part]

        def shown(*what: Any) -> np.ndarray:
            return np.concatenate(list(workers.map(clips, asks(*what))))

        sheets(shown, args.out)
        found: dict[str, Any] = {}
        for found in evaluate(made, args.n, args.few, args.parts):
            found["settings"], found["seconds"] = settings, round(time.perf_counter() - began)
            (args.out / "animatediff.json").write_text(json.dumps(found, indent=1) + "\n")
            (args.out / "animatediff.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
