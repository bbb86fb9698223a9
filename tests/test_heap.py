"""Memory that is kept while a clip is denoised: one rule for the whole process, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from tests import pipelines_tiny

from kinema.memory import heap

linux = pytest.mark.skipif(not heap.available(), reason="this C library cannot be told to keep memory")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int] | str]:
    """What the C library is told."""
    said: list[dict[int, int] | str] = []
    monkeypatch.setattr(heap, "roomy", lambda: True)
    monkeypatch.setattr(heap, "_set", said.append)
    monkeypatch.setattr(heap, "_give_back", lambda: said.append("give back"))
    return said


def test_the_last_of_several_users_gives_memory_back(told: list[dict[int, int] | str]) -> None:
    with heap.kept():
        with heap.kept():
            pass
        assert told == [heap.KEEP] and heap.keeping()
    assert not heap.keeping()
    assert told == [heap.KEEP, heap.USUAL, "give back"]


def test_memory_is_given_back_after_an_error(told: list[dict[int, int] | str]) -> None:
    with pytest.raises(KeyboardInterrupt), heap.kept():
        raise KeyboardInterrupt
    assert told[-1] == "give back"


def test_threads_share_one_rule(told: list[dict[int, int] | str]) -> None:
    inside = threading.Barrier(4)

    def use() -> None:
        with heap.kept():
            inside.wait()
            inside.wait()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [heap.KEEP, heap.USUAL, "give back"]


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_library", lambda: None)
    with heap.kept():
        assert not heap.available()


@pytest.mark.parametrize(("free", "does"), [(1 << 40, True), (1 << 20, False), (None, False)])
def test_memory_is_kept_only_where_there_is_some_to_spare(
    free: int | None, does: bool, told: list[dict[int, int] | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(heap, "_set", told.append)
    monkeypatch.setattr(heap.room, "free", lambda device: free)
    with heap.kept():
        assert (heap.KEEP in told) is does


@pytest.mark.parametrize(("memory", "does"), [("auto", True), ("2GB", False)])
def test_a_clip_is_denoised_and_decoded_in_memory_that_is_kept_unless_a_size_is_named(
    memory: str, does: bool, told: list[dict[int, int] | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, keeping = pipelines_tiny.ours(), []
    pipe.memory = memory
    for part in (pipe.unet, pipe.vae):
        name = "forward" if part is pipe.unet else "decode"
        way = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *a, way=way, **k: keeping.append(heap.keeping()) or way(*a, **k))
    pipe("a cat", num_frames=2, height=16, width=16, num_inference_steps=2)
    assert keeping == [does] * 4  # two steps, two pictures
    assert not heap.keeping() and (told[-1:] == ["give back"]) is does


TRIAL = """
import resource
from kinema.memory import heap
import torch

heap.roomy = lambda: True
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096

def filled():
    before = faults()
    torch.ones(1 << 24)  # 64 MB are 16384 pages
    return faults() - before

usual, before = min(filled() for _ in range(8)), resident()
with heap.kept():
    kept, held = min(filled() for _ in range(8)), resident()
print(usual, kept, held - before, resident() - before)
"""


@linux
def test_large_tensors_get_pages_of_those_before_which_go_back_to_the_system_at_the_end() -> None:
    ran = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True, check=True)
    usual, kept, held, left = map(int, ran.stdout.split())
    assert usual > 10_000 and kept < 1_000
    assert held > 50e6 and left < 10e6
