"""From a file of weights to a model, beside reading the file: `python -m benchmarks.loading WHAT FOLDER` is one turn.

Each turn is a process of its own, which imports everything first and then takes the time of one thing. Turns of all
kinds follow one another, so that a busy machine hits all alike. Where the file is to come from the disk, the system
is told beforehand to forget what it has of it (`posix_fadvise`, Linux).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent
FIELDS = {"cross_attention_dim": 1024}  # ModelScope's U-Net as published
PIECE = 1 << 17  # bytes that are read at once, as `cat` reads them
PLACES = {"in memory": False, "from the disk": True}


def main(what: str, folder: str) -> None:
    """One turn: seconds, of the clock and of the processor, and bytes that are the process's own afterwards."""
    started = time.perf_counter()
    run = WAYS[what](Path(folder))
    imports = time.perf_counter() - started
    wall, cpu = time.perf_counter(), time.process_time()
    kept = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "imports": imports, "own": _own()}))
    del kept


def _passing(folder: Path) -> Callable[[], Any]:
    """Reads the file piece by piece into the same memory, as `cat` does."""
    room = bytearray(PIECE)

    def run() -> None:
        with _file(folder).open("rb", buffering=0) as file:
            while file.readinto(room):
                pass

    return run


def _reading(folder: Path) -> Callable[[], Any]:
    """Reads the file into memory of its own."""
    return _file(folder).read_bytes


def _kinema(folder: Path) -> Callable[[], Any]:
    from kinema.families.modelscope import UNet3DConditionModel

    return lambda: UNet3DConditionModel.from_pretrained(folder, dtype="float16")


def _kinema_wide(folder: Path) -> Callable[[], Any]:
    from kinema.families.modelscope import UNet3DConditionModel

    return lambda: UNet3DConditionModel.from_pretrained(folder, dtype="float32")


WAYS = {
    "kinema": _kinema,
    "kinema, in float32": _kinema_wide,
    "passing the file by (cat)": _passing,
    "reading it into memory": _reading,
}


def loading(rounds: int, threads: int) -> dict[str, Any]:
    """Medians of all ways, with the file in memory and not, after a round to warm up."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _turn("MAKE", folder, threads)
        size = _file(folder).stat().st_size
        found: dict[str, dict[str, list[dict[str, float]]]] = {where: {way: [] for way in WAYS} for where in PLACES}
        for turn in range(rounds + 1):
            for where, cold in PLACES.items():
                for way in WAYS:
                    if cold and not _forget(_file(folder)):
                        continue
                    taken = json.loads(_turn(way, folder, threads))
                    if turn:
                        found[where][way].append(taken)
        return {"bytes": size, "rounds": rounds, "threads": threads, "where": _medians(found)}


def _medians(found: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    return {
        where: {
            way: {
                **{key: median(one[key] for one in turns) for key in ("wall", "cpu", "imports", "own")},
                "least": min(one["wall"] for one in turns),
                "most": max(one["wall"] for one in turns),
            }
            for way, turns in ways.items()
            if turns
        }
        for where, ways in found.items()
    }


def table(found: dict[str, Any]) -> str:
    """The medians, for people."""
    what = f"ModelScope's U-Net as published from a float16 file of {found['bytes'] / 1e9:.2f} GB"
    lines = [f"\nloading: {what} ({found['threads']} threads, {found['rounds']} rounds)"]
    lines.append(f"  {'':42}{'wall s':>8}{'min':>8}{'max':>8}{'CPU s':>8}{'own memory':>13}{'imports s':>11}")
    for where, ways in found["where"].items():
        for way, t in ways.items():
            times = f"{t['wall']:8.2f}{t['least']:8.2f}{t['most']:8.2f}{t['cpu']:8.2f}"
            lines.append(f"  {f'{where}: {way}':42}{times}{t['own'] / 1e9:10.2f} GB{t['imports']:11.2f}")
    return "\n".join(lines)


def _make(folder: Path) -> None:
    """The weights of a model in float16, some random numbers again and again."""
    import torch

    from kinema.checkpoint.fill import build
    from kinema.checkpoint.save import save_model
    from kinema.families.modelscope import UNet3DConditionModel

    model = build(UNet3DConditionModel, FIELDS)
    some = (torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                numbers = some.repeat(-(-held.numel() // len(some)))[: held.numel()].view(held.shape)
                module._parameters[name] = torch.nn.Parameter(numbers, requires_grad=False)
    save_model(model, folder)


def _file(folder: Path) -> Path:
    return folder / "diffusion_pytorch_model.safetensors"


def _forget(path: Path) -> bool:
    """Has the system give up what it keeps of a file; whether it can be asked to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _own() -> int:
    """Bytes of this process that are in no file, where the system tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _turn(what: str, folder: Path, threads: int) -> str:
    path = os.pathsep.join(filter(None, [str(HERE / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loading", what, str(folder)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE).stdout


if __name__ == "__main__":
    if sys.argv[1] == "MAKE":
        _make(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
