"""Convolutions over time in fewer multiplications are the ordinary ones, to rounding, wherever they are chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kinema.memory.needs import trace
from kinema.memory.storage import store
from kinema.nn import ops, temporal_decoder
from kinema.nn.kernels import over_time
from kinema.nn.kernels.tiles import FRAMES


def example(b, c, o, f, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    strips = torch.randn(b, f, n, c, generator=generator).permute(0, 3, 1, 2)
    weight = torch.randn(o, c, 3, 1, 1, generator=generator) / (3 * c) ** 0.5
    return strips, weight, torch.randn(o, generator=generator)


def direct(strips, weight, bias):
    return F.conv2d(strips, weight[..., 0], bias, padding=(1, 0))


@settings(max_examples=80, deadline=None)
@given(
    b=st.integers(1, 3),
    c=st.integers(1, 9),
    o=st.integers(1, 9),
    f=st.integers(1, 27),
    n=st.integers(1, 19),
    side=st.sampled_from(tuple(FRAMES)),
    rows=st.sampled_from((1, 7, 256)),
    laid=st.booleans(),
    biased=st.booleans(),
)
def test_it_is_the_convolution_for_every_length_and_however_it_is_cut_in_pieces(
    b, c, o, f, n, side, rows, laid, biased
):
    strips, weight, bias = example(b, c, o, f, n)
    bias = bias if biased else None
    if laid:
        weight = weight.contiguous(memory_format=torch.channels_last_3d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over_time, "WORK", 1)
        patch.setattr(over_time, "FEWEST", rows)
        found = over_time.Kernel(weight, bias, FRAMES[side]).conv(strips)
    torch.testing.assert_close(found, direct(strips, weight, bias), rtol=0, atol=1e-5)
    assert found.permute(0, 2, 3, 1).is_contiguous()


@pytest.mark.parametrize("side", FRAMES)
def test_it_rounds_little_worse_than_the_direct_way(side):
    strips, weight, bias = example(1, 320, 320, 24, 32)
    exact = direct(strips.double(), weight.double(), bias.double())
    ways = direct(strips, weight, bias), over_time.Kernel(weight, bias, FRAMES[side]).conv(strips)
    plain, fast = (float((way - exact).abs().max() / exact.std()) for way in ways)
    assert fast < 2.5 * plain


def test_the_tiles_that_take_the_fewest_multiplications():
    taken = {frames: over_time.fitting(frames).side for frames in (3, 6, 8, 14, 16, 24, 25)}
    assert taken == {3: 3, 6: 6, 8: 4, 14: 5, 16: 4, 24: 6, 25: 5}


@pytest.mark.parametrize("answer", [True, False])
def test_it_is_taken_where_it_was_found_faster_and_nowhere_else(monkeypatch, answer):
    taken, conv = [], over_time.Kernel.conv
    monkeypatch.setattr(over_time.Kernel, "conv", lambda *a: taken.append(1) or conv(*a))
    monkeypatch.setattr(type(over_time.CHOICE), "taken", lambda *_: answer)
    layer = nn.Conv3d(128, 128, (3, 1, 1), padding=(1, 0, 0))
    narrow = nn.Conv3d(128, 8, (3, 1, 1), padding=(1, 0, 0))
    with torch.no_grad():
        for frames, conv3d, right in ((8, layer, answer), (2, layer, False), (8, narrow, False)):
            strips = example(1, 128, 1, frames, 256)[0]
            taken.clear()
            found = ops.conv_over_time(strips, conv3d)
            torch.testing.assert_close(found, direct(strips, conv3d.weight, conv3d.bias), rtol=0, atol=1e-5)
            assert bool(taken) == right
        taken.clear()
        ops.conv_over_time(example(1, 128, 1, 8, 8)[0], layer)
        ops.conv_over_time(example(1, 128, 1, 8, 256)[0].bfloat16(), layer.bfloat16())
        assert not taken


def test_a_streamed_clip_prepares_each_kernel_once(monkeypatch):
    monkeypatch.setattr(type(over_time.CHOICE), "taken", lambda *_: True)
    monkeypatch.setattr(over_time, "PIXELS", 1)
    made, fitting = [], over_time.Kernel.fitting
    monkeypatch.setattr(over_time.Kernel, "fitting", lambda *a: made.append(1) or fitting(*a))
    block = temporal_decoder.ClipResBlock(128, 128, 32)
    block.band = 5  # seven bands
    x = torch.randn(8, 128, 5, 7, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        streamed = torch.cat(list(block.stream(iter(x.split(2)), 8, 1 << 30, None)))
        assert len(made) == 2
        torch.testing.assert_close(streamed, block(x, 8), rtol=0, atol=1e-4)


def test_it_takes_little_memory_beside_the_clip():
    strips, weight, bias = (t.to("meta") for t in example(2, 1280, 1280, 8, 1024))
    result = strips.nbytes
    needs = trace(lambda: over_time.Kernel.fitting(weight, bias, 8).conv(strips))
    assert needs.peak - result < 150e6


def test_a_streamed_clip_makes_weights_that_are_stored_in_eight_bits_once(monkeypatch):
    block = temporal_decoder.ClipResBlock(128, 128, 32)
    block.band = 5
    x = torch.randn(8, 128, 5, 7, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    store(block, "int8", keep_originals=False)
    made, weight = [], type(block.temporal_res_block.conv1).weight.fget
    monkeypatch.setattr(
        type(block.temporal_res_block.conv1), "weight", property(lambda layer: made.append(layer) or weight(layer))
    )
    with torch.no_grad():
        for _ in block.stream(iter(x.split(8)), 8, 1 << 30, None):
            pass
    assert len(made) == 2
