"""A clip's receipt names everything that made it what it is."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.test_animatediff_plan import ip_adapter

import kinema

CALL = {**pipes.CALL, "num_inference_steps": 1, "generator": 5}


@cache
def base() -> Any:
    return pipes.ours(pipes.theirs())


@pytest.fixture
def pipe() -> Any:
    return made("AnimateDiffPipeline")


def made(kind: str, **parts: Any) -> Any:
    pipe = getattr(kinema, kind).from_pipe(base(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def told(pipe: Any, **more: Any) -> dict[str, Any]:
    receipt = pipe(**{**CALL, **more}).receipt
    assert json.loads(json.dumps(receipt)) == receipt
    return dict(receipt)


def test_a_plain_clip_says_whose_numbers_it_is_made_with_and_nothing_that_is_not_there(pipe: Any) -> None:
    receipt = told(pipe)
    assert receipt["numerics"] == "reference"
    assert not {"windows", "free_noise", "free_init", "freeu", "ip_adapters", "loras", "pag_applied_layers"} & {
        *receipt
    }


def test_the_original_numerics(pipe: Any) -> None:
    pipe.set_numerics("original", over_clip=True)
    receipt = told(pipe)
    assert (receipt["numerics"], receipt["over_clip"]) == ("original", True)


def test_perturbed_layers_and_their_scale() -> None:
    pipe = made("AnimateDiffPAGPipeline")
    pipe.set_pag_applied_layers(["mid_block.*attn1", "down_blocks.0"])
    receipt = told(pipe, pag_scale=2.0, pag_adaptive_scale=0.001)
    assert receipt["pag_applied_layers"] == ["mid_block.*attn1", "down_blocks.0"]
    assert (receipt["pag_scale"], receipt["pag_adaptive_scale"]) == (2.0, 0.001)


def test_ip_adapters_and_their_scales(pipe: Any, tmp_path: Any) -> None:
    torch.save(ip_adapter(pipe.unet, 1), tmp_path / "ip-adapter_tiny.bin")
    pipe.load_ip_adapter(
        [tmp_path / "ip-adapter_tiny.bin", ip_adapter(pipe.unet, 2)],
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale([0.6, {"mid": 0.5}])
    assert told(pipe, ip_adapter_image_embeds=[torch.zeros(2, 1, 12)] * 2)["ip_adapters"] == [
        {"name": "ip-adapter_tiny.bin", "kind": "plain", "scale": 0.6},
        {"kind": "plain", "scale": {"mid": 0.5}},
    ]


def test_what_steers_and_how_much() -> None:
    net = tiny.ours(tiny.reference_sparse_control(cross_attention_dim=pipes.WIDTH))
    pipe = made("AnimateDiffSparseControlNetPipeline", controlnet=net)
    receipt = told(pipe, conditioning_frames=pipes.clip(1), controlnet_conditioning_scale=0.5)
    assert receipt["controlnets"] == ["SparseControlNetModel"] and receipt["controlnet_conditioning_scale"] == 0.5


def test_windows_that_were_asked_for_and_those_that_were_not(pipe: Any) -> None:
    length = pipe.frame_limit
    assert told(pipe, num_frames=length + 1)["windows"]["length"] == 16
    pipe.enable_windows(3, 1, noise_type="shuffle_context")
    windows = told(pipe)["windows"]
    assert (windows["length"], windows["overlap"], windows["noise_type"]) == (3, 1, "shuffle_context")


def test_free_noise_free_init_and_free_u(pipe: Any) -> None:
    pipe.enable_free_noise(3, 2, "flat")
    pipe.enable_free_init(num_iters=2, method="gaussian")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    receipt = told(pipe)
    assert receipt["free_noise"]["length"] == 3 and receipt["free_noise"]["weighting_scheme"] == "flat"
    assert (receipt["free_init"]["rounds"], receipt["free_init"]["method"]) == (2, "gaussian")
    assert receipt["freeu"] == {"s1": 0.9, "s2": 0.2, "b1": 1.2, "b2": 1.4}


def test_the_scheduler_is_the_one_that_ran(pipe: Any) -> None:
    assert told(pipe)["scheduler"]["_class_name"] == "DDIMScheduler"
    receipt = told(pipe, preset="lcm")
    assert receipt["scheduler"]["_class_name"] == "LCMScheduler" and receipt["preset"] == "lcm"
