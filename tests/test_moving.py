"""What is asked for at the edge happens whole or not at all, and what cannot be is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import ours
from torch import nn

from kinema.errors import InputError, MemoryBudgetError
from kinema.memory.moving import is_out_of_memory, move
from kinema.pipelines.output import VideoOutput


class Full(nn.Module):
    """A network that no device has room for: it fails when its second layer moves."""

    def __init__(self, says: str = "CUDA out of memory. Tried to allocate 2.00 GiB"):
        super().__init__()
        self.first, self.second, self.says = nn.Linear(2, 2), nn.Linear(2, 2), says

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.first._apply(fn)
        raise torch.OutOfMemoryError(self.says) if "CUDA" in self.says else RuntimeError(self.says)


def pointers(modules: dict[str, nn.Module]) -> list[tuple[int, torch.dtype, str]]:
    return [(x.data_ptr(), x.dtype, x.device.type) for m in modules.values() for x in m.parameters()]


@pytest.mark.parametrize("says", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory: you tried"])
def test_networks_that_do_not_fit_stay_where_they_were(says: str) -> None:
    modules: dict[str, nn.Module] = {"unet": nn.Linear(3, 3), "vae": Full(says)}
    before = pointers(modules)
    with pytest.raises(MemoryBudgetError, match=r"vae does not fit into the memory of meta; nothing has moved"):
        move(modules, torch.device("meta"), torch.float16)
    assert pointers(modules) == before


def test_a_format_that_does_not_fit_leaves_the_network_as_it_was() -> None:
    modules: dict[str, nn.Module] = {"vae": Full()}
    before = pointers(modules)
    with pytest.raises(MemoryBudgetError, match="vae does not fit into memory"):
        move(modules, None, torch.float64)
    assert pointers(modules) == before


def test_what_fits_moves_and_converts() -> None:
    modules: dict[str, nn.Module] = {"a": nn.Linear(3, 3), "b": nn.BatchNorm1d(3)}
    move(modules, torch.device("meta"), torch.float16)
    assert {(x.device.type, x.dtype) for m in modules.values() for x in m.parameters()} == {("meta", torch.float16)}


def test_other_troubles_are_not_called_memory() -> None:
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("Torch not compiled with CUDA enabled"))
    with pytest.raises(RuntimeError, match="no such kernel"):
        move({"a": Full("no such kernel")}, torch.device("meta"), None)


def test_a_pipeline_that_does_not_fit_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ours()
    before = pointers(dict(pipe.modules()))
    inner = type(pipe.vae)._apply

    def full(self: Any, fn: Any, recurse: bool = True) -> Any:
        if self is pipe.vae:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, fn, recurse)

    monkeypatch.setattr(type(pipe.vae), "_apply", full)
    with pytest.raises(MemoryBudgetError, match="vae does not fit"):
        pipe.to("meta")
    assert pointers(dict(pipe.modules())) == before
    with pytest.raises(InputError, match=r"cannot go to nowhere"):
        pipe.to(device="nowhere")


@pytest.mark.parametrize("size", [0, -1, 1.5, "many"])
def test_pieces_of_a_feed_forward_have_a_size(size: Any) -> None:
    unet = ours().unet
    with pytest.raises(InputError, match=r"chunk_size is .*; it must be a whole number, at least 1, or None"):
        unet.enable_forward_chunking(size)
    unet.enable_forward_chunking(2, dim=1)
    unet.disable_forward_chunking()


@pytest.mark.parametrize("clip", [2, 9, -3, 0.5, True])
def test_a_clip_that_is_not_there_is_refused(tmp_path: Path, clip: Any) -> None:
    output = VideoOutput(np.zeros((2, 3, 8, 8, 3)))
    with pytest.raises(InputError, match=rf"clip is {clip!r}; this output has 2, counted from 0"):
        output.save(tmp_path / "a.gif", clip=clip)
    assert not list(tmp_path.iterdir())
    output.save(tmp_path / "a.gif", clip=1)


def test_latents_cannot_be_saved_as_a_clip(tmp_path: Path) -> None:
    pipe = ours()
    call = {"num_frames": 3, "height": 16, "width": 16, "num_inference_steps": 1, "generator": 0}
    output = pipe("a", **call, output_type="latent")
    with pytest.raises(InputError, match="latents, not pictures; ask for output_type"):
        output.save(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
    assert pipe("a", **call, output_type="pt").save(tmp_path / "a.gif")
