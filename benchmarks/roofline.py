"""How much of what the machine can do a run gets: products, bytes that operations read and write, and both peaks.

`python -m benchmarks.roofline RESULTS.json PICTURE.svg` draws it: across, products for a byte; up, products a second;
the roof is what the machine reached with one large matrix product and with copying.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from math import log10, prod
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> int:
    *batch, rows, width = query.shape
    return 2 * prod(batch) * rows * key.shape[-2] * (width + value.shape[-1])


ONEDNN = torch.ops.mkldnn._linear_pointwise
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Count(TorchDispatchMode):
    """Products (2 for a multiplication with its addition) and bytes of every operation that is no mere view."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket is FLASH:  # PyTorch counts those of GPUs only
            self.flop += _attention(*args)
        elif func._overloadpacket is ONEDNN:
            self.flop += 2 * args[0].numel() * len(args[1])
        elif count := flop_registry.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=out)
        views = [r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns]
        if not (views and all(views)):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def peaks() -> dict[str, float]:
    """What one thread reaches: products a second of a large matrix product in float32, bytes a second of a copy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b, out = (torch.ones(1536, 1536) for _ in range(3))
        product = _best(lambda: torch.mm(a, b, out=out), 8)
        large, other = torch.ones(1 << 26), torch.empty(1 << 26)
        copy = _best(lambda: other.copy_(large), 5)
    finally:
        torch.set_num_threads(threads)
    return {"flop_a_second": 2 * 1536**3 / product, "bytes_a_second": 8 * large.numel() / copy}


def _best(way: Callable[[], Any], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        way()
        taken.append(time.process_time() - start)
    return min(taken[1:])


WIDTH, HEIGHT, LEFT, BOTTOM = 720, 420, 70, 60
FONT = 'font-family="sans-serif" font-size="12"'
SIDES = {"kinema": "#1f6f54", "diffusers": "#b3541e"}


def picture(report: dict[str, Any]) -> str:
    """The roofline of a report as SVG: a point for each side of each case of one thread."""
    roof = report["machine"]["peaks"]
    peak, stream = roof["flop_a_second"], roof["bytes_a_second"]
    points = [
        (case, side, s["flop"] / s["bytes"], s["flop"] / s["cpu"]["median"])
        for case, found in report["cases"].items()
        for side, s in found["sides"].items()
        if side in SIDES and s.get("flop") and found["threads"] == 1
    ]
    low, high = 1.0, 10 ** (log10(max([p[2] for p in points] + [peak / stream])) + 0.3)
    floor, top = peak / 30, peak * 1.6

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - 190) * (log10(x / low) / log10(high / low))

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 30) * (log10(y / floor) / log10(top / floor))

    knee = peak / stream
    begin = max(low, floor / stream)
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<polyline fill="none" stroke="#555" stroke-width="2" points="{across(begin):.1f},{up(begin * stream):.1f} '
        f'{across(knee):.1f},{up(peak):.1f} {across(high):.1f},{up(peak):.1f}"/>',
        f'<text x="{across(knee):.1f}" y="{up(peak) - 8:.1f}">{peak / 1e9:.0f} GFLOP/s, {stream / 1e9:.0f} GB/s</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 18}">FLOP for a byte that operations read or write, logarithmic</text>',
        f'<text transform="translate(20 {HEIGHT - BOTTOM}) rotate(-90)">GFLOP/s of one thread, logarithmic</text>',
    ]
    for value in (10, 20, 50, 100):
        if floor < value * 1e9 < top:
            text.append(f'<text x="{LEFT - 8}" y="{up(value * 1e9) + 4:.1f}" text-anchor="end">{value}</text>')
    for value in (1, 3, 10, 30, 100):
        if low <= value < high:
            text.append(f'<text x="{across(value):.1f}" y="{HEIGHT - 38}" text-anchor="middle">{value}</text>')
    cases = list(dict.fromkeys(p[0] for p in points))
    for case, side, x, y in points:
        number = cases.index(case) + 1
        place = f'<g transform="translate({across(x):.1f} {up(y):.1f})">'
        text.append(f'{place}<circle r="9" fill="{SIDES[side]}"/>')
        text.append(f'<text y="4" fill="white" text-anchor="middle">{number}</text></g>')
    for i, (side, colour) in enumerate(SIDES.items()):
        text.append(f'<text x="{WIDTH - 180}" y="{40 + 18 * i}" fill="{colour}" font-weight="bold">{side}</text>')
    for i, case in enumerate(cases):
        text.append(f'<text x="{WIDTH - 180}" y="{90 + 18 * i}">{i + 1}  {case}</text>')
    return "\n".join([*text, "</svg>", ""])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(json.loads(Path(sys.argv[1]).read_text())), encoding="utf-8")
