"""FreeNoise: where long clips start from, and how blocks over time share them out, are the reference's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin
from tests.pipelines_tiny import gen

from kinema.errors import InputError
from kinema.nn.free_noise import WEIGHTS, FrameWindows
from kinema.sampling.free_noise import Rescheduled, Rescheduling
from kinema.sampling.noise import noise_from

WEIGHTINGS = ["pyramid", "flat", "delayed_reverse_sawtooth"]


class Theirs(AnimateDiffFreeNoiseMixin):
    """The reference's part that knows no network."""

    def __init__(self, length: int, stride: int, kind: str) -> None:
        self._free_noise_context_length, self._free_noise_context_stride = length, stride
        self._free_noise_noise_type, self.vae_scale_factor = kind, 8

    def noise(self, frames: int, generator: Any, latents: Any = None) -> Any:
        size = (2, 4, frames, 32, 24)
        return self._prepare_latents_free_noise(*size, torch.float32, torch.device("cpu"), generator, latents)


@pytest.mark.parametrize("kind", ["shuffle_context", "random"])
@pytest.mark.parametrize(("length", "stride"), [(16, 4), (16, 5), (8, 8), (6, 1)])
@pytest.mark.parametrize("frames", [4, 16, 17, 33, 48])
def test_a_generator_starts_long_clips_as_the_reference_does(kind: str, length: int, stride: int, frames: int) -> None:
    noise = Rescheduled(noise_from(gen(5), 2), Rescheduling(length, stride, kind))
    got = noise.draw((2, 4, frames, 4, 3), "start", time=2)
    source = gen(5)
    assert torch.equal(got, Theirs(length, stride, kind).noise(frames, source))
    assert torch.equal(noise.draw((3,)), torch.randn(3, generator=source))  # and goes on from there


@pytest.mark.parametrize("frames", [16, 17, 40])
def test_repeated_noise_is_the_references_from_the_same_first_frames(frames: int) -> None:
    """Where it draws them itself, the reference compares the length with a word, and repeats nothing."""
    noise = Rescheduled(noise_from(gen(5), 2), Rescheduling(16, 4, "repeat_context"))
    got = noise.draw((2, 4, frames, 4, 3), "start", time=2)
    first = torch.randn(2, 4, 16, 4, 3, generator=gen(5))
    wanted = first if frames == 16 else Theirs(16, 4, "repeat_context").noise(frames, None, first)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", ["shuffle_context", "repeat_context"])
def test_each_clip_of_a_batch_is_shuffled_as_it_would_be_alone(kind: str) -> None:
    """The reference takes no list of generators here."""
    how = Rescheduling(8, 4, kind)
    both = Rescheduled(noise_from([3, 4], 2), how).draw((2, 4, 30, 2, 2), "start", time=2)
    for i in range(2):
        assert torch.equal(both[i : i + 1], Rescheduled(noise_from(3 + i, 1), how).draw((1, 4, 30, 2, 2), "start", 2))


@pytest.mark.parametrize("time", [1, 2])
def test_later_frames_start_from_noise_of_earlier_ones(time: int) -> None:
    shape = (1, 40, 4, 2, 2) if time == 1 else (1, 4, 40, 2, 2)
    made = Rescheduled(noise_from(3, 1), Rescheduling(16, 4)).draw(shape, "start", time).unbind(time)
    for start in range(16, 40, 4):
        for frame in made[start : start + 4]:
            assert any(torch.equal(frame, other) for other in made[start - 16 : start - 12])


# ------------------------------------------------------------------ attention


def block(length: int, stride: int, weighting: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = FreeNoiseTransformerBlock(
        dim=16,
        num_attention_heads=2,
        attention_head_dim=8,
        attention_bias=False,
        activation_fn="geglu",
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
        double_self_attention=True,
        context_length=length,
        context_stride=stride,
        weighting_scheme=weighting,
    )
    return made.eval().requires_grad_(False)


def ours(theirs: Any, x: torch.Tensor, how: FrameWindows) -> torch.Tensor:
    """The reference's layers, run as windows by kinema."""

    def within(y: torch.Tensor, _: int) -> torch.Tensor:
        for norm, attention in ((theirs.norm1, theirs.attn1), (theirs.norm2, theirs.attn2)):
            y = y + attention(theirs.pos_embed(norm(y)))
        return y

    x = how.blend(x, within)
    return x + theirs.ff(theirs.norm3(x))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("length", "stride", "frames"), [(16, 4, 16), (16, 4, 32), (8, 8, 24), (6, 1, 13)])
def test_a_block_in_windows_is_the_references(weighting: str, length: int, stride: int, frames: int) -> None:
    theirs, x = block(length, stride, weighting), torch.randn(3, frames, 16, generator=gen(1))
    got = ours(theirs, x, FrameWindows(length, stride, weighting))
    wanted = theirs(x.clone())
    assert (got - wanted).abs().max() < 1e-5 * (wanted.max() - wanted.min())


def test_frames_that_fill_no_whole_stride_keep_their_strength() -> None:
    """The reference divides them by the weight of one and the same frame, so that the last ones fade."""
    how, x = FrameWindows(16, 4, "flat"), torch.randn(3, 19, 16, generator=gen(1))
    theirs = block(16, 4, "flat")  # all weights are alike there, and nothing fades
    assert (ours(theirs, x, how) - theirs(x.clone())).abs().max() < 1e-5
    for weighting in WEIGHTINGS:
        assert torch.allclose(FrameWindows(16, 4, weighting).blend(x, lambda y, _: y), x, atol=1e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weights_of_a_frame_sum_to_one(weighting: str) -> None:
    for length, stride, frames in [(16, 4, 16), (16, 4, 61), (7, 3, 50), (1, 1, 9), (5, 5, 23)]:
        total = torch.zeros(frames, dtype=torch.float64)
        for start, weights in FrameWindows(length, stride, weighting).spans(frames):
            assert len(weights) == length
            total[start : start + length] += torch.tensor(weights, dtype=torch.float64)
        assert torch.allclose(total, torch.ones(frames, dtype=torch.float64))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("length", [2, 4, 16, 24])
def test_weights_are_the_references(weighting: str, length: int) -> None:
    """For odd lengths its sawtooth has a weight too many, and it crashes."""
    assert WEIGHTS[weighting](length) == FreeNoiseTransformerBlock._get_frame_weights(
        SimpleNamespace(), length, weighting
    )
    assert len(WEIGHTS[weighting](length + 1)) == length + 1


def test_clips_shorter_than_a_window_are_one() -> None:
    """The reference crashes."""
    x = torch.randn(2, 9, 3)
    assert torch.equal(FrameWindows(16, 4).blend(x, lambda y, _: y.cumsum(1)), x.cumsum(1))


@pytest.mark.parametrize(
    ("settings", "says"), [((0, 4), "context_length"), ((16, 17), "left out"), ((16, 4, "steep"), "pyramid, flat")]
)
def test_settings_that_cannot_be_used_are_refused(settings: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        FrameWindows(*settings)


@pytest.mark.parametrize(("settings", "says"), [((0, 4), "length"), ((16, 4, "loud"), "shuffle_context")])
def test_noise_settings_that_cannot_be_used_are_refused(settings: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Rescheduling(*settings)
