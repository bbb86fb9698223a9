"""`python -m benchmarks [--only step,decode,clip,published,loading] [--rounds 5] [--threads 1] [--out FILE]`."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from .cases import CASES, EXACT
from .compare import HERE, compare
from .loading import loading
from .loading import table as loading_table
from .published import published
from .roofline import peaks


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        default="published,step,decode,clip",
        help=f"which, with commas between, of: published, loading, {', '.join(CASES)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one to warm up (0: time that one)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side (OMP_NUM_THREADS)")
    parser.add_argument("--against", help="one setting of the reference only, for instance diffusers")
    parser.add_argument("--out", type=Path, help="where to write JSON (benchmarks/results/DATE.json)")
    options = parser.parse_args()

    report: dict[str, Any] = {"date": datetime.date.today().isoformat(), "machine": machine(), "cases": {}}
    for name in options.only.split(","):
        if name == "published":
            report["published"] = published()
            print(_published_table(report["published"]), flush=True)
        elif name == "loading":
            report["loading"] = loading(options.rounds, options.threads)
            print(loading_table(report["loading"]), flush=True)
        else:
            found = compare(name, options.rounds, options.threads, options.against)
            report["cases"][name] = found
            print(_table(name, found, report["machine"]["peaks"]["flop_a_second"]), flush=True)
    out = options.out or HERE / "benchmarks" / "results" / f"{report['date']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(out.read_text()) if out.exists() else {}
    report["cases"] = {**before.get("cases", {}), **report["cases"]}
    out.write_text(json.dumps({**before, **report}, indent=2) + "\n")
    print(f"\nWritten to {out}")


def machine() -> dict[str, Any]:
    """What the figures were measured on; nothing that names the machine."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 1),
        "peaks": peaks(),
    }


def _table(name: str, found: dict[str, Any], peak: float) -> str:
    ours = found["sides"]["kinema"]
    lines = [f"\n{name}: {found['what']} ({found['threads']} thread, {found['rounds']} rounds)"]
    heads = {
        "CPU s": 8,
        "min": 8,
        "max": 8,
        "wall s": 8,
        "memory": 10,
        "faster": 8,
        " memory": 8,
        "TFLOP": 8,
        "of peak": 8,
    }
    lines.append(f"  {'':42}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for side, s in found["sides"].items():
        times = "".join(f"{s['cpu'][k]:8.2f}" for k in ("median", "min", "max")) + f"{s['wall']['median']:8.2f}"
        ratios = f"{s['cpu']['median'] / ours['cpu']['median']:7.2f}×{ours['memory'] / max(s['memory'], 1):7.2f}×"
        flop = s.get("flop", 0)
        work = f"{flop / 1e12:8.2f}{flop / s['cpu']['median'] / peak:8.0%}" if flop and found["threads"] == 1 else ""
        lines.append(f"  {side:42}{times}{s['memory'] / 1e9:7.2f} GB{ratios}{work}")
    for side, a in found["agreement"].items():
        near = f", PSNR {a['psnr']:.1f} dB" if side == EXACT else ""
        apart = f"at most {a['largest_difference']:.1e} at a spread of {a['spread']:.2f}"
        lines.append(f"  differs from {side} by {apart}{near}")
    bars = CASES[name].bars
    reference = found["sides"].get("diffusers", found["sides"].get(EXACT, ours))
    reached = {
        "time": reference["cpu"]["median"] / ours["cpu"]["median"] >= bars.get("time", 0),
        "memory": ours["memory"] / max(reference["memory"], 1) <= bars.get("memory", float("inf")),
    }
    lines += [f"  bar for {k}: {bar}, {'reached' if reached[k] else 'NOT reached'}" for k, bar in bars.items()]
    return "\n".join(lines)


def _published_table(rows: dict[str, Any]) -> str:
    lines = ["\nModelScope at its published size, 256×256, float16, traced"]
    lines.append(f"  {'':20}{'TFLOP':>9}{'reference':>11}{'ratio':>8}{'memory':>11}{'reference':>12}{'ratio':>8}")
    for name, r in rows.items():
        work = f"{r['kinema_tflop']:9.2f}{r['reference_tflop']:11.2f}{r['arithmetic']:8.3f}"
        memory = f"{r['kinema_bytes'] / 1e9:8.2f} GB{r['reference_bytes'] / 1e9:9.2f} GB{r['memory']:8.3f}"
        lines.append(f"  {name:20}{work}{memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
