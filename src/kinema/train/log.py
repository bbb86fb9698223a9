"""What a training run did, step by step: a line of JSON each, and a picture of the curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path


class Log:
    """Lines of JSON, one a step. Lines of steps that are about to be run again are dropped."""

    def __init__(self, path: Path, since: int = 0):
        self.path = path
        kept = [line for line in read(path) if line["step"] < since] if path.exists() else []
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, **facts: float) -> None:
        rounded = {k: float(f"{v:.5g}") for k, v in facts.items() if math.isfinite(v)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **rounded}) + "\n")


def read(path: Path) -> list[dict[str, float]]:
    """A log's lines; one that was cut off by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def curves(logs: Iterable[Path], out: Path, fields: tuple[str, ...] = ("loss", "psnr", "gap", "right")) -> None:
    """Draws every field found in the logs over its steps: one row a log, one panel a field, smoothed, to a PNG."""
    from PIL import Image, ImageDraw

    rows = [
        (p.stem, lines, [f for f in fields if any(f in line for line in lines)]) for p in logs if (lines := read(p))
    ]
    if not rows:
        return
    width, height, pad = 300, 170, 28
    sheet = Image.new("RGB", (width * max(len(r[2]) for r in rows), height * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for j, (name, lines, found) in enumerate(rows):
        for i, field in enumerate(found):
            points = [(line["step"], line[field]) for line in lines if field in line]
            values = _smooth([v for _, v in points])
            low, high, last = min(values), max(values), max(1.0, points[-1][0])
            span = (high - low) or 1.0
            x0, y0, w, h = i * width + pad, j * height + pad, width - 2 * pad, height - 2 * pad
            pen.rectangle((x0, y0, x0 + w, y0 + h), outline="#cccccc")
            line_ = [(x0 + w * s / last, y0 + h * (1 - (v - low) / span)) for (s, _), v in zip(points, values)]
            pen.line(line_ if len(line_) > 1 else line_ * 2, fill="#2850c8", width=2)
            pen.text((x0, y0 - 16), f"{name}: {field}", fill="black")
            pen.text((x0 + 3, y0 + 2), f"{high:.4g}", fill="#666666")
            pen.text((x0 + 3, y0 + h - 13), f"{low:.4g}", fill="#666666")
            pen.text((x0 + w - 50, y0 + h + 3), f"{int(last)} steps", fill="#666666")
    sheet.save(out)


def _smooth(values: list[float]) -> list[float]:
    keep = max(0.0, 1 - 20 / len(values)) if len(values) > 20 else 0.0
    out, mean = [], values[0]
    for v in values:
        mean = keep * mean + (1 - keep) * v
        out.append(mean)
    return out
