"""Length in AnimateDiff's pipelines: FreeNoise and FreeInit are the reference's, and windows come by themselves."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
from tests.animatediff_pipes import CALL, ours, theirs
from tests.pipelines_tiny import gen, off

LATENT = {**CALL, "num_inference_steps": 2, "output_type": "latent"}


@cache
def pair() -> tuple[Any, Any]:
    other = theirs()
    return other, ours(other)


def both(call: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """What kinema and the reference make of a call."""
    other, mine = pair()
    return mine(**call, generator=gen(3)).frames, other(**call, generator=gen(3)).frames


@pytest.fixture(autouse=True)
def _as_they_were() -> Any:
    yield
    other, mine = pair()
    mine.disable_free_noise(), mine.disable_free_init(), mine.disable_windows()
    other.disable_free_init()
    if getattr(other, "free_noise_enabled", False):
        other._free_noise_context_length = None
        for block in (*other.unet.down_blocks, *other.unet.up_blocks, other.unet.mid_block):
            if hasattr(block, "motion_modules"):
                other._disable_free_noise_in_block(block)


@pytest.mark.parametrize(
    ("weighting", "kind", "length", "stride", "frames"),
    [
        ("pyramid", "shuffle_context", 4, 2, 8),
        ("flat", "random", 4, 3, 7),
        ("delayed_reverse_sawtooth", "shuffle_context", 6, 3, 9),
    ],
)
def test_free_noise_is_the_references(weighting: str, kind: str, length: int, stride: int, frames: int) -> None:
    settings = {"weighting_scheme": weighting, "noise_type": kind}
    for pipe in pair():
        pipe.enable_free_noise(length, stride, **settings)
    got, wanted = both({**LATENT, "num_frames": frames})
    assert off(got, wanted) < 1e-4


def test_free_noise_that_repeats_is_the_references_from_noise_it_is_given() -> None:
    """Where it draws that itself, the reference compares the length with a word, and repeats nothing."""
    for pipe in pair():
        pipe.enable_free_noise(4, 2, noise_type="repeat_context")
    other, mine = pair()
    first = torch.randn(1, 4, 4, 8, 12, generator=gen(3))
    call = {**LATENT, "num_frames": 8}
    assert off(mine(**call, generator=gen(3)).frames, other(**call, latents=first).frames) < 1e-4


def test_prompts_on_the_way_are_the_references() -> None:
    for pipe in pair():
        pipe.enable_free_noise(4, 2)
    got, wanted = both({**LATENT, "num_frames": 8, "prompt": {0: "a cat", 3: "a dog", 6: "sea"}})
    assert off(got, wanted) < 1e-4


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("butterworth", {"order": 2, "spatial_stop_frequency": 0.4}),
        ("ideal", {"temporal_stop_frequency": 0.5}),
        ("gaussian", {"use_fast_sampling": True, "num_iters": 2}),
    ],
)
def test_free_init_is_the_references(method: str, more: dict[str, Any]) -> None:
    for pipe in pair():
        pipe.enable_free_init(**{"num_iters": 2, "method": method, **more})
    got, wanted = both({**LATENT, "eta": 0.7})
    assert off(got, wanted) < 1e-4


def test_both_together_are_the_references() -> None:
    for pipe in pair():
        pipe.enable_free_init(num_iters=2)
        pipe.enable_free_noise(4, 2)
    got, wanted = both({**LATENT, "num_frames": 8})
    assert off(got, wanted) < 1e-4


def test_more_frames_than_a_motion_module_knows_are_made_in_windows_with_a_note(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reference crashes."""
    _, mine = pair()
    with caplog.at_level(logging.WARNING, "kinema"):
        got = mine(**{**LATENT, "num_frames": 40, "num_inference_steps": 1}, generator=3).frames
    assert got.shape[2] == 40
    assert f"40 frames are more than the {mine.unet.config.motion_max_seq_length} this model knows" in caplog.text
