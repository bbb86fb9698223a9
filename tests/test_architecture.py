"""The shape of the code, read from its imports: downwards only, no circles, small files, light starts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "kinema"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "av", "typer", "PIL", "numpy", "huggingface_hub", "safetensors", "rich", "tqdm")

BASE = {"layout", "errors", "config", "place", "choice", "products", "finite"}
SIDE_BY_SIDE = {"sampling", "memory", "checkpoint", "media", "encoders", "nn", "distributed"}
# What each part may import besides itself and the base.
BELOW: dict[str, set[str]] = {
    **{part: set() for part in SIDE_BY_SIDE},
    "pipelines": SIDE_BY_SIDE - {"nn"},
    "families": SIDE_BY_SIDE | {"pipelines"},
    "toys": SIDE_BY_SIDE | {"pipelines", "families"},
    "train": SIDE_BY_SIDE | {"pipelines", "families", "toys"},
    "cli": SIDE_BY_SIDE | {"pipelines", "families", "toys", "train", ""},
    "__main__": {"cli"},
    "layout": set(),
    "errors": set(),
    "config": set(),
    "place": set(),
    "choice": set(),
    "products": set(),
    "finite": set(),
}
# Files longer than this do more than one thing.
LONGEST = 450
# Only what decides where tensors live, and what reports on it, may name a kind of device.
NAMES_DEVICES = ("memory/", "place.py", "cli/doctor.py", "nn/kernels/", "choice.py", "products.py")


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """`kinema.sampling.noise` -> `sampling`; `kinema` itself -> the empty text."""
    return (module.split(".") + [""])[1]


MODULES = {module_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path, only_at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of imported modules and their lines; those for type checkers are left out."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in _nodes(tree_of(path), only_at_import):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                if deeper == "kinema.__version__":  # the one name of the package itself that all parts may know
                    continue
                yield (deeper if deeper in MODULES else base), node.lineno


def _nodes(node: ast.AST, only_at_import: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if only_at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        yield child
        yield from _nodes(child, only_at_import)


def where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_imports_go_downwards_and_never_sideways() -> None:
    wrong = []
    for path in FILES:
        own = part_of(module_of(path))
        if own == "":  # the package itself names everything, lazily
            continue
        assert own in BELOW, f"{where(path)}: the part {own!r} has no place in the layers"
        for name, line in imports_of(path):
            if name.split(".")[0] == "kinema" and part_of(name) not in BELOW[own] | BASE | {own}:
                wrong.append(f"{where(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        module: {name for name, _ in imports_of(path, only_at_import=True) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_reference_is_never_imported() -> None:
    wrong = [where(path) for path in FILES for name, _ in imports_of(path) if name.split(".")[0] == "diffusers"]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=where)
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=where)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def test_no_file_names_a_kind_of_device() -> None:
    wrong = []
    for path in FILES:
        if where(path).startswith(NAMES_DEVICES):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_device(node.value):
                wrong.append(f"{where(path)}:{node.lineno} {node.value!r}")
    assert not wrong, "\n".join(wrong)


def _is_device(text: str) -> bool:
    return text.split(":")[0] in ("cuda", "mps", "xpu")


def loaded_after(statement: str) -> set[str]:
    """The heavy modules a fresh interpreter holds after a statement."""
    probe = f"import sys, contextlib, io\n{statement}\nprint(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, env=_environment(), check=True, timeout=120
    )
    return set(result.stdout.strip().split(",")) - {""}


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(SRC)}


def test_importing_kinema_imports_nothing_heavy() -> None:
    assert loaded_after("import kinema, kinema.errors") == set()


def test_help_imports_nothing_heavy_but_the_parser() -> None:
    run = (
        "from kinema.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(['generate', '--help'])"
    )
    assert loaded_after(run) <= {"typer", "rich"}
