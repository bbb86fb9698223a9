"""I2VGen-XL's pipeline gives the reference's clips on shared weights, and the right ones where the reference errs."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests import reference
from tests.i2vgen_tiny import SCHEDULER, SIZE, picture, theirs, twin
from tests.pipelines_tiny import gen, off, scheduler_like
from transformers import CLIPTextModel

import kinema

CLOSE = 1e-4  # of the output's range
SAME = 1e-5  # what rounding does when matrices have other numbers of rows

THREE_LEVELS = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, wide heads": {
        "unet_fields": {"layers_per_block": 2, "attention_head_dim": 16},
        "vae_fields": {"layers_per_block": 2},
    },
    "three levels, odd latents": {
        "unet_fields": THREE_LEVELS,
        "vae_fields": {"block_out_channels": (8, 8, 8, 16)},
    },
    "few groups": {"unet_fields": {"norm_num_groups": 4}, "vae_fields": {"norm_num_groups": 2}, "width": 20},
    "a larger view": {"unet_fields": {"block_out_channels": (24, 48)}, "side": 50, "width": 48},
    "narrow heads, attention low": {
        "unet_fields": {
            "attention_head_dim": 4,
            "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
            "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
        },
        "vae_fields": {"scaling_factor": 0.5, "use_quant_conv": False, "use_post_quant_conv": False},
    },
}
Choice = tuple[Any, dict[str, Any]]
V = {"prediction_type": "v_prediction", **reference.BETAS}
SCHEDULERS: dict[str, Choice] = {
    "published": (diffusers.DDIMScheduler, SCHEDULER),
    "published, trailing": (diffusers.DDIMScheduler, {**SCHEDULER, "timestep_spacing": "trailing"}),
    "DPM++ 2M Karras": (diffusers.DPMSolverMultistepScheduler, {**V, "use_karras_sigmas": True}),
    "DPM++ SDE": (diffusers.DPMSolverMultistepScheduler, {**reference.BETAS, "algorithm_type": "sde-dpmsolver++"}),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, V),
    "Heun": (diffusers.HeunDiscreteScheduler, V),
    "UniPC": (diffusers.UniPCMultistepScheduler, V),
    "LCM": (diffusers.LCMScheduler, V),
}
TWO = {
    "prompt": ["a red circle", "(b) two"],
    "negative_prompt": ["blurry, bad", ""],
    "image": [picture(seed=1), picture(seed=2)],
}
RUNS = [  # configuration, scheduler, arguments
    ("one layer", "published", {}),
    ("one layer", "published", {"eta": 0.7, "guidance_scale": 7.5, "negative_prompt": "bad", "target_fps": 8}),
    ("one layer", "published", {"num_videos_per_prompt": 3, "eta": 1.0, "num_frames": 2}),
    ("two layers, wide heads", "published", {**TWO, "height": 24, "width": 40, "clip_skip": 2}),
    ("two layers, wide heads", "LCM", {"guidance_scale": 1, "num_inference_steps": 4, "num_frames": 1}),
    ("three levels, odd latents", "published, trailing", {"height": 24, "width": 40, "num_frames": 5}),
    ("three levels, odd latents", "Heun", {"height": 40, "clip_skip": None, "target_fps": 24}),
    ("few groups", "DPM++ 2M Karras", {**TWO, "num_inference_steps": 6, "guidance_scale": 1}),
    ("few groups", "UniPC", {"image": picture(48, 24), "num_inference_steps": 5}),
    ("a larger view", "Euler ancestral", {**TWO, "num_inference_steps": 5, "guidance_scale": 3.0}),
    ("a larger view", "published", {"height": 32, "width": 16, "image": picture(16, 16), "target_fps": 1}),
    ("narrow heads, attention low", "DPM++ SDE", {"negative_prompt": "bad", "num_frames": 4}),
    ("narrow heads, attention low", "published", {**TWO, "eta": 0.3, "guidance_scale": 15.0}),
]


@pytest.fixture(autouse=True)
def _reference_that_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference asks CLIP's text model for a part that current versions of it do not have."""
    if not hasattr(CLIPTextModel, "text_model") and "as_shipped" not in request.node.name:
        monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda model: model), raising=False)


@cache
def pipes(config: str) -> tuple[Any, Any]:
    other = theirs(**CONFIGS[config])
    return twin(other), other


def ready(config: str = "one layer", scheduler: str = "published") -> tuple[Any, Any]:
    """Ours and the reference's."""
    cls, options = SCHEDULERS[scheduler]
    mine, other = pipes(config)
    other.scheduler = cls(**options)
    mine.scheduler = scheduler_like(other.scheduler)
    return mine, other


def both(mine: Any, other: Any, seed: int = 3, **call: Any) -> tuple[Any, Any]:
    """The same call of both, with PyTorch's own generator, as published: the reference knows no other for pictures."""
    call = {"prompt": "a cat, running", "image": picture(), **SIZE, "output_type": "latent", **call}
    got = mine(**call, generator=torch.manual_seed(seed)).frames
    return got, other(**call, generator=torch.manual_seed(seed)).frames


def certain(other: Any) -> Any:
    """The reference's pipeline with an encoder that is sure of a picture's latents, so that no noise is in them."""
    with torch.no_grad():
        other.vae.quant_conv.weight[4:] = 0
        other.vae.quant_conv.bias[4:] = -60
    return other


@pytest.mark.parametrize(("config", "scheduler", "call"), RUNS)
def test_a_clip_is_the_reference_s(config: str, scheduler: str, call: dict[str, Any]) -> None:
    got, expected = both(*ready(config, scheduler), **call)
    assert off(got, expected) < CLOSE


@pytest.mark.parametrize("size", [(16, 24), (24, 24), (48, 72), (100, 36), (12, 18), (8, 8), (33, 99)])
def test_pictures_of_any_size_are_cut_as_by_the_reference(size: tuple[int, int]) -> None:
    got, expected = both(*ready(), image=picture(*size), num_inference_steps=1)
    assert off(got, expected) < CLOSE


def test_tensors_are_taken_as_by_the_reference() -> None:
    image = torch.rand(2, 3, 24, 40, generator=gen(0))
    got, expected = both(*ready(), prompt=["a", "b"], image=image)
    assert off(got, expected) < CLOSE
    mine, _ = ready()
    array = image.movedim(1, -1).numpy()
    call = {"prompt": ["a", "b"], **SIZE, "output_type": "latent"}
    for same in (array, list(array), list(image)):
        assert off(mine(image=same, **call, generator=torch.manual_seed(3)).frames, got) < SAME


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_given_embeddings_and_latents_are_used_as_by_the_reference(guidance_scale: float) -> None:
    positive, negative = torch.randn(2, 2, 9, 32, generator=gen(0)).unbind()
    given = {
        "prompt": None,
        "prompt_embeds": positive,
        "negative_prompt_embeds": negative,
        "latents": torch.randn(2, 4, 3, 8, 12, generator=gen(1)),
        "guidance_scale": guidance_scale,
        "image": TWO["image"],
    }
    got, expected = both(*ready(), **given)
    assert off(got, expected) < CLOSE


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
def test_pictures_are_the_reference_s_however_many_are_decoded_at_once(chunk: int | None) -> None:
    got, expected = both(*ready("two layers, wide heads"), decode_chunk_size=chunk, output_type="pt")
    assert got.dtype == expected.dtype and off(got, expected) < CLOSE


def test_outputs_come_in_the_reference_s_forms() -> None:
    got, expected = both(*ready(), output_type="np")
    assert got.dtype == expected.dtype and off(got, expected) < CLOSE
    got, expected = both(*ready(), output_type="pil")
    assert [[p.size for p in clip] for clip in got] == [[p.size for p in clip] for clip in expected] == [[(24, 16)] * 3]
    assert max(abs(np.array(a, int) - np.array(b, int)).max() for a, b in zip(got[0], expected[0])) <= 1


def test_a_clip_of_the_default_arguments_starts_from_the_picture_cut_to_1280_by_704() -> None:
    """Only the start is looked at: the network takes a long time for so many pixels."""
    mine, _ = ready("three levels, odd latents")
    job = mine.begin(mine._bind((), {"prompt": "a", "image": picture(704, 1280)}))
    assert len(job.schedule) == 50 and job.guidance.scale == 9.0 and job.told == {"playback_fps": 16}
    events = mine.stream(prompt="a", image=picture(704, 1280))
    assert next(events).stage == "encode"


def test_freeu_is_the_reference_s() -> None:
    other = theirs()
    mine = twin(other)
    plain, _ = both(mine, other)
    for pipe in (mine, other):
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    got, expected = both(mine, other)
    assert off(got, expected) < CLOSE < off(got, plain)


# ------------------------------------------------------------------ where the reference errs


def test_the_reference_as_shipped_fails_with_its_own_defaults_and_kinema_does_not() -> None:
    if hasattr(CLIPTextModel, "text_model"):
        pytest.skip("this version of transformers still has what the reference asks for")
    mine, other = ready()
    call = {"prompt": "a", "image": picture(), **SIZE, "num_inference_steps": 1}
    with pytest.raises(AttributeError, match="text_model"):
        other(**call)
    assert len(mine(**call).frames[0]) == 3


def test_a_generator_decides_everything_where_the_reference_takes_pictures_latents_from_the_global_one() -> None:
    mine, other = ready()
    call = {"prompt": "a", "image": picture(), **SIZE, "output_type": "latent"}
    made: dict[Any, list[Any]] = {mine: [], other: []}
    for pipe, clips in made.items():
        for elsewhere in (1, 2):
            torch.manual_seed(elsewhere)
            clips.append(pipe(**call, generator=gen(3)).frames)
    assert torch.equal(*made[mine])
    assert off(*made[other]) > 10 * CLOSE


@pytest.mark.parametrize("scheduler", ["published", "Euler ancestral"])
def test_a_generator_of_one_s_own_starts_and_steps_as_in_the_reference(scheduler: str) -> None:
    """A picture's latents draw aside from it, so that all else is the reference's where there is nothing to draw."""
    other = certain(theirs())
    mine = twin(other)
    cls, options = SCHEDULERS[scheduler]
    other.scheduler = cls(**options)
    mine.scheduler = scheduler_like(other.scheduler)
    call = {"prompt": "a", "image": picture(), **SIZE, "output_type": "latent", "eta": 0.5}
    for generators in (lambda: gen(3), lambda: [gen(3)]):
        got, expected = (pipe(**call, generator=generators()).frames for pipe in (mine, other))
        assert off(got, expected) < CLOSE


def test_each_picture_is_cut_by_itself_where_the_reference_cuts_all_by_the_first() -> None:
    other = certain(theirs())
    mine = twin(other)
    images = [picture(24, 40, 1), picture(60, 24, 2)]
    latents = torch.randn(2, 4, 3, 8, 12, generator=gen(1))
    call = {**SIZE, "output_type": "latent"}
    together, expected = (p(prompt=["a", "a"], image=images, latents=latents, **call).frames for p in (mine, other))
    for i, image in enumerate(images):
        alone = other(prompt="a", image=image, latents=latents[i : i + 1], **call).frames
        assert off(together[i : i + 1], alone) < CLOSE
        assert (off(expected[i : i + 1], alone) < CLOSE) == (i == 0)


def test_several_clips_of_several_pictures_keep_to_their_own_where_the_reference_mixes_them() -> None:
    other = certain(theirs())
    mine = twin(other)
    images = [picture(seed=1), picture(seed=2)]
    latents = torch.randn(4, 4, 3, 8, 12, generator=gen(1))
    call = {**SIZE, "output_type": "latent"}
    many = {"prompt": ["a", "b"], "image": images, "num_videos_per_prompt": 2, "latents": latents}
    together, expected = (pipe(**many, **call).frames for pipe in (mine, other))
    right = []
    for i in range(4):
        alone = other(prompt="ab"[i // 2], image=images[i // 2], latents=latents[i : i + 1], **call).frames
        assert off(together[i : i + 1], alone) < CLOSE
        right.append(off(expected[i : i + 1], alone) < CLOSE)
    assert right == [True, False, False, True]


@pytest.mark.parametrize(("given", "wanted"), [((512, 512), (1280, 704)), ((30, 20), (24, 24))])
def test_no_border_appears_where_rounding_makes_the_reference_s_picture_a_pixel_short(
    given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import _center_crop_wide

    from kinema.families.i2vgen.framing import cropped

    white = Image.new("RGB", given, "white")
    assert np.array(_center_crop_wide(white, wanted)).min() == 0
    assert np.array(cropped(white, *wanted)).min() == 255


def test_one_picture_and_one_negative_prompt_serve_all_prompts_where_the_reference_fails() -> None:
    other = certain(theirs())
    mine = twin(other)
    latents = torch.randn(2, 4, 3, 8, 12, generator=gen(1))
    call = {**SIZE, "output_type": "latent", "negative_prompt": "bad", "image": picture()}
    with pytest.raises(Exception, match=r".+"):
        other(prompt=["a", "b"], latents=latents, **call)
    together = mine(prompt=["a", "b"], latents=latents, **call).frames
    for i, prompt in enumerate("ab"):
        alone = other(prompt=prompt, latents=latents[i : i + 1], **call).frames
        assert off(together[i : i + 1], alone) < CLOSE


def test_every_configuration_and_scheduler_is_tried() -> None:
    assert {run[0] for run in RUNS} == set(CONFIGS) and {run[1] for run in RUNS} == set(SCHEDULERS)
    assert all(hasattr(kinema, cls.__name__) for cls, _ in SCHEDULERS.values())
