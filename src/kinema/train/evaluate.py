"""Measures the model in the box, by the scorer alone: does a clip show what was asked for, and do settings do what
users are told they do? `python -m kinema.train.evaluate --n 500` writes numbers, tables and a contact sheet."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ..toys import scorer
from ..toys.captions import plain, some_caption
from ..toys.world import ATTRIBUTES, DIRECTIONS, Scene, some_scene

FIRST_SEED = 1_000_000  # of the noise: none was used in training, where a seed is a step's
BATCH = 10


@dataclass(frozen=True)
class Ask:
    """Clips to make in one call: prompts, one seed each, and the call's other arguments."""

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """How often something held, with its 95 % interval (Wilson 1927)."""

    right: int
    of: int

    @property
    def share(self) -> float:
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        p, n, z = self.share, self.of, 1.96
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({low:.1%} to {high:.1%})"

    def plain(self) -> dict[str, Any]:
        return {"right": self.right, "of": self.of, "share": self.share, "interval": self.interval}


def prompts_for(count: int, seed: int = 2026, variety: float = 0.3) -> list[tuple[str, Scene]]:
    """Whole captions of scenes, each attribute's values equally often, some in other words than the plain ones."""
    rng = np.random.default_rng(seed)
    motions = [str(m) for m in rng.permutation(np.resize(ATTRIBUTES["motion"], count))]
    scenes = [some_scene(rng, motion=m) for m in motions]
    return [(some_caption(rng, s, keep=1.0, variety=variety)[0], s) for s in scenes]


def clips(ask: Ask) -> np.ndarray:
    """What the model makes of it, (b, f, h, w, 3) bytes."""
    pipe = _pipeline(ask.model)
    seeds = [FIRST_SEED + s for s in ask.seeds]
    out = pipe(list(ask.prompts), generator=seeds, output_type="np", **ask.settings).frames
    return (np.asarray(out) * 255).round().astype(np.uint8)


def readings(ask: Ask) -> list[scorer.Reading]:
    return [scorer.read(clip) for clip in clips(ask)]


def asks(model: str, prompts: Sequence[str], settings: dict[str, Any], first: int = 0, batch: int = BATCH) -> list[Ask]:
    """The same in calls of a few clips each; the seed of a clip is its place."""
    return [
        Ask(
            model,
            tuple(prompts[i : i + batch]),
            tuple(range(first + i, first + i + len(prompts[i : i + batch]))),
            settings,
        )
        for i in range(0, len(prompts), batch)
    ]


Made = Callable[[Sequence[str], dict[str, Any]], list[scorer.Reading]]


def maker(model: str, workers: Executor | None, first: int = 0) -> Made:
    """Makes and reads clips, in the processes given."""

    def made(prompts: Sequence[str], settings: dict[str, Any]) -> list[scorer.Reading]:
        todo = asks(model, prompts, settings, first)
        done = workers.map(readings, todo) if workers else map(readings, todo)
        return [reading for part in done for reading in part]

    return made


def adherence(read: Sequence[scorer.Reading], scenes: Sequence[Scene]) -> dict[str, Share]:
    """For every attribute how often the clip shows what was asked, and of those asked to move how often the way."""
    pairs = list(zip(read, scenes, strict=True))
    right = {name: [getattr(r, name) == getattr(s, name) for r, s in pairs] for name in ATTRIBUTES}
    right["direction"] = [r.motion == s.motion for r, s in pairs if s.motion in DIRECTIONS]
    right["everything"] = [all(getattr(r, n) == getattr(s, n) for n in ATTRIBUTES) for r, s in pairs]
    return {name: Share(sum(hits), len(hits)) for name, hits in right.items() if hits}


def by_value(read: Sequence[scorer.Reading], scenes: Sequence[Scene]) -> dict[str, dict[str, Share]]:
    """For every value of every attribute how often it was shown where it was asked for."""
    out: dict[str, dict[str, Share]] = {}
    for name, values in ATTRIBUTES.items():
        for value in values:
            hits = [getattr(r, name) == value for r, s in zip(read, scenes) if getattr(s, name) == value]
            if hits:
                out.setdefault(name, {})[value] = Share(sum(hits), len(hits))
    return out


# What each setting is tried at; all else stays as in the main measurement.
TRIED: dict[str, tuple[str, tuple[float, ...]]] = {
    "guidance": ("guidance_scale", (1.0, 2.0, 4.0, 8.0)),
    "steps": ("num_inference_steps", (2, 4, 8, 24)),
    "frames": ("num_frames", (6, 12, 16)),
}
PUSHED = ("red", "blue")  # colours that a negative prompt names


def evaluate(made: Made, n: int, few: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The measurements so far, more each time: adherence over n clips, then each setting over few.

    For every setting the prompts and seeds are the same: the first of the n.
    """
    pairs = prompts_for(n)
    whole, scenes = made([p for p, _ in pairs], settings), [s for _, s in pairs]
    out: dict[str, Any] = {
        "clips": n,
        "settings": settings,
        "adherence": _plain(adherence(whole, scenes)),
        "by value": _plain(by_value(whole, scenes)),
    }
    yield out
    prompts, asked = [p for p, _ in pairs[:few]], scenes[:few]
    for name, (key, values) in TRIED.items():
        out[name] = {}
        for value in values:
            read = whole[:few] if settings[key] == value else made(prompts, {**settings, key: value})
            out[name][str(value)] = _plain(adherence(read, asked))
        yield out
    free = made(["a shape"] * few, settings)
    out["negative"] = {}
    for colour in PUSHED:
        pushed = made(["a shape"] * few, {**settings, "negative_prompt": f"a {colour} shape"})
        shares = {w: Share(sum(r.colour == colour for r in rs), few) for w, rs in (("without", free), ("with", pushed))}
        out["negative"][colour] = _plain(shares)
    yield out


def tables(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""

    def share(x: dict[str, Any]) -> str:
        return str(Share(x["right"], x["of"]))

    lines = ["| asked for | shown | 95 % interval | clips |", "|---|---|---|---|"]
    for name, x in found["adherence"].items():
        lines.append(f"| {name} | {x['share']:.1%} | {x['interval'][0]:.1%} to {x['interval'][1]:.1%} | {x['of']} |")
    for name, values in found["by value"].items():
        lines += ["", f"{name}: " + ", ".join(f"{v} {x['share']:.0%}" for v, x in values.items())]
    columns = ("colour", "shape", "motion", "direction", "background")
    for name in (name for name in TRIED if found.get(name)):
        lines += ["", f"| {name} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {v} | " + " | ".join(share(x[c]) for c in columns) + " |" for v, x in found[name].items()]
    if "negative" in found:
        lines += ["", "| `a shape`, share of | no negative prompt | that colour as negative prompt |", "|---|---|---|"]
        for colour, values in found["negative"].items():
            lines.append(f"| {colour} | " + " | ".join(share(x) for x in values.values()) + " |")
    return "\n".join(lines) + "\n"


def sheet(model: str, settings: dict[str, Any], out: Path, rows: int = 12, first: int = 0) -> None:
    """A contact sheet: one clip a row, its prompt beside it, as made by the first seeds and not chosen."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(5)
    motions = [*ATTRIBUTES["motion"], *DIRECTIONS]
    prompts = [plain(some_scene(rng, motion=motions[i % len(motions)])) for i in range(rows)]
    made = np.concatenate([clips(ask) for ask in asks(model, prompts, settings, first)])
    size, text = made.shape[2], 190
    page = Image.new("RGB", (text + made.shape[1] * (size + 2), rows * (size + 2)), "white")
    pen = ImageDraw.Draw(page)
    for j, (prompt, clip) in enumerate(zip(prompts, made)):
        before, _, after = prompt.partition(" on ")
        pen.multiline_text((4, j * (size + 2) + 18), f"{before}\non {after}", fill="black")
        for i, frame in enumerate(clip):
            page.paste(Image.fromarray(frame), (text + i * (size + 2), j * (size + 2)))
    page.save(out, optimize=True)


_open: dict[str, Any] = {}


def _pipeline(model: str) -> Any:
    """The model, opened once a process."""
    if model not in _open:
        import torch

        from ..families import DiffusionPipeline

        torch.set_num_threads(1)
        _open[model] = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
        _open[model].set_progress_bar_config(disable=True)
    return _open[model]


def _plain(value: Any) -> Any:
    if isinstance(value, Share):
        return value.plain()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="kinema/toy-text-to-video")
    parser.add_argument("--n", type=int, default=500, help="clips for the main measurement")
    parser.add_argument("--few", type=int, default=100, help="clips for each setting that is tried")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args()
    settings = {"num_frames": 8, "num_inference_steps": args.steps, "guidance_scale": args.guidance}
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    sheet(args.model, settings, args.out / "contact-sheet.png")
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as workers:
        for found in evaluate(maker(args.model, workers), args.n, args.few, settings):
            found["seconds"] = round(time.perf_counter() - began)
            (args.out / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n")
            (args.out / "evaluation.md").write_text(tables(found))
    print(tables(found))


if __name__ == "__main__":
    main()
