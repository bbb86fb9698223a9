"""Makes docs/pictures/preview.png: what the preview decoder in the box shows of a clip on the way, and the clip.

python scripts/preview_picture.py [--out FILE] [--steps 12] [--seed 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a blue triangle moves right on a light background"
SHOWN, SIDE, GAP, LEFT = (1, 3, 6, 12), 64, 4, 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "preview.png")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()

    from kinema import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("toy")
    rows: list[tuple[str, Any]] = []
    how = {"num_frames": 8, "guidance_scale": 4.0, "num_inference_steps": options.steps, "generator": options.seed}
    for event in pipe.stream(PROMPT, output_type="pil", **how):
        if event.clean is not None and event.step in SHOWN:
            rows.append((f"preview, step {event.step} of {event.total}", pipe.preview(event.clean)[0]))
        if event.output is not None:
            rows.append(("decoded", event.output.frames[0]))
    sheet(rows).save(options.out, optimize=True)
    print(f"Wrote {options.out}, {options.out.stat().st_size // 1000} kB")


def sheet(rows: list[tuple[str, Any]]) -> Any:
    """A clip in each row, with a line beside it."""
    from PIL import Image, ImageDraw, ImageFont

    font, step = ImageFont.load_default(11), SIDE + GAP
    picture = Image.new("RGB", (LEFT + step * len(rows[0][1]), step * len(rows) + GAP), "white")
    pen = ImageDraw.Draw(picture)
    for y, (line, clip) in enumerate(rows):
        pen.text((GAP, GAP + y * step + SIDE // 2 - 6), line, "black", font)
        for x, frame in enumerate(clip):
            picture.paste(frame.resize((SIDE, SIDE)), (LEFT + x * step, GAP + y * step))
    return picture


if __name__ == "__main__":
    main()
