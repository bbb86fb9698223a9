"""`kinema plan` says what a video would take, and makes nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from kinema.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process: its exit code, and what it says."""
    before = signal.getsignal(signal.SIGTERM)

    def plan(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["plan", *words])
        code = end.value.code
        return code if isinstance(code, int) else 0, *capsys.readouterr()

    yield plan
    signal.signal(signal.SIGTERM, before)


def test_a_plan_is_printed_and_nothing_is_made(run: Run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("--frames", "4", "--size", "32x32")
    assert code == 0 and out.splitlines()[0].split()[:3] == ["stage", "component", "weights"]
    assert "denoise" in out and "weights: resident" in out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["toy-svd", "toy-i2vgen", "toy-animatediff"])
def test_every_family_has_plans_and_sizes_of_its_own(run: Run, model: str) -> None:
    code, out, _ = run("--model", model, "--frames", "2", "--memory", "none", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["fits"] and facts["budget"] is None and facts["seconds"] > 0
    assert [s["name"] for s in facts["stages"]][-2:] == ["denoise", "decode"]
    assert facts["peak"] < 60e6, "what suits a model in the box is small"


def test_what_does_not_fit_is_printed_and_refused(run: Run) -> None:
    code, out, err = run("--memory", "1MB", "--frames", "2", "--size", "32x32")
    assert code == 6 and "does not fit into 1 MB" in out and "the weights alone take" in err


def test_a_size_of_memory_that_is_none_is_said(run: Run) -> None:
    code, _, err = run("--memory", "plenty")
    assert code == 3 and "'6GB'" in err
