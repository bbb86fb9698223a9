"""Text to video from image models alone, against the reference on the same weights and from the same seed."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from tests import animatediff_tiny as tiny
from tests import sdxl_pipes, shared_tiny
from tests.pipelines_tiny import gen, off, scheduler_like

import kinema
from kinema import CheckpointError, InputError
from kinema.checkpoint.hub import box

CLOSE = 1e-4
SMALL = {k: v for k, v in sdxl_pipes.IMAGE.items() if not k.startswith(("addition", "projection", "cross"))}
CALL: dict[str, Any] = {
    "prompt": "a red circle",
    "video_length": 3,
    "height": 32,
    "width": 48,
    "num_inference_steps": 5,
    "t0": 1,
    "t1": 3,
    "motion_field_strength_x": 60,
    "motion_field_strength_y": 35,
    "output_type": "latent",
}


def ours(other: Any) -> Any:
    nets = {"unet": tiny.ours(other.unet), "vae": kinema.AutoencoderKL(dict(other.vae.config)).eval()}
    nets["vae"].load_state_dict(other.vae.state_dict())
    cls = getattr(kinema, type(other).__name__)
    shared = {n: getattr(other, n) for n in cls.parts if n.startswith(("text", "token"))}
    pipe = cls(**nets, **shared, scheduler=scheduler_like(other.scheduler))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    parts = {k: v for k, v in sdxl_pipes.parts().items() if not k.endswith("_2")}
    theirs = diffusers.TextToVideoZeroPipeline(
        unet=tiny.reference_image_model(**SMALL, cross_attention_dim=32),
        **parts,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs, ours(theirs)


@pytest.fixture(scope="module")
def large() -> tuple[Any, Any]:
    theirs = diffusers.TextToVideoZeroSDXLPipeline(
        unet=tiny.reference_image_model(**sdxl_pipes.IMAGE), **sdxl_pipes.parts()
    )
    theirs.set_progress_bar_config(disable=True)
    return theirs, ours(theirs)


def both(pair: tuple[Any, Any], **call: Any) -> tuple[Any, Any]:
    """Latents of one clip, (f, c, h, w), ours and the reference's."""
    mine = pair[1](**call, generator=gen(3)).frames[0].transpose(0, 1)
    return mine, pair[0](**call, generator=gen(3)).images


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"negative_prompt": "dull", "eta": 0.6, "video_length": 4, "frame_ids": [0, 5, 6, 9]},
        {"t0": 0, "t1": 4, "guidance_scale": 3.0, "motion_field_strength_y": -80},
    ],
    ids=["plain", "frames far on", "from the start"],
)
def test_a_clip_is_the_reference_s(pair: tuple[Any, Any], more: dict[str, Any]) -> None:
    mine, other = both(pair, **{**CALL, **more})
    assert off(mine, other) <= CLOSE


def test_given_latents_begin_it_and_pictures_are_the_reference_s(pair: tuple[Any, Any]) -> None:
    call = {**CALL, "latents": torch.randn(1, 4, 16, 24), "output_type": "tensor"}
    got = pair[1](**call, generator=gen(3))
    expected = pair[0](**call, generator=gen(3)).images
    assert off(got.frames[0], expected) <= CLOSE
    assert len(got.images) == len(expected) == 3 and off(got.images[2], expected[2]) <= CLOSE


@pytest.mark.parametrize(
    "more",
    [
        {"negative_prompt": "dull"},
        {"prompt_2": "a star", "original_size": (40, 50), "crops_coords_top_left": (3, 4)},
        {"denoising_end": 0.6, "eta": 0.3},
    ],
    ids=["plain", "told apart", "stopped early"],
)
def test_a_clip_of_sdxl_is_the_reference_s(large: tuple[Any, Any], more: dict[str, Any]) -> None:
    mine, other = both(large, **{**CALL, **more})
    assert off(mine, other) <= CLOSE


def test_guidance_is_rescaled_where_the_reference_forgets_to(large: tuple[Any, Any]) -> None:
    plain, rescaled = both(large, **CALL), both(large, **CALL, guidance_rescale=0.7)
    assert torch.equal(plain[1], rescaled[1])
    assert off(rescaled[0], plain[0]) > 100 * CLOSE


def test_a_batch_is_each_of_them_alone(pair: tuple[Any, Any]) -> None:
    prompts = ["a red circle", "a star"]
    clips = pair[1](**{**CALL, "prompt": prompts}, generator=[1, 2]).frames
    for i, prompt in enumerate(prompts):
        alone = pair[1](**{**CALL, "prompt": prompt}, generator=i + 1).frames
        assert off(clips[i], alone[0]) <= 1e-5


def test_an_image_model_s_folder_is_enough(pair: tuple[Any, Any], tmp_path: Any) -> None:
    theirs = pair[0]
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    image = diffusers.StableDiffusionPipeline(
        **{n: getattr(theirs, n) for n in names},
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image.save_pretrained(tmp_path)
    read = kinema.TextToVideoZeroPipeline.from_pretrained(tmp_path)
    read.set_progress_bar_config(disable=True)
    assert off(read(**CALL, generator=3).frames, pair[1](**CALL, generator=3).frames) <= 1e-5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"t0": 3, "t1": 3}, "t0"),
        ({"t1": 5}, "t1"),
        ({"frame_ids": [0, 1]}, "frame_ids"),
        ({"video_length": 0}, "video_length"),
        ({"motion_field_strength_x": "far"}, "motion_field_strength_x"),
    ],
)
def test_what_cannot_be_is_refused(pair: tuple[Any, Any], wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair[1](**{**CALL, **wrong})


# ------------------------------------------------------------------ progress


def test_every_step_is_heard_of_those_of_the_first_frame_too(pair: tuple[Any, Any]) -> None:
    """The first frame takes 5 - 1 - t0 steps; all go on with the last t1 + 1."""
    heard = [e for e in pair[1].stream(**CALL, generator=3) if e.stage == "denoise"]
    assert [(e.step, e.total) for e in heard] == [(i, 7) for i in range(1, 8)]
    assert [e.index for e in heard] == [0, 1, 2, 0, 1, 2, 3]
    assert [e.latents.shape[2] for e in heard] == [1] * 3 + [3] * 4
    assert pair[1]._begin(pair[1]._bind((), CALL)).steps == 7


def test_callbacks_hear_what_the_references_hear(pair: tuple[Any, Any]) -> None:
    seen: list[list[tuple[int, int]]] = [[], []]
    for pipe, told in zip(pair, seen, strict=True):

        def keep(step: int, time: Any, latents: Any, told: list[tuple[int, int]] = told) -> None:
            told.append((int(step), int(time)))

        pipe(**CALL, generator=gen(3), callback=keep)
    assert seen[1][3:] == seen[0][-4:] and [time for _, time in seen[1]] == [time for _, time in seen[0]]


def test_latents_may_be_changed_on_the_way(pair: tuple[Any, Any]) -> None:
    def louder(pipe: Any, step: int, time: Any, at_hand: dict[str, Any]) -> dict[str, Any]:
        return {"latents": at_hand["latents"] * 1.5}

    plain = pair[1](**CALL, generator=3).frames
    assert off(pair[1](**CALL, generator=3, callback_on_step_end=louder).frames, plain) > 1e-2


# ------------------------------------------------------------------ schedulers

SAME = {"beta_schedule": "linear", "timestep_spacing": "trailing", "steps_offset": 1}
STEPS = {**CALL, "num_inference_steps": 8, "t0": 2, "t1": 5, "motion_field_strength_x": 0, "motion_field_strength_y": 0}


def with_scheduler(pipe: Any, scheduler: Any) -> Any:
    made = type(pipe).from_pipe(pipe, scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def test_euler_makes_the_clip_that_ddim_makes(pair: tuple[Any, Any]) -> None:
    """They are one method in two coordinates, so moving frames and noising them again must be right in both."""
    ddim = kinema.DDIMScheduler(**SAME, clip_sample=False, set_alpha_to_one=True)
    clips = [
        with_scheduler(pair[1], s)(**STEPS, generator=3).frames for s in (ddim, kinema.EulerDiscreteScheduler(**SAME))
    ]
    assert off(clips[1], clips[0]) <= 1e-3


@pytest.mark.parametrize(
    "name",
    [
        *("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
        *("UniPCMultistepScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler", "DDPMScheduler"),
        *("LCMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    ],
)
def test_every_scheduler_makes_a_clip(pair: tuple[Any, Any], name: str) -> None:
    scheduler = getattr(kinema, name).from_config(
        {"beta_schedule": "linear", "steps_offset": 1, "skip_prk_steps": True}
    )
    output = with_scheduler(pair[1], scheduler)(**STEPS, generator=3)
    assert output.frames.shape == (1, 4, 3, 16, 24) and torch.isfinite(output.frames).all()
    one_each = name not in ("PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler")
    assert output.receipt["scheduler"]["_class_name"] == (name if one_each else "DDIMScheduler")


# ------------------------------------------------------------------ one file


def test_a_pipeline_comes_from_one_file_with_the_image_models_own_noise(tmp_path: Any) -> None:
    fields = {**shared_tiny.SD15, "cross_attention_dim": 128, "sample_size": 64}
    toy = box("toy")
    assert toy is not None
    (tmp_path / "tokenizer").symlink_to(toy / "tokenizer")
    file = tmp_path / "dreamy.safetensors"
    safetensors.torch.save_file(shared_tiny.sd15_file(fields), file)
    pipe = kinema.TextToVideoZeroPipeline.from_single_file(file)
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.scheduler.config.beta_schedule, pipe.scheduler.config.beta_end) == ("scaled_linear", 0.012)
    call = {**CALL, "height": 32, "width": 32}
    frames = pipe(**call, generator=3).frames
    assert frames.shape == (1, 4, 3, 16, 16)
    pipe.save_pretrained(tmp_path / "saved")
    again = kinema.TextToVideoZeroPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert off(again(**call, generator=3).frames, frames) <= 1e-5
    with pytest.raises(CheckpointError, match="load it with AnimateDiffPipeline, not TextToVideoZeroSDXLPipeline"):
        kinema.TextToVideoZeroSDXLPipeline.from_single_file(file)


def test_sdxls_comes_from_one_file_too(tmp_path: Any) -> None:
    fields = {**shared_tiny.SDXL, "cross_attention_dim": 256, "sample_size": 64}
    toy = box("toy")
    assert toy is not None
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).symlink_to(toy / "tokenizer")
    safetensors.torch.save_file(shared_tiny.sdxl_file(fields), tmp_path / "dreamy_xl.safetensors")
    pipe = kinema.TextToVideoZeroSDXLPipeline.from_single_file(tmp_path / "dreamy_xl.safetensors")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.scheduler.config.beta_schedule, pipe.scheduler.config.beta_end) == ("scaled_linear", 0.012)
    assert pipe(**{**CALL, "height": 32, "width": 32}, generator=3).frames.shape == (1, 4, 3, 16, 16)
