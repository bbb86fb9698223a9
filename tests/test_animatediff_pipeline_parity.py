"""AnimateDiff's pipelines against the reference's, on the same weights and from the same seed."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from tests import animatediff_pipes as pipes
from tests.pipelines_tiny import gen, off

import kinema
from kinema import InputError

CLOSE = 1e-4


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    theirs = pipes.theirs()
    return theirs, pipes.ours(theirs)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unguided": {"guidance_scale": 1.0},
    "eta": {"eta": 0.7},
    "two prompts": {"prompt": ["a red circle", "a star"], "negative_prompt": ["dull", ""]},
    "long, chunked": {"num_frames": 7, "decode_chunk_size": 3, "num_inference_steps": 2},
    "latents out": {"output_type": "latent"},
    "tensors out": {"output_type": "pt", "negative_prompt": None},
}


@pytest.mark.parametrize("name", CALLS)
def test_text_to_video_is_the_reference_s(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, **CALLS[name]}
    expected = theirs(**call, generator=gen(3)).frames
    assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE


def test_given_latents_and_embeddings_are_taken_as_the_reference_takes_them(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    embeds, without = torch.randn(1, 77, pipes.WIDTH), torch.randn(1, 77, pipes.WIDTH)
    call = {**pipes.CALL, "prompt": None, "negative_prompt": None, "latents": torch.randn(1, 4, 4, 8, 12)}
    call |= {"prompt_embeds": embeds, "negative_prompt_embeds": without}
    assert off(ours(**call).frames, theirs(**call).frames) <= CLOSE


def test_a_generator_for_each_clip_gives_the_reference_s_clips(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "prompt": ["a red circle"] * 2, "negative_prompt": ["dull"] * 2, "eta": 0.5}
    expected = theirs(**call, generator=[gen(1), gen(2)]).frames
    assert off(ours(**call, generator=[gen(1), gen(2)]).frames, expected) <= CLOSE


SCHEDULERS = {
    "EulerDiscreteScheduler": {"beta_schedule": "linear", "timestep_spacing": "trailing"},
    "EulerAncestralDiscreteScheduler": {"beta_schedule": "linear"},
    "DPMSolverMultistepScheduler": {"beta_schedule": "linear", "use_karras_sigmas": True},
    "LCMScheduler": {"beta_schedule": "linear"},
    "TCDScheduler": {"beta_schedule": "linear"},
    "PNDMScheduler": {"beta_schedule": "linear", "skip_prk_steps": True},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_usual_scheduler_gives_the_reference_s_clip(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    config = SCHEDULERS[name]
    before = theirs.scheduler, ours.scheduler
    theirs.scheduler, ours.scheduler = getattr(diffusers, name)(**config), getattr(kinema, name)(**config)
    try:
        call = {**pipes.CALL, "num_inference_steps": 4}
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE
    finally:
        theirs.scheduler, ours.scheduler = before


def test_clip_skip_works_where_the_reference_crashes(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    with pytest.raises(AttributeError):
        theirs(**pipes.CALL, clip_skip=1)
    plain, skipped = (ours(**pipes.CALL, clip_skip=n, generator=gen(3)).frames for n in (None, 1))
    assert off(skipped, plain) > 1e-3


def test_copies_are_made_where_the_reference_ignores_them(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "num_videos_per_prompt": 2, "generator": 5}
    assert len(theirs(**{**call, "generator": gen(5)}).frames) == 1
    both = ours(**call).frames
    assert len(both) == 2
    alone = ours(**pipes.CALL, generator=6).frames
    assert off(both[1], alone[0]) <= 1e-5


VIDEO: dict[str, dict[str, Any]] = {
    "plain": {},
    "all steps": {"enforce_inference_steps": True, "strength": 0.5},
    "other size, ancestral noise": {"height": 24, "width": 16, "strength": 0.8},
    "chunked": {"decode_chunk_size": 3, "guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def video_pair(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    theirs = diffusers.AnimateDiffVideoToVideoPipeline(**pair[0].components)
    ours = kinema.AnimateDiffVideoToVideoPipeline.from_pipe(pair[1])
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    return theirs, ours


def _video_call(**changes: Any) -> dict[str, Any]:
    call = {k: v for k, v in pipes.CALL.items() if k != "num_frames"}
    return {**call, "num_inference_steps": 6, "strength": 0.6, **changes}


@pytest.mark.parametrize("name", VIDEO)
def test_video_to_video_is_the_reference_s(video_pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = video_pair
    call = _video_call(**VIDEO[name])
    video = pipes.clip(5, call["height"], call["width"])
    expected = theirs(video=video, **call, generator=gen(3)).frames
    assert off(ours(video=video, **call, generator=gen(3)).frames, expected) <= CLOSE


@pytest.mark.parametrize("enforce", [False, True])
def test_given_latents_begin_a_video_as_in_the_reference(video_pair: tuple[Any, Any], enforce: bool) -> None:
    theirs, ours = video_pair
    call = _video_call(latents=torch.randn(1, 4, 3, 8, 12), enforce_inference_steps=enforce)
    expected = theirs(**call, generator=gen(3)).frames
    assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE


class TestPromptsThatChange:
    def test_one_stop_is_the_prompt(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        plain = ours(**pipes.CALL, generator=gen(3)).frames
        travelled = ours(**{**pipes.CALL, "prompt": {0: pipes.CALL["prompt"]}}, generator=gen(3)).frames
        assert off(travelled, plain) <= 1e-5

    def test_between_two_stops_lies_what_lies_between(self, pair: tuple[Any, Any]) -> None:
        from kinema.families.animatediff.travel import Journey

        stops = torch.randn(2, 7, 16)
        every = Journey((1, 5), ("a", "b")).along(stops, 8)
        torch.testing.assert_close(every[3], stops.mean(0))
        for frame, stop in ((0, 0), (1, 0), (5, 1), (7, 1)):
            torch.testing.assert_close(every[frame], stops[stop])

    def test_a_batch_of_journeys_is_each_of_them_alone(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        journeys = [{0: "a red circle", 3: "a star"}, {0: "a star"}]
        call = {**pipes.CALL, "negative_prompt": "dull"}
        both = ours(**{**call, "prompt": journeys}, generator=[1, 2]).frames
        for i, journey in enumerate(journeys):
            assert off(ours(**{**call, "prompt": journey}, generator=i + 1).frames[0], both[i]) <= 1e-5

    @pytest.mark.parametrize("prompt", [{}, {9: "late"}, {-1: "a"}, {0: 3}])
    def test_a_journey_that_cannot_be_is_refused(self, pair: tuple[Any, Any], prompt: Any) -> None:
        with pytest.raises(InputError, match="prompt"):
            pair[1](**{**pipes.CALL, "prompt": prompt})


def test_motion_scale_of_nothing_makes_pictures_that_do_not_know_of_one_another(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    latents = torch.randn(1, 4, 4, 8, 12)
    still = ours(**pipes.CALL, latents=latents, motion_scale=0.0).frames
    alone = ours(**{**pipes.CALL, "num_frames": 1}, latents=latents[:, :, 2:3], motion_scale=0.0).frames
    assert off(still[0][2], alone[0][0]) <= 1e-5


@pytest.mark.parametrize("wrong", [[1.0, 2.0], -1, "much"])
def test_a_motion_scale_that_cannot_be_is_refused(pair: tuple[Any, Any], wrong: Any) -> None:
    with pytest.raises(InputError, match="motion_scale"):
        pair[1](**pipes.CALL, motion_scale=wrong)


PRESETS = {
    "lightning-4": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, 4, 1.0, {}),
    "lcm": ("LCMScheduler", {}, 8, 1.5, {}),
    "tcd": ("TCDScheduler", {}, 8, 1.0, {"eta": 0.3}),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_scheduler_steps_and_guidance(pair: tuple[Any, Any], name: str) -> None:
    ours = pair[1]
    cls, settings, steps, guidance, more = PRESETS[name]
    call = {k: v for k, v in pipes.CALL.items() if k not in ("num_inference_steps", "guidance_scale")}
    before = ours.scheduler
    short = ours(**call, preset=name, generator=3).frames
    assert ours.scheduler is before
    ours.scheduler = getattr(kinema, cls).from_config(before.config, **settings)
    try:
        long = ours(**call, num_inference_steps=steps, guidance_scale=guidance, **more, generator=3).frames
    finally:
        ours.scheduler = before
    assert off(short, long) == 0


def test_an_unknown_preset_is_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="lightning-4"):
        pair[1](**pipes.CALL, preset="lightning")


def test_a_denoiser_of_another_number_format_is_told_in_its_own(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    other = kinema.AnimateDiffPipeline.from_pipe(ours, unet=copy.deepcopy(ours.unet).bfloat16())
    other.set_progress_bar_config(disable=True)
    assert off(other(**pipes.CALL, generator=3).frames, ours(**pipes.CALL, generator=3).frames) < 0.5


class TestFolders:
    def test_a_saved_pipeline_is_the_same_again(self, pair: tuple[Any, Any], tmp_path: Any) -> None:
        ours = pair[1]
        ours.save_pretrained(tmp_path)
        again = kinema.AnimateDiffPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert off(again(**pipes.CALL, generator=3).frames, ours(**pipes.CALL, generator=3).frames) <= 1e-5
        assert type(kinema.DiffusionPipeline.from_pretrained(tmp_path)).__name__ == "AnimateDiffPipeline"

    def test_what_the_reference_saved_is_read(self, pair: tuple[Any, Any], tmp_path: Any) -> None:
        theirs, ours = pair
        theirs.save_pretrained(tmp_path)
        read = kinema.AnimateDiffVideoToVideoPipeline.from_pretrained(tmp_path)
        assert read.motion_adapter is not None
        assert torch.equal(read.unet.conv_in.weight, ours.unet.conv_in.weight)

    def test_an_image_model_s_folder_and_an_adapter_make_a_pipeline(self, tmp_path: Any) -> None:
        theirs = pipes.theirs()
        image = diffusers.StableDiffusionPipeline(
            vae=theirs.vae,
            text_encoder=theirs.text_encoder,
            tokenizer=theirs.tokenizer,
            unet=pipes.tiny.reference_image_model(cross_attention_dim=pipes.WIDTH),
            scheduler=theirs.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        image.save_pretrained(tmp_path / "image")
        theirs.motion_adapter.save_pretrained(tmp_path / "motion")
        adapter = kinema.MotionAdapter.from_pretrained(tmp_path / "motion")
        read = kinema.AnimateDiffPipeline.from_pretrained(tmp_path / "image", motion_adapter=adapter)
        read.set_progress_bar_config(disable=True)
        expected = theirs(**pipes.CALL, generator=gen(3)).frames
        assert off(read(**pipes.CALL, generator=gen(3)).frames, expected) <= CLOSE
        with pytest.raises(InputError, match="needs a motion_adapter"):
            kinema.AnimateDiffPipeline.from_pretrained(tmp_path / "image")


@pytest.fixture(scope="module")
def pia() -> tuple[Any, Any]:
    theirs = pipes.theirs("PIAPipeline", adapter={"conv_in_channels": 9})
    return theirs, pipes.ours(theirs)


class TestPicturesThatMove:
    @pytest.mark.parametrize(
        "more",
        [
            {},
            {"motion_scale": 4, "num_frames": 18, "num_inference_steps": 2},
            {"strength": 0.7, "num_inference_steps": 5, "motion_scale": 2},
            {"guidance_scale": 1.0, "eta": 0.4},
        ],
        ids=["plain", "a long loop", "near the picture", "unguided"],
    )
    def test_a_clip_is_the_reference_s(self, pia: tuple[Any, Any], more: dict[str, Any]) -> None:
        theirs, ours = pia
        call = {**pipes.CALL, "image": pipes.clip(1)[0], **more}
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE

    @pytest.mark.parametrize("wrong", [{"motion_scale": 9}, {"image": None}, {"image": pipes.clip(2)}])
    def test_what_cannot_be_is_refused(self, pia: tuple[Any, Any], wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            pia[1](**{**pipes.CALL, "image": pipes.clip(1)[0], **wrong})

    def test_latents_and_a_strength_are_refused_together(self, pia: tuple[Any, Any]) -> None:
        latents = torch.zeros(1, 4, 4, 8, 12)
        with pytest.raises(InputError, match="latents"):
            pia[1](**pipes.CALL, image=pipes.clip(1)[0], strength=0.6, latents=latents)

    def test_a_plan_can_be_made(self, pia: tuple[Any, Any]) -> None:
        assert pia[1].plan(16, 24, 2).peak > 0

    def test_it_is_not_taken_for_another_pipeline(self, pia: tuple[Any, Any], pair: tuple[Any, Any]) -> None:
        with pytest.raises(InputError, match="PIAPipeline"):
            kinema.AnimateDiffPipeline.from_pipe(pia[1])
        with pytest.raises(InputError, match="9 channels"):
            kinema.PIAPipeline.from_pipe(pair[1])


def with_adapter(pair: tuple[Any, Any]) -> Any:
    """A pipeline to change, whose denoiser has kept the adapter that it moves by."""
    adapter = pipes.tiny.ours(pair[0].motion_adapter)
    return type(pair[1])(**{**pair[1].components, "unet": copy.deepcopy(pair[1].unet), "motion_adapter": adapter})


def test_another_adapter_on_a_denoiser_that_moves_already_is_refused(pair: tuple[Any, Any], tmp_path: Any) -> None:
    ours, adapter = with_adapter(pair), kinema.MotionAdapter(pipes.tiny.ADAPTER)
    ours.save_pretrained(tmp_path)
    for make in (
        lambda: kinema.AnimateDiffPipeline.from_pipe(ours, motion_adapter=adapter),
        lambda: kinema.AnimateDiffPipeline(**{**ours.components, "motion_adapter": adapter}),
        lambda: kinema.AnimateDiffPipeline.from_pretrained(tmp_path, motion_adapter=adapter),
    ):
        with pytest.raises(InputError, match="already"):
            make()
    again = kinema.MotionAdapter.from_pretrained(tmp_path, subfolder="motion_adapter")
    assert kinema.AnimateDiffPipeline.from_pretrained(tmp_path, motion_adapter=again).motion_adapter is again


def test_a_denoiser_that_was_changed_stays_beside_its_adapter(pair: tuple[Any, Any], tmp_path: Any) -> None:
    ours = with_adapter(pair)
    with torch.no_grad():
        next(p for name, p in ours.unet.named_parameters() if "motion_modules" in name and p.ndim == 2).add_(1.0)
    kinema.AnimateDiffVideoToVideoPipeline(**ours.components)
    type(ours).from_pipe(ours, unet=copy.deepcopy(ours.unet))
    ours.save_pretrained(tmp_path)
    read = type(ours).from_pretrained(tmp_path)
    kinema.AnimateDiffVideoToVideoPipeline.from_pipe(read)
    assert type(ours).from_pretrained(tmp_path, unet=pair[1].unet).unet is pair[1].unet


def test_motion_scales_may_be_arrays(pair: tuple[Any, Any]) -> None:
    latents = torch.randn(1, 4, 4, 8, 12)
    listed, array = (
        pair[1](**pipes.CALL, latents=latents, motion_scale=scale).frames
        for scale in ([1.0, 0.5, 0.0, 1.0], torch.tensor([1.0, 0.5, 0.0, 1.0]))
    )
    assert off(array, listed) == 0
