"""Length in AnimateDiff's pipelines: FreeNoise and FreeInit go together, and windows come by themselves."""

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
    for pipe in pair():
        pipe.disable_free_init()
        if getattr(pipe, "free_noise_enabled", False):
            pipe.disable_free_noise()


def test_both_together_are_the_references() -> None:
    for pipe in pair():
        pipe.enable_free_init(num_iters=2, use_fast_sampling=True)
        pipe.enable_free_noise(4, 2)
    got, wanted = both({**LATENT, "num_frames": 8, "eta": 0.7, "prompt": {0: "a cat", 3: "a dog", 6: "sea"}})
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
