"""AnimateDiff on SDXL against the reference, on the same weights and from the same seed."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests import sdxl_pipes as pipes
from tests.pipelines_tiny import gen, off

import kinema
from kinema import InputError
from kinema.encoders.inversion import Inversions

CLOSE = 1e-4


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    theirs = pipes.theirs()
    return theirs, pipes.ours(theirs)


SIZES = {
    "original_size": (40, 50),
    "crops_coords_top_left": (3, 4),
    "target_size": (64, 48),
    "negative_original_size": (8, 9),
    "negative_target_size": (10, 11),
    "negative_crops_coords_top_left": (1, 2),
}
CALLS: dict[str, dict[str, Any]] = {
    "nothing against": {},
    "something against": {"negative_prompt": "dull"},
    "unguided": {"guidance_scale": 1.0, "eta": 0.6},
    "told apart": {"prompt_2": "a star", "negative_prompt": "dull", "negative_prompt_2": "blurred"},
    "two of four layers": {"negative_prompt": "dull", "clip_skip": 1},
    "two layers fewer": {"clip_skip": 2},
    "sizes": {"negative_prompt": "dull", **SIZES},
    "half of the sizes against": {**SIZES, "negative_target_size": None},
    "rescaled": {"guidance_rescale": 0.7, "guidance_scale": 9.0, "negative_prompt": ""},
    "stopped early": {"denoising_end": 0.55, "num_inference_steps": 7, "output_type": "latent"},
    "two prompts": {"prompt": ["a red circle", "a star"], "prompt_2": ["a", "b"], "negative_prompt": ["dull", ""]},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_clip_is_the_reference_s(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, **CALLS[name]}
    expected = theirs(**call, generator=gen(3)).frames
    assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE


def test_latents_and_a_generator_for_each_clip_are_taken_as_in_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "prompt": ["a red circle", "a star"], "negative_prompt": ["", "dull"], "eta": 0.5}
    for more in ({}, {"latents": torch.randn(2, 4, 4, 8, 12)}):
        expected = theirs(**call, **more, generator=[gen(1), gen(2)]).frames
        assert off(ours(**call, **more, generator=[gen(1), gen(2)]).frames, expected) <= CLOSE


@pytest.mark.parametrize("negative", [True, False])
def test_given_embeddings_are_taken_as_in_the_reference(pair: tuple[Any, Any], negative: bool) -> None:
    theirs, ours = pair
    width = sum(pipes.WIDTHS)
    call = {**pipes.CALL, "prompt": None, "prompt_embeds": torch.randn(1, 9, width)}
    call["pooled_prompt_embeds"] = torch.randn(1, pipes.POOLED)
    if negative:
        call["negative_prompt_embeds"] = torch.randn(1, 9, width)
        call["negative_pooled_prompt_embeds"] = torch.randn(1, pipes.POOLED)
    expected = theirs(**call, generator=gen(3)).frames
    assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE


SCHEDULERS: dict[str, dict[str, Any]] = {
    "EulerDiscreteScheduler": {"timestep_spacing": "leading", "steps_offset": 1},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "HeunDiscreteScheduler": {},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stopping_early_leaves_what_the_reference_leaves(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, **SCHEDULERS[name]}
    call = {**pipes.CALL, "denoising_end": 0.4, "num_inference_steps": 6, "output_type": "latent"}
    other = diffusers.AnimateDiffSDXLPipeline(**{**theirs.components, "scheduler": getattr(diffusers, name)(**config)})
    other.set_progress_bar_config(disable=True)
    mine = kinema.AnimateDiffSDXLPipeline.from_pipe(ours, scheduler=getattr(kinema, name)(**config))
    heard: list[int] = []
    got = mine(**call, generator=gen(3), callback_on_step_end=lambda pipe, i, t, told: heard.append(i)).frames
    assert off(got, other(**call, generator=gen(3)).frames) <= CLOSE
    assert heard == list(range(len(heard))) and 0 < len(heard) < 6


def test_prompts_encoded_before_are_those_of_a_call(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    call = {"prompt": ["a star", "b"], "prompt_2": ["c", "d"], "negative_prompt": ["e", "f"]}
    expected = theirs.encode_prompt(**call, device="cpu")
    for mine, other in zip(ours.encode_prompt(**call, num_videos_per_prompt=1), expected, strict=True):
        assert off(mine, other) <= CLOSE
    plain = ours.encode_prompt("a star")
    given = dict(
        zip(
            ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
            plain,
            strict=True,
        )
    )
    clip = ours(**{**pipes.CALL, "prompt": None}, **given, generator=gen(3)).frames
    assert torch.equal(torch.tensor(clip), torch.tensor(ours(**{**pipes.CALL, "prompt": "a star"}, generator=3).frames))


def test_the_reference_forgets_what_embeds_the_numbers() -> None:
    """Its motion model is made without the image model's `add_embedding`, so a real SDXL model would see noise."""
    image, adapter = pipes.tiny.reference_image_model(**pipes.IMAGE), pipes.tiny.reference_adapter(**pipes.ADAPTER)
    made = diffusers.UNetMotionModel.from_unet2d(image, adapter)
    assert not torch.equal(made.add_embedding.linear_1.weight, image.add_embedding.linear_1.weight)
    ours = kinema.UNetMotionModel.from_unet2d(pipes.tiny.ours(image), pipes.tiny.ours(adapter))
    assert torch.equal(ours.add_embedding.linear_1.weight, image.add_embedding.linear_1.weight)


def test_each_of_a_batch_is_told_its_own_sizes_where_the_reference_mixes_them_up(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    prompts = ["a red circle", "a star"]
    call = {**pipes.CALL, **SIZES}
    alone = [ours(**{**call, "prompt": p}, generator=i).frames[0] for i, p in enumerate(prompts)]
    both = ours(**{**call, "prompt": prompts}, generator=[0, 1]).frames
    assert all(off(both[i], alone[i]) <= 1e-5 for i in range(2))
    other = theirs(**{**call, "prompt": prompts}, generator=[gen(0), gen(1)]).frames
    assert off(other[0], alone[0]) > 100 * CLOSE


def test_copies_are_made_where_the_reference_ignores_them(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, "num_videos_per_prompt": 2, "negative_prompt": "dull"}
    assert len(theirs(**call, generator=gen(5)).frames) == 1
    both = ours(**call, generator=5).frames
    alone = ours(**{**pipes.CALL, "negative_prompt": "dull"}, generator=6).frames
    assert len(both) == 2 and off(both[1], alone[0]) <= 1e-5


class TestText:
    def test_what_is_long_is_read_whole_by_both_encoders(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        long = "abcdefgh " * 12  # two blocks
        text, against, pooled, _ = ours.encode_prompt(long, prompt_2="short", negative_prompt="x")
        assert text.shape == against.shape == (1, 154, sum(pipes.WIDTHS)) and pooled.shape == (1, pipes.POOLED)
        short = ours.encode_prompt("a", prompt_2="short", negative_prompt="x")
        assert torch.equal(text[:, :77, pipes.WIDTHS[0] :], short[0][:, :, pipes.WIDTHS[0] :])
        assert torch.equal(pooled, short[2])

    def test_a_long_prompt_beside_a_short_one_does_not_change_the_short_one_s_clip(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        both = ours(**{**pipes.CALL, "prompt": ["a star", "abcdefgh " * 12]}, generator=[1, 2]).frames
        alone = ours(**{**pipes.CALL, "prompt": "a star"}, generator=1).frames
        assert off(both[0], alone[0]) <= 1e-5

    def test_cutting_is_what_the_reference_does(self, pair: tuple[Any, Any]) -> None:
        theirs, ours = pair
        call = {**pipes.CALL, "prompt": "abcdefgh " * 12}
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3), long_prompts="cut").frames, expected) <= CLOSE

    def test_nothing_said_against_is_an_empty_prompt_where_the_model_wants_it(self, pair: tuple[Any, Any]) -> None:
        theirs, ours = pair
        wants = kinema.AnimateDiffSDXLPipeline.from_pipe(ours, force_zeros_for_empty_prompt=False)
        got = wants(**pipes.CALL, generator=gen(3)).frames
        expected = theirs(**{**pipes.CALL, "negative_prompt": ""}, generator=gen(3)).frames
        assert off(got, expected) <= CLOSE
        assert off(ours(**pipes.CALL, generator=gen(3)).frames, expected) > 10 * CLOSE

    def test_a_word_learned_for_both_encoders_is_said_to_both(self, pair: tuple[Any, Any]) -> None:
        """The reference adds rows to both models; here the same vectors are looked up beside them."""
        ours = kinema.AnimateDiffSDXLPipeline.from_pipe(pair[1])
        vectors = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 16)}
        ours.load_textual_inversion(vectors, token="<style>")
        for clip_id, encoder, words in (
            ("clip_l", ours.text_encoder, ours.inversions),
            ("clip_g", ours.text_encoder_2, ours.inversions_2),
        ):
            assert isinstance(words, Inversions) and torch.equal(words["<style>"], vectors[clip_id])
            assert len(encoder.get_input_embeddings().weight) == 190
        text, _, pooled, _ = ours.encode_prompt("a <style>")
        expected, whole = _by_hand(ours, vectors)
        assert off(text, expected) <= 1e-5 and off(pooled, whole) <= 1e-5
        ours.unload_textual_inversion()
        assert off(ours.encode_prompt("a <style>")[0], text) > 1e-3

    def test_one_encoder_s_half_is_learned_as_published_code_says_it(self, pair: tuple[Any, Any]) -> None:
        ours = kinema.AnimateDiffSDXLPipeline.from_pipe(pair[1])
        vectors = {"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 16)}
        ours.load_textual_inversion(
            vectors["clip_g"], token="<s>", text_encoder=ours.text_encoder_2, tokenizer=ours.tokenizer_2
        )
        assert "<s>" in ours.inversions_2 and "<s>" not in ours.inversions
        with pytest.raises(InputError, match="text_encoder"):
            ours.load_textual_inversion(vectors["clip_g"], token="<t>", text_encoder=object())

    def test_prompts_may_change_along_a_clip(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        plain = ours(**pipes.CALL, prompt_2="x", generator=gen(3)).frames
        one = ours(**{**pipes.CALL, "prompt": {0: "a red circle"}}, prompt_2="x", generator=gen(3)).frames
        assert off(one, plain) <= 1e-5
        journeys = [{0: "a red circle", 3: "a star"}, {0: "a star"}]
        both = ours(**{**pipes.CALL, "prompt": journeys}, generator=[1, 2], num_videos_per_prompt=1).frames
        for i, journey in enumerate(journeys):
            alone = ours(**{**pipes.CALL, "prompt": journey}, generator=i + 1).frames[0]
            assert off(alone, both[i]) <= 1e-5
        assert off(both[0], ours(**pipes.CALL, generator=1).frames[0]) > 1e-3

    def test_negative_prompts_may_too(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        call = {**pipes.CALL, "negative_prompt": "dull", "negative_prompt_2": "x"}
        plain = ours(**call, generator=gen(3)).frames
        one = ours(**{**call, "negative_prompt": {2: "dull"}}, generator=gen(3)).frames
        assert off(one, plain) <= 1e-5
        changing = {**pipes.CALL, "prompt": {0: "a red circle", 3: "a star"}, "negative_prompt": {0: "dull", 2: "blue"}}
        assert off(ours(**changing, generator=gen(3)).frames, plain) > 1e-3


def _by_hand(pipe: Any, vectors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt `a <style>` through models whose token tables have two more rows."""
    import copy

    made = []
    for half, encoder, tokenizer in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer),
        ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        grown = copy.deepcopy(encoder)
        table = grown.get_input_embeddings()
        table.weight.data = torch.cat([table.weight.data, vectors[half]])
        ids = tokenizer("a")["input_ids"]
        ids = [*ids[:-1], 190, 191, ids[-1]]
        ids += [tokenizer.pad_token_id] * (77 - len(ids))
        with torch.no_grad():
            made.append(grown(torch.tensor([ids]), output_hidden_states=True))
    return torch.cat([m.hidden_states[-2] for m in made], -1), made[1].text_embeds


class TestFolders:
    def test_a_saved_pipeline_is_the_same_again_and_the_reference_reads_it(
        self, pair: tuple[Any, Any], tmp_path: Any
    ) -> None:
        theirs, ours = pair
        adapter = pipes.tiny.ours(theirs.motion_adapter)
        whole = kinema.AnimateDiffSDXLPipeline.from_pipe(
            ours, motion_adapter=adapter, force_zeros_for_empty_prompt=False
        )
        whole.save_pretrained(tmp_path)
        again = kinema.DiffusionPipeline.from_pretrained(tmp_path)
        again.set_progress_bar_config(disable=True)
        assert type(again) is kinema.AnimateDiffSDXLPipeline and again.force_zeros_for_empty_prompt is False
        call = {**pipes.CALL, "generator": 3}
        assert off(again(**call).frames, whole(**call).frames) <= 1e-5
        other = diffusers.AnimateDiffSDXLPipeline.from_pretrained(tmp_path)
        other.set_progress_bar_config(disable=True)
        assert other.config.force_zeros_for_empty_prompt is False
        got = other(**{**call, "generator": gen(3)}).frames
        assert off(whole(**{**call, "generator": gen(3)}).frames, got) <= CLOSE

    def test_an_image_model_s_folder_and_an_adapter_make_a_pipeline(self, pair: tuple[Any, Any], tmp_path: Any) -> None:
        theirs = pair[0]
        image = diffusers.StableDiffusionXLPipeline(
            unet=pipes.tiny.reference_image_model(**pipes.IMAGE), **pipes.parts(), add_watermarker=False
        )
        image.save_pretrained(tmp_path / "image")
        adapter = pipes.tiny.ours(theirs.motion_adapter)
        read = kinema.AnimateDiffSDXLPipeline.from_pretrained(tmp_path / "image", motion_adapter=adapter)
        read.set_progress_bar_config(disable=True)
        expected = theirs(**pipes.CALL, generator=gen(3)).frames
        assert off(read(**pipes.CALL, generator=gen(3)).frames, expected) <= CLOSE
        with pytest.raises(InputError, match="needs a motion_adapter"):
            kinema.AnimateDiffSDXLPipeline.from_pretrained(tmp_path / "image")


def test_an_autoencoder_that_overflows_in_float16_decodes_in_float32_and_stays_as_it_is(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    vae = kinema.AutoencoderKL(dict(ours.vae.config)).eval().requires_grad_(False)
    vae.load_state_dict({k: v.half().float() for k, v in ours.vae.state_dict().items()})
    latents = torch.randn(1, 2, 4, 8, 12)
    whole = kinema.AnimateDiffSDXLPipeline.from_pipe(ours, vae=vae)
    expected = torch.cat(list(whole.decode(latents)))
    half = kinema.AnimateDiffSDXLPipeline.from_pipe(ours, vae=vae.half())
    got = torch.cat(list(half.decode(latents)))
    assert off(got, expected) <= 1e-5 and half.vae.dtype == torch.float16


def test_a_lora_of_all_three_networks_is_taken_on_and_off(pair: tuple[Any, Any]) -> None:
    ours = kinema.AnimateDiffSDXLPipeline.from_pipe(pair[1])
    q = "layers.0.self_attn.q_proj"
    lora = {
        f"text_encoder.text_model.encoder.{q}.lora_A.weight": torch.randn(2, 32),
        f"text_encoder.text_model.encoder.{q}.lora_B.weight": torch.randn(32, 2),
        f"text_encoder_2.text_model.encoder.{q}.lora_A.weight": torch.randn(2, 16),
        f"text_encoder_2.text_model.encoder.{q}.lora_B.weight": torch.randn(16, 2),
        "unet.conv_in.lora_A.weight": torch.randn(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.randn(16, 2, 1, 1),
    }
    call = {**pipes.CALL, "generator": 3}
    plain, told = ours(**call).frames, ours.encode_prompt("a")
    ours.load_lora_weights(lora, "style")
    with_it = ours.encode_prompt("a")
    assert off(with_it[0][..., :32], told[0][..., :32]) > 1e-3 and off(with_it[2], told[2]) > 1e-3
    none = ours(**call, cross_attention_kwargs={"scale": 0.0}).frames
    assert off(none, plain) <= 1e-6 and off(ours(**call).frames, plain) > 1e-3
    ours.unload_lora_weights()
    assert (ours(**call).frames == plain).all()


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_offload_changes_no_clip(pair: tuple[Any, Any], mode: str) -> None:
    from kinema.memory.residency import Residency

    ours = kinema.AnimateDiffSDXLPipeline.from_pipe(pair[1])
    ours.load_textual_inversion({"clip_l": torch.randn(1, 32), "clip_g": torch.randn(1, 16)}, token="<s>")
    call = {**pipes.CALL, "prompt": "a <s>", "generator": 3}
    plain = ours(**call).frames
    ours._residency = Residency(ours.modules(), mode=mode, bring=torch.clone)  # type: ignore[arg-type]
    assert (ours(**call).frames == plain).all()


def test_a_plan_counts_both_text_encoders(pair: tuple[Any, Any]) -> None:
    plan = pair[1].plan(16, 24, 4)
    assert [s.component for s in plan.stages][:2] == ["text_encoder", "text_encoder_2"] and plan.peak > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prompt_2": ["a", "b"]}, "prompt_2"),
        ({"prompt_2": 3}, "prompt_2"),
        ({"negative_prompt": "a", "negative_prompt_2": ["a", "b", "c"]}, "negative_prompt_2"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 7, 48)}, "pooled_prompt_embeds"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 7, 32)}, "prompt_embeds"),
        ({"negative_prompt_embeds": torch.zeros(1, 77, 48)}, "negative_pooled_prompt_embeds"),
        ({"original_size": 512}, "original_size"),
        ({"target_size": (512, -1)}, "target_size"),
        ({"denoising_end": 1.5}, "denoising_end"),
        ({"denoising_end": 0.0}, "denoising_end"),
        ({"clip_skip": 3}, "clip_skip"),
    ],
)
def test_what_cannot_be_is_refused_at_once(pair: tuple[Any, Any], wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pair[1].begin(pair[1]._bind((), {**pipes.CALL, **wrong}))


def test_a_second_negative_prompt_that_is_not_read_is_said_to_be(pair: tuple[Any, Any], caplog: Any) -> None:
    with caplog.at_level("WARNING", "kinema"):
        pair[1].encode_prompt("a", negative_prompt_2="b")
    assert "negative_prompt_2 is not read" in caplog.text
