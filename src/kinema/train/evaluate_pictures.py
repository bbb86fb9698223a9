"""Measures the two models in the box that start from a picture, by the scorer alone: is the picture kept, does motion
follow the motion bucket or the text, do settings do what users are told they do?

`python -m kinema.train.evaluate_pictures --n 300` writes numbers, tables and contact sheets.
"""

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
from ..toys.captions import plain
from ..toys.moving import BUCKET, Numbers, liveliness, moving_scene, spearman
from ..toys.world import DIRECTIONS, MOTIONS, Scene, draw, some_scene
from .evaluate import FIRST_SEED, Share

ANIMATE, FOLLOW = "kinema/toy-image-to-video", "kinema/toy-i2vgen"
SEEN = ("colour", "shape", "background")  # what a picture says of itself
BATCH = 5
STILL = np.zeros((1, 1), np.float32)


@dataclass(frozen=True)
class Case:
    """A picture that training never saw, and what one call makes of it."""

    scene: Scene
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)  # of this clip alone

    @property
    def picture(self) -> np.ndarray:
        """(h, w, 3) bytes."""
        out: np.ndarray = draw([self.scene], 1, at=STILL)[0, 0]
        return out


@dataclass(frozen=True)
class Found:
    """What is measured of a clip."""

    kept: dict[str, bool]  # of colour, shape and background, whether the clip shows the picture's
    first: dict[str, bool]  # and whether its first frame does
    motion: str
    lively: float  # of the liveliest motion, in the scale of buckets / 255
    psnr: float  # of the first frame to the picture as the autoencoder gives it back, in decibels
    plain_psnr: float  # to the picture itself


@dataclass(frozen=True)
class Ask:
    model: str
    cases: tuple[Case, ...]
    settings: dict[str, Any]


def moving_cases(count: int, seed: int = 2027) -> list[Case]:
    """Pictures of the world in which pictures tell what moves, with buckets evenly over the whole range."""
    rng = np.random.default_rng(seed)
    buckets = rng.permutation(np.linspace(1, BUCKET, count).round().astype(int))
    scenes = [moving_scene(rng, Numbers(bucket=float(b))) for b in buckets]
    return [Case(s, i, {"motion_bucket_id": int(b)}) for i, (s, b) in enumerate(zip(scenes, buckets))]


def told_cases(count: int, seed: int = 2028) -> list[Case]:
    """Pictures that do not tell what will happen, and texts that say nothing else: half of them a direction."""
    rng = np.random.default_rng(seed)
    motions = [m for pair in zip(np.resize(list(DIRECTIONS), count), np.resize(MOTIONS[4:], count)) for m in pair]
    cases = []
    for i, motion in enumerate(motions[:count]):
        shape = {"shape": str(rng.choice(["square", "triangle", "star"]))} if motion == "spins" else {}
        own = {} if motion in DIRECTIONS else {"motion": str(motion)}
        scene = some_scene(rng, **({"motion": "stays still"} | own | shape))
        cases.append(Case(scene, i, {"prompt": plain({"motion": str(motion)}), "motion": str(motion)}))
    return cases


def clips(ask: Ask) -> np.ndarray:
    """What the model makes of it, (b, f, h, w, 3) bytes. Cases with settings of their own are made one by one."""
    pipe = _pipeline(ask.model)
    alone = ask.model == ANIMATE or "motion_bucket_id" in ask.cases[0].settings
    groups = [[case] for case in ask.cases] if alone else [list(ask.cases)]
    out = []
    for group in groups:
        own = {} if not alone else group[0].settings
        call = {**own, **ask.settings, "generator": [FIRST_SEED + case.seed for case in group]}
        if not alone:
            call["prompt"] = [case.settings["prompt"] for case in group]
        pictures = np.stack([case.picture for case in group]).astype(np.float32) / 255
        made = pipe(image=pictures, height=64, width=64, output_type="np", **call).frames
        out.append((np.asarray(made) * 255).round().astype(np.uint8))
    return np.concatenate(out)


def measure(ask: Ask) -> list[Found]:
    made = clips(ask)
    return [_found(case, clip, back) for case, clip, back in zip(ask.cases, made, through(ask.model, ask.cases))]


def through(model: str, cases: Sequence[Case]) -> np.ndarray:
    """The cases' pictures as the model's autoencoder gives them back, (n, h, w, 3) bytes."""
    import torch

    from .data import to_bytes, to_pixels

    vae = _pipeline(model).vae
    pixels = to_pixels(np.stack([case.picture for case in cases]))
    with torch.no_grad():
        return np.concatenate([to_bytes(vae.decode(vae.encode(p).latent_dist.mode()).sample) for p in pixels.split(1)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _found(case: Case, clip: np.ndarray, back: np.ndarray) -> Found:
    read = scorer.read(clip)
    kept, first = (
        {name: getattr(one, name) == getattr(case.scene, name) for name in SEEN}
        for one in (read, scorer.read(clip[:1]))
    )
    return Found(kept, first, read.motion, liveliness(read), psnr(clip[0], back), psnr(clip[0], case.picture))


Made = Callable[[Sequence[Case], dict[str, Any]], list[Found]]


def maker(model: str, workers: Any = None) -> Made:
    """Makes and measures clips, in the processes given."""

    def made(cases: Sequence[Case], settings: dict[str, Any]) -> list[Found]:
        todo = [Ask(model, tuple(cases[i : i + BATCH]), settings) for i in range(0, len(cases), BATCH)]
        return [found for part in (workers.map if workers else map)(measure, todo) for found in part]

    return made


def summary(found: Sequence[Found]) -> dict[str, Any]:
    def shares(of: Callable[[Found], dict[str, bool]]) -> dict[str, Any]:
        return {name: Share(sum(of(f)[name] for f in found), len(found)).plain() for name in SEEN}

    return {
        **shares(lambda f: f.kept),
        "first": shares(lambda f: f.first),
        "psnr": float(np.mean([f.psnr for f in found])),
        "psnr, a tenth is below": float(np.quantile([f.psnr for f in found], 0.1)),
        "psnr to the picture": float(np.mean([f.plain_psnr for f in found])),
        "lively": float(np.mean([f.lively for f in found])),
    }


# What each setting is tried at; all else stays as in the main measurement, and the bucket as given here.
TRIED: dict[str, tuple[dict[str, Any], ...]] = {
    "bucket": tuple({"motion_bucket_id": b} for b in (1, 64, 127, 191, 255)),
    "fps": tuple({"fps": f, "motion_bucket_id": 191} for f in (6, 7, 14, 28)),
    "noise": tuple({"noise_aug_strength": s, "motion_bucket_id": 127} for s in (0.0, 0.02, 0.1, 0.3, 0.6, 1.0)),
}
GUIDED = ((1.0, 3.0), (3.0, 1.0), (3.0, 3.0))  # first and last frame's guidance


def evaluate_animate(model: str, workers: Any, n: int, few: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    made, cases = maker(model, workers), moving_cases(n)
    whole = made(cases, settings)
    buckets = [case.settings["motion_bucket_id"] for case in cases]
    turning = [case.scene.motion == "spins" for case in cases]
    seen = [i for i, t in enumerate(turning) if not t]
    out: dict[str, Any] = {"clips": n, "few": few, "settings": settings, "main": summary(whole)}
    out["spearman"] = spearman(buckets, [f.lively for f in whole])
    out["spearman without what spins"] = spearman([buckets[i] for i in seen], [whole[i].lively for i in seen])
    out["pairs"] = [[b, round(f.lively, 4)] for b, f in zip(buckets, whole)]
    yield out
    for name, tried in TRIED.items():
        out[name] = {}
        for change in tried:
            value = next(iter(change.values()))
            out[name][str(value)] = summary(made(cases[:few], {**settings, **change}))
        yield out
    out["guidance"] = guidance_by_frame(model, cases[: max(2, few // 2)], settings, workers)
    yield out


def guidance_by_frame(model: str, cases: Sequence[Case], settings: dict[str, Any], workers: Any) -> dict[str, Any]:
    """How far guided clips are from the unguided ones of the same seeds, frame by frame, in grey levels of 255."""

    def all_of(least: float, most: float) -> np.ndarray:
        call = {**settings, "min_guidance_scale": least, "max_guidance_scale": most, "motion_bucket_id": 127}
        todo = [Ask(model, tuple(cases[i : i + BATCH]), call) for i in range(0, len(cases), BATCH)]
        return np.concatenate(list((workers.map if workers else map)(clips, todo))).astype(np.float32)

    free = all_of(1.0, 1.0)
    out = {}
    for least, most in GUIDED:
        away = np.square(all_of(least, most) - free).mean((0, 2, 3, 4)) ** 0.5
        out[f"{least:g} to {most:g}"] = [round(float(v), 2) for v in away]
    return out


def evaluate_follow(model: str, workers: Any, n: int, few: int, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    made, cases = maker(model, workers), told_cases(n)

    def shares(cases: Sequence[Case], found: Sequence[Found]) -> dict[str, Any]:
        right = [(case.settings["motion"], f.motion == case.settings["motion"]) for case, f in zip(cases, found)]
        there = [hit for motion, hit in right if motion in DIRECTIONS]
        values = {m: [hit for motion, hit in right if motion == m] for m in MOTIONS}
        return {
            **summary(found),
            "direction": Share(sum(there), len(there)).plain(),
            "motion": Share(sum(hit for _, hit in right), len(right)).plain(),
            "by motion": {m: Share(sum(hits), len(hits)).plain() for m, hits in values.items() if hits},
        }

    out: dict[str, Any] = {"clips": n, "few": few, "settings": settings, "main": shares(cases, made(cases, settings))}
    yield out
    out["guidance"] = {}
    for scale in (1.0, 2.0, 4.0, 9.0):
        out["guidance"][str(scale)] = shares(cases[:few], made(cases[:few], {**settings, "guidance_scale": scale}))
        yield out


def tables(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""

    def row(x: dict[str, Any]) -> str:
        columns = [n for n in ("direction", "motion", *SEEN) if n in x]
        shares = [str(Share(x[n]["right"], x[n]["of"])) for n in columns]
        shares += [str(Share(x["first"][n]["right"], x["first"][n]["of"])) for n in ("colour", "shape")]
        return " | ".join([*shares, f"{x['psnr']:.1f}", f"{x['psnr, a tenth is below']:.1f}", f"{x['lively']:.3f}"])

    columns = [n for n in ("direction", "motion", *SEEN) if n in found["main"]]
    ends = ["colour in frame 0", "shape in frame 0", "frame 0, dB", "a tenth is below", "liveliness"]
    head = " | ".join([*columns, *ends])
    lines = [
        f"| {found['clips']} clips | {head} |",
        "|---" * (head.count("|") + 2) + "|",
        f"| | {row(found['main'])} |",
    ]
    if "spearman" in found:
        bare = found["spearman without what spins"]
        lines += ["", f"Spearman of liveliness and bucket: {found['spearman']:.3f} ({bare:.3f} without what spins)."]
    if "by motion" in found["main"]:
        by = found["main"]["by motion"].items()
        lines += ["", ", ".join(f"{m} {x['right']} of {x['of']}" for m, x in by)]
    for name in ("bucket", "fps", "noise", "guidance"):
        if name not in found:
            continue
        values = found[name]
        if isinstance(next(iter(values.values())), list):
            lines += ["", "| guidance, first to last frame | " + " | ".join(f"frame {i}" for i in range(8)) + " |"]
            lines += ["|---" * 9 + "|"]
            lines += [f"| {k} | " + " | ".join(map(str, v)) + " |" for k, v in values.items()]
            continue
        lines += ["", f"| {name} ({found['few']} clips) | {head} |", "|---" * (head.count("|") + 2) + "|"]
        lines += [f"| {k} | {row(x)} |" for k, x in values.items()]
    return "\n".join(lines) + "\n"


def sheet(model: str, cases: Sequence[Case], settings: dict[str, Any], out: Path) -> None:
    """A contact sheet: one clip a row, the picture it was given beside it, not chosen."""
    from PIL import Image, ImageDraw

    made = np.concatenate(
        [clips(Ask(model, tuple(cases[i : i + BATCH]), settings)) for i in range(0, len(cases), BATCH)]
    )
    size, text, gap = made.shape[2], 130, 10
    page = Image.new("RGB", (text + (made.shape[1] + 1) * (size + 2) + gap, len(cases) * (size + 2)), "white")
    pen = ImageDraw.Draw(page)
    for j, (case, clip) in enumerate(zip(cases, made)):
        own = {k: v for k, v in case.settings.items() if k != "motion"}
        said = own.get("prompt") or f"motion bucket {own.get('motion_bucket_id')}"
        pen.multiline_text((4, j * (size + 2) + 24), said, fill="black")
        page.paste(Image.fromarray(case.picture), (text, j * (size + 2)))
        for i, frame in enumerate(clip):
            page.paste(Image.fromarray(frame), (text + gap + (i + 1) * (size + 2), j * (size + 2)))
    page.save(out, optimize=True)


_open: dict[str, Any] = {}


def _pipeline(model: str) -> Any:
    """The model, opened once a process."""
    if model not in _open:
        import torch

        from ..families import DiffusionPipeline

        torch.set_num_threads(1)
        _open[model] = DiffusionPipeline.from_pretrained(_where.get(model, model), dtype=torch.float32)
        _open[model].set_progress_bar_config(disable=True)
    return _open[model]


_where: dict[str, str] = {}  # folders to take instead of what is in the box


def _take(where: dict[str, str]) -> None:
    _where.update(where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["image-to-video", "i2vgen"], action="append", help="both by default")
    parser.add_argument("--folder", help="measure this folder instead of the model in the box")
    parser.add_argument("--n", type=int, default=300, help="clips for the main measurement")
    parser.add_argument("--few", type=int, default=50, help="clips for each setting that is tried")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.model or ["image-to-video", "i2vgen"]:
        model = {"image-to-video": ANIMATE, "i2vgen": FOLLOW}[name]
        where = {model: args.folder} if args.folder else {}
        _take(where)
        settings: dict[str, Any] = {"num_frames": 8, "num_inference_steps": args.steps}
        settings |= (
            {"min_guidance_scale": 3.0} if name == "image-to-video" else {"guidance_scale": 2.0, "target_fps": 8}
        )
        cases = moving_cases(12, 5) if name == "image-to-video" else told_cases(12, 5)
        began = time.perf_counter()
        sheet(model, cases, settings, args.out / f"{name}-contact-sheet.png")
        evaluate = evaluate_animate if name == "image-to-video" else evaluate_follow
        with ProcessPoolExecutor(args.workers, get_context("spawn"), _take, (where,)) as workers:
            for found in evaluate(model, workers, args.n, args.few, settings):
                found["seconds"] = round(time.perf_counter() - began)
                (args.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
                (args.out / f"{name}.md").write_text(tables(found))
        print(tables(found))


if __name__ == "__main__":
    main()
