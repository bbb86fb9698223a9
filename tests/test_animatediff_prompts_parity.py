"""Pictures as prompts and perturbed attention in whole pipelines, against the reference's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import svd_tiny
from tests import test_animatediff_ip_adapter as files
from tests.animatediff_tiny import text_widths
from tests.pipelines_tiny import gen, off

import kinema
from kinema import InputError

CLOSE = 1e-4


@pytest.fixture(scope="module")
def pag() -> tuple[Any, Any]:
    theirs = pipes.theirs("AnimateDiffPAGPipeline")
    return theirs, pipes.ours(theirs)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"pag_scale": 1.5, "pag_adaptive_scale": 0.002, "num_inference_steps": 5},
        {"guidance_scale": 1.0},
        {"pag_scale": 0.0},
    ],
    ids=["plain", "falling", "by attention alone", "off"],
)
def test_perturbed_attention_guides_as_in_the_reference(pag: tuple[Any, Any], more: dict[str, Any]) -> None:
    theirs, ours = pag
    call = {**pipes.CALL, **more}
    expected = theirs(**call, generator=gen(3)).frames
    assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE


def _keep(seen: list[torch.Tensor], pipe: Any, step: int, time: Any, at_hand: dict[str, Any]) -> dict[str, Any]:
    seen.append(at_hand["latents"].clone())
    return at_hand


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])
def test_a_falling_scale_follows_the_levels_of_every_round(pag: tuple[Any, Any], fast: bool) -> None:
    call = {**pipes.CALL, "pag_scale": 30.0, "pag_adaptive_scale": 0.05, "num_inference_steps": 6}
    on_the_way: list[list[torch.Tensor]] = [[], []]
    for pipe, seen in zip(pag, on_the_way, strict=True):
        pipe.enable_free_init(num_iters=2, use_fast_sampling=fast)
        try:
            pipe(**call, generator=gen(3), callback_on_step_end=partial(_keep, seen))
        finally:
            pipe.disable_free_init()
    assert len(on_the_way[0]) == len(on_the_way[1]) == (9 if fast else 12)
    assert all(off(ours, theirs) <= CLOSE for theirs, ours in zip(*on_the_way, strict=True))


@pytest.mark.parametrize("layers", ["down_blocks.0", ["up_blocks.1", "mid"]])
def test_other_layers_are_perturbed_as_in_the_reference(layers: Any) -> None:
    theirs = pipes.theirs("AnimateDiffPAGPipeline", pag_applied_layers=layers)
    ours = pipes.ours(theirs, pag_applied_layers=layers)
    expected = theirs(**pipes.CALL, generator=gen(3)).frames
    assert off(ours(**pipes.CALL, generator=gen(3)).frames, expected) <= CLOSE


def test_layers_go_along_with_the_pipeline(pag: tuple[Any, Any]) -> None:
    other = kinema.AnimateDiffPAGPipeline.from_pipe(pag[1])
    other.set_pag_applied_layers("down_blocks.*attn1")
    assert kinema.AnimateDiffPAGPipeline.from_pipe(other).pag_applied_layers == ["down_blocks.*attn1"]


def test_a_scale_without_an_adapter_is_refused(pag: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="load_ip_adapter"):
        pag[1].set_ip_adapter_scale(0.3)


def test_layers_that_are_not_there_are_refused(pag: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match="pag_applied_layers"):
        pag[1].set_pag_applied_layers("transformer.99")


class TestPicturesAsPrompts:
    """Several IP-Adapters of each kind, on a pipeline with CLIP's image model."""

    @pytest.fixture(params=[("plain",), ("plus",), ("plain", "plus")], ids=" and ".join)
    def pair(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
        from transformers import CLIPImageProcessor

        eye = svd_tiny.vision()
        more = {"feature_extractor": CLIPImageProcessor(), "image_encoder": eye}
        theirs = pipes.theirs(**more)
        ours = pipes.ours(theirs, **more)
        widths = text_widths(theirs.unet)
        monkeypatch.setattr(files, "CONTEXT", pipes.WIDTH)
        made = []
        for seed, kind in enumerate(request.param):
            clip = eye.config.projection_dim if kind == "plain" else eye.config.hidden_size
            monkeypatch.setattr(files, "CLIP", clip)
            made.append(files.file_of(kind, widths, seed))
        theirs.unet._load_ip_adapter_weights(made, low_cpu_mem_usage=False)
        ours.load_ip_adapter([files.flat(one) for one in made])
        return theirs, ours

    @pytest.mark.parametrize("more", [{}, {"guidance_scale": 1.0}], ids=["guided", "unguided"])
    def test_a_clip_shown_pictures_is_the_reference_s(self, pair: tuple[Any, Any], more: dict[str, Any]) -> None:
        theirs, ours = pair
        shown = [svd_tiny.picture(seed, 48, 40) for seed in range(len(ours.ip_adapters))]
        scales = [0.7, 0.4][: len(shown)]
        call = {**pipes.CALL, **more, "ip_adapter_image": shown}
        for pipe in pair:
            pipe.set_ip_adapter_scale(scales)
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE

    def test_masks_say_where_each_picture_counts(self, pair: tuple[Any, Any]) -> None:
        theirs, ours = pair
        count = len(ours.ip_adapters)
        masks = [torch.zeros(1, 1, 16, 24) for _ in range(count)]
        for i, mask in enumerate(masks):
            mask[..., i * 12 : i * 12 + 12] = 1
        shown = [[svd_tiny.picture(seed, 48, 40)] for seed in range(count)]
        call = {**pipes.CALL, "ip_adapter_image": shown, "cross_attention_kwargs": {"ip_adapter_masks": masks}}
        for pipe in pair:
            pipe.set_ip_adapter_scale([[0.7]] * count)
        expected = theirs(**call, generator=gen(3)).frames
        assert off(ours(**call, generator=gen(3)).frames, expected) <= CLOSE

    def test_what_cannot_be_shown_is_refused(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        wrong: list[dict[str, Any]] = [{}, {"ip_adapter_image": [svd_tiny.picture()] * 3}]
        wrong += [{"ip_adapter_image_embeds": [torch.randn(1, 1, 16)] * len(ours.ip_adapters)}]
        for call in wrong:
            with pytest.raises(InputError):
                ours(**pipes.CALL, **call)

    def test_adapters_follow_the_pipeline_s_number_format(self, pair: tuple[Any, Any]) -> None:
        import copy

        ours = pair[1]
        half = kinema.AnimateDiffPipeline.from_pipe(ours, unet=copy.deepcopy(ours.unet).bfloat16())
        half.set_progress_bar_config(disable=True)
        call = {**pipes.CALL, "ip_adapter_image": [svd_tiny.picture()] * len(ours.ip_adapters)}
        assert off(half(**call, generator=3).frames, ours(**call, generator=3).frames) < 0.5

    def test_unloaded_nothing_is_left(self, pair: tuple[Any, Any]) -> None:
        ours = pair[1]
        ours.unload_ip_adapter()
        plain = pipes.ours(pipes.theirs())(**pipes.CALL, generator=gen(3)).frames
        assert off(ours(**pipes.CALL, generator=gen(3)).frames, plain) <= 1e-5
        with pytest.raises(InputError, match="load_ip_adapter"):
            ours(**pipes.CALL, ip_adapter_image=svd_tiny.picture())
