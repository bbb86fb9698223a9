"""Runs the sides of a case against each other: a process each, in turns, so that a busy machine hits all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from .cases import CASES

HERE = Path(__file__).resolve().parent.parent


def compare(case: str, rounds: int, threads: int, only: str | None = None) -> dict[str, Any]:
    """Medians of `rounds` rounds after one to warm up, in which arithmetic is counted.

    Memory is the high-water mark of a round less what the process held when it began. The first round does not count:
    it may read weights from a mapped file.
    """
    sides = [s for s in CASES[case].sides if only is None or s in ("kinema", only)]
    with tempfile.TemporaryDirectory() as folder:
        _run([case, "MAKE", folder, "-"], threads).wait()
        children = {side: _run([case, side, folder, f"{folder}/{i}.npy"], threads) for i, side in enumerate(sides)}
        try:
            held = {side: _read(child) for side, child in children.items()}
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for i in range(rounds + 1):
                for side, child in children.items():
                    found[side].append(_ask(child, "run" if i or not rounds else "count"))
        finally:
            for child in children.values():
                child.kill()
                child.wait()
        return {
            "what": CASES[case].what,
            "rounds": rounds,
            "threads": threads,
            "sides": {side: _summary(found[side], held[side]["weights"]) for side in sides},
            "agreement": {
                side: _agreement(f"{folder}/0.npy", f"{folder}/{i}.npy") for i, side in enumerate(sides) if i
            },
        }


def _summary(rounds: list[dict[str, float]], weights: int) -> dict[str, Any]:
    timed = rounds[1:] or rounds
    summary: dict[str, Any] = {"weights": weights}
    for clock in ("cpu", "wall"):
        times = sorted(r[clock] for r in timed)
        summary[clock] = {"median": median(times), "min": times[0], "max": times[-1]}
    # Weights are there since the first round; less than nothing is what pages that were given back look like.
    summary["memory"] = max(0, *(r["peak"] - (r["before"] or weights) for r in timed))
    summary |= {work: rounds[0][work] for work in ("flop", "bytes") if work in rounds[0]}
    return summary


def _agreement(ours: str, theirs: str) -> dict[str, float]:
    import numpy as np

    a, b = np.load(ours), np.load(theirs)
    error = float(np.square(a - b, dtype=np.float64).mean())
    return {
        "largest_difference": float(np.abs(a - b).max()),
        "spread": float(b.std()),
        "psnr": float(10 * np.log10(float(b.max() - b.min()) ** 2 / max(error, 1e-20))),  # of the range there is
    }


def _run(arguments: list[str], threads: int) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(HERE / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.side", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE
    )


def _ask(child: subprocess.Popen[str], what: str) -> dict[str, float]:
    assert child.stdin is not None
    child.stdin.write(f"{what}\n")
    child.stdin.flush()
    return _read(child)


def _read(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("A side of the comparison ended early; what it said is above.")
    answer: dict[str, Any] = json.loads(line)
    return answer
