"""Starting costs no more than it must: weights are mapped, never held twice, and nothing is made to be thrown away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kinema import AutoencoderKL
from kinema.checkpoint import fill, pages
from kinema.checkpoint.files import let_go, mapped, open_weights
from kinema.checkpoint.save import save_model
from kinema.errors import CheckpointError
from kinema.finite import AT_ONCE, finite

SRC = Path(__file__).parents[1] / "src"
BIG = {
    "block_out_channels": (64, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
PROBE = """
import gc, json, sys, torch
from kinema import AutoencoderKL
torch.set_num_threads(1)
folder, dtype = sys.argv[1:]
def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024
AutoencoderKL.from_pretrained(folder + "/small", dtype=dtype)  # whatever is loaded once
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before, random = status("VmRSS"), torch.get_rng_state()
model = AutoencoderKL.from_pretrained(folder + "/big", dtype=dtype)
print(json.dumps({
    "peak": status("VmHWM") - before,
    "weights": sum(p.nbytes for p in model.parameters()),
    "drawn": not torch.equal(random, torch.get_rng_state()),
    "heavy": [name for name in ("sympy", "torch._inductor", "transformers", "diffusers") if name in sys.modules],
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    save_model(AutoencoderKL(BIG).half(), place / "big")
    save_model(AutoencoderKL({"norm_num_groups": 8, "block_out_channels": (8,)}).half(), place / "small")
    return place


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are told by Linux only")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_are_never_held_twice(folder: Path, dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder), dtype],
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] > 40e6
    assert found["peak"] < 1.2 * found["weights"]
    assert not found["drawn"]
    assert not found["heavy"]


def test_only_what_lies_otherwise_in_memory_is_copied(folder: Path) -> None:
    model = AutoencoderKL.from_pretrained(folder / "big", dtype="float16")
    copied = {name for name, p in model.named_parameters() if not mapped(p)}
    assert copied == {name for name, p in model.named_parameters() if p.ndim == 4 and min(p.shape[1:]) > 1}
    assert len(copied) > 5


def test_several_hands_make_the_same_weights_and_the_same_complaint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = AutoencoderKL.from_pretrained(folder / "big", dtype="float32").state_dict()
    monkeypatch.setattr(fill, "MANY", 1)
    together = AutoencoderKL.from_pretrained(folder / "big", dtype="float32")
    assert all(torch.equal(alone[name], p) for name, p in together.state_dict().items())
    together.decoder.conv_out.weight[0, 0, 1, 1] = float("nan")
    save_model(together, tmp_path)
    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.weight holds NaN"):
        AutoencoderKL.from_pretrained(tmp_path)


def test_one_number_in_many_is_found() -> None:
    many = torch.zeros(3 * AT_ONCE // 2 + 1, dtype=torch.float16)
    for at in (0, AT_ONCE // 2 - 1, AT_ONCE // 2, len(many) - 1):
        assert finite(many)
        many[at] = float("-inf")
        assert not finite(many)
        many[at] = 0


def test_what_was_let_go_is_read_again(folder: Path) -> None:
    (file,) = (folder / "big").glob("*.safetensors")
    weights = open_weights(file)
    name = max(weights, key=lambda key: weights[key].numel())
    view = weights[name]
    before = view.clone()
    let_go(view)
    assert torch.equal(view, before)
    let_go(before)  # no part of a file: nothing happens
    assert torch.equal(view, before)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_found_however_they_lie(form: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, 3, 3).to(dtype).contiguous(memory_format=form)
    x[0, 0, 0, :2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=torch.float64).to(dtype)
    assert finite(x)
    broken = torch.tensor([float("nan"), float("inf"), float("-inf")], dtype=torch.float64)
    for bad in torch.cat([broken, broken[:1].copysign(torch.tensor(-1.0))]):
        y = x.clone()
        y[2, 5, 1, 0] = bad
        assert not finite(y)


def test_memory_that_is_handed_over_at_once_is_as_asked() -> None:
    shape, stride = torch.Size((512, 64, 3, 3)), (576, 1, 192, 64)
    made = pages.fresh(shape, stride, torch.float32, torch.device("cpu"))
    assert made.nbytes >= pages.LARGE and made.shape == shape and made.stride() == stride
    assert made.fill_(1.0).sum() == made.numel()


def test_a_system_that_hands_memory_over_only_when_it_is_touched_will_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = AutoencoderKL.from_pretrained(folder / "big", dtype="float32").state_dict()
    for call in (None, lambda *_: -1):
        monkeypatch.setattr(pages, "_madvise", lambda call=call: call)
        found = AutoencoderKL.from_pretrained(folder / "big", dtype="float32").state_dict()
        assert all(torch.equal(usual[name], p) for name, p in found.items())


@pytest.mark.parametrize(("wide", "into"), [("float32", "float16"), ("float16", "float32"), ("bfloat16", "float16")])
def test_numbers_that_are_not_finite_are_found_in_every_pair_of_formats(tmp_path: Path, wide: str, into: str) -> None:
    model = AutoencoderKL({"norm_num_groups": 8, "block_out_channels": (8,)}).to(getattr(torch, wide))
    with torch.no_grad():
        model.encoder.conv_in.weight[0, 0, 1, 1] = float("inf")
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight holds NaN or infinite"):
        AutoencoderKL.from_pretrained(tmp_path, dtype=into)


def test_importing_takes_little_time() -> None:
    code = "import time; t = time.process_time(); import kinema; print(time.process_time() - t)"
    command, place = [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(SRC)}
    taken = [
        float(subprocess.run(command, check=True, capture_output=True, text=True, env=place).stdout) for _ in "abc"
    ]
    assert min(taken) <= 0.15
