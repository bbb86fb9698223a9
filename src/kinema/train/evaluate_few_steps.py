"""Measures the LoRA with which few steps do, against the models without it at as many calls of the network and at more:
is what was asked for seen? `python -m kinema.train.evaluate_few_steps --n 64` writes numbers and a contact sheet."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..toys import scorer
from ..toys.global_motion import camera_of
from ..toys.styles import STYLES
from ..toys.world import DIRECTIONS, FRAMES
from .evaluate import BATCH, FIRST_SEED
from .evaluate_motion import Found, adherence, page, scenes_for

MODEL, NAME = "kinema/toy-animatediff", "few-steps"


class Way(NamedTuple):
    """How clips are made."""

    lora: bool
    scheduler: str
    steps: int
    guidance: float

    def __str__(self) -> str:
        calls = self.steps * (1 if self.guidance == 1 else 2)
        lora = "with the LoRA" if self.lora else "without"
        return f"{lora}, {self.scheduler}, {self.steps} steps, guidance {self.guidance:g}: {calls} calls"


WAYS = (
    Way(True, "LCM", 4, 1.0),
    Way(False, "LCM", 4, 1.0),
    Way(False, "DDIM", 4, 1.0),
    Way(False, "DDIM", 2, 4.0),
    Way(False, "DDIM", 4, 4.0),
    Way(False, "DDIM", 12, 4.0),
)


def pipeline(model: str, style: str) -> Any:
    """The pipeline with the image model of a style, the LoRA loaded and not active."""
    from ..checkpoint.hub import local_folder
    from ..families.animatediff import AnimateDiffPipeline, UNet2DConditionModel

    folder = local_folder(model)
    more: dict[str, Any] = {}
    if style != "plain":
        more["unet"] = UNet2DConditionModel.from_pretrained(folder, subfolder=style, dtype="float32")
    pipe: Any = AnimateDiffPipeline.from_pretrained(str(folder), **more)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folder / "loras", NAME, weight_name=f"{NAME}.safetensors")
    return pipe


def clips(pipe: Any, way: Way, prompts: Sequence[str], first: int = 0) -> np.ndarray:
    """A clip a prompt, with seeds one after another, (b, f, h, w, 3) bytes."""
    from ..sampling import schedulers

    kind = getattr(schedulers, f"{way.scheduler}Scheduler")
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_adapters([NAME] if way.lora else [])
    how = {"num_frames": FRAMES, "num_inference_steps": way.steps, "guidance_scale": way.guidance, "output_type": "np"}
    made = [
        np.asarray(
            pipe(list(prompts[i : i + BATCH]), generator=_seeds(first + i, prompts[i : i + BATCH]), **how).frames
        )
        for i in range(0, len(prompts), BATCH)
    ]
    out: np.ndarray = (np.concatenate(made) * 255).round().astype(np.uint8)
    return out


def _seeds(first: int, prompts: Sequence[str]) -> list[int]:
    return [FIRST_SEED + first + i for i in range(len(prompts))]


def measured(
    model: str, style: str, count: int, seed: int = 2031
) -> tuple[dict[str, Any], list[tuple[str, np.ndarray]]]:
    """What is seen of what was asked for, each way; and the first clips of each."""
    pairs, pipe = scenes_for(count, list(DIRECTIONS), seed), pipeline(model, style)
    prompts, shares, rows = [p for p, _ in pairs], {}, []
    for way in WAYS:
        made = clips(pipe, way, prompts)
        found = [Found(scorer.read(c, STYLES[style]), camera_of(c), scorer.style_of(c)) for c in made]
        shares[str(way)] = {k: v.plain() for k, v in adherence(found, [s for _, s in pairs], style).items()}
        rows += [(f"{way}: {p}", c) for p, c in zip(prompts[:3], made)]
    return shares, rows


def table(shares: dict[str, Any], style: str) -> str:
    """The measurements as Markdown."""
    columns = list(next(iter(shares.values())))
    count = next(iter(shares.values()))["style"]["of"]
    lines = [f"| {style}, {count} clips each | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {way} | " + " | ".join(str(x[c]["right"]) for c in columns) + " |" for way, x in shares.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--n", type=int, default=64, help="clips each way, in the first style; a quarter in the second")
    parser.add_argument("--seed", type=int, default=2031, help="of the captions")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for style, count in (("plain", args.n), ("chalk", max(1, args.n // 4))):
        found[style], rows = measured(args.model, style, count, args.seed)
        print(table(found[style], style), flush=True)
        page(rows, args.out / f"few-steps-{style}.png")
    (args.out / "few-steps.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
