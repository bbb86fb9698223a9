"""Convolutions through Winograd's transform are the ordinary ones, to rounding, wherever they are chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kinema.memory.needs import trace
from kinema.nn import ops
from kinema.nn.kernels import enlarged, winograd
from kinema.nn.kernels.tiles import FOUR, TWO


def example(n, c, o, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, h, w, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(o, c, 3, 3, generator=generator) / (9 * c) ** 0.5
    return x, weight.to(memory_format=torch.channels_last), torch.randn(o, generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 5),
    c=st.integers(1, 9),
    o=st.integers(1, 9),
    h=st.integers(1, 19),
    w=st.integers(1, 19),
    tiles=st.sampled_from((TWO, FOUR)),
    at_once=st.sampled_from((1, 3, 16, 256)),
    numbers=st.sampled_from((64, 512, 1 << 20)),
    biased=st.booleans(),
)
def test_it_is_the_convolution_for_every_size_and_however_it_is_cut_in_pieces(
    n, c, o, h, w, tiles, at_once, numbers, biased
):
    x, weight, bias = example(n, c, o, h, w)
    bias = bias if biased else None
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AT_ONCE", at_once),
            ("CACHED", numbers // 2),
            ("PIECE", numbers),
            ("KEPT", 8 * numbers),
            ("FEWEST", 1),
            ("COLUMNS", numbers),
        ):
            patch.setattr(winograd, name, value)
        found = winograd.conv3x3(x, weight, bias, tiles)
        doubled = winograd.doubled_conv(x, weight, bias)
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(doubled, enlarged.plain(x, weight, bias), rtol=0, atol=1e-5)


def test_it_rounds_no_worse_than_the_direct_way():
    x, weight, bias = example(2, 320, 320, 24, 24)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    ways = (F.conv2d(x, weight, bias, padding=1), *(winograd.conv3x3(x, weight, bias, t) for t in (TWO, FOUR)))
    direct, two, four = (float((y - exact).abs().max()) for y in ways)
    assert two < direct / 2
    assert four < 1.5 * direct


def test_larger_tiles_where_they_fit():
    for (n, h, w), tiles in {(8, 32, 32): FOUR, (2, 32, 32): FOUR, (1, 16, 16): TWO, (16, 10, 10): TWO}.items():
        assert winograd.fitting(torch.empty(n, 1, h, w)) is tiles


def test_large_convolutions_take_it_where_it_is_faster_and_only_there(monkeypatch):
    taken, doubled = [], []
    direct, of_two = winograd.conv3x3, winograd.doubled_conv
    monkeypatch.setattr(winograd, "doubled_conv", lambda *a: doubled.append(1) or of_two(*a))
    monkeypatch.setattr(winograd, "conv3x3", lambda *a: taken.append(1) or direct(*a))
    conv = nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(4, 256, 32, 32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = conv(x)
        for answer in (False, True):
            monkeypatch.setattr(type(winograd.THREE_BY_THREE), "taken", lambda *_, answer=answer: answer)
            torch.testing.assert_close(ops.conv3x3(x, conv), plain, rtol=0, atol=1e-5)
            assert len(taken) == answer
        plain = enlarged.plain(x, conv.weight, conv.bias)
        torch.testing.assert_close(ops.upsample_conv(x, (64, 64), conv), plain, rtol=0, atol=1e-5)
        assert len(doubled) == 1
        ops.conv3x3(x[:1, :, :7], conv)  # too few pixels
        ops.conv3x3(x.double(), conv.double())  # another number format
    assert len(taken) == 1


def test_what_it_needs_can_be_planned():
    x, weight, bias = (t.to("meta") for t in example(1, 8, 8, 20, 20))
    assert winograd.conv3x3(x, weight, bias).shape == (1, 8, 20, 20)
    assert winograd.doubled_conv(x, weight, bias).shape == (1, 8, 40, 40)


@pytest.mark.parametrize(("n", "c", "o", "side"), [(16, 320, 320, 32), (16, 1280, 640, 32), (4, 128, 128, 256)])
def test_it_takes_little_memory_beside_picture_and_result(n, c, o, side):
    x, weight = torch.empty(n, c, side, side, device="meta"), torch.empty(o, c, 3, 3, device="meta")
    result = n * o * side * side * 4
    assert trace(lambda: winograd.conv3x3(x, weight, None)).peak - result < 160e6
    assert trace(lambda: winograd.doubled_conv(x, weight, None)).peak - 4 * result < 200e6
