"""Kernels for GPUs, in Triton's interpreter where there is Triton, and never in anybody's way where there is none."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.choice import Verdict
from kinema.cli import doctor
from kinema.nn import ops
from kinema.nn.kernels import fused

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
THERE = importlib.util.find_spec("triton") is not None

PROBE = """
import copy, json, torch
from torch import nn
from torch.nn import functional as F
from kinema.nn.kernels import fused, programs

programs.ROWS, programs.CHANNELS, programs.PIECES, programs.FLAT = 8, 16, 4, 64
torch.manual_seed(0)
found = {}

def off(right, made):
    return float((made.double() - right.double()).abs().max() / right.double().std())

def norm(name, shape, groups, dtype, shift=0.0):
    n, c, *places = shape
    x = (torch.randn(n, *places, c) + shift).movedim(-1, 1).to(dtype)
    layer = nn.GroupNorm(groups, c)
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    layer = layer.to(dtype)
    exact = F.silu(copy.deepcopy(layer).double()(x.double()))
    made = fused.norm_silu(x, layer)
    assert made.dtype == dtype and made.stride() == x.stride()
    plain = F.silu(F.group_norm(x, groups, layer.weight, layer.bias, layer.eps))
    found[name] = [off(exact, made), off(exact, plain)]

with torch.no_grad():
    norm("whole tiles", (2, 32, 8, 8), 4, torch.float32)
    norm("odd sizes", (3, 30, 5, 7), 5, torch.float32)
    norm("one pixel", (2, 24, 1, 1), 4, torch.float32)
    norm("a group", (1, 20, 9, 9), 1, torch.float32)
    norm("each channel", (1, 16, 3, 50), 16, torch.float32)
    norm("strips", (2, 20, 6, 11), 4, torch.float32)
    norm("far from zero", (1, 32, 16, 16), 4, torch.float32, 1000.0)
    norm("halves", (2, 30, 6, 7), 5, torch.float16)
    norm("bfloats", (2, 30, 6, 7), 5, torch.bfloat16)
    for dtype in (torch.float32, torch.float16):
        gate, value = (torch.randn(7, 33).mul(3).to(dtype) for _ in range(2))
        exact = F.gelu(gate.double()) * value.double()
        plain = F.gelu(gate) * value
        made = fused.gelu_times(gate, value)
        assert made is gate
        found[f"gate {dtype}"] = [off(exact, made), off(exact, plain)]
print(json.dumps(found))
"""
NEAR = {"halves": 3e-3, "bfloats": 4e-2, "far from zero": 2e-3, "gate torch.float16": 3e-3}


@pytest.mark.skipif(not THERE, reason="Triton comes with PyTorch for GPUs")
def test_programs_are_the_plain_operations() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout)
    assert len(found) == 11
    for name, (made, plain) in found.items():
        assert made <= max(NEAR.get(name, 1e-5), 1.01 * plain), (name, made, plain)


def test_where_they_cannot_run_they_are_dropped_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINEMA_KERNELS", raising=False)
    monkeypatch.setitem(sys.modules, "kinema.nn.kernels.programs", None)
    for choice in fused.CHOICES:
        verdict = choice._try(CPU, torch.float32)
        assert not verdict.taken and "dropped" in verdict.why
    monkeypatch.setenv("KINEMA_KERNELS", "plain")
    assert all("KINEMA_KERNELS=plain" in choice._try(CPU, torch.float32).why for choice in fused.CHOICES)


def test_they_are_for_large_tensors_of_gpus_alone() -> None:
    large = torch.empty(4, 64, 64, 64).to(memory_format=torch.channels_last)
    for x in (large, large.to("meta")):
        assert not fused.norms(x) and not fused.gates(x)
    assert fused.channels_last(large) and not fused.channels_last(large.contiguous())
    assert fused.channels_last(torch.empty(2, 5, 7, 3).movedim(-1, 1)) and not fused.channels_last(torch.empty(4, 4))


class Program:
    """Stands for the kernels: the plain operations, counted."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def norm_silu(self, x: Any, groups: int, weight: Any, bias: Any, eps: float) -> Any:
        self.runs.append("norm")
        return F.silu(F.group_norm(x, groups, weight, bias, eps))

    def gelu_times(self, gate: Any, value: Any) -> Any:
        self.runs.append("gate")
        return gate.copy_(F.gelu(gate)).mul_(value)


@torch.no_grad()
def test_where_they_are_chosen_operations_go_through_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINEMA_KERNELS", raising=False)
    x, norm = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last), nn.GroupNorm(4, 16)
    up, down, tokens = nn.Linear(8, 64), nn.Linear(32, 8), torch.randn(10, 8)
    plain = ops.norm_silu(x, norm), ops.feed_forward(tokens, up, down, True)
    program = Program()
    monkeypatch.setitem(sys.modules, "kinema.nn.kernels.programs", program)
    monkeypatch.setattr("kinema.nn.kernels.programs", program, raising=False)
    for choice in fused.CHOICES:
        tried = choice._try(CPU, torch.float32)
        assert "wrong" not in tried.why and "raised" not in tried.why
    program.runs.clear()
    monkeypatch.setattr(fused, "norms", lambda x: True)
    monkeypatch.setattr(fused, "gates", lambda x: True)
    made = ops.norm_silu(x, norm), ops.feed_forward(tokens, up, down, True)
    assert program.runs == ["norm", "gate"]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, made, strict=True))


def test_the_doctor_tells_what_each_gpu_is_better_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Facts:
        name, total_memory = "A GPU", 24 * 10**9

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: Facts)
    monkeypatch.setattr(doctor, "_half_types", lambda name: "float16")
    for choice in (*fused.CHOICES, doctor_enlarged()):
        monkeypatch.setattr(choice, "verdict", lambda device, dtype: Verdict(True, f"1.50 times as fast on {device}"))
    told = next(d for d in doctor._devices() if d["device"] == "cuda:0")
    for choice in fused.CHOICES:
        assert told[choice.what] == "the faster way (1.50 times as fast on cuda:0)"


def doctor_enlarged() -> Any:
    from kinema.nn.kernels import enlarged

    return enlarged.CHOICE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINEMA_KERNELS", raising=False)
    for choice in fused.CHOICES:
        for dtype in (torch.float16, torch.float32):
            assert "dropped" not in choice._try(torch.device("cuda"), dtype).why


def test_pictures_too_large_for_one_launch_go_the_plain_way() -> None:
    sizes = {(1, 64, 1152, 1024): True, (1, 64, 2048, 1152): False, (1, 2048, 1024, 1024): False, (1, 8, 8, 8): False}
    for size, fits in sizes.items():
        assert fused.launchable(torch.empty(size, device="meta")) is fits
