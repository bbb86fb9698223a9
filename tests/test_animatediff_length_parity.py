"""FreeInit and FreeNoise in AnimateDiff's pipelines, against the reference's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests.pipelines_tiny import gen, off

CLOSE = 1e-4
FREE_INIT: dict[str, dict[str, Any]] = {
    "butterworth": {"num_iters": 2},
    "ideal": {"num_iters": 2, "method": "ideal", "spatial_stop_frequency": 0.4, "temporal_stop_frequency": 0.6},
    "gaussian": {"num_iters": 3, "method": "gaussian", "temporal_stop_frequency": 0.5},
    "fast": {"num_iters": 3, "use_fast_sampling": True, "order": 2},
}
FREE_NOISE: dict[str, dict[str, Any]] = {
    "pyramid, shuffled": {"context_length": 4, "context_stride": 2},
    "flat, shuffled": {"context_length": 4, "context_stride": 3, "weighting_scheme": "flat"},
    "sawtooth, random": {
        "context_length": 4,
        "context_stride": 2,
        "weighting_scheme": "delayed_reverse_sawtooth",
        "noise_type": "random",
    },
}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    theirs = pipes.theirs()
    return theirs, pipes.ours(theirs)


@pytest.mark.parametrize("name", FREE_INIT)
def test_free_init_gives_the_reference_s_clip(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "num_frames": 6, "num_inference_steps": 4}
    for pipe in pair:
        pipe.enable_free_init(**FREE_INIT[name])
    try:
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE
    finally:
        for pipe in pair:
            pipe.disable_free_init()


@pytest.mark.parametrize("travels", [False, True], ids=["one prompt", "prompts on the way"])
@pytest.mark.parametrize("name", FREE_NOISE)
def test_free_noise_gives_the_reference_s_clip(pair: tuple[Any, Any], name: str, travels: bool) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "num_frames": 9, "negative_prompt": "dull"}
    if travels:
        call["prompt"] = {0: "a red circle", 5: "a star"}
    for pipe in pair:
        pipe.enable_free_noise(**FREE_NOISE[name])
    try:
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE
    finally:
        for pipe in pair:
            pipe.disable_free_noise()


def test_noise_is_repeated_where_the_reference_repeats_nothing(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    call = {**pipes.CALL, "num_frames": 9, "output_type": "latent"}
    context = {"context_length": 4, "context_stride": 2}
    made = {}
    for pipe in pair:
        for kind in ("repeat_context", "random"):
            pipe.enable_free_noise(**context, noise_type=kind)
            made[pipe is ours, kind] = pipe(**call, generator=gen(3)).frames
    assert off(made[False, "repeat_context"], made[False, "random"]) == 0  # so that its two kinds are one
    first = torch.randn(1, 4, 4, 8, 12, generator=gen(3))
    repeated = first.repeat(1, 1, 3, 1, 1)[:, :, :9]
    by_hand = ours(**call, latents=repeated).frames
    for pipe in pair:
        pipe.disable_free_noise()
    assert off(made[True, "random"], made[False, "random"]) <= CLOSE
    assert off(made[True, "repeat_context"], by_hand) <= 1e-5
