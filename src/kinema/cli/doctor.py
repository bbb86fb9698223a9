"""`kinema doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from . import models
from .exits import verb
from .telling import amount, emit, show

CODECS = {"H.264": "libx264", "VP9": "libvpx-vp9", "AV1": "libsvtav1 libaom-av1", "H.265": "libx265"}


@verb
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what this machine can do: versions, devices, memory, codecs, where downloads are kept, models in the box."""
    found = examine()
    emit(found) if as_json else show(found)


def examine() -> dict[str, Any]:
    """What `kinema doctor` prints."""
    return {
        "versions": _versions(),
        "machine": _machine(),
        "devices": list(_devices()),
        "codecs": _codecs(),
        "cache": _cache(),
        "models in the box": _box(),
    }


def _box() -> dict[str, str]:
    return {model.names[0]: f"{model.does}; {models.size(model)}; {model.default}" for model in models.shipped()}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "kinema": __version__}
    for package in ("torch", "transformers", "safetensors", "huggingface_hub", "numpy", "pillow", "av"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _machine() -> dict[str, Any]:
    import torch

    from .. import choice
    from ..nn.kernels import enlarged, over_time, winograd
    from ..products import ONEDNN

    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory": amount(_memory()),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "onednn": torch.backends.mkldnn.is_available(),
        "bfloat16": _bfloat16(),
        **dict(choice.report([ONEDNN, winograd.THREE_BY_THREE, winograd.ENLARGED, over_time.CHOICE, enlarged.CHOICE])),
    }


def _bfloat16() -> str:
    """Whether the processor computes in bfloat16 itself, how its products compare with float32's, and what is done."""
    import torch

    from ..products import wide

    asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    own = [name for name, question in asked.items() if getattr(torch.cpu, question, bool)()]
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(512, 640, dtype=dtype)
        taken[dtype] = min(timeit.repeat(lambda x=x: torch.nn.functional.linear(x, x), number=1, repeat=4)[1:])  # type: ignore[misc]
    times = taken[torch.float32] / taken[torch.bfloat16]
    has = f"computed by {', '.join(own)}" if own else "no instructions known for it"
    instead = ", so they are computed in float32 and rounded" if wide(torch.bfloat16) else ""
    slower = "; half the memory, but slower than float32" if times < 1 else ""
    return f"{has}; products {times:.2g} times as fast as in float32{instead}{slower}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Bytes of main memory this process may use: the machine's, or its container's share."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(machine, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):
            continue
    return machine


def _devices() -> Iterator[dict[str, Any]]:
    import torch

    from .. import choice
    from ..nn.kernels import enlarged, fused

    yield {"device": "cpu", "dtypes": "float32, " + _half_types("cpu")}
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        name = f"cuda:{i}"
        yield {
            "device": name,
            "name": facts.name,
            "memory": amount(facts.total_memory),
            "dtypes": "float32, " + _half_types(name),
            **dict(choice.report([enlarged.CHOICE, *fused.CHOICES], name, torch.float16)),
        }
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": "Apple GPU", "dtypes": "float32, " + _half_types("mps")}


def _half_types(device: str) -> str:
    """The 16-bit types whose convolutions and matrix products run on a device, asked of the device itself."""
    import torch

    usable = []
    for dtype in (torch.float16, torch.bfloat16):
        try:
            x = torch.ones(1, 8, 8, 8, device=device, dtype=dtype)
            torch.nn.functional.conv2d(x, x[:, :, :3, :3])
            x[0, 0] @ x[0, 0]
            usable.append(str(dtype).removeprefix("torch."))
        except RuntimeError:
            continue
    return ", ".join(usable)


def _codecs() -> dict[str, str]:
    try:
        import av
    except ImportError as error:
        return {"missing": f"PyAV cannot be imported ({error}); videos cannot be written"}
    there = set(av.codecs_available)
    found = {name: [e for e in encoders.split() if e in there] for name, encoders in CODECS.items()}
    return {name: ", ".join(encoders) or "no encoder" for name, encoders in found.items()}


def _cache() -> dict[str, Any]:
    home = Path(os.environ.get("HF_HOME", "") or Path.home() / ".cache" / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE", "") or home / "hub").expanduser()
    near = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return {
        "folder": str(folder),
        "exists": folder.is_dir(),
        "free": amount(shutil.disk_usage(near).free),
        "network": "forbidden by HF_HUB_OFFLINE" if offline else "allowed",
        "python executable": sys.executable,
    }
