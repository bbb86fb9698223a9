"""Tokens that are alike attend as one: exact where they are equal, nearer the fewer are joined, and cheaper."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import off
from tests.test_weight_storage import PIPES, own
from torch import Tensor

from kinema import InputError
from kinema.memory.needs import on_meta, trace
from kinema.nn.attention import Attention
from kinema.nn.merging import Merging
from kinema.nn.signal import Signal
from kinema.sampling.sparing import RunningPrepared, Spent, TokenMerging

SIZE = (8, 6)
RATIOS = (0.1, 0.3, 0.5, 0.75)


@pytest.fixture(scope="module")
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(32, 4, 32).eval().requires_grad_(False)


def found(attention: Attention, x: Tensor, share: float, corner: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    return attention(x, replace(PLAIN, merging=Merging(frozenset({attention}), share, size, corner)))


def tokens(size: tuple[int, int] = SIZE, rows: int = 3) -> Tensor:
    return torch.randn(rows, size[0] * size[1], 32, generator=torch.Generator().manual_seed(0))


PLAIN = Signal(1, torch.zeros(1, 1), {})


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 9), (9, 1), (1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("corner", range(4))
def test_equal_tokens_are_joined_without_error(attention: Attention, size: tuple[int, int], corner: int) -> None:
    count = size[0] * size[1]
    x = tokens((2, 1))[:, (torch.arange(count) >= max(4, count // 2)).long()]  # two kinds, some of each stay
    for share in (0.2, 0.75):
        assert off(found(attention, x, share, corner, size), attention(x, PLAIN)) < 1e-5


def test_none_joined_is_the_same_to_the_bit_and_more_are_further_off(attention: Attention) -> None:
    x = tokens((16, 16))
    exact = attention(x, PLAIN)
    assert torch.equal(found(attention, x, 0.0, 0, (16, 16)), exact)
    errors = [float((found(attention, x, share, 0, (16, 16)) - exact).norm() / exact.norm()) for share in RATIOS]
    assert errors == sorted(errors) and errors[0] > 0


def test_every_token_has_a_place_and_so_many_share_one() -> None:
    for corner in range(4):
        merging = Merging(frozenset(), 0.5, SIZE, corner)
        places = merging.places(tokens())
        assert merging.joined == 24
        assert all(sorted(set(row.tolist())) == list(range(48 - 24)) for row in places)
        kept = torch.arange(48).view(SIZE)[corner // 2 :: 2, corner % 2 :: 2].flatten()
        assert torch.equal(places[:, kept], torch.arange(12).expand(3, -1))


def test_frames_do_not_see_one_another(attention: Attention) -> None:
    x = tokens()
    assert off(found(attention, x, 0.5)[1:2], found(attention, x[1:2], 0.5)) < 1e-6


# ------------------------------------------------------------------ networks and pipelines


def clip(pipe: Any, name: str, **call: Any) -> Any:
    asked = {"num_inference_steps": 4, "height": 32, "width": 32, "generator": 0, "output_type": "latent"}
    return pipe(**{**PIPES[name][1], **asked, **call})


@pytest.mark.parametrize("name", ["ModelScope", "SVD", "AnimateDiff XL"])
def test_clips_stay_near_and_say_how_near(name: str) -> None:
    pipe = own(name)
    exact = clip(pipe, name).frames
    pipe.enable_token_merging(0.0)
    assert torch.equal(clip(pipe, name).frames, exact)
    pipe.enable_token_merging(0.4)
    made = clip(pipe, name)
    told = made.receipt["approximations"]["token_merging"]
    assert told["ratio"] == 0.4 and told["approximated"] == "3 of 4 steps" and 0 < told["error"] < 0.5
    assert 0 < off(made.frames, exact) < 0.5
    pipe.disable_token_merging()
    assert not pipe._approximations


def test_arithmetic_falls() -> None:
    unet = on_meta(own("SVD").unet)
    latents = torch.empty(1, 2, 4, 64, 64, device="meta")

    def arithmetic(share: float) -> int:
        conditions = own("SVD")._hollow(1, (4, 64, 64), 2, unet)
        signal = unet.prepare(torch.empty(1, device="meta"), conditions).at(0)
        merging = unet.merging(share, (64, 64))
        assert len(merging.of) == 3 and merging.size == (64, 64)
        return trace(lambda: unet(latents, replace(signal, merging=merging))).flops

    whole, less = arithmetic(0.0), [arithmetic(share) for share in RATIOS]
    assert whole > less[1] > less[2] > less[3] and less[2] < 0.6 * whole


def test_it_goes_with_other_approximations_windows_and_streamed_weights() -> None:
    pipe = own("ModelScope")
    pipe.enable_token_merging(0.5)
    pipe.enable_deep_reuse(every=2)
    pipe.enable_guidance_reuse()
    pipe.enable_windows(2, 1, drift=False)
    made = clip(pipe, "ModelScope", guidance_scale=4.0)
    assert set(made.receipt["approximations"]) == {"token_merging", "deep_reuse", "guidance_reuse"}
    pipe.disable_windows()
    there = clip(pipe, "ModelScope").frames
    pipe.enable_sequential_cpu_offload()
    assert np.array_equal(clip(pipe, "ModelScope").frames, there)


@pytest.mark.parametrize("reuse", [{"every": 3}, {"threshold": 0.2}, {"threshold": 1e9}])
def test_a_step_counts_once_in_however_many_pieces_it_comes(reuse: dict[str, Any]) -> None:
    """Two clips of which each decides for itself, two guidance branches, two windows, and steps between."""
    pipe = own("ModelScope")
    pipe.enable_token_merging(0.5)
    pipe.enable_deep_reuse(**reuse)
    pipe.enable_windows(2, 1, drift=False)
    call = {"num_inference_steps": 5, "num_frames": 3, "guidance_scale": 4.0, "prompt": ["a cat", "a dog"]}
    told = clip(pipe, "ModelScope", **call).receipt["approximations"]["token_merging"]
    none_whole = reuse.get("threshold") == 1e9  # but for the first, before the middle
    assert told["approximated"] == f"{4 + none_whole} of 5 steps"
    assert told["error"] is None if none_whole else 0 < told["error"] < 0.5


class _Rows:
    """A network of rows, all of whose answers are alike."""

    def merging(self, share: float, size: tuple[int, int], corner: int = 0) -> Any:
        return None

    def denoise_and_keep(self, latents: Tensor, signal: Any, fresh: int, begun: Any = ()) -> tuple[Tensor, Tensor]:
        return latents, latents

    def denoise_above(self, latents: Tensor, signal: Any, deep: Tensor, fresh: int, begun: Any = ()) -> Tensor:
        return latents


def test_the_error_is_taken_at_the_first_whole_step_from_the_middle_on_and_of_all_its_pieces() -> None:
    merging: Any = TokenMerging(_Rows(), lambda predicted, step: predicted, Spent(), ratio=0.5)
    prepared, x = RunningPrepared(SimpleNamespace(at=lambda step: PLAIN), 8), torch.ones(1, 1, 4, 2, 2)
    asked = [merging.denoise_and_keep, merging.denoise_above]
    for step, pieces in enumerate(["k", "a", "kk", "aa", "aa", "aka", "ak", "k"]):  # all rows, or those above alone
        for piece in pieces:
            asked["ka".index(piece)](x, prepared.at(step), *([] if piece == "k" else [x]), 1)
    assert (merging.spent.cheap, merging.spent.steps, len(merging.spent.taken)) == (7, 8, 1)


def test_shares_that_cannot_be_are_refused() -> None:
    for ratio in (-0.1, 0.8, "half"):
        with pytest.raises(InputError, match="ratio"):
            own().enable_token_merging(ratio)
