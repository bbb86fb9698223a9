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
from kinema.sampling.adaptive import AdaptiveReuse
from kinema.sampling.sparing import DeepReuse, GuidanceReuse, Spent
from kinema.sampling.wrappers import Apart

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
    said = {"num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 6, "guidance_scale": 4.0}
    return pipe(**{"prompt": PROMPT, "generator": 0, "output_type": "np", **said, **settings})


def arithmetic(pipe: Any, **settings: Any) -> int:
    return trace(lambda: made(pipe, output_type="latent", **settings)).flops


SETTINGS = {
    "deep_reuse": ({"every": 3}, 0.62, 25.0),
    "guidance_interval": ({"start": 0.0, "end": 0.5}, 0.9, 25.0),
    "guidance_reuse": ({"every": 3}, 0.8, 30.0),
}


@pytest.fixture(scope="module")
def unchanged(pipe: Any) -> tuple[Any, int]:
    """The exact clip, and the arithmetic of a longer one."""
    return made(pipe).frames, arithmetic(pipe, num_inference_steps=12)


@pytest.mark.parametrize("name", SETTINGS)
def test_less_is_done_and_the_clip_stays_close_and_off_is_the_same_again(
    pipe: Any, unchanged: tuple[Any, int], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, share, closeness = SETTINGS[name]
    exact, all_of_it = unchanged
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
    pipe.enable_deep_reuse(threshold=0.0)
    assert np.array_equal(made(pipe).frames, exact)
    pipe.enable_deep_reuse(threshold=1e9)
    assert reused(made(pipe)) == (5, 6)
    pipe.enable_deep_reuse(every=2, threshold=1e9)
    fixed, every = made(pipe), pipe.enable_deep_reuse(every=2)
    assert every is None and np.array_equal(fixed.frames, made(pipe).frames)


def reused(clip: Any) -> tuple[int, int]:
    """(cheap, all) steps."""
    told = clip.receipt["approximations"]["deep_reuse"]["approximated"]
    cheap, steps = (int(word) for word in told.replace("steps", "").split("of"))
    return cheap, steps


def test_whole_steps_come_where_features_move_and_cost_nothing_to_find(pipe: Any) -> None:
    exact = made(pipe, num_inference_steps=12).frames
    pipe.enable_deep_reuse(threshold=0.3)
    near = made(pipe, num_inference_steps=12)
    cheap, steps = reused(near)
    assert 4 < cheap < steps == 12 and near.receipt["approximations"]["deep_reuse"]["error"] < 1
    assert -10 * np.log10(np.mean(np.square(near.frames - exact))) > 25


class _Counting:
    """A network of rows that says who was asked, of clips that move at speeds of their own."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    rows = 4  # two clips, two branches

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        return self

    def at(self, step: int) -> Any:
        return self

    def of_rows(self, start: int, stop: int, clips: int) -> Any:
        return self

    def begin(self, latents: Tensor, signal: Any, fresh: int) -> list[Tensor]:
        return [latents.flatten(0, 1)]

    def denoise_and_keep(self, latents: Tensor, signal: Any, fresh: int, begun: Any = ()) -> tuple[Tensor, Tensor]:
        predicted = self.answer("whole", latents)
        return predicted, predicted.flatten(0, 1).clone()

    def denoise_above(self, latents: Tensor, signal: Any, deep: Tensor, fresh: int, begun: Any = ()) -> Tensor:
        assert torch.equal(begun[0], latents.flatten(0, 1))
        self.answer("above", latents)
        return deep.unflatten(0, (-1, latents.shape[1]))

    def answer(self, how: str, latents: Tensor) -> Tensor:
        self.asked.append((how, [int(x[0, 0, 0, 0] >= 100) for x in latents]))
        return latents if len(latents) < 2 else torch.cat([latents, latents])


def test_each_clip_of_a_batch_decides_for_itself() -> None:
    """The first clip moves by 2 % a step, the second, near 100, by 20 %."""
    network, spent = _Counting(), Spent()
    reuse: Any = AdaptiveReuse(network, lambda predicted, step: predicted, spent, threshold=0.3)
    prepared = reuse.prepare(torch.arange(8.0), None)
    whole: list[list[int]] = [[], []]
    old = [torch.empty(0), torch.empty(0)]
    for step in range(8):
        latents = torch.ones(2, 3, 4, 4, 4)
        latents[0] *= 1.02**step
        latents[1] *= 100 * 1.2**step
        network.asked.clear()
        predicted = reuse(latents, prepared.at(step))
        assert predicted.shape == (4, 3, 4, 4, 4)
        for clip in (0, 1):
            here = any(how == "whole" and clip in clips for how, clips in network.asked)
            whole[clip] += [step] if here else []
            expected = latents[clip] if here else old[clip]
            assert torch.equal(predicted[clip], expected) and torch.equal(predicted[2 + clip], expected)
        old = [predicted[0].clone(), predicted[1].clone()]
    assert whole == [[0], [0, 2, 4, 6]] and (spent.cheap, spent.steps) == (11, 16)


@pytest.mark.parametrize("settings", [{"every": 2}, {"threshold": 0.35}])
def test_clips_do_not_see_one_another(pipe: Any, settings: dict[str, Any]) -> None:
    pipe.enable_deep_reuse(**settings)
    pipe.enable_guidance_reuse(every=2)
    prompts = [PROMPT, "a yellow star spins on a light background"]
    alone = [made(pipe, prompt=prompt, generator=i) for i, prompt in enumerate(prompts)]
    both = made(pipe, prompt=prompts, generator=[0, 1])
    for mine, other in zip(both.frames, alone, strict=True):
        assert np.abs(mine - other.frames[0]).max() < 2e-3  # their products are of other sizes
    if "threshold" in settings:
        assert reused(both) == tuple(sum(n) for n in zip(*map(reused, alone), strict=True))


def test_branches_one_after_the_other_reuse_alike(pipe: Any) -> None:
    unet, latents = pipe.unet, torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(4, 5, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    results = []
    for denoiser in (unet, Apart(unet), Apart(unet, single=True)):
        reuse: Any = AdaptiveReuse(denoiser, lambda predicted, step: predicted, Spent(), threshold=0.1)
        prepared = reuse.prepare(torch.tensor([900.0, 600, 300]), kinema.families.modelscope.TextConditions(text, 4))
        with torch.no_grad():
            moved = (latents, latents * 1.05, latents * torch.tensor([1.06, 1.5]).view(2, 1, 1, 1, 1))
            results.append(torch.stack([reuse(x, prepared.at(step)) for step, x in enumerate(moved)]))
        assert (reuse.spent.cheap, reuse.spent.steps) == (3, 6)
    for other in results[1:]:
        assert (other - results[0]).abs().max() < 1e-4 * results[0].abs().max()


def test_windows_that_stay_keep_what_they_know_and_those_that_drift_are_refused(pipe: Any) -> None:
    pipe.enable_deep_reuse(every=2)
    pipe.enable_windows(8, 4)
    with pytest.raises(InputError, match="drift=False"):
        made(pipe, num_frames=16)
    pipe.enable_windows(8, 4, drift=False)
    assert reused(made(pipe, num_frames=16)) == (9, 18)  # three windows, every second step
    pipe.enable_deep_reuse(threshold=0.35)
    cheap, steps = reused(made(pipe, num_frames=16))
    assert 0 < cheap < 15 and steps == 18


def test_guidance_is_of_whole_clips_and_goes_with_windows_that_drift(pipe: Any) -> None:
    pipe.enable_guidance_reuse(every=2)
    pipe.enable_windows(8, 4)
    told = made(pipe, num_frames=16).receipt["approximations"]["guidance_reuse"]
    assert told["approximated"] == "2 of 6 steps" and told["error"] < 0.5


def test_outside_an_interval_of_guidance_there_is_none_to_reuse(pipe: Any) -> None:
    pipe.enable_guidance_interval(0.0, 0.5)
    pipe.enable_guidance_reuse(every=2, start=0.0)
    told = made(pipe, num_inference_steps=8, output_type="latent").receipt["approximations"]
    assert told["guidance_interval"]["approximated"] == "4 of 8 steps"
    assert told["guidance_reuse"]["approximated"] == "2 of 6 steps"  # two outside are asked in full, for their error


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
    assert first + 20 * between[0] + 4 * again < 25 / 3.5 * full.flops  # with every=5
