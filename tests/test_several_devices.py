"""Two processes that make a clip together make the clip of one, and trouble in one is trouble in both, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import animatediff_pipes, animatediff_tiny, crew_cases, pipelines_tiny, svd_tiny

from kinema import distributed
from kinema.distributed import shares
from kinema.sampling.split import Unit, deal

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models."""
    place = tmp_path_factory.mktemp("crew")
    pipelines_tiny.ours().save_pretrained(place / "text")
    svd_tiny.ours(vae_={"layers_per_block": 2}).save_pretrained(place / "picture")
    theirs = animatediff_pipes.theirs()
    adapter = animatediff_tiny.ours(theirs.motion_adapter)
    animatediff_pipes.ours(theirs, motion_adapter=adapter).save_pretrained(place / "animate")
    wide = {"cross_attention_dim": animatediff_pipes.WIDTH, "conditioning_embedding_out_channels": (8, 16)}
    net = animatediff_tiny.reference_control(**wide)
    animatediff_tiny.ours(net).save_pretrained(place / "net")
    return place


@pytest.fixture(scope="module")
def together(folder: Path) -> Path:
    """Where two processes have put what they made."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.crew_cases", str(rank), "2", str(folder)],
            env=environment(),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=2 * crew_cases.LOST)[1] for process in processes]
    assert (folder / "made-1.pt").exists(), "\n".join(told)
    return folder


@pytest.fixture(scope="module")
def both(together: Path) -> list[dict[str, Any]]:
    """What two processes made."""
    return [torch.load(together / f"made-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """What one made."""
    torch.manual_seed(0)
    return crew_cases.all_cases(folder)


@pytest.mark.parametrize("case", crew_cases.CASES)
def test_two_processes_make_the_clip_of_one(case: str, both: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    (clip, redone), (twin, _), (one, again) = both[0][case], both[1][case], alone[case]
    assert (clip - one).abs().max() <= 1e-5
    assert torch.equal(clip, twin)
    assert redone == again


def test_what_overflows_does_so_in_both(both: list[dict[str, Any]]) -> None:
    for case in ("a clip that overflows as one", "frames that overflow"):
        assert all(made[case][1] == {"decode": [0, 1, 2]} for made in both)


def test_what_cannot_be_dealt_out_is_named(both: list[dict[str, Any]]) -> None:
    for what in ("deep_reuse", "without guidance or windows", "perturbed attention", "fewer frames than processes"):
        assert any(what in line for line in both[0]["said"]), what
    assert not any("2 processes" in line for line in both[1]["said"])


def test_trouble_in_one_process_ends_the_call_in_all(together: Path) -> None:
    first = torch.load(together / "trouble-0.pt")
    assert "asked for another clip than process 0" in first["another request"]
    assert first["a wrong request"].startswith("InputError: num_frames is 0")
    assert "Process 1 of 2 failed: ValueError: this one does not like it" in first["a callback that fails"]
    assert first["stopped"] == "no error"
    assert torch.isfinite(first["unseeded"]).all()


def test_a_process_that_is_gone_is_noticed_at_once(together: Path) -> None:
    first = torch.load(together / "trouble-0.pt")
    assert first["a process that is gone"].startswith("ParallelError: Process 0 of 2 lost another one")
    assert "start them again" in first["after that"]
    assert first["seconds"] < crew_cases.TIMEOUT / 2


@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_every_unit_is_dealt_once_and_evenly(windows: int, branches: int, size: int, apart: bool) -> None:
    dealt = deal(windows, branches, size, apart)
    every = [
        Unit(unit.window, b)
        for share in dealt
        for unit in share
        for b in (range(branches) if unit.branch is None else [unit.branch])
    ]
    assert every == [Unit(w, b) for w in range(windows) for b in range(branches)]  # in the order of one process
    work = [sum(branches if unit.branch is None else 1 for unit in share) for share in dealt]
    assert max(work) <= branches * -(-windows // size)
    assert max(work) == (min(-(-windows * branches // size), branches * -(-windows // size)) if apart else max(work))


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_neighbours_and_alike(things: int, size: int) -> None:
    found = [shares(things, size, rank) for rank in range(size)]
    assert [i for share in found for i in share] == list(range(things))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_alone_nothing_changes() -> None:
    pipe = pipelines_tiny.ours()
    before = pipe("a", **pipelines_tiny.SIZE, generator=1, output_type="pt").frames
    pipe.enable_parallel()
    assert pipe._crew is distributed.ALONE
    assert torch.equal(before, pipe("a", **pipelines_tiny.SIZE, generator=1, output_type="pt").frames)
