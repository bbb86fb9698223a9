"""Installs the pinned PyTorch, and only its CPU build where there is no GPU: several gigabytes are never an accident.

Run with the Python of the environment to install into. Why and how: docs/decisions/0001-cpu-build-of-pytorch.md.
Needs only the standard library, since nothing is installed yet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # where PyTorch publishes its CPU builds for Linux
GPU_PACKAGES = re.compile(r"^(nvidia|cuda|triton|pytorch-triton)", re.IGNORECASE)


def main() -> int:
    pin = re.search(r"^torch==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE)
    if pin is None:
        print(f"{CONSTRAINTS.name} has no line torch==...; add one.", file=sys.stderr)
        return 1
    wanted = pin.group(1)
    if installed() == wanted:
        return 0
    requirement = f"torch=={wanted}"
    if index := os.environ.get("TORCH_INDEX"):
        return pip("install", requirement, "--no-deps", "--index-url", index)
    if has_gpu() or not brings_gpu_packages(requirement):
        return pip("install", requirement, "-c", str(CONSTRAINTS))
    print(f"No GPU here: taking the CPU build of PyTorch {wanted} from {CPU_INDEX}", flush=True)
    # Without its dependencies: kinema's own installation brings them from where everything else comes from.
    if pip("install", requirement, "--no-deps", "--index-url", CPU_INDEX) == 0:
        return 0
    print(
        f"PyTorch {wanted} could not be installed: the default package index offers only its CUDA build, of several "
        f"gigabytes, and {CPU_INDEX} gave none. Name another index with TORCH_INDEX=https://..., or install "
        f"torch {wanted} into this environment yourself and run make again.",
        file=sys.stderr,
    )
    return 1


def installed() -> str | None:
    """The version of torch in this environment without its build tag, so 2.13.0 for 2.13.0+cpu."""
    try:
        return metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError:
        return None


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool], capture_output=True).returncode == 0


def brings_gpu_packages(requirement: str) -> bool:
    """What a plain installation would fetch, asked of pip without fetching it; unknown counts as yes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if pip("install", "--dry-run", "--ignore-installed", "--report", str(report), requirement, quiet=True):
            return True
        packages = json.loads(report.read_text())["install"]
    return any(GPU_PACKAGES.match(package["metadata"]["name"]) for package in packages)


def pip(*arguments: str, quiet: bool = False) -> int:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    return subprocess.run(command, capture_output=quiet).returncode


if __name__ == "__main__":
    sys.exit(main())
