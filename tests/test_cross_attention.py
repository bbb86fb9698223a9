"""Cross-attention some frames at a time is the same as all at once, whatever it knows of its context."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinema.nn import ops
from kinema.nn.attention import Beside, CrossAttention, Memory
from kinema.nn.signal import Signal

CLIPS, FRAMES, TOKENS, CHANNELS = 2, 5, 12, 16


def told(attention: CrossAttention, memory: Memory) -> Signal:
    return Signal(frames=FRAMES, time=torch.zeros(1, 4), memory={attention: memory})


@torch.no_grad()
@pytest.mark.parametrize("each", [False, True], ids=["a context a clip", "a context a frame"])
@pytest.mark.parametrize("masks", [None, 1, CLIPS], ids=["no pictures", "one mask", "a mask a clip"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("piece", [1, 3 * TOKENS * CHANNELS, 7 * TOKENS * CHANNELS])
def test_frames_in_pieces_find_what_they_find_together(monkeypatch, each, masks, weighted, piece):
    torch.manual_seed(0)
    attention, norm = CrossAttention(CHANNELS, 4, CHANNELS, 6), nn.LayerNorm(CHANNELS)
    shape = (CLIPS, FRAMES, 7, 6) if each else (CLIPS, 7, 6)
    memory = attention.remember(torch.randn(shape), torch.randn(CLIPS, 1, 1, 7) if weighted and not each else None)
    if masks is not None:
        keys, values = torch.randn(2, CLIPS, 4, 3, 4)
        memory = memory.and_beside([Beside(keys, values, 0.7, torch.rand(masks, 1, 6, 8))])
    signal, x = told(attention, memory), torch.randn(CLIPS * FRAMES, TOKENS, CHANNELS)
    expected = x + attention(norm(x), signal)
    monkeypatch.setattr(ops, "CACHE", 1)
    monkeypatch.setattr(ops, "PIECE", piece)
    monkeypatch.setattr(ops, "LOCAL", max(1, piece // CHANNELS))
    most = 0
    ask = attention.ask

    def asked(part, *rest):
        nonlocal most
        most = max(most, len(part))
        return ask(part, *rest)

    monkeypatch.setattr(attention, "ask", asked)
    found = attention.onto(x.clone(), norm, signal)
    assert most < len(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_branches_that_part_here_go_all_at_once(monkeypatch):
    torch.manual_seed(0)
    attention, norm = CrossAttention(CHANNELS, 4, CHANNELS, 6), nn.LayerNorm(CHANNELS)
    signal = told(attention, attention.remember(torch.randn(CLIPS, 7, 6)))
    x = torch.randn(FRAMES, TOKENS, CHANNELS)
    monkeypatch.setattr(ops, "CACHE", 1)
    found = attention.onto(x, norm, signal)
    assert len(found) == CLIPS * FRAMES
    both = torch.cat([x, x])
    torch.testing.assert_close(found, both + attention(norm(both), signal), rtol=0, atol=1e-6)
