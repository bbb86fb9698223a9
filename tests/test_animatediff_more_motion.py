"""Several motion adapters in one clip, each in its frames; and prompts of either kind that change on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.pipelines_tiny import off
from torch import nn

import kinema
from kinema import CheckpointError, InputError
from kinema.families.animatediff import UNet2DConditionModel
from kinema.families.animatediff.more_motion import motion_scales
from kinema.nn.motion import MotionModule
from kinema.nn.signal import Signal

TWO = {"block_out_channels": (16, 32)}


@pytest.fixture(scope="module")
def one() -> Any:
    return pipes.ours(pipes.theirs(image=tiny.SMALL, adapter=TWO))


@pytest.fixture(scope="module")
def adapters() -> dict[str, Any]:
    return {name: tiny.ours(tiny.reference_adapter(seed, **TWO)) for name, seed in (("walk", 8), ("run", 9))}


def made(one: Any, cls: str = "AnimateDiffPipeline", **adapters: Any) -> Any:
    """A pipeline with these adapters on the image model of another."""
    image = UNet2DConditionModel(dict(tiny.reference_image_model(cross_attention_dim=pipes.WIDTH, **tiny.SMALL).config))
    own = one.unet.state_dict()
    image.load_state_dict({name: own[name] for name in image.state_dict()})
    parts = {**one.components, "unet": image.eval().requires_grad_(False), "motion_adapter": adapters}
    pipe = getattr(kinema, cls)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def both(one: Any, adapters: dict[str, Any]) -> Any:
    return made(one, **adapters)


def clip(pipe: Any, **changes: Any) -> Any:
    return pipe(**{**pipes.CALL, "num_inference_steps": 2, "generator": 3, **changes}).frames


class TestSeveralMotionAdapters:
    def test_each_alone_is_the_model_made_with_it(self, one: Any, both: Any, adapters: dict[str, Any]) -> None:
        for name in adapters:
            alone = clip(made(one, **{name: adapters[name]}))
            assert off(clip(both, motion_scale={name: 1.0}), alone) <= 1e-6
        assert (clip(both) == clip(both, motion_scale={"walk": 1.0})).all()
        assert (clip(both, motion_scale=0.0) == clip(both, motion_scale={"run": 0})).all()

    def test_what_they_change_is_summed_frame_by_frame(self) -> None:
        first, second = (MotionModule(16, 4, 4, 32).requires_grad_(False) for _ in range(2))
        for module in (first, second):
            nn.init.normal_(module.proj_out.weight)
        first.others["b"] = second
        x = torch.randn(2 * 5, 16, 3, 2)
        plain = Signal(5, torch.zeros(1, 1), {})
        changes = [module.change(x, plain) for module in (first, second)]
        scales = {"": (1.0, 0.5, 0.25, 0.0, 0.0), "b": (0.0, 0.0, 0.5, 0.5, 2.0)}
        expected = x + sum(
            change * torch.tensor(s).repeat(2)[:, None, None, None]
            for change, s in zip(changes, scales.values(), strict=True)
        )
        got = first(x, Signal(5, torch.zeros(1, 1), {}, motion=scales))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    def test_one_that_counts_nothing_in_a_window_is_not_evaluated(self, both: Any, monkeypatch: Any) -> None:
        seen: list[tuple[int, ...]] = []
        change = MotionModule.change

        def counted(module: MotionModule, x: torch.Tensor, signal: Signal) -> torch.Tensor:
            seen.append((len(module.others), signal.frames))
            return change(module, x, signal)

        monkeypatch.setattr(MotionModule, "change", counted)
        both.enable_windows(length=4, overlap=0, drift=False)
        try:
            cut = {"walk": [1.0] * 4 + [0.0] * 4, "run": [0.0] * 4 + [1.0] * 4}
            clip(both, num_frames=8, motion_scale=cut)
        finally:
            both.disable_windows()
        places = sum(isinstance(m, MotionModule) and bool(m.others) for m in both.unet.modules())
        assert len(seen) == 2 * 2 * places  # steps, windows: one adapter in each
        assert sum(others for others, _ in seen) == len(seen) // 2

    def test_a_window_has_the_numbers_of_its_own_frames(self, both: Any) -> None:
        both.enable_windows(length=4, overlap=0, drift=False)
        try:
            cut = {"walk": [1.0] * 4 + [0.0] * 4, "run": [0.0] * 4 + [1.0] * 4}
            latents = torch.randn(1, 4, 8, 8, 12, generator=torch.Generator().manual_seed(1))
            whole = clip(both, num_frames=8, motion_scale=cut, latents=latents)[0]
        finally:
            both.disable_windows()
        for name, part in (("walk", slice(0, 4)), ("run", slice(4, 8))):
            alone = clip(both, motion_scale={name: 1.0}, latents=latents[:, :, part])[0]
            assert off(whole[part], alone) <= 1e-5

    def test_they_go_with_loras_by_frame_freenoise_and_the_authors_numerics(self, one: Any, both: Any) -> None:
        from tests.test_animatediff_ranges import lora_of

        fade = {"walk": {0: 1.0, 3: 0.0}, "run": {0: 0.0, 3: 1.0}}
        plain = clip(both, motion_scale=fade)
        both.load_lora_weights(lora_of(one.unet, "motion_modules"), "pan")
        both.set_adapters("pan", {"frames": {0: 0.0, 3: 1.0}})
        both.enable_free_noise(4, 2)
        both.set_numerics("original")
        try:
            assert off(clip(both, motion_scale=fade), plain) > 1e-3
            assert torch.isfinite(torch.from_numpy(clip(both, motion_scale={"run": 1.0}, num_frames=7))).all()
        finally:
            both.set_numerics("reference")
            both.disable_free_noise()
            both.unload_lora_weights()
        assert (clip(both, motion_scale=fade) == plain).all()

    def test_added_ones_come_off_and_are_not_saved(self, one: Any, adapters: dict[str, Any], tmp_path: Any) -> None:
        plain, keys = clip(one), set(one.unet.state_dict())
        one.add_motion_adapter("run", adapters["run"])
        assert one.motion_names == ["default", "run"]
        assert (clip(one) == plain).all()
        assert off(clip(one, motion_scale={"default": 1.0, "run": {0: 0.0, 3: 1.0}}), plain) > 1e-3
        again = type(one).from_pipe(one)
        assert again.motion_names == one.motion_names
        one.unet.save_pretrained(tmp_path)
        assert set(kinema.UNetMotionModel.from_pretrained(tmp_path).state_dict()) == keys
        one.remove_motion_adapter("run")
        assert (clip(one) == plain).all()
        assert set(one.unet.state_dict()) == keys

    def test_frames_are_bounded_by_the_shortest(self, one: Any) -> None:
        short = tiny.ours(tiny.reference_adapter(5, motion_max_seq_length=24, **TWO))
        long = tiny.ours(tiny.reference_adapter(6, **TWO))
        assert made(one, long=long, short=short).frame_limit == 24
        assert made(one, long=long).frame_limit == 32

    def test_the_one_with_a_module_in_the_middle_comes_first(self, one: Any, adapters: dict[str, Any]) -> None:
        without = tiny.ours(tiny.reference_adapter(5, use_motion_mid_block=False, **TWO))
        pipe = made(one, v3=without, v2=adapters["run"])
        assert pipe.motion_names == ["v2", "v3"]
        assert off(clip(pipe, motion_scale={"v3": 1.0}), clip(made(one, v3=without))) <= 1e-6
        with pytest.raises(InputError, match="mid_block"):
            made(one, v3=without).add_motion_adapter("v2", adapters["run"])

    def test_what_does_not_fit_is_refused(self, one: Any, both: Any, adapters: dict[str, Any]) -> None:
        for name in ("walk", "run", "a.b", ""):
            with pytest.raises(InputError, match="name"):
                both.add_motion_adapter(name, adapters["run"])
        with pytest.raises(CheckpointError, match="belong together"):
            both.add_motion_adapter("other", tiny.ours(tiny.reference_adapter()))
        with pytest.raises(InputError, match="PIA"):
            both.add_motion_adapter("pia", kinema.MotionAdapter({**tiny.ADAPTER, **TWO, "conv_in_channels": 9}))
        with pytest.raises(InputError, match="empty"):
            made(one)
        with pytest.raises(InputError, match="add_motion_adapter"):
            type(both).from_pipe(both, motion_adapter=adapters)
        for scale in ({"fly": 1.0}, {"walk": {9: 1.0}}, {"walk": [1.0]}, {"walk": -1}, {0: "much"}, {}):
            with pytest.raises(InputError, match="motion_scale"):
                clip(both, motion_scale=scale)

    def test_a_number_by_frame_is_a_list_of_them(self) -> None:
        scales = motion_scales({1: 1.0, 3: 0.0}, ["a", "b"], 5)
        assert {name: s.tolist() for name, s in scales.items()} == {"": [1.0, 1.0, 0.5, 0.0, 0.0]}
        assert motion_scales(1.0, ["a"], 3) == {}
        assert motion_scales({"a": {0: 1.0}, "b": 0}, ["a", "b"], 3) == {}


class TestNegativePromptsThatChange:
    def test_one_stop_is_the_negative_prompt(self, one: Any) -> None:
        for said in ("dull", {0: "dull"}, {3: "dull"}):
            assert off(clip(one, negative_prompt=said), clip(one, negative_prompt="dull")) <= 1e-5

    @pytest.mark.parametrize("prompt", ["a red circle", {0: "a red circle", 1: "a star"}])
    def test_each_frame_is_told_what_its_own_frame_says(self, one: Any, prompt: Any) -> None:
        texts = [prompt] * 4 if isinstance(prompt, str) else ["a red circle", *["a star"] * 3]
        against = {0: "dull", 2: "dull", 3: "blue"}
        travelled = clip(one, prompt=prompt, negative_prompt=against, motion_scale=0.0)[0]
        for frame, (text, negative) in enumerate(zip(texts, ["dull"] * 3 + ["blue"], strict=True)):
            alone = clip(one, prompt=text, negative_prompt=negative, motion_scale=0.0)[0]
            assert off(alone[frame], travelled[frame]) <= 1e-5

    def test_a_batch_is_each_of_its_clips_alone(self, one: Any) -> None:
        prompts = ["a red circle", {0: "a star", 2: "blue", 3: "dull"}]
        against: list[Any] = [{0: "dull", 3: "a star"}, "blue"]
        for negative in (against, against[0], "blue"):
            both = clip(one, prompt=prompts, negative_prompt=negative, generator=[1, 2])
            for i, prompt in enumerate(prompts):
                own = negative[i] if isinstance(negative, list) else negative
                alone = clip(one, prompt=prompt, negative_prompt=own, generator=i + 1)
                assert off(alone[0], both[i]) <= 1e-5

    def test_embeddings_of_one_side_go_with_texts_that_change_on_the_other(self, one: Any) -> None:
        said, against = one.encode_prompt("a red circle", negative_prompt="dull")
        journey = {0: "dull", 3: "blue"}
        wanted = clip(one, negative_prompt=journey)
        got = clip(one, prompt=None, prompt_embeds=said, negative_prompt=journey)
        assert off(got, wanted) <= 1e-5
        wanted = clip(one, prompt={0: "a star", 3: "blue"}, num_videos_per_prompt=2, generator=[1, 2])
        given = {"negative_prompt": None, "negative_prompt_embeds": against}
        got = clip(one, prompt={0: "a star", 3: "blue"}, num_videos_per_prompt=2, generator=[1, 2], **given)
        assert off(got, wanted) <= 1e-5

    def test_it_is_not_read_where_nothing_is_guided(self, one: Any) -> None:
        call = {"guidance_scale": 1.0}
        assert off(clip(one, negative_prompt={0: "dull", 3: "blue"}, **call), clip(one, **call)) <= 1e-5

    @pytest.mark.parametrize("negative", [{}, {9: "late"}, {-1: "a"}, {0: 3}])
    def test_one_that_cannot_be_is_refused(self, one: Any, negative: Any) -> None:
        with pytest.raises(InputError, match="negative_prompt"):
            clip(one, negative_prompt=negative)
