"""Which build of PyTorch `make` installs: never the large one by accident."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "install_torch.py"


class FakePip:
    """Records what would be installed; reports the packages it is told a plain installation brings."""

    def __init__(self, brings: list[str] | None, cpu_index_works: bool = True):
        self.brings, self.cpu_index_works = brings, cpu_index_works
        self.installed: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str, quiet: bool = False) -> int:
        if "--dry-run" in arguments:
            if self.brings is None:
                return 1
            report = {"install": [{"metadata": {"name": name}} for name in self.brings]}
            Path(arguments[arguments.index("--report") + 1]).write_text(json.dumps(report))
            return 0
        self.installed.append(arguments)
        return 0 if self.cpu_index_works or "--index-url" not in arguments else 1


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as on a Linux machine without a GPU and without torch."""
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "installed", lambda: None)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    return module


def run(script: ModuleType, pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(script, "pip", pip)
    return script.main()


def test_what_is_there_is_kept(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    constraints = script.CONSTRAINTS.read_text().splitlines()
    pin = next(line.removeprefix("torch==") for line in constraints if line.startswith("torch=="))
    monkeypatch.setattr(script, "installed", lambda: pin)
    pip = FakePip(brings=None)
    assert run(script, pip, monkeypatch) == 0
    assert pip.installed == []


def test_a_small_build_is_taken_from_where_everything_comes_from(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(brings=["torch", "sympy"])
    assert run(script, pip, monkeypatch) == 0
    assert [("--index-url" in arguments) for arguments in pip.installed] == [False]


@pytest.mark.parametrize(
    "brings",
    [["torch", "nvidia-cublas-cu12"], ["torch", "triton"], ["torch", "cuda-bindings"], None],
    ids=["nvidia", "triton", "cuda", "unknown"],
)
def test_without_a_gpu_a_large_build_is_never_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, brings: list[str] | None
) -> None:
    pip = FakePip(brings)
    assert run(script, pip, monkeypatch) == 0
    assert all(script.CPU_INDEX in arguments for arguments in pip.installed)


def test_where_no_cpu_build_can_be_had_it_stops_and_says_what_to_do(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = FakePip(brings=["nvidia-cublas-cu12"], cpu_index_works=False)
    assert run(script, pip, monkeypatch) == 1
    assert len(pip.installed) == 1
    assert "TORCH_INDEX" in capsys.readouterr().err


def test_with_a_gpu_the_plain_build_is_installed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "has_gpu", lambda: True)
    pip = FakePip(brings=["nvidia-cublas-cu12"])
    assert run(script, pip, monkeypatch) == 0
    assert [("--index-url" in arguments) for arguments in pip.installed] == [False]


def test_the_script_needs_nothing_installed() -> None:
    import ast

    tree = ast.parse(SCRIPT.read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
