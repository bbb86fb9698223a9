"""The tracer counts the bytes that are really alive, and the arithmetic that is really done."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kinema.memory.needs import amount, bytes_of, on_meta, trace

KB = 1024
DEVICES = ["cpu", "meta"]


def block(device: str, kb: int = 1) -> Tensor:
    return torch.empty(kb * KB, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_dropped_no_longer_counts(device):
    def call() -> Tensor:
        first = block(device, 4)
        del first
        second = block(device, 3)
        third = block(device, 2)
        del second
        return third

    needs = trace(call)
    assert (needs.peak, needs.kept, needs.largest) == (5 * KB, 2 * KB, 4 * KB)


@pytest.mark.parametrize("device", DEVICES)
def test_views_in_place_results_and_what_was_there_before_do_not_count(device):
    before = block(device)

    def call() -> Tensor:
        x = before.view(32, 32)[3:].transpose(0, 1)
        x.add_(1)
        before.fill_(2)
        torch.add(before, before, out=before)
        made = before + 1
        return made[::2].view(-1, 2).unflatten(0, (2, -1))

    needs = trace(call)
    assert (needs.peak, needs.kept) == (KB, KB)


@pytest.mark.parametrize("device", DEVICES)
def test_a_view_keeps_all_it_looks_into_alive(device):
    assert trace(lambda: block(device, 8)[:1]).kept == 8 * KB
    assert trace(lambda: block(device, 8)[:1].clone()).kept == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inference", [False, True])
def test_it_is_the_same_inside_inference_mode_and_without_the_collector(device, inference):
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
    x = torch.zeros(8, 64, device=device)
    gc.disable()
    try:
        with torch.inference_mode(inference):
            needs = trace(lambda: model(x), resident=[model])
    finally:
        gc.enable()
    assert needs.peak == 2 * 8 * 256 * 4
    assert needs.where == "1"
    assert needs.flops == 2 * 2 * 8 * 64 * 256
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_attention_on_meta_is_one_kernel_without_scores():
    q, k = torch.empty(2, 8, 4096, 64, device="meta"), torch.empty(2, 8, 77, 64, device="meta")
    needs = trace(lambda: F.scaled_dot_product_attention(q, k, k))
    assert needs.peak == q.numel() * 4 + q.numel() // 64 * 4, "what comes out, and a sum for each row"
    assert needs.flops == 2 * 2 * 8 * 4096 * 77 * 64 * 2
    out = torch.empty(0, device="meta")

    def call() -> Tensor:
        nonlocal out
        out = F.scaled_dot_product_attention(q, k, value=k)
        return out

    trace(call)
    assert out.shape == q.shape and out.transpose(1, 2).is_contiguous()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strip = nn.Conv2d(8, 16, 3, padding=1), nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0))
        self.qkv, self.norm = nn.Linear(16, 48), nn.GroupNorm(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.conv(x)), inplace=True)
        y = F.conv2d(y.flatten(2).unsqueeze(2).expand(-1, -1, 3, -1), self.strip.weight[..., 0], padding=(1, 0))
        q, k, v = self.qkv(y.flatten(2).transpose(1, 2)).unflatten(2, (2, 24)).transpose(1, 2).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).flatten(0, 1)
        return torch.baddbmm(q.flatten(0, 1), y, torch.ones(4, 8, 8))


def test_the_arithmetic_is_what_pytorchs_own_counter_counts():
    model, x = Mixed().eval(), torch.randn(2, 8, 6, 4)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)  # it does not know the fused attention of CPUs, so attention is taken apart for it
    assert trace(lambda: model(x)).flops == counter.get_total_flops() > 0


def test_a_twin_has_every_setting_and_no_contents():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model[0].piece = 7
    model.tied = model[0].weight
    twin = on_meta(model, torch.float16)
    assert all(t.is_meta for t in (*twin.parameters(), *twin.buffers()))
    assert twin[0].piece == 7 and twin.tied is twin[0].weight
    assert twin[0].weight.dtype == torch.float16 and twin[1].num_batches_tracked.dtype == torch.int64
    assert model[0].weight.device.type == "cpu" and model[0].weight.dtype == torch.float32
    assert bytes_of(model) == 4 * (16 + 4 + 4 * 4) + 8 and bytes_of(model, torch.float16) == bytes_of(twin)


def test_an_error_in_the_call_comes_through_and_leaves_no_hook():
    model = nn.Linear(4, 4)
    with pytest.raises(RuntimeError):
        trace(lambda: model(torch.ones(2, 5)), resident=[model])
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_amounts_are_for_people():
    assert [amount(n) for n in (12, 1_370, 24_000_000, 1.37e9)] == ["12 B", "1.37 kB", "24 MB", "1.37 GB"]


@pytest.mark.parametrize("device", DEVICES)
def test_an_operation_of_one_kernel_is_not_taken_apart(device):
    x = torch.empty(1, 8, 16, 16, device=device)
    assert trace(lambda: F.interpolate(x, scale_factor=2.0, mode="nearest")).peak == 4 * x.numel() * 4
