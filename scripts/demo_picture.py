"""Makes docs/pictures/demo.gif, the picture at the top of the README: clips of the model in the box, side by side.

python scripts/demo_picture.py [--out FILE] [--steps 12] [--seed 20] [--guidance 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "a red circle moves left on a dark background",
    "a blue square moves right on a light background",
    "a green star spins on a dark background",
    "a yellow triangle grows on a dark background",
    "a purple square moves up on a light background",
    "a cyan circle moves down on a dark background",
    "a red star shrinks on a light background",
    "a green triangle stays still on a light background",
)
COLUMNS, WIDTH, GAP, FPS = 4, 160, 6, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "demo.gif")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    options = parser.parse_args()

    from kinema import DiffusionPipeline, export_to_gif

    pipe = DiffusionPipeline.from_pretrained("kinema/toy-text-to-video")
    clips = []
    for i, prompt in enumerate(PROMPTS):
        print(prompt)
        how = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
        result = pipe(prompt, num_frames=8, generator=options.seed + i, output_type="pil", **how)
        clips.append(result.frames[0])
    frames = [grid([clip[t] for clip in clips]) for t in range(len(clips[0]))]
    metadata = {"prompts": list(PROMPTS), "seed": options.seed, **how}
    export_to_gif(frames, options.out, fps=FPS, metadata=metadata)
    print(f"Wrote {options.out}, {options.out.stat().st_size // 1000} kB")


def grid(pictures: list[Any]) -> Any:
    """One frame of all clips, each with its prompt below it."""
    from PIL import Image, ImageDraw, ImageFont

    font, line = ImageFont.load_default(11), 15
    height = WIDTH * pictures[0].height // pictures[0].width
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, rows * (height + 2 * line + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = GAP + i % COLUMNS * (WIDTH + GAP), GAP + i // COLUMNS * (height + 2 * line + GAP)
        sheet.paste(picture.resize((WIDTH, height), Image.Resampling.BICUBIC), (x, y))
        first, _, rest = PROMPTS[i].partition(" on ")
        pen.text((x + 1, y + height), first, fill="black", font=font)
        pen.text((x + 1, y + height + line - 2), f"on {rest}", fill="#666666", font=font)
    return sheet


if __name__ == "__main__":
    main()
