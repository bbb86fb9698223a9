"""Approximations: off they change nothing; on they do less, stay close, say how close, and refuse what does not fit."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kinema
from kinema import InputError
from kinema.memory.needs import trace
from kinema.sampling.sparing import DeepReuse, GuidanceReuse, Spent

PROMPT = "a red square moves up on a dark background"


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = kinema.DiffusionPipeline.from_pretrained("toy", torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(autouse=True)
def exact(pipe: Any) -> Any:
    yield
    for name in ("deep_reuse", "guidance_interval", "guidance_reuse"):
        getattr(pipe, f"disable_{name}")()
    pipe.disable_windows()


def made(pipe: Any, **settings: Any) -> Any:
    settings = {"num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 6, "guidance_scale": 4.0, **settings}
    return pipe(PROMPT, generator=0, **{"output_type": "np", **settings})


def arithmetic(pipe: Any, **settings: Any) -> int:
    return trace(lambda: made(pipe, output_type="latent", **settings)).flops


SETTINGS = {
    "deep_reuse": ({"every": 3}, 0.62, 25.0),
    "guidance_interval": ({"start": 0.0, "end": 0.5}, 0.9, 25.0),
    "guidance_reuse": ({"every": 3}, 0.8, 30.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_less_is_done_and_the_clip_stays_close_and_off_is_the_same_again(
    pipe: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, share, closeness = SETTINGS[name]
    exact, all_of_it = made(pipe).frames, arithmetic(pipe, num_inference_steps=12)
    getattr(pipe, f"enable_{name}")(**settings)
    with caplog.at_level(logging.WARNING, "kinema"):
        near = made(pipe)
    told = near.receipt["approximations"][name]
    assert 0 < told["error"] < 1 and f"{told['error']:.2%}" in caplog.text
    assert arithmetic(pipe, num_inference_steps=12) < share * all_of_it
    error = np.mean(np.square(near.frames - exact))
    assert error > 0 and -10 * np.log10(error) > closeness
    getattr(pipe, f"disable_{name}")()
    assert np.array_equal(made(pipe).frames, exact)


def test_nothing_to_guide_is_nothing_to_spare(pipe: Any) -> None:
    exact = made(pipe, guidance_scale=1.0).frames
    pipe.enable_guidance_interval()
    pipe.enable_guidance_reuse()
    assert np.array_equal(made(pipe, guidance_scale=1.0).frames, exact)


def test_a_threshold_nothing_reaches_and_one_everything_does(pipe: Any) -> None:
    exact = made(pipe).frames
    pipe.enable_deep_reuse(every=6, threshold=0.0)
    assert np.array_equal(made(pipe).frames, exact)
    pipe.enable_deep_reuse(every=6, threshold=1e9)
    assert made(pipe).receipt["approximations"]["deep_reuse"]["approximated"].startswith("5 of")


def test_clips_do_not_see_one_another(pipe: Any) -> None:
    pipe.enable_deep_reuse(every=2)
    pipe.enable_guidance_reuse(every=2)
    alone = made(pipe).frames
    settings: dict[str, Any] = {"num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 6}
    both = pipe([PROMPT] * 2, generator=[0, 1], guidance_scale=4.0, output_type="np", **settings).frames
    assert np.abs(both[0] - alone[0]).max() < 2e-3  # their products are of other sizes


def test_windows_that_stay_keep_what_they_know_and_those_that_drift_are_refused(pipe: Any) -> None:
    pipe.enable_deep_reuse(every=2)
    pipe.enable_windows(8, 4)
    with pytest.raises(InputError, match="drift=False"):
        made(pipe, num_frames=16)
    pipe.enable_windows(8, 4, drift=False)
    told = made(pipe, num_frames=16).receipt["approximations"]["deep_reuse"]
    cheap, calls = (int(word) for word in told["approximated"].replace("steps", "").split("of"))
    assert (cheap, calls) == (9, 18)  # three windows, every second step


def test_guidance_is_of_whole_clips_and_goes_with_windows_that_drift(pipe: Any) -> None:
    pipe.enable_guidance_reuse(every=2)
    pipe.enable_windows(8, 4)
    told = made(pipe, num_frames=16).receipt["approximations"]["guidance_reuse"]
    assert told["approximated"] == "2 of 6 steps" and told["error"] < 0.5


def test_networks_beside_are_refused_by_name() -> None:
    pag = kinema.AnimateDiffPAGPipeline.from_pretrained("toy-animatediff", torch_dtype=torch.float32)
    pag.enable_deep_reuse()
    with pytest.raises(InputError, match="deep_reuse goes neither"):
        pag(PROMPT, height=64, width=64, num_frames=8, num_inference_steps=2)


@pytest.mark.parametrize(
    ("name", "settings", "wrong"),
    [
        ("deep_reuse", {"every": 1}, "every is 1"),
        ("deep_reuse", {"fresh": 9}, "fresh is 9"),
        ("deep_reuse", {"threshold": -1}, "threshold"),
        ("guidance_interval", {"start": 0.7, "end": 0.2}, "start before"),
        ("guidance_interval", {"end": 2}, "end is 2"),
        ("guidance_reuse", {"every": 0}, "every is 0"),
    ],
)
def test_settings_that_cannot_be(pipe: Any, name: str, settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong.replace("start before", "must start before it ends")):
        getattr(pipe, f"enable_{name}")(**settings)


class _Linear:
    """A denoiser whose branches' distance never changes, and whose features do not either."""

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        return self

    def at(self, step: int) -> Any:
        return self

    def of_last(self, clips: int) -> Any:
        return "last", clips

    def __call__(self, latents: Tensor, signal: Any) -> Tensor:
        return latents if isinstance(signal, tuple) else torch.cat([latents + 3, latents])


def test_a_distance_that_stays_is_reused_without_an_error() -> None:
    guide = lambda predicted, step: predicted[:1] + 4 * (predicted[1:] - predicted[:1])  # noqa: E731
    spent = Spent()
    sparing: Any = GuidanceReuse(_Linear(), guide, spent, every=3)
    prepared = sparing.prepare(torch.arange(9.0), None)
    for step in range(9):
        latents = torch.randn(1, 2, 4, 3, 3)
        assert torch.allclose(sparing(latents, prepared.at(step)), _Linear()(latents, None))
    assert spent.cheap and spent.error == pytest.approx(0, abs=1e-6)


def test_at_svd_xts_size_a_step_between_takes_a_tenth_and_25_steps_less_than_half() -> None:
    from kinema.families.stable_video.unet import ImageConditions

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.float16)

    with torch.device("meta"):
        unet = kinema.UNetSpatioTemporalConditionModel().half().eval()
    latents, conditions = (
        empty(1, 25, 4, 72, 128),
        ImageConditions(empty(2, 1, 1024), empty(2, 1, 4, 72, 128), empty(1, 3), 25),
    )
    sparing: Any = DeepReuse(unet, lambda predicted, step: predicted, Spent(), every=3)
    prepared = sparing.prepare(torch.empty(25, device="meta"), conditions)
    full = trace(lambda: unet(latents, prepared.at(0).whole))
    needs = [trace(lambda i=i: sparing(latents, prepared.at(i))) for i in range(4)]
    assert needs[1].flops < 0.1 * full.flops and needs[1].peak <= full.peak
    first, *between, again = (x.flops for x in needs)
    assert first + 16 * between[0] + 8 * again < 25 / 2.2 * full.flops
