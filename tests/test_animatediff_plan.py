"""A plan knows the denoiser as it will run: steered, perturbed, shown pictures; its peak is the one of the call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.animatediff_tiny import text_widths
from tests.test_animatediff_ranges import lora_of

import kinema
from kinema.memory.needs import bytes_of, trace

SIZE = {"height": 32, "width": 48, "num_frames": 4}
CALL = {**pipes.CALL, **SIZE, "num_inference_steps": 1, "output_type": "latent"}
# Wide enough for a step to be what takes most.
WIDTHS = {"block_out_channels": (32, 64), "layers_per_block": 1}
IMAGE = {**tiny.SMALL, **WIDTHS, "cross_attention_dim": pipes.WIDTH}
STEERING = {k: v for k, v in IMAGE.items() if k != "up_block_types"}
ADAPTER = {"block_out_channels": (32, 64), "motion_layers_per_block": 1}


@cache
def plain() -> Any:
    return pipes.ours(pipes.theirs(image=IMAGE, adapter=ADAPTER))


def control(seed: int = 2) -> Any:
    return tiny.ours(tiny.reference_control(seed, **STEERING, conditioning_embedding_out_channels=(8, 16)))


def sparse(**config: Any) -> Any:
    kinds = [kind.replace("2D", "Motion") for kind in IMAGE["down_block_types"]]
    return tiny.ours(tiny.reference_sparse_control(**{**STEERING, "down_block_types": kinds, **config}))


def own() -> Any:
    """One whose weights may be changed."""
    pipe = on("AnimateDiffPipeline")
    return on("AnimateDiffPipeline", unet=copy.deepcopy(pipe.unet))


def on(name: str, **parts: Any) -> Any:
    pipe = getattr(kinema, name).from_pipe(plain(), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def two_controls() -> tuple[Any, dict[str, Any]]:
    shown = [pipes.clip(4, 32, 48)] * 2
    return on("AnimateDiffControlNetPipeline", controlnet=[control(), control(4)]), {"conditioning_frames": shown}


def sparse_latents() -> tuple[Any, dict[str, Any]]:
    pipe = on("AnimateDiffSparseControlNetPipeline", controlnet=sparse())
    return pipe, {"conditioning_frames": pipes.clip(1, 32, 48)}


def sparse_pixels() -> tuple[Any, dict[str, Any]]:
    pixels = {"conditioning_channels": 3, "conditioning_embedding_out_channels": (8, 16)}
    net = sparse(**pixels, use_simplified_condition_embedding=False)
    return on("AnimateDiffSparseControlNetPipeline", controlnet=net), {"conditioning_frames": pipes.clip(1, 32, 48)}


def perturbed() -> tuple[Any, dict[str, Any]]:
    return on("AnimateDiffPAGPipeline"), {}


def perturbed_early() -> tuple[Any, dict[str, Any]]:
    pipe = on("AnimateDiffPAGPipeline")
    pipe.set_pag_applied_layers("down_blocks.*attn1")
    return pipe, {}


def pictures() -> tuple[Any, dict[str, Any]]:
    pipe = on("AnimateDiffPipeline")
    pipe.load_ip_adapter([ip_adapter(plain().unet, seed) for seed in (1, 2)], image_encoder_folder=None)
    return pipe, {"ip_adapter_image_embeds": [torch.randn(2, 1, 12)] * 2}


def windows() -> tuple[Any, dict[str, Any]]:
    pipe, more = two_controls()
    pipe.enable_windows(3, 1)
    return pipe, more


def ip_adapter(unet: Any, seed: int, width: int = 12, words: int = 16) -> dict[str, torch.Tensor]:
    """An adapter's file for this denoiser, of pictures' embeddings."""
    dice, context = torch.Generator().manual_seed(seed), unet.config.cross_attention_dim

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=dice) / shape[-1] ** 0.5

    file = {"image_proj.proj.weight": some(words * context, width), "image_proj.proj.bias": some(words * context)}
    file |= {"image_proj.norm.weight": 1 + some(context), "image_proj.norm.bias": some(context)}
    inner = text_widths(unet)
    for i, out in enumerate(inner):
        file |= {f"ip_adapter.{2 * i + 1}.to_{k}_ip.weight": some(out, context) for k in "kv"}
    return file


def loras_by_frame() -> tuple[Any, dict[str, Any]]:
    pipe = own()
    pipe.load_lora_weights(lora_of(pipe.unet, "attentions"), "style")
    pipe.set_adapters("style", {"frames": {0: 1.0, 3: 0.4}})
    return pipe, {}


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "plain": lambda: (on("AnimateDiffPipeline"), {}),
    "two ControlNets": two_controls,
    "two ControlNets in windows": windows,
    "SparseCtrl of latents": sparse_latents,
    "SparseCtrl of pixels": sparse_pixels,
    "perturbed": perturbed,
    "perturbed from the first layer": perturbed_early,
    "two IP-Adapters": pictures,
    "a LoRA of other weights at every frame": loras_by_frame,
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_what_the_call_takes(name: str) -> None:
    pipe, more = CASES[name]()
    plan = pipe.plan(**SIZE, num_inference_steps=1)
    weights = sum(map(bytes_of, (*pipe.modules().values(), *pipe.ip_adapters)))
    taken = trace(lambda: pipe(**CALL, **more, generator=1)).peak
    (step,) = (s for s in plan.stages if s.name == "denoise")
    assert step.weights == weights
    assert step.needs.peak == pytest.approx(taken, rel=0.1)
    assert plan.peak == pytest.approx(weights + taken, rel=0.1)


def test_a_plan_with_offloading_counts_what_is_there_at_once() -> None:
    pipe, _ = sparse_latents()
    pipe.enable_model_cpu_offload(device="cpu")
    weights = {(s.name, s.component): s.weights for s in pipe.plan(**SIZE).stages}
    assert weights == {
        ("encode", "text_encoder"): bytes_of(pipe.text_encoder),
        ("encode", "vae"): bytes_of(pipe.vae),
        ("denoise", "unet"): bytes_of(pipe.unet) + bytes_of(pipe.controlnet),
        ("decode", "vae"): bytes_of(pipe.vae),
    }


def test_a_plan_counts_the_steps_of_every_round() -> None:
    pipe = on("AnimateDiffPipeline")
    pipe.enable_free_init(num_iters=3, use_fast_sampling=True)
    (step,) = (s for s in pipe.plan(**SIZE, num_inference_steps=6).stages if s.name == "denoise")
    assert step.times == 2 + 4 + 6
    assert "controlnet" in str(two_controls()[0].plan(**SIZE))
