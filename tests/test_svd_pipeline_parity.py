"""Stable Video Diffusion gives the reference's clips on shared weights, whatever the architecture and the arguments."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from diffusers.schedulers.scheduling_utils import AysSchedules
from tests.pipelines_tiny import gen, off
from tests.svd_tiny import SCHEDULER, SIZE, picture, theirs, twin

from kinema.encoders.vision import resized
from kinema.families.stable_video.presets import align_your_steps

CLOSE = 1e-4  # of the output's range

THREE = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    "num_attention_heads": (1, 2, 4),
}
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # unet, autoencoder, image encoder
    "one layer": ({}, {}, {}),
    "two layers": ({"layers_per_block": 2, "num_attention_heads": (4, 2)}, {"layers_per_block": 2}, {}),
    "three levels": (THREE, {"block_out_channels": (32, 32, 64)}, {}),
    "deep transformers": ({"transformer_layers_per_block": 2}, {"scaling_factor": 0.5}, {"width": 16}),
    "wide embeddings": (
        {
            "cross_attention_dim": 24,
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 48,
            "num_frames": 4,
        },
        {"force_upcast": False},
        {"projection": 24},
    ),
    "attention low": (
        {
            "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
            "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        },
        {},
        {},
    ),
    "an image autoencoder": ({}, {"plain": True}, {}),
}
BOTH = [picture(0), picture(1)]
RUNS: list[tuple[str, dict[str, Any]]] = [
    ("one layer", {}),
    ("one layer", {"max_guidance_scale": 1.0, "num_frames": 5, "num_inference_steps": 5}),
    ("two layers", {"fps": 24, "motion_bucket_id": 200, "noise_aug_strength": 0.3, "num_frames": 2}),
    ("two layers", {"image": BOTH, "min_guidance_scale": 2.0, "max_guidance_scale": 1.5}),
    ("three levels", {"height": 32, "width": 48, "noise_aug_strength": 0.0}),
    ("three levels", {"num_frames": 1, "height": 32, "num_videos_per_prompt": 2, "max_guidance_scale": 1}),
    ("deep transformers", {"min_guidance_scale": 0.0, "max_guidance_scale": 7.5, "motion_bucket_id": 5}),
    ("wide embeddings", {"num_frames": None, "sigmas": [80.0, 30.0, 8.0, 2.0, 0.5, 0.0]}),
    ("attention low", {"num_videos_per_prompt": 3, "width": 24}),
    ("an image autoencoder", {"image": BOTH, "fps": 12}),
]


@cache
def pipes(config: str) -> tuple[Any, Any]:
    """Ours and the reference's."""
    other = theirs(*CONFIGS[config])
    return twin(other), other


def both(config: str, seed: int = 3, **call: Any) -> tuple[Any, Any]:
    # With fewer steps than four, from 700 to almost nothing, the reference's own rounding shows.
    call = {**SIZE, "num_inference_steps": 4, "output_type": "latent", **call}
    call.setdefault("image", picture(0, call["width"], call["height"]))
    mine, other = (pipe(**call, generator=gen(seed)).frames for pipe in pipes(config))
    return mine, other


@pytest.mark.parametrize(("config", "call"), RUNS)
def test_a_clip_is_the_reference_s(config: str, call: dict[str, Any]) -> None:
    mine, other = both(config, **call)
    assert off(mine, other) < CLOSE


@pytest.mark.parametrize("config", ["three levels", "deep transformers", "an image autoencoder"])
@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_decoded_pictures_are_the_reference_s_whole_or_in_the_pieces_asked_for(config: str, chunk: int | None) -> None:
    mine, other = both(config, num_frames=5, height=32, decode_chunk_size=chunk, output_type="pt", max_guidance_scale=1)
    assert off(mine, other) < CLOSE


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_outputs_come_in_the_reference_s_forms(output_type: str) -> None:
    mine, other = both("one layer", output_type=output_type)
    if output_type == "np":
        assert mine.dtype == other.dtype and off(mine, other) < CLOSE
    else:
        assert (
            [[p.size for p in clip] for clip in mine] == [[p.size for p in clip] for clip in other] == [[(32, 16)] * 3]
        )


@pytest.mark.parametrize("size", [(64, 32), (16, 8), (200, 100)])
def test_pictures_of_other_sizes_are_resized_as_by_the_reference(size: tuple[int, int]) -> None:
    mine, other = both("one layer", image=picture(2, *size))
    assert off(mine, other) < CLOSE


def test_pictures_of_other_proportions_are_squashed_as_by_the_reference_where_that_is_asked() -> None:
    call: dict[str, Any] = {**SIZE, "num_inference_steps": 4, "output_type": "latent"}
    tall = picture(2, 20, 50)
    mine, other = pipes("one layer")
    expected = other(tall, generator=gen(3), **call).frames
    assert off(mine(tall, fit="stretch", generator=gen(3), **call).frames, expected) < CLOSE
    assert off(mine(tall, generator=gen(3), **call).frames, expected) > 100 * CLOSE


def test_tensors_of_the_image_encoder_s_size_are_taken_as_by_the_reference() -> None:
    """The only size of tensors the reference can take."""
    other = theirs(vision_={"side": 32})
    call = {**SIZE, "height": 32, "num_inference_steps": 4, "output_type": "latent"}
    image = torch.rand(2, 3, 32, 32, generator=gen(0))
    mine = twin(other)(image, generator=gen(3), **call).frames
    assert off(mine, other(image, generator=gen(3), **call).frames) < CLOSE


def test_align_your_steps_has_the_published_levels_by_name() -> None:
    levels = AysSchedules["StableDiffusionVideoSigmas"]
    assert align_your_steps(10) == pytest.approx(levels, rel=1e-6)
    call = {**SIZE, "num_frames": 2, "output_type": "latent", "num_inference_steps": 10}
    mine, other = pipes("one layer")
    expected = other(picture(0), sigmas=levels, generator=gen(3), **call).frames
    assert off(mine(picture(0), sigmas="ays", generator=gen(3), **call).frames, expected) < CLOSE


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        (
            diffusers.EulerDiscreteScheduler,
            {"use_karras_sigmas": False, "timestep_type": "discrete", "sigma_max": None},
        ),
        (diffusers.HeunDiscreteScheduler, {}),
        (diffusers.DDIMScheduler, {"rescale_betas_zero_snr": True}),
    ],
)
def test_other_schedulers_give_the_reference_s_clip_too(scheduler: Any, options: dict[str, Any]) -> None:
    known = scheduler.__init__.__wrapped__.__code__.co_varnames
    config = {k: v for k, v in {**SCHEDULER, **options}.items() if k in known}
    other = theirs(scheduler=scheduler(**config))
    call = {**SIZE, "num_inference_steps": 5, "output_type": "latent"}
    mine = twin(other)(picture(0), generator=gen(3), **call).frames
    assert off(mine, other(picture(0), generator=gen(3), **call).frames) < CLOSE


@pytest.mark.parametrize("size", [(40, 64), (224, 224), (100, 600), (3, 230), (225, 2)])
def test_pictures_are_shrunk_for_clip_as_by_the_reference(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=gen(0))
    expected = (_resize_with_antialiasing(x * 2 - 1, (224, 224)) + 1) / 2
    assert off(resized(x, (224, 224)), expected) < 1e-6
