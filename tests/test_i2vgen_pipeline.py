"""A clip of I2VGen-XL depends on its own picture, prompt and seed alone; what cannot be used is refused by name."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.i2vgen_tiny import SIZE, picture, theirs, twin
from tests.pipelines_tiny import gen, off

import kinema
from kinema import CheckpointError, DiffusionPipeline, I2VGenXLPipeline, InputError, MediaError, NumericsError

SAME = 1e-5  # of the range: what rounding does when matrices have other numbers of rows
CALL = {**SIZE, "num_inference_steps": 2, "num_frames": 2, "output_type": "latent", "eta": 0.6}
ASKED = {"prompt": "a", "image": picture(), **CALL}


@cache
def pipe() -> Any:
    """One for tests that only read it."""
    return twin(theirs())


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_each_clip_of_a_batch_is_the_one_it_would_be_alone(guidance_scale: float) -> None:
    each = {
        "prompt": ["a red circle", "b", "a very long story of a red circle " * 3],
        "negative_prompt": ["", "bad " * 30, "bad"],
        "image": [picture(24, 40, 1), picture(60, 24, 2), torch.rand(3, 30, 30, generator=gen(0))],
        "generator": [3, gen(4), np.int64(5)],
    }
    call = {**CALL, "guidance_scale": guidance_scale}
    together = pipe()(**each, **call).frames
    each["generator"][1] = gen(4)
    for i in range(3):
        alone = pipe()(**{name: values[i] for name, values in each.items()}, **call).frames
        assert off(together[i : i + 1], alone) < SAME


def test_videos_of_one_prompt_and_picture_lie_together_and_count_their_seeds_up() -> None:
    images = [picture(seed=1), picture(seed=2)]
    made = pipe()(["a", "b"], images, num_videos_per_prompt=2, generator=10, **CALL).frames
    order = [("a", images[0], 10), ("a", images[0], 11), ("b", images[1], 10), ("b", images[1], 11)]
    for got, (prompt, image, seed) in zip(made, order, strict=True):
        assert off(got, pipe()(prompt, image, generator=seed, **CALL).frames[0]) < SAME


def test_one_prompt_serves_several_pictures_and_one_picture_several_prompts() -> None:
    images = [picture(seed=1), picture(seed=2)]
    for prompt in ("a", ["a"]):
        made = pipe()(prompt, images, negative_prompt="bad", generator=[3, 4], **CALL).frames
        for i in range(2):
            alone = pipe()("a", images[i], negative_prompt="bad", generator=3 + i, **CALL).frames
            assert off(made[i], alone[0]) < SAME
    embedded = pipe().encode_prompt("a", negative_prompt="bad", clip_skip=1)
    given = dict(zip(("prompt_embeds", "negative_prompt_embeds"), embedded))
    assert off(pipe()(image=images, **given, generator=[3, 4], **CALL).frames, made) < SAME
    made = pipe()(["a", "b", "c"], images[0], negative_prompt="bad", generator=[3, 4, 5], **CALL).frames
    assert off(made[2], pipe()("c", images[0], negative_prompt="bad", generator=5, **CALL).frames[0]) < SAME


def test_a_seed_decides_the_picture_s_latents_too() -> None:
    first, second, other = (pipe()(**ASKED, generator=seed).frames for seed in (3, 3, 4))
    assert torch.equal(first, second) and off(other, first) > 0.01
    started = [pipe()(**ASKED, generator=g).frames for g in (gen(3), np.random.default_rng(3))]
    assert torch.equal(started[0], first)
    assert torch.equal(started[1], pipe()(**ASKED, generator=np.random.default_rng(3)).frames)


def test_a_generator_stands_after_a_call_where_the_reference_leaves_it() -> None:
    g = gen(3)
    pipe()(**{**ASKED, "eta": 0}, generator=g)
    after = gen(3)
    torch.randn(1, 4, 2, 8, 12, generator=after)
    assert torch.equal(g.get_state(), after.get_state())


# ------------------------------------------------------------------ what else a call can do


def test_the_text_the_picture_and_the_frame_rate_all_count() -> None:
    plain = pipe()(**ASKED, generator=3).frames
    for changed in ({"prompt": "b"}, {"image": picture(seed=5)}, {"target_fps": 30}, {"clip_skip": None}):
        assert off(pipe()(**{**ASKED, **changed}, generator=3).frames, plain) > 1e-4


@pytest.mark.parametrize(
    ("fit", "focus"), [("crop", (0.0, 0.5)), ("crop", (1, 1)), ("pad", (0.5, 0.5)), ("stretch", (0.5, 0.5))]
)
def test_what_is_shown_of_a_picture_can_be_chosen(fit: str, focus: tuple[float, float]) -> None:
    wide = picture(24, 90)
    plain = pipe()(**{**ASKED, "image": wide}, generator=3).frames
    assert off(pipe()(**{**ASKED, "image": wide}, fit=fit, focus=focus, generator=3).frames, plain) > 1e-4


def test_a_crop_keeps_what_the_focus_is_on_for_the_autoencoder_and_for_clip() -> None:
    from kinema.families.i2vgen.framing import framed, seen

    strip = Image.fromarray(np.repeat(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2))
    levels = [np.array(framed(strip, 24, 16, "crop", (x, 0.5))).mean() for x in (0, 0.25, 0.5, 0.75, 1)]
    assert levels == sorted(levels) and levels[-1] - levels[0] > 100
    views = [np.array(seen(strip, 24, (30, 30), "crop", (x, 0.5))).mean() for x in (0, 0.5, 1)]
    assert views == sorted(views)


def test_callbacks_hear_every_step_and_may_change_the_latents() -> None:
    heard: list[tuple[int, float, tuple[int, ...]]] = []

    def listen(pipe: Any, step: int, time: float, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        heard.append((step, time, tuple(given["latents"].shape)))
        return {"latents": given["latents"] * 0} if step == 1 else {}

    made = pipe()(**ASKED, generator=3, callback_on_step_end=listen).frames
    assert heard == [(0, 501.0, (1, 4, 2, 8, 12)), (1, 1.0, (1, 4, 2, 8, 12))]
    assert not made.any()


def test_a_stream_tells_what_it_does_and_ends_with_the_same_clip() -> None:
    call = {**ASKED, "output_type": "np"}
    events = list(pipe().stream(**call, generator=3))
    assert [e.stage for e in events] == ["encode"] * 2 + ["denoise"] * 2 + ["decode"] * 3 + ["done"]
    assert np.array_equal(events[-1].output.frames, pipe()(**call, generator=3).frames)


def test_a_clip_is_saved_at_the_rate_it_was_made_for(tmp_path: Path) -> None:
    made = pipe()(**{**ASKED, "output_type": "pil"}, target_fps=10, generator=3)
    assert made.fps == 10 and made.receipt["target_fps"] == 10 and made.receipt["seed"] == 3
    assert pipe()(**{**ASKED, "output_type": "pil"}, target_fps=10, playback_fps=5).fps == 5
    made.save(tmp_path / "clip.gif")
    assert len(kinema.load_video(tmp_path / "clip.gif")) == 2


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_where_weights_live_changes_nothing(mode: str) -> None:
    made = twin(theirs())
    expected = made(**ASKED, generator=3).frames
    made._residency = replace(made._residency, mode=mode, bring=lambda t: t.clone())
    assert torch.equal(made(**ASKED, generator=3).frames, expected)


def test_half_precision_makes_the_same_clip_but_for_its_rounding() -> None:
    made = twin(theirs())
    expected = made(**ASKED, generator=3).frames
    assert off(made.to("bfloat16")(**ASKED, generator=3).frames, expected) < 0.1


def test_a_plan_names_what_each_stage_takes() -> None:
    plan = pipe().plan(16, 24, 3, num_inference_steps=2)
    assert [(s.name, s.component) for s in plan.stages] == [
        ("encode", "text_encoder"),
        ("encode", "image_encoder"),
        ("encode", "vae"),
        ("denoise", "unet"),
        ("decode", "vae"),
    ]
    assert all(stage.needs.peak > 0 for stage in plan.stages) and "image_encoder" in str(plan)


# ------------------------------------------------------------------ files


def test_either_library_reads_what_the_other_wrote(tmp_path: Path) -> None:
    other = theirs()
    other.save_pretrained(tmp_path / "theirs")
    read = DiffusionPipeline.from_pretrained(tmp_path / "theirs")
    assert type(read) is I2VGenXLPipeline
    read.set_progress_bar_config(disable=True)
    expected = pipe()(**ASKED, generator=3).frames
    assert off(read(**ASKED, generator=3).frames, expected) < SAME
    read.save_pretrained(tmp_path / "ours")
    again = diffusers.I2VGenXLPipeline.from_pretrained(tmp_path / "ours")
    assert off(twin(again)(**ASKED, generator=3).frames, expected) < SAME
    with pytest.raises(CheckpointError, match="is a I2VGenXLPipeline; load it with I2VGenXLPipeline"):
        kinema.TextToVideoSDPipeline.from_pretrained(tmp_path / "ours")


# ------------------------------------------------------------------ what cannot be used

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": None}, InputError, "image is missing"),
    ({"image": []}, InputError, "empty"),
    ({"image": "no/such/picture.png"}, MediaError, "picture.png"),
    ({"image": torch.rand(2, 16, 24)}, InputError, "shape"),
    ({"image": torch.full((3, 16, 24), float("nan"))}, InputError, "not finite"),
    ({"image": torch.rand(3, 16, 24) * 300}, InputError, "0 to 1"),
    ({"image": object()}, InputError, "object"),
    ({"image": [picture()] * 3, "prompt": ["a", "b"]}, InputError, "3 pictures for 2 prompts"),
    ({"image": [picture()] * 2, "prompt": ["a"] * 3}, InputError, "2 pictures for 3 prompts"),
    ({"prompt": None}, InputError, "neither is given"),
    ({"prompt": ["a", "b"], "negative_prompt": ["c"] * 3}, InputError, "3 negative"),
    ({"num_frames": 0}, InputError, "num_frames is 0"),
    ({"target_fps": 0}, InputError, "target_fps"),
    ({"target_fps": None}, InputError, "target_fps"),
    ({"target_fps": float("nan")}, InputError, "target_fps"),
    ({"playback_fps": -1}, InputError, "playback_fps"),
    ({"height": 21}, InputError, "not a multiple"),
    ({"clip_skip": 3}, InputError, "clip_skip"),
    ({"fit": "squash"}, InputError, "fit is 'squash'"),
    ({"focus": (2, 0)}, InputError, "focus"),
    ({"fit": "crop", "focus": "left"}, InputError, "focus"),
    ({"latents": torch.zeros(1, 2, 4, 8, 12)}, InputError, "latents are"),
    ({"generator": [1, 2, 3]}, InputError, "list of 3"),
    ({"num_inference_steps": 0}, InputError, "num_inference_steps"),
    ({"decode_chunk_size": 0}, InputError, "decode_chunk_size"),
    ({"output_type": "gif"}, InputError, "output_type"),
    ({"cross_attention_kwargs": {"mask": 1}}, InputError, "cross_attention_kwargs"),
    ({"callback_on_step_end": 3}, InputError, "callback_on_step_end"),
    ({"frame_rate": 3}, InputError, "no argument frame_rate"),
]


@pytest.mark.parametrize(("wrong", "error", "said"), BAD, ids=[f"{list(b[0])} {b[2]}" for b in BAD])
def test_what_cannot_be_used_is_refused_before_time_is_spent(
    wrong: dict[str, Any], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work began")

    monkeypatch.setattr(I2VGenXLPipeline, "_run", never)
    with pytest.raises(error, match=said) as caught:
        pipe()(**{**ASKED, **wrong})
    assert len(str(caught.value).splitlines()) == 1


def test_numbers_that_overflow_are_told_from_where_they_arise() -> None:
    made = twin(theirs())
    with torch.no_grad():
        made.image_encoder.visual_projection.weight.fill_(float("inf"))
    with pytest.raises(NumericsError, match="encode stage"):
        made(**ASKED)


def test_another_library_s_scheduler_is_named_with_its_replacement() -> None:
    made = twin(theirs())
    made.scheduler = theirs().scheduler
    with pytest.raises(InputError, match=r"use kinema\.DDIMScheduler"):
        made(**ASKED)
