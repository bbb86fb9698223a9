"""No number of frames ends in an error of the machinery: 1 to 200, however a clip is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests import sdxl_pipes

import kinema

CALL: dict[str, Any] = {
    "prompt": "a",
    "height": 8,
    "width": 8,
    "num_inference_steps": 1,
    "output_type": "latent",
    "generator": 3,
}
IMAGE = {**tiny.SMALL, "layers_per_block": 1}
MODULE = {"block_out_channels": (16, 32), "motion_layers_per_block": 1}
STEERING = {k: v for k, v in IMAGE.items() if k != "up_block_types"} | {"cross_attention_dim": pipes.WIDTH}
# Around what a window holds, what a module has places for, and multiples of both.
FRAMES = st.one_of(
    st.sampled_from([1, 2, 3, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 64, 65, 127, 199, 200]),
    st.integers(1, 200),
)


def _frames(n: int) -> torch.Tensor:
    return torch.zeros(n, 3, 8, 8)


@cache
def base(places: int = 32) -> Any:
    return pipes.ours(pipes.theirs(image=IMAGE, adapter={**MODULE, "motion_max_seq_length": places}))


@cache
def control() -> Any:
    return tiny.ours(tiny.reference_control(**STEERING | {"conditioning_embedding_out_channels": (8, 16)}))


@cache
def sparse() -> Any:
    kinds = [kind.replace("2D", "Motion") for kind in IMAGE["down_block_types"]]
    return tiny.ours(tiny.reference_sparse_control(**{**STEERING, "down_block_types": kinds}))


@cache
def pia() -> Any:
    return pipes.ours(pipes.theirs("PIAPipeline", image=IMAGE, adapter={**MODULE, "conv_in_channels": 9}))


@cache
def sdxl() -> Any:
    return sdxl_pipes.ours(sdxl_pipes.theirs())


@cache
def still() -> Any:
    parts = {k: v for k, v in base().components.items() if k in kinema.TextToVideoZeroPipeline.parts}
    unet = tiny.ours(tiny.reference_image_model(**IMAGE, cross_attention_dim=pipes.WIDTH))
    return kinema.TextToVideoZeroPipeline(**{**parts, "unet": unet})


def on(kind: str, **parts: Any) -> Any:
    return getattr(kinema, kind).from_pipe(base(), **parts)


def steered(frames: int) -> tuple[Any, dict[str, Any]]:
    pipe = on("AnimateDiffControlNetPipeline", controlnet=[control(), sparse()])
    return pipe, {"conditioning_frames": [_frames(frames), _frames(1)], "controlnet_frame_indices": [frames - 1]}


def footage(frames: int) -> tuple[Any, dict[str, Any]]:
    return on("AnimateDiffVideoToVideoPipeline"), {"video": _frames(frames), "strength": 1.0, "num_frames": None}


def from_one(frames: int) -> tuple[Any, dict[str, Any]]:
    more = {"num_frames": None, "video_length": frames, "num_inference_steps": 4, "t0": 1, "t1": 2}
    return type(still()).from_pipe(still()), more


def few_places(frames: int) -> tuple[Any, dict[str, Any]]:
    return kinema.AnimateDiffPipeline.from_pipe(base(24)), {}


def travelling(frames: int) -> tuple[Any, dict[str, Any]]:
    return on("AnimateDiffPipeline"), {"prompt": {0: "a", frames - 1: "b"}, "motion_scale": [0.5] * frames}


WAYS: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
    "text": lambda frames: (on("AnimateDiffPipeline"), {}),
    "a module of 24 places": few_places,
    "a prompt that changes": travelling,
    "steered": steered,
    "perturbed": lambda frames: (on("AnimateDiffPAGPipeline"), {"guidance_scale": 1.0}),
    "footage": footage,
    "PIA": lambda frames: (type(pia()).from_pipe(pia()), {"image": _frames(1)[0]}),
    "SDXL": lambda frames: (type(sdxl()).from_pipe(sdxl()), {"height": 16, "width": 16}),
    "from one frame": from_one,
}
LENGTHS: dict[str, Callable[[Any], None]] = {
    "as it comes": lambda pipe: None,
    "windows": lambda pipe: pipe.enable_windows(12, 5),
    "windows in a loop": lambda pipe: pipe.enable_windows(16, 4, loop=True, stride=3),
    "FreeNoise": lambda pipe: pipe.enable_free_noise(16, 4),
    "FreeInit": lambda pipe: pipe.enable_free_init(2),
}
GOES_WITHOUT = {"steered": {"FreeNoise"}, "from one frame": {*LENGTHS} - {"as it comes"}}


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=5, deadline=None)
@given(frames=FRAMES, data=st.data())
def test_a_clip_of_any_length_is_made(way: str, frames: int, data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([name for name in LENGTHS if name not in GOES_WITHOUT.get(way, ())]))
    pipe, more = WAYS[way](frames)
    pipe.set_progress_bar_config(disable=True)
    LENGTHS[length](pipe)
    call = {k: v for k, v in {**CALL, "num_frames": frames, **more}.items() if v is not None}
    made = pipe(**call).frames
    assert made.shape[2] == frames and torch.isfinite(made).all()
