"""What a call cannot use is refused in one sentence before any network is touched, whatever the family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes, i2vgen_tiny, pipelines_tiny, sdxl_pipes, svd_tiny
from tests import test_animatediff_ip_adapter as files
from tests.animatediff_tiny import text_attentions
from tests.test_animatediff_plan import ip_adapter

from kinema import InputError
from kinema.encoders.vision import FeatureExtractor
from kinema.memory.residency import Residency

SIZE = {"height": 16, "width": 24, "num_inference_steps": 3}
TEXT = {**SIZE, "prompt": "a cat", "num_frames": 3}
CALLS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ModelScope": (pipelines_tiny.ours, TEXT),
    "footage": (
        lambda: pipelines_tiny.as_video_pipe(pipelines_tiny.ours()),
        {"prompt": "a", "video": pipelines_tiny.clip(), "num_inference_steps": 3},
    ),
    "Stable Video": (svd_tiny.ours, {"image": svd_tiny.picture(), "height": 16, "width": 32, "num_inference_steps": 3}),
    "I2VGen": (
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        {**SIZE, "prompt": "a cat", "image": svd_tiny.picture(), "num_frames": 3},
    ),
    "AnimateDiff": (lambda: animatediff_pipes.ours(animatediff_pipes.theirs()), TEXT),
    "SDXL": (lambda: sdxl_pipes.ours(sdxl_pipes.theirs()), TEXT),
}
LEVELS = "must be a list of falling numbers"
WISHES = "callback_on_step_end_tensor_inputs"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "timesteps that are a number": ({"timesteps": 5}, LEVELS),
    "timesteps in words": ({"timesteps": "9, 5"}, LEVELS),
    "timesteps that are words": ({"timesteps": ["9", "5"]}, LEVELS),
    "timesteps in rows": ({"timesteps": torch.tensor([[9, 5]])}, LEVELS),
    "half timesteps": ({"timesteps": [9.5, 3]}, "whole numbers"),
    "no timesteps": ({"timesteps": []}, "timesteps is empty"),
    "timesteps that are no numbers": ({"timesteps": [float("nan"), 3]}, "must fall"),
    "sigmas that are a number": ({"sigmas": 5.0}, LEVELS),
    "sigmas that are nothing": ({"sigmas": [None, 0.0]}, LEVELS),
    "timesteps and sigmas": ({"timesteps": [9, 3], "sigmas": [3.0, 0.0]}, "exactly one"),
    "a callback's wish that is a number": ({WISHES: 5}, "must be a list of names"),
    "a callback's wish for a number": ({WISHES: [1]}, "names 1; it can be latents, clean"),
    "a callback's wish nobody knows": ({WISHES: ["latents", "prompt_embeds"]}, "names prompt_embeds"),
}


class Ran(AssertionError):
    """A network was reached."""


class Locked(Residency):
    """Lends out nothing."""

    def use(self, *_: Any) -> Any:
        raise Ran


def locked(pipe: Any) -> Any:
    """The pipeline, whose networks must not be reached."""
    made = type(pipe).from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    made._residency = Locked(made.modules())
    return made


@cache
def shared(family: str) -> Any:
    return CALLS[family][0]()


@pytest.mark.parametrize("family", CALLS)
def test_levels_and_wishes_that_cannot_be_are_refused(family: str) -> None:
    pipe, call = locked(shared(family)), CALLS[family][1]
    with pytest.raises(Ran):
        pipe(**call)
    takes = inspect.signature(type(pipe).__call__).parameters
    for name, (wrong, said) in WRONG.items():
        if not set(wrong) <= set(takes):
            continue
        if name == "half timesteps" and "Euler" in type(pipe.scheduler).__name__:
            continue
        for call_it in (pipe, pipe.stream):
            with pytest.raises(InputError, match=said) as caught:
                call_it(**{**call, **wrong})
            assert "\n" not in str(caught.value), name


# ------------------------------------------------------------------ pictures as prompts


@cache
def shown(kind: str = "plain") -> Any:
    """A pipeline with an IP-Adapter of this kind."""
    pipe = animatediff_pipes.ours(animatediff_pipes.theirs())
    if kind == "plain":
        file = ip_adapter(pipe.unet, 1)
    else:
        widths = [m.to_q.out_features for m in text_attentions(pipe.unet)]
        context, files.CONTEXT = files.CONTEXT, animatediff_pipes.WIDTH
        try:
            file = files.flat(files.file_of(kind, widths))
        finally:
            files.CONTEXT = context
    pipe.load_ip_adapter(file, image_encoder_folder=None)
    return locked(pipe)


PLAIN = torch.zeros(2, 1, 12)
EMBEDS: dict[str, Any] = {
    "another width": torch.zeros(2, 1, 13),
    "tokens": torch.zeros(2, 1, 7, 12),
    "too few axes": torch.zeros(2, 12),
    "one branch": PLAIN[:1],
    "three branches": torch.zeros(3, 1, 12),
    "no pictures": torch.zeros(2, 0, 12),
    "no tensor": [[0.0] * 12],
    "two tensors": (PLAIN, PLAIN),
    "not finite": PLAIN / 0,
}


@pytest.mark.parametrize("name", EMBEDS)
def test_embeddings_that_are_not_the_adapters_are_refused(name: str) -> None:
    with pytest.raises(Ran):
        shown()(**TEXT, ip_adapter_image_embeds=[PLAIN])
    with pytest.raises(InputError, match="ip_adapter_image_embeds") as caught:
        shown()(**TEXT, ip_adapter_image_embeds=[EMBEDS[name]])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("plus", torch.zeros(2, 1, 7, 12), PLAIN),
        ("full", torch.zeros(2, 1, 7, 12), torch.zeros(2, 1, 7, 13)),
        ("faceid", torch.zeros(2, 1, 20), PLAIN),
        ("faceid-plus", (torch.zeros(2, 1, 20), torch.zeros(2, 1, 7, 12)), (torch.zeros(2, 1, 20), PLAIN)),
    ],
)
def test_every_kind_of_adapter_says_what_it_reads(kind: str, right: Any, wrong: Any) -> None:
    pipe = shown(kind)
    with pytest.raises(Ran):
        pipe(**TEXT, ip_adapter_image_embeds=[right])
    with pytest.raises(InputError, match=f"kind '{kind}'; it must be"):
        pipe(**TEXT, ip_adapter_image_embeds=[wrong])


def test_a_face_is_not_shown_as_a_picture_and_a_picture_to_the_right_eye() -> None:
    for kind, said in (("faceid", "face recogniser"), ("plain", "load the image encoder it was trained with")):
        pipe = locked(shown(kind))
        pipe.image_encoder, pipe.feature_extractor = svd_tiny.vision(), FeatureExtractor()
        with pytest.raises(InputError, match=said):
            pipe(**TEXT, ip_adapter_image=svd_tiny.picture())


def test_scales_and_masks_go_with_the_pictures() -> None:
    pipe = locked(shown())
    pipe.set_ip_adapter_scale([[0.5, 0.5]])
    two, mask = [torch.zeros(2, 2, 12)], torch.ones(1, 2, 16, 24)
    with pytest.raises(InputError, match="needs masks"):
        pipe(**TEXT, ip_adapter_image_embeds=two)
    with pytest.raises(InputError, match="1 pictures and has 2 masks"):
        pipe(**TEXT, ip_adapter_image_embeds=[PLAIN], cross_attention_kwargs={"ip_adapter_masks": [mask]})
    with pytest.raises(Ran):
        pipe(**TEXT, ip_adapter_image_embeds=two, cross_attention_kwargs={"ip_adapter_masks": [mask]})
