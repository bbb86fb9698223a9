"""The faster ways of the plain operations equal them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kinema.nn import ops


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 8, 3, 5), (2, 8, 7, 4), (3, 16, 1, 1)])
@pytest.mark.parametrize("laid_out", [False, True])
def test_an_enlarged_picture_is_convolved_as_if_it_had_been_enlarged(monkeypatch, shape, laid_out):
    torch.manual_seed(0)
    conv = nn.Conv2d(shape[1], 12, 3, padding=1)
    if laid_out:
        ops.lay_out(conv)
    x, size = torch.randn(shape), (2 * shape[2], 2 * shape[3])
    expected = conv(F.interpolate(x, size=size, mode="nearest"))
    monkeypatch.setattr(ops, "FOLDING", 0)
    found = ops.upsample_conv(x, size, conv)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_size_that_is_not_the_double_and_half_precision_are_taken_as_they_come(monkeypatch):
    monkeypatch.setattr(ops, "FOLDING", 0)
    monkeypatch.setattr(ops, "_doubled_conv", lambda *_: pytest.fail("not for this one"))
    conv = nn.Conv2d(8, 8, 3, padding=1)
    assert ops.upsample_conv(torch.randn(1, 8, 3, 4), (5, 7), conv).shape == (1, 8, 5, 7)
    assert ops.upsample_conv(torch.randn(1, 8, 3, 4).bfloat16(), (6, 8), conv.bfloat16()).shape == (1, 8, 6, 8)


def test_weights_laid_out_for_their_kernels_are_the_same_weights():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv3d(6, 6, (3, 1, 1)), nn.Linear(6, 6))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    ops.lay_out(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight[..., 0].is_contiguous(memory_format=torch.channels_last)
