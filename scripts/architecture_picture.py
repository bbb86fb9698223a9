"""Draws docs/pictures/architecture.svg from the imports in src/kinema: what stands on what, as it is.

    python scripts/architecture_picture.py           write it
    python scripts/architecture_picture.py --check   exit 1 if it is out of date

Needs only the standard library. An arrow that follows from two others is left out, and so are those to the base
everything stands on.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "kinema"
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"

# Rows from top to bottom, as the import rule has them, and what each part is for.
ROWS = (
    {"cli": "one file a verb"},
    {"train": "makes the model in the box", "toys": "a drawn world, its scorer"},
    {"families": "one file each"},
    {"pipelines": "joins the parts"},
    {
        "nn": "what is computed",
        "sampling": "from noise to latents",
        "encoders": "words to embeddings",
        "checkpoint": "files to modules, back",
        "memory": "what stays where",
        "media": "pixels in, pixels out",
        "distributed": "processes as one",
    },
)
BASE = "layout: one order of axes · config: checked settings · errors: what to do · place: devices · wide: 16 bits"
BOX, GAP, HIGH, STEP, MARGIN = 176, 20, 58, 112, 20
WIDTH = 7 * BOX + 6 * GAP + 2 * MARGIN
HEIGHT = MARGIN * 2 + STEP * len(ROWS) + HIGH
PARTS = [name for row in ROWS for name in row]
FILL = ("#fde8d7", "#fdf1cf", "#e3f1d8", "#d8ecf3", "#e4e3f6")


def main() -> int:
    picture = draw(reduced(edges()))
    if "--check" in sys.argv[1:]:
        fresh = PICTURE.exists() and PICTURE.read_text(encoding="utf-8") == picture
        print(f"{PICTURE.relative_to(ROOT)} is {'up to date' if fresh else 'out of date; run make docs'}.")
        return 0 if fresh else 1
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture, encoding="utf-8")
    print(f"Wrote {PICTURE.relative_to(ROOT)}")
    return 0


def edges() -> set[tuple[str, str]]:
    """(part, part it imports) for all of src/kinema, imports for type checkers included."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        own = parts[0]
        depth = len(parts) if path.name != "__init__.py" else len(parts) - 1
        found |= {(own, other) for other in _imported(path, parts[:-1], depth) if own in PARTS and other != own}
    return found


def _imported(path: Path, folder: tuple[str, ...], depth: int) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            start = ("kinema", *folder)[: len(folder) + 2 - node.level] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            words = name.split(".")
            if words[0] == "kinema" and len(words) > 1 and words[1] in PARTS:
                yield words[1]


def reduced(graph: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The same order with as few arrows as say it."""

    def reaches(start: str, end: str, without: tuple[str, str]) -> bool:
        todo, seen = [start], set()
        while todo:
            here = todo.pop()
            for a, b in graph:
                if a == here and (a, b) != without and b not in seen:
                    if b == end:
                        return True
                    seen.add(b)
                    todo.append(b)
        return False

    return {edge for edge in graph if not reaches(*edge, without=edge)}


def draw(graph: set[tuple[str, str]]) -> str:
    place = {}
    for j, row in enumerate(ROWS):
        left = (WIDTH - len(row) * BOX - (len(row) - 1) * GAP) / 2
        for i, name in enumerate(row):
            place[name] = (left + i * (BOX + GAP), MARGIN + j * STEP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif">',
        "<title>The parts of kinema and what each imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" '
        'markerWidth="10" markerHeight="10" orient="auto"><path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    lines += [_arrow(place[a], place[b]) for a, b in sorted(graph)]
    for j, row in enumerate(ROWS):
        lines += [_box(name, text, *place[name], FILL[j]) for name, text in row.items()]
    bottom = MARGIN + STEP * len(ROWS)
    lines.append(
        f'<rect x="{MARGIN}" y="{bottom}" width="{WIDTH - 2 * MARGIN}" height="{HIGH}" rx="8" fill="#ececec" '
        f'stroke="#888"/><text x="{WIDTH / 2:.0f}" y="{bottom + 35}" text-anchor="middle" font-size="15">'
        f"{escape(BASE)}</text>"
    )
    return "\n".join([*lines, "</svg>", ""])


def _arrow(above: tuple[float, float], below: tuple[float, float]) -> str:
    if below[1] == above[1]:  # neighbours in one row
        right = below[0] > above[0]
        y, x1, x2 = above[1] + HIGH / 2, above[0] + BOX * right, below[0] + BOX * (not right)
        path = f"M{x1:.0f} {y:.0f}H{x2 - 2 if right else x2 + 2:.0f}"
    else:
        x1, y1, x2, y2 = above[0] + BOX / 2, above[1] + HIGH, below[0] + BOX / 2, below[1]
        bend = (y2 - y1) * 0.45
        path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 2:.0f}"
    return f'<path d="{path}" fill="none" stroke="#999" stroke-width="1.4" marker-end="url(#tip)"/>'


def _box(name: str, text: str, x: float, y: float, fill: str) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{HIGH}" rx="8" fill="{fill}" stroke="#888"/>'
        f'<text x="{x + BOX / 2:.0f}" y="{y + 24:.0f}" text-anchor="middle" font-size="16" font-weight="bold">'
        f"{escape(name)}</text>"
        f'<text x="{x + BOX / 2:.0f}" y="{y + 44:.0f}" text-anchor="middle" font-size="12" fill="#444">'
        f"{escape(text)}</text>"
    )


if __name__ == "__main__":
    sys.exit(main())
