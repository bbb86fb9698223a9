"""What overflows in float16 is made again in float32 and named; a clip is as it would be, never black, or refused."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes, animatediff_tiny, i2vgen_tiny, pipelines_tiny, sdxl_pipes, svd_tiny
from tests import test_animatediff_ip_adapter as files
from tests.pipelines_tiny import off
from torch import Tensor, nn

import kinema
from kinema import NumericsError
from kinema.encoders.vision import FeatureExtractor
from kinema.sampling.guidance import Unguided
from kinema.sampling.loop import denoise
from kinema.sampling.noise import OneStream
from kinema.sampling.watch import Spare

CLOSE = 0.02  # of the range: what the rest of a clip owes to float16
TEXT: dict[str, Any] = {
    **pipelines_tiny.SIZE,
    "num_frames": 2,
    "num_inference_steps": 2,
    "prompt": "a red circle",
    "guidance_scale": 4.0,
}
PICTURE: dict[str, Any] = {**svd_tiny.SIZE, "num_frames": 2, "image": svd_tiny.picture()}


def _steered() -> Any:
    other = animatediff_pipes.theirs()
    fields = {"conditioning_embedding_out_channels": (8, 16), "cross_attention_dim": animatediff_pipes.WIDTH}
    net = animatediff_tiny.ours(animatediff_tiny.reference_control(**fields))
    return kinema.AnimateDiffControlNetPipeline(**animatediff_pipes.ours(other).components, controlnet=net)


# How each pipeline is made, and what it is asked.
PIPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ModelScope": (pipelines_tiny.ours, TEXT),
    "SVD": (svd_tiny.ours, PICTURE),
    "I2VGen-XL": (
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        {**TEXT, "image": i2vgen_tiny.picture()},
    ),
    "AnimateDiff": (_steered, {**TEXT, "conditioning_frames": animatediff_pipes.clip(2)}),
    "AnimateDiff XL": (
        lambda: sdxl_pipes.ours(sdxl_pipes.theirs()),
        {**TEXT, "height": 32, "width": 32, "num_inference_steps": 1},
    ),
}


@cache
def _made(name: str) -> Any:
    pipe = PIPES[name][0]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def half(name: str) -> Any:
    """A pipeline of its own, in float16."""
    pipe = _made(name)
    parts = {part: copy.deepcopy(module) for part, module in pipe.modules().items()}
    made = type(pipe)(**{**pipe.components, **parts})
    made.set_progress_bar_config(disable=True)
    return made.to(torch.float16)


def clip(pipe: Any, name: str, **call: Any) -> Any:
    return pipe(**{**PIPES[name][1], "generator": 0, "output_type": "np", **call})


def overflow(module: nn.Module, layer: str, by: float = 2.0**17) -> None:
    """A layer's weights so large that what it makes is beyond float16, though they are not."""
    weight = dict(module.named_parameters())[f"{layer}.weight"]
    weight.data = (weight.data.float() * by).clamp(-6e4, 6e4).to(weight.dtype)


TWO = ["layers.0.mlp.fc1", "layers.0.mlp.fc2"]  # the first makes too much, the second little of that
# pipeline, network, layers that overflow, what the receipt then says
FAULTS = [
    ("ModelScope", "unet", ["conv_in"], {"denoise": [0, 1]}),
    ("ModelScope", "text_encoder", TWO, {"encode": ["text_encoder"]}),
    ("ModelScope", "vae", ["decoder.conv_in"], {"decode": [0, 1]}),
    ("SVD", "unet", ["conv_in"], {"denoise": [0, 1]}),
    ("SVD", "vae", ["decoder.conv_in"], {"decode": [0, 1]}),
    ("SVD", "image_encoder", TWO, {"encode": ["image_encoder"]}),
    ("I2VGen-XL", "vae", ["encoder.conv_in"], {"encode": ["vae"]}),
    ("AnimateDiff", "unet", ["conv_in"], {"denoise": [0, 1]}),
    ("AnimateDiff", "controlnet", ["conv_in"], {"denoise": [0, 1]}),
    ("AnimateDiff XL", "unet", ["conv_in"], {"denoise": [0]}),
    ("AnimateDiff XL", "text_encoder_2", TWO, {"encode": ["text_encoder", "text_encoder_2"]}),
]


@pytest.mark.parametrize(("name", "part", "layers", "said"), FAULTS, ids=[f"{f[0]}, {f[1]}" for f in FAULTS])
def test_what_overflows_is_named_and_made_again(
    name: str, part: str, layers: list[str], said: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = half(name)
    module = getattr(pipe, part)
    names = dict(module.named_parameters())
    for layer, by in zip(layers, (2.0**17, 2.0**-10), strict=False):
        overflow(module, next(n for n in names if n.endswith(f"{layer}.weight")).removesuffix(".weight"), by)
    if part == "vae" and hasattr(module.config, "force_upcast"):
        object.__setattr__(module.config, "force_upcast", False)
    with caplog.at_level(logging.WARNING, "kinema"):
        made = clip(pipe, name)
    assert made.receipt["redone_in_float32"] == said
    assert f"The {next(iter(said))} stage overflowed in float16" in caplog.text
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert off(made.frames, clip(pipe.to(torch.float32), name).frames) < CLOSE


@pytest.mark.parametrize("name", ["ModelScope", "SVD"])
def test_what_does_not_overflow_is_left_alone(name: str) -> None:
    assert "redone_in_float32" not in clip(half(name), name).receipt


def test_what_is_not_finite_in_float32_either_is_an_error() -> None:
    wrong = {"unet": "conv_in.bias", "text_encoder": "final_layer_norm.bias", "vae": "decoder.conv_in.bias"}
    for (part, bias), stage in zip(wrong.items(), ("denoise", "encode", "decode"), strict=True):
        pipe = half("ModelScope")
        next(p for name, p in getattr(pipe, part).named_parameters() if name.endswith(bias)).data.fill_(torch.nan)
        with pytest.raises(NumericsError, match=f"{stage} stage"):
            clip(pipe, "ModelScope")


def test_settings_around_the_denoiser_hold_for_steps_made_again() -> None:
    pipe = half("ModelScope")
    overflow(pipe.unet, "conv_in")
    pipe.enable_windows(2, 1, drift=False)
    pipe.enable_deep_reuse(every=2)
    pipe.enable_model_cpu_offload()
    made = clip(pipe, "ModelScope", num_frames=4)
    assert made.receipt["redone_in_float32"] == {"denoise": [0, 1]}
    assert off(made.frames, clip(pipe.to(torch.float32), "ModelScope", num_frames=4).frames) < CLOSE


def test_pictures_that_adapters_show_are_shown_to_steps_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CONTEXT", animatediff_pipes.WIDTH)
    more = {"feature_extractor": FeatureExtractor(), "image_encoder": svd_tiny.vision(projection=files.CLIP)}
    pipe = animatediff_pipes.ours(animatediff_pipes.theirs(), **more).to(torch.float16)
    pipe.load_ip_adapter([files.flat(files.file_of("plain", animatediff_tiny.text_widths(pipe.unet)))])
    overflow(pipe.unet, "conv_in")
    call = {**animatediff_pipes.CALL, "ip_adapter_image": svd_tiny.picture(), "generator": 0}
    made = pipe(**call)
    assert made.receipt["redone_in_float32"] == {"denoise": [0, 1, 2]}
    assert off(made.frames, pipe.to(torch.float32)(**call).frames) < CLOSE


# ------------------------------------------------------------------ where nobody looks before the end


class _Faulty:
    """Predicts a share of the latents, of which some numbers are infinite at some calls."""

    def __init__(self, wrong: set[int] = frozenset()):  # type: ignore[assignment]
        self.wrong, self.calls = wrong, 0

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        return self

    def at(self, step: int) -> int:
        return step

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        self.calls += 1
        predicted = 0.3 * latents
        if step in self.wrong:
            predicted[..., 0, 0] = torch.inf
        return predicted


SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"eta": 1.0},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "HeunDiscreteScheduler": {},
    "PNDMScheduler": {},
    "LMSDiscreteScheduler": {},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("wrong", [{0}, {3}, {2, 4}, {7}, set()], ids=str)
def test_looking_at_the_end_finds_what_looking_at_each_step_does(name: str, wrong: set[int]) -> None:
    plan = getattr(kinema, name)().plan(8, **SCHEDULERS[name])
    total = len(plan.schedule)

    def run(wrong: set[int], at_once: bool) -> tuple[Tensor, Spare, list[int]]:
        spare = Spare(lambda: (_Faulty(), None), at_once)
        steps = denoise(
            _Faulty(wrong),
            torch.randn(1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)),
            None,
            schedule=plan.schedule,
            solver=plan.solver,
            guidance=Unguided(),
            noise=OneStream(torch.Generator().manual_seed(1)),
            spare=spare,
        )
        told = [(step.index, step.latents) for step in steps]
        return told[-1][1], spare, [index for index, _ in told]

    sound, none, _ = run(set(), True)
    assert not none.steps
    for at_once in (True, False):
        made, spare, told = run(wrong, at_once)
        assert torch.equal(made, sound) and spare.steps == sorted(wrong)
        again = [] if at_once or not wrong else list(range(min(wrong), total))
        assert told == [*range(total), *again]


def test_edits_of_a_step_that_is_told_of_again_are_asked_for_again() -> None:
    plan = kinema.DDIMScheduler().plan(4)

    def run(wrong: set[int], at_once: bool) -> Tensor:
        steps = denoise(
            _Faulty(wrong),
            torch.ones(1, 1, 1, 2, 2),
            None,
            schedule=plan.schedule,
            solver=plan.solver,
            guidance=Unguided(),
            noise=OneStream(),
            spare=Spare(lambda: (_Faulty(), None), at_once),
        )
        step = next(steps)
        while True:
            last = step.latents
            try:
                step = steps.send(step.latents + step.index)
            except StopIteration:
                return last

    assert torch.equal(run({2}, False), run(set(), True))
