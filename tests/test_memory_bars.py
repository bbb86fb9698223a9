"""ModelScope at its published size: what a clip needs, and how that compares with the reference. Nothing is timed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kinema.families.modelscope import TextConditions, UNet3DConditionModel
from kinema.memory.needs import Needs, on_meta, trace
from kinema.memory.plan import APART, SLACK, MemoryPlan, fit, predict
from kinema.memory.stages import text_to_video_stages
from kinema.pipelines.budget import frugal
from kinema.place import standing_for

from . import published

GB = 10**9


@pytest.fixture(scope="module")
def components() -> dict[str, nn.Module]:
    return published.ours()


@pytest.fixture(scope="module")
def reference() -> dict[str, nn.Module]:
    return published.theirs()


@pytest.fixture(scope="module")
def plan(components) -> MemoryPlan:
    conditions = partial(TextConditions, frames=200)
    stages = text_to_video_stages(conditions, height=256, width=256, frames=200, steps=25)
    return predict(stages, components)


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.float16)


def our_step(unet: nn.Module, frames: int) -> Needs:
    """One guided step as the loop runs it: branches share their latents, and text was dealt with before."""
    signal = unet.prepare(torch.empty(25, device="meta"), TextConditions(empty(2, 77, 1024), frames)).at(0)
    return trace(lambda: unet(empty(1, frames, 4, 32, 32), signal), resident=[unet])


def their_step(unet: nn.Module, frames: int) -> Needs:
    time = torch.empty(2, device="meta")
    return trace(lambda: unet(empty(2, 4, frames, 32, 32), time, empty(2, 77, 1024)).sample, resident=[unet])


@pytest.mark.parametrize("frames", [16, 200])
def test_a_guided_step_takes_at_most_0923_of_the_references_arithmetic_and_half_its_memory(
    components, reference, frames
):
    found, theirs = our_step(components["unet"], frames), their_step(reference["unet"], frames)
    assert found.flops <= 0.923 * theirs.flops
    assert found.peak <= 0.5 * theirs.peak


def test_200_frames_of_256_by_256_are_planned_for_far_less_than_16_gb(plan):
    assert [stage.name for stage in plan.stages] == ["encode", "denoise", "decode"]
    assert plan.peak < 8 * GB, str(plan)
    assert plan.worst.name == "denoise"


def test_decoding_takes_as_much_for_200_frames_as_for_one_and_a_hundredth_of_the_references(plan, reference):
    needs = plan.stages[-1].needs
    theirs = trace(lambda: reference["vae"].decode(empty(200, 4, 32, 32)).sample)
    assert needs.peak < 0.2 * GB
    assert needs.peak < 0.01 * theirs.peak


def test_no_single_allocation_of_a_200_frame_step_is_larger_than_a_gibibyte(plan):
    assert plan.stages[1].needs.largest < 2**30


def test_200_frames_of_256_by_256_are_made_in_5_gb(components):
    """All weights and live tensors; the same clip (`test_memory_ways`)."""
    stages = text_to_video_stages(
        partial(TextConditions, frames=200),
        height=256,
        width=256,
        frames=200,
        steps=25,
        wrapped=lambda denoiser, way: frugal(denoiser, lambda told: told, way),
    )
    plan = fit(stages, components, 5 * GB)
    assert plan.peak * SLACK < 5 * GB, str(plan)
    assert (plan.mode, plan.way("denoise"), plan.way("decode")) == ("model", APART, "")


@pytest.mark.slow
def test_25_frames_of_1024_by_576_are_made_in_6_gb():
    """SVD-XT from picture to pictures, all weights and live tensors; the same clip (`test_memory_ways`)."""
    pipe = published.svd_xt()
    plan = pipe.plan(576, 1024, 25, memory="6GB")
    assert plan.fits and plan.peak * SLACK <= 6 * GB, str(plan)
    assert (plan.mode, plan.way("denoise"), plan.way("decode")) == ("model", APART, "")
    assert plan.flops < 1.01 * pipe.plan(576, 1024, 25, memory=None).flops, "hardly any arithmetic is added"


def test_no_attention_scores_and_no_three_dimensional_convolutions_are_planned(components):
    signal = components["unet"].prepare(torch.empty(1, device="meta"), TextConditions(empty(2, 77, 1024), 4)).at(0)
    seen: set[str] = set()

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(f"{func} {args[1].ndim if func is torch.ops.aten.convolution.default else ''}".strip())
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Names():
        components["unet"](empty(1, 4, 4, 16, 16), signal)
    assert {name for name in seen if "convolution" in name} == {"aten.convolution.default 4"}


def test_a_trace_without_contents_is_that_of_a_real_run():
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
    ).eval()

    def needs(model: nn.Module, device: str) -> Needs:
        conditions = TextConditions(torch.zeros(2, 77, 16, device=device), 5)
        signal = model.prepare(torch.zeros(3, device=device), conditions).at(0)
        return trace(lambda: model(torch.zeros(1, 5, 4, 12, 8, device=device), signal), resident=[model])

    with torch.no_grad():
        real = needs(unet, "cpu")
        with standing_for("cpu"):
            found = needs(on_meta(unet), "meta")
    assert replace(found, moved=0) == replace(real, moved=0)
    assert found.moved == pytest.approx(real.moved, rel=0.1), "norms lay out what they make in another way there"
