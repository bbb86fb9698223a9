"""One side of a comparison in a process of its own: `python -m benchmarks.side CASE SIDE FOLDER OUTPUT`.

Speaks lines of JSON: says once what it holds, then answers each line it is given with one run's time and memory.
With MAKE for the side it writes the case's weights instead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .cases import CASES


def main(case: str, side: str, folder: str, output: str) -> None:
    import torch

    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    if threads:
        torch.set_num_threads(threads)
    speak, sys.stdout = sys.stdout, sys.stderr  # libraries that print do not get in between
    if side == "MAKE":
        CASES[case].make(folder)
        return
    with torch.no_grad():
        run, weights = CASES[case].sides[side](folder)
        gc.collect()
        print(json.dumps({"weights": weights, "torch": torch.__version__}), file=speak, flush=True)
        for line in sys.stdin:
            print(json.dumps(_measure(run, output, line.strip() == "count")), file=speak, flush=True)


def _measure(run: Any, output: str, counted: bool) -> dict[str, float]:
    """One run; where its arithmetic is counted its time is not worth much, but it warms up as any other."""
    import numpy as np

    from .roofline import Count

    count = Count() if counted else None
    gc.collect()
    before = _forget_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    with count or nullcontext():
        result = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _peak()
    if not Path(output).exists():
        np.save(output, np.asarray(result, dtype=np.float32))
    work = {"flop": count.flop, "bytes": count.bytes} if count else {}
    return {"wall": wall, "cpu": cpu, "before": before, "peak": peak, **work}


def _forget_peak() -> int:
    """Starts the high-water mark anew where the system can (Linux), and says how much memory is in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status("VmRSS") - _unused()


class _Heap(ctypes.Structure):
    """What the GNU C library tells of its heap (malloc.h, mallinfo2)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    )


def _unused() -> int:
    """Bytes that kinema keeps at hand between steps: what a run takes of them counts as taken."""
    heap = sys.modules.get("kinema.memory.heap")
    if heap is None or not heap.keeping():
        return 0
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Heap
    except (OSError, AttributeError, TypeError):  # another C library, or an older one
        return 0
    return int(library.mallinfo2().fordblks)


def _peak() -> int:
    """Bytes in use at the worst moment since then, or since the process began."""
    found = _status("VmHWM")
    scale = 1 if sys.platform == "darwin" else 1024
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
