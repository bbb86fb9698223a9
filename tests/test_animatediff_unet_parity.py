"""The denoisers of AnimateDiff against the reference's on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kinema import CheckpointError, InputError
from kinema.checkpoint.keys import write
from kinema.families.animatediff import MotionAdapter, MotionConditions, UNet2DConditionModel, UNetMotionModel

from . import animatediff_tiny as tiny

V1 = {"motion_max_seq_length": 24, "use_motion_mid_block": False}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "v1": ({}, V1),
    "v2": ({}, {}),
    "v3": ({}, {**V1, "motion_max_seq_length": 32}),
    "sdxl": (tiny.SDXL, {**V1, "motion_max_seq_length": 32}),
    "pia": ({}, {"conv_in_channels": 9}),
    "deep motion": ({}, {"motion_transformer_layers_per_block": 2, "motion_transformer_layers_per_mid_block": 2}),
    "a layer a level, heads by level": (
        {**tiny.SDXL, "layers_per_block": 1},
        {
            "motion_layers_per_block": 1,
            "motion_num_attention_heads": (2, 4, 8),
            "motion_transformer_layers_per_block": (1, 2, 1),
        },
    ),
    "linear projections": ({"use_linear_projection": True, "attention_head_dim": (2, 4, 4)}, {}),
    "layers by level": (
        {"layers_per_block": (1, 2, 1)},
        {"motion_layers_per_block": (1, 2, 1), "motion_num_attention_heads": 2},
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    image, adapter = CASES[request.param]
    return tiny.reference_image_model(**image), tiny.reference_adapter(**adapter), request.param


def _added(model: Any, pooled: torch.Tensor, numbers: torch.Tensor) -> dict[str, Any]:
    xl = model.config.addition_embed_type == "text_time"
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}} if xl else {}


@torch.no_grad()
def test_a_clip_is_the_reference_s(pair: tuple[Any, Any, Any]) -> None:
    image, adapter, _ = pair
    reference = tiny.reference_motion_model(image, adapter)
    model = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
    latents, text, pooled, numbers = tiny.told(channels=reference.config.in_channels)
    more = _added(reference, pooled, numbers)
    every = text.repeat_interleave(latents.shape[2], 0)
    expected = reference(latents, torch.tensor(37), encoder_hidden_states=every, **more).sample
    prepared = model.prepare(torch.tensor([37.0]), MotionConditions(text, latents.shape[2], pooled, numbers))
    got = model(latents.transpose(1, 2), prepared.at(0)).transpose(1, 2)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert set(write(model.state_dict(), model.KEYS)) == set(reference.state_dict())


@torch.no_grad()
def test_a_saved_denoiser_is_the_same_again(pair: tuple[Any, Any, Any], tmp_path: Any) -> None:
    image, adapter, _ = pair
    model = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
    model.save_pretrained(tmp_path)
    again = UNetMotionModel.from_pretrained(tmp_path)
    assert again.config == model.config
    read = again.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, read[key]), key


@pytest.mark.parametrize("config", [{}, tiny.SDXL], ids=["sd15", "sdxl"])
@torch.no_grad()
def test_pictures_are_the_reference_s(config: dict[str, Any]) -> None:
    reference = tiny.reference_image_model(**config)
    model = tiny.ours(reference)
    latents, text, pooled, numbers = tiny.told()
    f = latents.shape[2]
    frames = latents.transpose(1, 2).flatten(0, 1)
    more = _added(reference, pooled.repeat_interleave(f, 0), numbers.repeat_interleave(f, 0))
    every = text.repeat_interleave(f, 0)
    expected = reference(frames, torch.tensor(500), encoder_hidden_states=every, **more).sample
    prepared = model.prepare(torch.tensor([500.0]), MotionConditions(text, f, pooled, numbers))
    got = model(latents.transpose(1, 2), prepared.at(0)).flatten(0, 1)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_the_reference_forgets_what_sdxl_knows_of_sizes_and_kinema_does_not() -> None:
    from diffusers import UNetMotionModel as Reference

    image, adapter = tiny.reference_image_model(**tiny.SDXL), tiny.reference_adapter()
    theirs = Reference.from_unet2d(image, adapter).state_dict()
    ours = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter)).state_dict()
    known = image.state_dict()["add_embedding.linear_1.weight"]
    assert not torch.equal(theirs["add_embedding.linear_1.weight"], known)
    assert torch.equal(ours["add_embedding.linear_1.weight"], known)


@torch.no_grad()
def test_text_for_every_frame_equals_the_reference_s() -> None:
    image, adapter = tiny.reference_image_model(), tiny.reference_adapter()
    reference = tiny.reference_motion_model(image, adapter)
    model = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
    latents, _, _, _ = tiny.told()
    text = torch.randn(2, 5, 7, 16, generator=torch.Generator().manual_seed(3))
    expected = reference(latents, torch.tensor(37), encoder_hidden_states=text.flatten(0, 1)).sample
    got = model(latents.transpose(1, 2), model.prepare(torch.tensor([37.0]), MotionConditions(text, 5)).at(0))
    assert (got.transpose(1, 2) - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_without_motion_frames_are_pictures() -> None:
    image, adapter = tiny.ours(tiny.reference_image_model()), tiny.ours(tiny.reference_adapter())
    model = UNetMotionModel.from_unet2d(image, adapter)
    latents, text, _, _ = tiny.told()
    still = MotionConditions(text, 5, motion=torch.zeros(5))
    got = model(latents.transpose(1, 2), model.prepare(torch.tensor([37.0]), still).at(0))
    expected = image(latents.transpose(1, 2), image.prepare(torch.tensor([37.0]), MotionConditions(text, 5)).at(0))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_window_is_told_what_its_frames_are_told() -> None:
    model = UNetMotionModel.from_unet2d(tiny.ours(tiny.reference_image_model()), tiny.ours(tiny.reference_adapter()))
    latents = tiny.told()[0].transpose(1, 2)
    text, motion = torch.randn(2, 5, 7, 16), torch.rand(5)
    whole = model.prepare(torch.tensor([37.0]), MotionConditions(text, 5, motion=motion)).at(0)
    part = model.prepare(torch.tensor([37.0]), MotionConditions(text[:, [1, 3]], 2, motion=motion[[1, 3]])).at(0)
    torch.testing.assert_close(model(latents[:, [1, 3]], whole.at_frames([1, 3])), model(latents[:, [1, 3]], part))


def test_a_new_adapter_changes_nothing() -> None:
    image = tiny.ours(tiny.reference_image_model())
    model = UNetMotionModel.from_unet2d(image, MotionAdapter(**tiny.ADAPTER))
    latents, text, _, _ = tiny.told()
    said = MotionConditions(text, 5)
    with torch.no_grad():
        got = model(latents.transpose(1, 2), model.prepare(torch.tensor([37.0]), said).at(0))
        expected = image(latents.transpose(1, 2), image.prepare(torch.tensor([37.0]), said).at(0))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_weights_are_shared_and_not_copied() -> None:
    image, adapter = tiny.ours(tiny.reference_image_model()), tiny.ours(tiny.reference_adapter())
    model = UNetMotionModel.from_unet2d(image, adapter)
    key = "down_blocks.0.resnets.0.conv1.weight"
    assert model.get_parameter(key).data_ptr() == image.get_parameter(key).data_ptr()
    key = "down_blocks.0.motion_modules.0.proj_in.weight"
    assert model.get_parameter(key).data_ptr() == adapter.get_parameter(key).data_ptr()


@pytest.mark.parametrize("change", [{"block_out_channels": (16, 32)}, {"motion_layers_per_block": 1}])
def test_an_adapter_for_another_model_is_refused_in_one_sentence(change: dict[str, Any]) -> None:
    image = tiny.ours(tiny.reference_image_model())
    with pytest.raises(CheckpointError, match="The motion module is for"):
        UNetMotionModel.from_unet2d(image, MotionAdapter(**{**tiny.ADAPTER, **change}))


def test_an_sdxl_adapter_on_stable_diffusion_is_named() -> None:
    from kinema.families.animatediff.configs import MotionAdapterConfig, UNet2DConfig, check_pair

    with pytest.raises(CheckpointError, match=r"for SDXL and .* is Stable Diffusion 1\.5"):
        check_pair(UNet2DConfig(), MotionAdapterConfig(block_out_channels=(320, 640, 1280)))


@pytest.mark.parametrize(
    "wrong", [{"up_block_types": ("UpBlock2D",)}, {"attention_head_dim": 7}, {"norm_num_groups": 5}]
)
def test_fields_that_contradict_one_another_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        UNet2DConditionModel(**{**tiny.SD15, **wrong})


def test_a_step_at_the_published_size_takes_less_arithmetic_and_less_memory() -> None:
    """Stable Diffusion 1.5 with a motion module of version 2, 16 frames of 512×512, guided."""
    from diffusers import MotionAdapter as TheirAdapter
    from diffusers import UNet2DConditionModel as TheirImages
    from diffusers import UNetMotionModel as TheirClips

    from kinema.memory.needs import trace

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta", dtype=torch.float16)

    f, size = 16, 64
    with torch.device("meta"):
        image = TheirImages(cross_attention_dim=768, attention_head_dim=8)
        theirs = TheirClips.from_unet2d(image, TheirAdapter(), load_weights=False).half().eval()
    ours = UNetMotionModel.without_weights(dict(theirs.config)).to("meta").half().eval()
    with torch.no_grad():
        signal = ours.prepare(torch.empty(1, device="meta"), MotionConditions(empty(2, 77, 768), f)).at(0)
        mine = trace(lambda: ours(empty(1, f, 4, size, size), signal), resident=[ours])
        time = torch.empty(2, device="meta")
        text = empty(2 * f, 77, 768)
        other = trace(lambda: theirs(empty(2, 4, f, size, size), time, text).sample, resident=[theirs])
    assert mine.flops <= 0.945 * other.flops
    assert mine.peak <= 0.5 * other.peak


class TestOriginalNumerics:
    """Group norms as the authors' code computes them, checked against norms written out here."""

    @staticmethod
    def _outputs(numerics: str, frames: int, **options: Any) -> torch.Tensor:
        image, adapter = tiny.ours(tiny.reference_image_model()), tiny.ours(tiny.reference_adapter())
        model = UNetMotionModel.from_unet2d(image, adapter)
        latents, text, _, _ = tiny.told(frames)
        with torch.no_grad():
            told = MotionConditions(text, frames, numerics=numerics, **options)  # type: ignore[arg-type]
            prepared = model.prepare(torch.tensor([37.0]), told)
            out: torch.Tensor = model(latents.transpose(1, 2), prepared.at(0))
        return out

    def test_it_changes_a_clip_but_not_a_lone_frame(self) -> None:
        assert (self._outputs("original", 5) - self._outputs("reference", 5)).abs().max() > 1e-3
        torch.testing.assert_close(self._outputs("original", 1), self._outputs("reference", 1))

    def test_norms_over_the_clip_are_norms_of_the_clip_as_one_picture(self) -> None:
        from kinema.nn.blocks import norm_silu_over_clip

        x, norm = torch.randn(6, 8, 4, 5), torch.nn.GroupNorm(2, 8)
        clips = x.unflatten(0, (2, 3)).transpose(1, 2)
        expected = torch.nn.functional.silu(norm(clips)).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(norm_silu_over_clip(x, norm, 3), expected)

    def test_version_one_normalises_residual_blocks_over_the_clip(self) -> None:
        wide, narrow = (self._outputs("original", 5, over_clip=wide) for wide in (True, False))
        assert (wide - narrow).abs().max() > 1e-3

    def test_other_words_are_refused(self) -> None:
        with pytest.raises(InputError, match="'reference' or 'original'"):
            self._outputs("exact", 5)
