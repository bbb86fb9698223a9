"""A picture's clip depends on its picture, its seed and the numbers asked for, and on nothing else; and what is asked
that cannot be is refused in one sentence. Where the reference is wrong, both are shown."""

from __future__ import annotations

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.pipelines_tiny import gen, off
from tests.svd_tiny import SIZE, ours, picture, theirs, twin

import kinema
from kinema.families.stable_video.presets import PRESETS, align_your_steps
from kinema.pipelines.picture import pictures

SAME = 1e-5  # of the range: what rounding does when matrices have other numbers of rows
CALL: dict[str, Any] = {**SIZE, "num_inference_steps": 1, "num_frames": 2, "output_type": "latent"}
PT: dict[str, Any] = {**CALL, "output_type": "pt"}
A, B, C = picture(1), picture(2), picture(3)


@cache
def pair() -> tuple[Any, Any]:
    """Ours and the reference's, for tests that only read them."""
    other = theirs()
    return twin(other), other


def pipe() -> Any:
    return pair()[0]


@pytest.fixture
def own() -> Any:
    """One to change."""
    networks = {name: copy.deepcopy(module) for name, module in pipe().modules().items()}
    made = kinema.StableVideoDiffusionPipeline(**{**pipe().components, **networks})
    made.set_progress_bar_config(disable=True)
    return made


def first(image: Any, **call: Any) -> torch.Tensor:
    """The only clip of a call."""
    made: torch.Tensor = pipe()(image, **{**CALL, **call}).frames[0]
    return made


# ------------------------------------------------------------------ batches and seeds


def test_each_clip_of_a_batch_is_the_one_it_would_be_alone() -> None:
    together = pipe()([A, B, C], generator=[3, 4, 5], **PT).frames
    for i, image in enumerate([A, B, C]):
        assert off(together[i], first(image, generator=3 + i, output_type="pt")) < SAME


def test_each_clip_in_pieces_is_the_one_it_would_be_alone() -> None:
    call = {**PT, "num_frames": 3, "decode_chunk_size": 2, "max_guidance_scale": 1.0}
    together = pipe()([A, B], generator=[3, 4], **call).frames
    for i, image in enumerate([A, B]):
        assert off(together[i], pipe()(image, generator=3 + i, **call).frames[0]) < SAME


@pytest.mark.parametrize(
    "generators",
    [lambda: [gen(3), gen(4)], lambda: [np.random.default_rng(s) for s in (3, 4)], lambda: [np.int64(3), gen(4)]],
)
def test_clips_of_one_picture_have_the_noise_of_their_own_generators(generators: Any) -> None:
    call: dict[str, Any] = {"num_videos_per_prompt": 2, "noise_aug_strength": 0.5, "max_guidance_scale": 1.0}
    both = pipe()(A, generator=generators(), **{**CALL, **call}).frames
    for i in range(2):
        alone = first(A, generator=generators()[i], **{**call, "num_videos_per_prompt": 1})
        assert off(both[i], alone) < SAME


def test_copies_of_a_picture_lie_together_and_count_their_seeds_up() -> None:
    made = pipe()([A, B], num_videos_per_prompt=2, generator=10, **CALL).frames
    for got, (image, seed) in zip(made, [(A, 10), (A, 11), (B, 10), (B, 11)], strict=True):
        assert off(got, first(image, generator=seed)) < SAME


def test_the_noise_of_a_seed_does_not_depend_on_the_number_format(own: Any) -> None:
    expected = first(A, generator=7)
    for dtype, close in (("bfloat16", 0.1), ("float16", 0.02)):
        assert off(own.to(dtype)(A, generator=7, **CALL).frames[0], expected) < close


def test_latents_go_in_and_out_with_frames_before_channels() -> None:
    noise = torch.randn(1, 2, 4, 8, 16, generator=gen(0))
    call = {**CALL, "noise_aug_strength": 0.0}
    given = pipe()(A, latents=noise, generator=gen(1), **call).frames
    assert given.shape == noise.shape
    assert torch.equal(given, pipe()(A, latents=noise, generator=gen(2), **call).frames)


# ------------------------------------------------------------------ where the reference is wrong


def test_the_reference_decodes_the_end_of_one_clip_with_the_start_of_the_next_and_kinema_does_not() -> None:
    mine, other = pair()
    call = {**PT, "num_frames": 3, "num_inference_steps": 4, "decode_chunk_size": 2, "max_guidance_scale": 1.0}
    noise = torch.randn(2, 3, 4, 8, 16, generator=gen(0))
    call["noise_aug_strength"] = 0.0
    for run, right in ((mine, True), (other, False)):
        both = run([A, B], latents=noise, **call).frames
        alone = run(A, latents=noise[:1], **call).frames[0]
        assert (off(both[0], alone) < 1e-4) is right


def test_the_reference_gives_later_generators_other_numbers_in_a_batch_and_kinema_does_not() -> None:
    mine, other = pair()
    call = {**CALL, "num_inference_steps": 4, "max_guidance_scale": 1.0}
    for run, right in ((mine, True), (other, False)):
        both = run(A, num_videos_per_prompt=2, generator=[gen(3), gen(4)], **call).frames
        alone = [run(A, generator=gen(seed), **call).frames[0] for seed in (3, 4)]
        assert off(both[0], alone[0]) < 1e-4
        assert (off(both[1], alone[1]) < 1e-4) is right


def test_the_reference_pairs_pictures_with_one_another_s_meaning_and_kinema_does_not() -> None:
    mine, other = pair()
    noise = torch.randn(4, 2, 4, 8, 16, generator=gen(0))
    call = {**CALL, "num_inference_steps": 4, "noise_aug_strength": 0.0, "max_guidance_scale": 1.0}
    for run, right in ((mine, True), (other, False)):
        made = run([A, B], num_videos_per_prompt=2, latents=noise, **call).frames
        alone = [run(image, latents=noise[i : i + 1], **call).frames[0] for i, image in enumerate([A, A, B, B])]
        assert off(made[0], alone[0]) < 1e-4 and off(made[3], alone[3]) < 1e-4
        assert all((off(made[i], alone[i]) < 1e-4) is right for i in (1, 2))


def test_the_reference_cannot_take_tensors_of_other_sizes_and_kinema_can() -> None:
    _, other = pair()
    image = torch.from_numpy(np.asarray(A) / np.float32(255)).permute(2, 0, 1)
    with pytest.raises(ValueError, match="Input image size"):
        other(image[None], **CALL)
    assert off(first(image, generator=3), first(A, generator=3)) < SAME
    assert off(first(image[None], generator=3), first(A, generator=3)) < SAME


def test_the_reference_fails_where_one_frame_is_not_guided_and_kinema_does_not() -> None:
    mine, other = pair()
    with pytest.raises(RuntimeError, match="Sizes of tensors"):
        other(A, **{**CALL, "num_frames": 1})
    got = mine(A, generator=3, **{**CALL, "num_frames": 1}).frames
    assert torch.equal(got, mine(A, generator=3, max_guidance_scale=1.0, **{**CALL, "num_frames": 1}).frames)


# ------------------------------------------------------------------ pictures


def forms() -> dict[str, Any]:
    array = np.asarray(A)
    return {
        "array": array,
        "batch of arrays": array[None],
        "floats": array / np.float32(255),
        "bytes as a tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "list": [A],
    }


@pytest.mark.parametrize("form", forms())
def test_a_picture_is_the_same_in_every_form(form: str) -> None:
    (read,) = pictures(forms()[form])
    assert read.size == (16, 32)
    assert off(read.fitted(16, 32), pictures(A)[0].fitted(16, 32)) < 1e-6


def test_a_picture_comes_from_a_file(tmp_path: Path) -> None:
    A.save(tmp_path / "a.png")
    assert torch.equal(first(tmp_path / "a.png", generator=3), first(A, generator=3))


@pytest.mark.parametrize("mode", ["RGBA", "L", "CMYK", "P"])
def test_pictures_of_other_modes_are_what_a_viewer_shows(mode: str) -> None:
    image = A.convert(mode)
    assert torch.equal(pictures(image)[0].pixels, pictures(image.convert("RGB"))[0].pixels)


def test_a_picture_of_other_proportions_is_cut_not_squashed_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    wide = Image.fromarray(np.kron(np.asarray(A), np.ones((1, 2, 1), np.uint8)))  # 64×16: its middle is 32×16
    with caplog.at_level(logging.WARNING, "kinema"):
        got = first(wide, generator=3)
    assert "50 % of the picture is cut off" in caplog.text and "fit='pad'" in caplog.text
    caplog.clear()
    assert torch.equal(first(wide.crop((16, 0, 48, 16)), generator=3), got)
    assert torch.equal(
        first(wide, fit="crop", focus=(0.0, 0.5), generator=3), first(wide.crop((0, 0, 32, 16)), generator=3)
    )
    first(wide, fit="pad", generator=3)
    assert not caplog.text


def test_the_clip_s_size_can_follow_the_picture() -> None:
    sizes = {(1600, 900): (576, 1024), (900, 1600): (1024, 576), (500, 500): (768, 768), (600, 480): (768, 768)}
    for (width, height), expected in sizes.items():
        job = pipe().begin({**defaults(), "image": Image.new("RGB", (width, height)), "height": None, "width": None})
        assert (job.told["height"], job.told["width"]) == expected


def defaults() -> dict[str, Any]:
    called: dict[str, Any] = pipe()._bind((A,), {})
    return called


# ------------------------------------------------------------------ numbers


def test_the_denoiser_is_told_frame_rate_less_one_motion_and_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    real = type(pipe().unet).prepare
    monkeypatch.setattr(
        type(pipe().unet), "prepare", lambda self, times, known: (told.append(known), real(self, times, known))[1]
    )
    first(A, fps=12, motion_bucket_id=99, noise_aug_strength=0.25)
    assert told[-1].numbers.tolist() == [[11, 99, 0.25]] and told[-1].image.shape == (2, 1, 16)
    first(A, motion="lively", max_guidance_scale=1)
    assert told[-1].numbers[0, 1] == 191 and told[-1].image.shape == (1, 1, 16)


@pytest.mark.parametrize("numbers", [{"fps": 60}, {"motion_bucket_id": 500}, {"noise_aug_strength": 3}])
def test_numbers_the_models_were_not_trained_with_are_noted(numbers: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kinema"):
        pipe().begin({**defaults(), **numbers})
    assert f"{next(iter(numbers))} is" in caplog.text and "trained with" in caplog.text


def test_words_and_numbers_of_motion_mean_buckets() -> None:
    def bucket(motion: Any) -> float:
        return float(pipe().begin({**defaults(), "motion": motion}).told["motion_bucket_id"])

    assert [bucket(m) for m in ("still", "normal", "lively", 0.0, 0.5, 1.0)] == [1, 127, 191, 1, 127, 255]


def test_guidance_rises_from_the_first_frame_to_the_last() -> None:
    guidance = pipe().begin({**defaults(), "num_frames": 5, "min_guidance_scale": 1.5}).guidance
    assert guidance.scale.flatten().tolist() == pytest.approx([1.5, 1.875, 2.25, 2.625, 3])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_what_is_left_out(name: str) -> None:
    called = pipe()._bind((A,), {"preset": name, "num_frames": 7})
    assert called["num_frames"] == 7 and called["num_inference_steps"] == PRESETS[name]["num_inference_steps"]
    made = pipe()(A, preset=name, num_inference_steps=1, num_frames=2, height=16, width=32, output_type="latent")
    assert made.receipt["max_guidance_scale"] == PRESETS[name]["max_guidance_scale"]
    assert made.receipt["num_inference_steps"] == 1 and made.frames.shape[1] == 2


@pytest.mark.parametrize("steps", [1, 5, 10, 25])
def test_align_your_steps_falls_from_the_first_level_to_none(steps: int) -> None:
    levels = align_your_steps(steps)
    assert len(levels) == steps + 1 and levels[0] == pytest.approx(700) and levels[-1] == 0
    assert levels == sorted(levels, reverse=True)


# ------------------------------------------------------------------ decoding, memory and threads


@cache
def plain() -> torch.Tensor:
    return first(A, generator=3, output_type="pt", num_frames=3)


def offloaded(pipe: Any, mode: str) -> None:
    """As on a machine with an accelerator: weights come as copies."""
    pipe._residency = replace(pipe._residency, mode=mode, bring=lambda t: t.clone())


SETTINGS: dict[str, Any] = {
    "model offload": lambda p: offloaded(p, "model"),
    "sequential offload": lambda p: offloaded(p, "sequential"),
    "vae slicing": lambda p: p.enable_vae_slicing(),
    "vae tiling": lambda p: p.enable_vae_tiling(),
    "forward chunking": lambda p: p.unet.enable_forward_chunking(),
    "attention slicing": lambda p: p.enable_attention_slicing(),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_clip_does_not_depend_on(name: str, own: Any) -> None:
    weights = {k: v.clone() for m in own.modules().values() for k, v in m.state_dict().items()}
    SETTINGS[name](own)
    assert off(own(A, generator=3, **{**PT, "num_frames": 3}).frames[0], plain()) < SAME
    after = {k: v for m in own.modules().values() for k, v in m.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in weights.items())


@pytest.mark.parametrize("call", [{"decode_chunk_size": 3}, {"decode_chunk_size": 14}, {"low_memory": True}])
def test_a_clip_decoded_as_one_is_the_same_however_that_is_done(call: dict[str, Any]) -> None:
    assert off(first(A, generator=3, output_type="pt", num_frames=3, **call), plain()) < SAME


@pytest.mark.parametrize("mode", ["resident", "model", "sequential"])
def test_a_half_precision_autoencoder_that_asks_for_it_encodes_in_single(mode: str, own: Any) -> None:
    x = torch.rand(1, 3, 16, 32, generator=gen(0)) * 2 - 1
    own.to("float16")
    whole = copy.deepcopy(own.vae).float().encode(x).latent_dist
    if mode != "resident":
        offloaded(own, mode)
    mean, deviation = own.encode_pictures(x)
    assert torch.equal(mean, whole.mean) and torch.equal(deviation, whole.std)
    assert own.vae.dtype == torch.float16 and {p.dtype for p in own.vae.parameters()} == {torch.float16}


def test_threads_on_one_pipeline_give_the_serial_clips_to_the_bit() -> None:
    def run(seed: int) -> torch.Tensor:
        return first(picture(seed), generator=seed, output_type="pt")

    serial = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(serial, pool.map(run, range(4)), strict=True))


def test_a_plan_says_what_every_stage_takes() -> None:
    plan = pipe().plan(64, 128, num_frames=5)
    assert [(s.name, s.component) for s in plan.stages] == [
        ("encode", "image_encoder"),
        ("encode", "vae"),
        ("denoise", "unet"),
        ("decode", "vae"),
    ]
    whole = pipe().plan(64, 128, num_frames=5, decode_chunk_size=5)
    assert plan.stages[-1].needs.peak < whole.stages[-1].needs.peak


# ------------------------------------------------------------------ streams, callbacks, outputs


def test_a_stream_says_what_is_done_and_ends_with_the_call_s_clip() -> None:
    events = list(pipe().stream(A, generator=3, **{**PT, "num_inference_steps": 2, "preset": "svd"}))
    said = [(e.stage, e.step, e.total) for e in events]
    steps = [("denoise", 1, 2), ("denoise", 2, 2)]
    assert said == [("encode", 0, 1), ("encode", 1, 1), *steps, *[("decode", i, 2) for i in range(3)], ("done", 1, 1)]
    assert events[2].latents.shape == (1, 2, 4, 8, 16)
    again = pipe()(A, generator=3, **{**PT, "num_inference_steps": 2, "preset": "svd"}).frames
    assert torch.equal(events[-1].output.frames, again)


def test_a_callback_hears_of_every_step_and_may_change_latents() -> None:
    heard: list[Any] = []

    def listen(run: Any, step: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
        heard.append((step, given["latents"].shape))
        return {"latents": given["latents"] * (1 if step else 0)}

    call = {**CALL, "num_inference_steps": 2, "noise_aug_strength": 0.0}
    made = pipe()(A, generator=3, callback_on_step_end=listen, **call).frames
    assert heard == [(0, (1, 2, 4, 8, 16)), (1, (1, 2, 4, 8, 16))]
    assert torch.equal(made, pipe()(A, generator=4, callback_on_step_end=listen, **call).frames)


def test_the_output_knows_how_fast_to_play_and_how_near_its_first_frame_is(tmp_path: Path) -> None:
    made = pipe()(A, generator=3, **{**PT, "output_type": "pil"})
    assert made.fps == 7 and len(made.frames[0]) == 2 and len(made.receipt["first_frame_psnr"]) == 1
    faster = pipe()(A, generator=3, playback_fps=24, **PT)
    assert faster.fps == 24 and faster.receipt["fps"] == 7
    path = made.save(tmp_path / "a.mp4")
    assert kinema.read_info(path).receipt["motion_bucket_id"] == 127


def test_an_exact_first_frame_is_the_picture_and_fades_into_the_clip() -> None:
    call = {**PT, "num_frames": 7, "max_guidance_scale": 1.0}
    free, exact = (pipe()(A, generator=3, first_frame=name, **call) for name in ("free", "exact"))
    assert torch.equal(exact.frames[0, 0], pictures(A)[0].pixels)
    apart = (exact.frames - free.frames)[0].abs().flatten(1).amax(1)
    assert apart.tolist() == sorted(apart.tolist(), reverse=True) and apart[0] > apart[3] > 0
    error = (free.frames[0, 0] - exact.frames[0, 0]).square().mean()
    assert free.receipt["first_frame_psnr"] == exact.receipt["first_frame_psnr"]
    assert free.receipt["first_frame_psnr"][0] == pytest.approx(float(-10 * error.log10()), abs=0.01)


# ------------------------------------------------------------------ bad input


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": None}, kinema.InputError, "image is missing"),
    ({"image": []}, kinema.InputError, "empty"),
    ({"image": torch.rand(2, 16, 32)}, kinema.InputError, r"shape \(2, 16, 32\)"),
    ({"image": torch.rand(3, 16, 32) * 255}, kinema.InputError, "0 to 1"),
    ({"image": torch.full((3, 16, 32), float("nan"))}, kinema.InputError, "not finite"),
    ({"image": "nowhere.png"}, kinema.MediaError, "nowhere.png"),
    ({"image": 3}, kinema.InputError, "int"),
    ({"height": 15}, kinema.InputError, "nearest"),
    ({"height": None}, kinema.InputError, "both height and width"),
    ({"num_frames": 0}, kinema.InputError, "num_frames"),
    ({"num_inference_steps": 0}, kinema.InputError, "num_inference_steps"),
    ({"sigmas": "karras"}, kinema.InputError, "ays"),
    ({"sigmas": [1.0, 2.0]}, kinema.InputError, "fall"),
    ({"max_guidance_scale": float("nan")}, kinema.InputError, "max_guidance_scale"),
    ({"fps": 0}, kinema.InputError, "fps"),
    ({"noise_aug_strength": -1}, kinema.InputError, "noise_aug_strength"),
    ({"decode_chunk_size": 0}, kinema.InputError, "decode_chunk_size"),
    ({"generator": [1, 2]}, kinema.InputError, "2, but 1 clips"),
    ({"latents": torch.zeros(1, 4, 2, 8, 16)}, kinema.InputError, "b, f, c, h, w"),
    ({"output_type": "gif"}, kinema.InputError, "output_type"),
    ({"motion": "wild"}, kinema.InputError, "still"),
    ({"motion": "calm", "motion_bucket_id": 3}, kinema.InputError, "not both"),
    ({"preset": "svd2"}, kinema.InputError, "svd_xt"),
    ({"fit": "cover"}, kinema.InputError, "crop"),
    ({"fit": "crop", "focus": (2, 0), "image": picture(0, 16, 16)}, kinema.InputError, "focus"),
    ({"first_frame": "near"}, kinema.InputError, "exact"),
    ({"playback_fps": "fast"}, kinema.InputError, "playback_fps"),
    ({"callback_on_step_end": 3}, kinema.InputError, "callback_on_step_end"),
    ({"motion_bucket": 3}, kinema.InputError, "motion_bucket_id"),
]


@pytest.mark.parametrize(("call", "error", "said"), BAD, ids=[",".join(call) for call, _, _ in BAD])
def test_what_cannot_be_is_refused_in_one_sentence(call: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        pipe()(**{"image": A, **CALL, **call})
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ files


def test_what_is_saved_the_reference_reads_and_the_other_way_round(tmp_path: Path) -> None:
    mine, other = pair()
    mine.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    read = diffusers.StableVideoDiffusionPipeline.from_pretrained(tmp_path / "ours")
    read.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 4}
    expected = other(A, generator=gen(3), **call).frames
    assert off(read(A, generator=gen(3), **call).frames, expected) < SAME
    for folder in ("ours", "theirs"):
        made = kinema.DiffusionPipeline.from_pretrained(tmp_path / folder)
        assert type(made) is kinema.StableVideoDiffusionPipeline
        assert off(made(A, generator=gen(3), **call).frames, expected) < 1e-4


def test_a_plain_image_autoencoder_is_saved_and_read_as_what_it_is(tmp_path: Path) -> None:
    made = ours(vae_={"plain": True})
    made.save_pretrained(tmp_path)
    assert type(kinema.DiffusionPipeline.from_pretrained(tmp_path).vae) is kinema.AutoencoderKL
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path).vae) is diffusers.AutoencoderKL
