"""FreeNoise in whole networks, and prompts that change on the way, against the reference."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from tests import animatediff_tiny as tiny
from tests.pipelines_tiny import off
from tests.pipelines_tiny import ours as text_to_video

import kinema
from kinema.encoders.travel import travel
from kinema.errors import InputError
from kinema.families.animatediff.unet import MotionConditions

CONFIGS: dict[str, dict[str, Any]] = {
    "version 1": {"use_motion_mid_block": True, "motion_max_seq_length": 24},
    "version 3": {"use_motion_mid_block": False, "motion_max_seq_length": 32},
}


class Theirs(AnimateDiffFreeNoiseMixin):
    """The reference's pipeline, as far as its FreeNoise looks at it."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, unet: Any, length: int) -> None:
        self.unet, self.motion_adapter = unet, SimpleNamespace(config=SimpleNamespace(motion_max_seq_length=length))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("weighting", "length", "stride", "frames"),
    [
        ("pyramid", 16, 4, 20),
        ("flat", 6, 3, 9),
        ("delayed_reverse_sawtooth", 4, 2, 8),
        ("flat", 6, 4, 9),
        ("pyramid", 8, 4, 8),
    ],
)
def test_a_motion_model_in_windows_is_the_references(
    config: str, weighting: str, length: int, stride: int, frames: int
) -> None:
    theirs = tiny.reference_motion_model(tiny.reference_image_model(), tiny.reference_adapter(**CONFIGS[config]))
    model = tiny.ours(theirs)
    latents, text, _, _ = tiny.told(frames)
    said = MotionConditions(text, frames)
    with torch.no_grad():
        signal = model.prepare(torch.tensor([301.0]), said).at(0)
        plain = model(latents.transpose(1, 2), signal)
        told = replace(signal, windows=model.frame_windows(length, stride, weighting))
        got = model(latents.transpose(1, 2), told).transpose(1, 2)
        Theirs(theirs, CONFIGS[config]["motion_max_seq_length"]).enable_free_noise(length, stride, weighting)
        wanted = theirs(latents, 301, text.repeat_interleave(frames, 0)).sample
    assert off(got, wanted) < 1e-4
    assert (off(plain.transpose(1, 2), wanted) > 1e-3) == (frames > length)


def test_models_of_other_families_take_free_noise_too_or_say_why_not() -> None:
    pipe = text_to_video(vae={"block_out_channels": (8, 8, 16)})
    call = {"prompt": "a", "height": 16, "width": 24, "num_inference_steps": 1, "output_type": "latent"}

    def made(frames: int) -> torch.Tensor:
        return pipe(**call, num_frames=frames, generator=3).frames

    plain = {frames: made(frames) for frames in (4, 9)}
    pipe.enable_free_noise(4, 2)
    assert torch.equal(made(4), plain[4]) and off(made(9), plain[9]) > 1e-3
    pipe.disable_free_noise()
    assert torch.equal(made(9), plain[9])
    with torch.device("meta"):
        still = kinema.UNetSpatioTemporalConditionModel()
    with pytest.raises(InputError, match="enable_windows"):
        still.frame_windows()


# ------------------------------------------------------------------ prompts on the way


class Speaker(AnimateDiffFreeNoiseMixin):
    """The reference's, with a text encoder that looks words up."""

    def __init__(self) -> None:
        self._free_noise_prompt_interpolation_callback = self._lerp

    def encode_prompt(self, prompt: Any, negative_prompt: Any = None, **_: Any) -> Any:
        return look_up(prompt), None if negative_prompt is None else look_up(negative_prompt)


def look_up(words: list[str]) -> torch.Tensor:
    return torch.stack([torch.randn(5, 8, generator=torch.Generator().manual_seed(len(w))) for w in words])


@pytest.mark.parametrize(
    "said", [{0: "a"}, {0: "a", 7: "bb"}, {0: "a", 3: "bb", 15: "ccc"}, {9: "ccc", 0: "a", 1: "bb"}]
)
def test_prompts_on_the_way_are_the_references(said: dict[int, str]) -> None:
    both, _ = Speaker()._encode_prompt_free_noise(said, 16, "cpu", 1, True, {0: "no", 4: "never"})
    got = [travel({f: look_up([w])[0] for f, w in s.items()}, 16) for s in ({0: "no", 4: "never"}, said)]
    assert (torch.cat(got) - both).abs().max() < 1e-6


def test_a_clip_of_one_frame_says_its_prompt() -> None:
    """The reference divides by zero."""
    assert torch.equal(travel({0: look_up(["a"])[0]}, 1), look_up(["a"]))


def test_the_way_between_prompts_can_be_ones_own() -> None:
    def jump(first: int, last: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return torch.cat([start] * (last - first) + [end])

    made = travel({0: look_up(["a"])[0], 3: look_up(["bb"])[0]}, 5, jump)
    assert torch.equal(made, look_up(["a"] * 3 + ["bb"] * 2))


@pytest.mark.parametrize(("said", "says"), [({0: "a", 5: "b"}, "frames 0 to 4"), ({}, "frame 0")])
def test_frames_that_are_not_there_are_refused(said: dict[int, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        travel({f: look_up([w])[0] for f, w in said.items()}, 5)
