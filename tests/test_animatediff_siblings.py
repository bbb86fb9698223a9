"""Pipelines that share their networks do not share what is set on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests import sdxl_pipes
from tests.pipelines_tiny import off
from tests.test_animatediff_plan import ip_adapter

import kinema
from kinema import InputError
from kinema.families.animatediff import MotionConditions, SparseControl

CALL = {**pipes.CALL, "num_frames": 6, "num_inference_steps": 2}


@cache
def first() -> Any:
    return pipes.ours(pipes.theirs())


def sibling(pipe: Any, kind: str = "AnimateDiffPipeline", **parts: Any) -> Any:
    made = getattr(kinema, kind).from_pipe(pipe, **parts)
    made.set_progress_bar_config(disable=True)
    return made


def clip(pipe: Any, **more: Any) -> Any:
    return pipe(**{**CALL, **more}, generator=3).frames


SETTINGS: dict[str, Callable[[Any], None]] = {
    "free noise": lambda pipe: pipe.enable_free_noise(4, 2),
    "windows": lambda pipe: pipe.enable_windows(4, 2),
    "free init": lambda pipe: pipe.enable_free_init(num_iters=2),
    "free u": lambda pipe: pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.6, b2=1.8),
    "numerics": lambda pipe: pipe.set_numerics("original"),
    "residual blocks over the clip": lambda pipe: pipe.set_numerics("original", over_clip=True),
}
BACK: dict[str, Callable[[Any], None]] = {
    "free noise": lambda pipe: pipe.disable_free_noise(),
    "windows": lambda pipe: pipe.disable_windows(),
    "free init": lambda pipe: pipe.disable_free_init(),
    "free u": lambda pipe: pipe.disable_freeu(),
    "numerics": lambda pipe: pipe.set_numerics("reference"),
    "residual blocks over the clip": lambda pipe: pipe.set_numerics("reference"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_set_on_a_pipeline_changes_no_other_one(name: str) -> None:
    plain = clip(first())
    other = sibling(first())
    SETTINGS[name](other)
    assert (clip(first()) == plain).all()
    changed = clip(other)
    assert off(changed, plain) > 1e-4
    handed_on = sibling(other)
    BACK[name](other)
    assert (clip(handed_on) == changed).all() and (clip(other) == plain).all()


def test_pictures_and_their_scales_are_a_pipelines_own() -> None:
    plain, shown = clip(first()), {"ip_adapter_image_embeds": [torch.randn(2, 1, 12)]}
    other = sibling(first())
    other.load_ip_adapter(ip_adapter(first().unet, 1), image_encoder_folder=None)
    full = clip(other, **shown)
    third = sibling(other)
    third.set_ip_adapter_scale(0.2)
    assert (clip(first()) == plain).all() and (clip(other, **shown) == full).all()
    assert off(clip(third, **shown), full) > 1e-4


def test_settings_go_along_to_every_kind_of_pipeline() -> None:
    """SDXL's has two lines of parents."""
    pipe = sdxl_pipes.ours(sdxl_pipes.theirs())
    pipe.load_ip_adapter(ip_adapter(pipe.unet, 1), image_encoder_folder=None)
    pipe.enable_free_noise(4, 2)
    pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.6, b2=1.8)
    other = type(pipe).from_pipe(pipe)
    assert other.ip_adapters == pipe.ip_adapters and other.free_noise_enabled and other._freeu == pipe._freeu


def test_free_noise_does_not_reach_sparse_controls_by_another_way() -> None:
    net = tiny.ours(tiny.reference_sparse_control(cross_attention_dim=pipes.WIDTH))
    pipe = sibling(first())
    pipe.enable_free_noise(4, 2)
    steered = sibling(pipe, "AnimateDiffSparseControlNetPipeline", controlnet=net)
    with pytest.raises(InputError, match="SparseCtrl"):
        clip(steered, conditioning_frames=pipes.clip(1))
    steered.disable_free_noise()
    assert clip(steered, conditioning_frames=pipes.clip(1)).shape[1] == 6


def test_the_numerics_of_a_sparse_control_are_the_pipelines() -> None:
    """Its motion modules were trained by the same code as the denoiser's."""
    told = {how: MotionConditions(tiny.told()[1], 5, numerics=how) for how in ("reference", "original")}
    net = tiny.ours(tiny.reference_sparse_control())
    pictures, latents = torch.randn(1, 1, 4, 12, 8), tiny.told()[0].transpose(1, 2)
    said = {}
    for how, conditions in told.items():
        steering = SparseControl(net, pictures, [2])
        with torch.no_grad():
            said[how] = net(latents, steering.prepare(torch.tensor([37.0]), conditions).at(0))
    assert max(off(a, b) for a, b in zip(*said.values(), strict=True)) > 1e-3


@pytest.mark.parametrize("kind", ["AnimateDiffPipeline", "AnimateDiffPAGPipeline", "AnimateDiffControlNetPipeline"])
def test_settings_reach_networks_that_are_offloaded(kind: str) -> None:
    parts, more = {}, {}
    if kind == "AnimateDiffControlNetPipeline":
        net = tiny.reference_control(cross_attention_dim=pipes.WIDTH, conditioning_embedding_out_channels=(8, 16))
        parts, more = {"controlnet": tiny.ours(net)}, {"conditioning_frames": pipes.clip(6)}
    pipe = sibling(first(), kind, **parts)
    pipe.enable_free_noise(4, 2)
    pipe.enable_freeu(s1=0.5, s2=0.2, b1=1.6, b2=1.8)
    pipe.set_numerics("original")
    here = clip(pipe, **more)
    pipe.enable_sequential_cpu_offload(device="cpu")
    pipe._residency = replace(pipe._residency, bring=lambda x: x.clone())  # as though there were another device
    assert off(clip(pipe, **more), here) <= 1e-5
