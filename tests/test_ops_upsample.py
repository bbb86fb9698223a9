"""The faster ways of the plain operations equal them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.nn import ops
from kinema.nn.kernels import enlarged


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 8, 3, 5), (2, 8, 7, 4), (3, 16, 1, 1)])
@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_an_enlarged_picture_is_convolved_as_if_it_had_been_enlarged(shape, laid_out, dtype, near):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 12, 3, padding=1).to(dtype)
    if laid_out:
        ops.lay_out(conv)
    x, size = torch.randn(shape, dtype=dtype), (2 * shape[2], 2 * shape[3])
    expected = conv(F.interpolate(x, size=size, mode="nearest"))
    found = enlarged.doubled_conv(x, conv.weight, conv.bias)
    assert found.shape == expected.shape and found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


@pytest.mark.parametrize("taken", [True, False])
def test_it_is_done_so_for_large_doubled_pictures_where_it_is_faster(monkeypatch, taken):
    done = []
    doubled = enlarged.doubled_conv
    monkeypatch.setattr(enlarged, "doubled_conv", lambda *a: done.append(1) or doubled(*a))
    monkeypatch.setattr(type(enlarged.CHOICE), "taken", lambda *_: taken)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    for size, doubled_size in (((5, 7), False), ((6, 8), True), ((50, 70), False), ((60, 80), True)):
        x = torch.randn(1, 8, size[0] // 2, size[1] // 2)
        assert ops.upsample_conv(x, size if doubled_size else (size[0] - 1, size[1]), conv).shape[:2] == (1, 8)
    assert len(done) == taken


def test_weights_laid_out_for_their_kernels_are_the_same_weights():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv3d(6, 6, (3, 1, 1)), nn.Linear(6, 6))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    ops.lay_out(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight[..., 0].is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_convolution_of_single_pixels_is_a_matrix_product():
    conv = nn.Conv2d(6, 9, 1)
    x = torch.randn(2, 6, 3, 5)
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(ops.conv1x1(given, conv), conv(x), rtol=0, atol=1e-6)
