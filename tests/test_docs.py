"""The documentation tells the truth: its snippets run, its links lead somewhere, its generated pages are fresh."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.exists()]
BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>[^\n]*?) *-->\n+)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block and the comment before it."""

    line: int
    kind: str
    mark: str
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, m.start("code")) + 1, m["kind"], m["mark"] or "", m["code"])
        for m in BLOCK.finditer(text)
    ]


def skipped(block: Block) -> bool:
    """Marked `<!-- no-run: why -->`; the reason must be there."""
    if block.mark.startswith("no-run"):
        assert re.fullmatch(r"no-run: .+", block.mark), "say why: <!-- no-run: why -->"
        return True
    return False


def runnable(kind: str, page: Path) -> list[Block]:
    found = [b for b in blocks(page) if b.kind == kind]
    return [b for b in found if b.mark.startswith("run")] if kind == "sh" else [b for b in found if not skipped(b)]


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def _box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kinema.checkpoint.hub import box

    folder = box("toy")
    if folder is None or not (folder / "model_index.json").exists():
        pytest.skip("the model in the box is not in this copy")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_box")
@pytest.mark.parametrize("page", [p for p in PAGES if runnable("python", p)], ids=named)
def test_the_snippets_of_a_page_run_in_order(page: Path) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in runnable("python", page):
        source = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
        exec(compile(source, str(page), "exec"), names)


@pytest.mark.usefixtures("_box")
@pytest.mark.parametrize("page", [p for p in PAGES if runnable("sh", p)], ids=named)
def test_the_commands_of_a_page_run_in_order(page: Path) -> None:
    for block in runnable("sh", page):
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            assert words[0] == "kinema", (
                f"{named(page)}:{block.line}: only kinema's own commands are run, not {words[0]}"
            )
            done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{named(page)}: {line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        link = (target[0] or target[1]).split("#")[0]
        if link and not re.match(r"[a-z]+:", link) and not (page.parent / link).exists():
            wrong.append(link)
    assert not wrong, f"{named(page)} links to {', '.join(wrong)}"


@pytest.mark.parametrize("script", ["api_reference", "architecture_picture"])
def test_a_generated_page_is_what_its_script_writes(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=_environment())
    assert done.returncode == 0, done.stdout + done.stderr


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def test_every_family_of_the_readme_is_listed_by_the_command_line_alike() -> None:
    from kinema.cli.models import FAMILIES

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"| {family.name} | {family.does} | {family.status} |" in readme


def test_every_exit_code_is_documented() -> None:
    from kinema.cli.exits import EXITS

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for row in EXITS:
        assert f"| {row.code} | {row.meaning} |" in page


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    missing = [name for d in wanted if f"| {(name := re.split('[<>=]', d)[0])} |" not in page]
    assert not missing


def test_the_version_is_the_same_everywhere() -> None:
    import tomllib

    import kinema

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert kinema.__version__ == project["version"]
    assert f"## [{kinema.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
