"""Stable Video Diffusion's autoencoder: the reference's numbers, and a streamed decode equal to the whole one."""

from __future__ import annotations

import tempfile
import threading

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kinema import AutoencoderKL, AutoencoderKLTemporalDecoder, CheckpointError, InputError, MemoryBudgetError
from kinema.memory.needs import Needs, trace
from kinema.nn import shelf, temporal_decoder
from kinema.nn.moments import Moments
from kinema.nn.temporal_decoder import ClipResBlock

GIB = 2**30
PUBLISHED = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CONFIGS = {
    "two levels": {},
    "two layers": {"layers_per_block": 2},
    "three layers, of which the reference's middle uses two": {"layers_per_block": 3, "block_out_channels": (32, 32)},
    "one level": {"block_out_channels": (32,), "layers_per_block": 2},
    "three levels": {"block_out_channels": (32, 64, 32)},
    "other channels": {"latent_channels": 6, "in_channels": 4, "out_channels": 5},
}
SHAPES = {"two clips": (6, 3, 4, 6), "odd sizes": (5, 5, 5, 3), "one frame": (1, 1, 3, 4), "still clips": (3, 1, 2, 2)}


def theirs(seed: int = 0, **fields: object) -> diffusers.AutoencoderKLTemporalDecoder:
    channels = fields.pop("block_out_channels", (32, 64))
    config = {"block_out_channels": channels, "down_block_types": ["DownEncoderBlock2D"] * len(channels), **fields}
    return reference.randomized(diffusers.AutoencoderKLTemporalDecoder(**config), seed)


def twin(model: nn.Module) -> AutoencoderKLTemporalDecoder:
    ours = AutoencoderKLTemporalDecoder(dict(model.config)).eval().requires_grad_(False)
    ours.load_state_dict(model.state_dict())
    return ours


def small(seed: int = 0, **fields: object) -> AutoencoderKLTemporalDecoder:
    """A model with few groups and unlike weights."""
    config = {
        "block_out_channels": (8, 12),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        **fields,
    }
    return reference.randomized(AutoencoderKLTemporalDecoder(**config), seed)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the output's range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def streamed(model: AutoencoderKLTemporalDecoder, latents: Tensor, low_memory: bool = False) -> Tensor:
    return torch.cat(list(model.stream(latents, low_memory)))


# ---------------------------------------------------------------- the reference's numbers


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_pictures_and_latents_are_the_references(name, shape):
    model = theirs(**CONFIGS[name])
    ours = twin(model)
    n, frames, h, w = SHAPES[shape]
    latents = random(n, model.config.latent_channels, h, w)
    expected = model.decode(latents, num_frames=frames).sample
    assert off(ours.decode(latents, num_frames=frames).sample, expected) < 1e-5
    assert off(torch.cat([streamed(ours, clip) for clip in latents.split(frames)]), expected) < 1e-5

    pictures = random(2, model.config.in_channels, 4 * h, 4 * w, seed=2)
    found, dist = ours.encode(pictures).latent_dist, model.encode(pictures).latent_dist
    assert off(found.mean, dist.mean) < 1e-5
    assert off(found.std, dist.std) < 1e-5


def test_decoding_in_pieces_gives_the_references_pieces_and_another_clip_than_decoding_at_once():
    model = theirs(layers_per_block=2)
    ours = twin(model)
    latents = random(5, 4, 4, 4)
    pieces = [model.decode(part, num_frames=len(part)).sample for part in latents.split(2)]
    for one in (lambda part: ours.decode(part).sample, lambda part: streamed(ours, part)):
        assert off(torch.cat([one(part) for part in latents.split(2)]), torch.cat(pieces)) < 1e-5
    assert off(torch.cat(pieces), ours.decode(latents).sample) > 1e-2


def test_a_clip_in_a_batch_is_the_clip_alone_with_slicing_and_without():
    ours = small()
    latents = random(6, 4, 4, 4)
    alone = torch.cat([ours.decode(clip).sample for clip in latents.split(3)])
    assert off(ours.decode(latents, num_frames=3).sample, alone) < 1e-5
    ours.enable_slicing()
    assert off(ours.decode(latents, num_frames=3).sample, alone) < 1e-5


def test_the_round_trip_is_the_references():
    model = theirs()
    ours = twin(model)
    pictures = random(4, 3, 8, 8)
    assert off(ours(pictures, 2).sample, model(pictures, num_frames=2).sample) < 1e-5


def test_the_published_configuration_has_the_published_keys_and_shapes():
    with torch.device("meta"):
        expected = diffusers.AutoencoderKLTemporalDecoder(**PUBLISHED)
        ours = AutoencoderKLTemporalDecoder(PUBLISHED)
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in expected.state_dict().items()}
    assert dict(AutoencoderKLTemporalDecoder().config) | {"norm_num_groups": 32} == {
        **{k: v for k, v in diffusers.AutoencoderKLTemporalDecoder().config.items() if not k.startswith("_")},
        "down_block_types": ("DownEncoderBlock2D",),
        "norm_num_groups": 32,
    }


def test_what_either_writes_the_other_reads(tmp_path):
    model = theirs(layers_per_block=2)
    latents = random(3, 4, 3, 5)
    expected = model.decode(latents, num_frames=3).sample
    model.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / "theirs")
    assert off(ours.decode(latents).sample, expected) < 1e-5
    ours.save_pretrained(tmp_path / "ours")
    again = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.eval().decode(latents, num_frames=3).sample, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("low_memory", [False, True])
def test_half_precision_is_no_further_from_float32_than_the_references(dtype, low_memory, monkeypatch):
    monkeypatch.setattr(temporal_decoder, "LOW", 0)
    model = theirs(layers_per_block=2)
    latents = random(4, 4, 6, 6)
    exact = model.decode(latents, num_frames=4).sample
    ours, model = twin(model).to(dtype), model.to(dtype)
    reference_error = (model.decode(latents.to(dtype), num_frames=4).sample.float() - exact).square().mean()
    whole = (ours.decode(latents.to(dtype)).sample.float() - exact).square().mean()
    stream = (streamed(ours, latents.to(dtype), low_memory).float() - exact).square().mean()
    assert whole <= 1.05 * reference_error
    assert stream <= 1.05 * reference_error


# ---------------------------------------------------------------- the stream


WAYS = {
    "frames": st.integers(1, 7),
    "height": st.integers(1, 5),
    "width": st.integers(1, 5),
    "levels": st.integers(1, 3),
    "low_memory": st.booleans(),
    "room": st.sampled_from([0, 2000, 1 << 30]),
    "band": st.sampled_from([None, 1, 3, 7, 1000]),
    "pixels": st.sampled_from([1, 20, 1 << 12]),
    "rows": st.sampled_from([None, 1, 3]),
}


@settings(max_examples=25)
@given(**WAYS)
def test_a_streamed_decode_equals_a_whole_one(frames, height, width, levels, low_memory, room, band, pixels, rows):
    """In float64, where nothing but a mistake shows: a norm over a few pixels can magnify rounding a thousandfold."""
    model = leveled(levels).double()
    latents = random(frames, 4, height, width).double()
    expected = model.decode(latents).sample
    found = streamed_as_told(model, latents, low_memory, room, band, pixels, rows)
    assert off(found, expected) < (1e-9 if rows is None else 1e-4)


@settings(max_examples=15)
@given(**{**WAYS, "height": st.integers(3, 6), "width": st.integers(3, 6)})
def test_a_streamed_decode_in_float32_is_as_exact(frames, height, width, levels, low_memory, room, band, pixels, rows):
    """Within 1e-5 of the range of what float64 makes, in frames large enough that no norm magnifies rounding."""
    model, latents = leveled(levels), random(frames, 4, height, width)
    whole = model.decode(latents).sample
    found = streamed_as_told(model, latents, low_memory, room, band, pixels, rows)
    exact = leveled(levels).double().decode(latents.double()).sample
    assert off(whole, exact) < 1e-5 and off(found, exact) < 1e-5


def leveled(levels: int) -> AutoencoderKLTemporalDecoder:
    channels = (8, 12, 4)[:levels]
    return small(block_out_channels=channels, down_block_types=("DownEncoderBlock2D",) * levels)


def streamed_as_told(model, latents, low_memory, room, band, pixels, rows) -> Tensor:
    model.enable_tiling(rows)
    for module in model.modules():
        if isinstance(module, ClipResBlock):
            module.band = band
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporal_decoder, "LOW", room)
        patch.setattr(temporal_decoder, "PIXELS", pixels)
        return streamed(model, latents, low_memory)


def test_pictures_come_one_by_one_and_carry_no_gradient():
    model = small().requires_grad_(True)
    pictures = list(model.stream(random(3, 4, 4, 6)))
    assert [tuple(p.shape) for p in pictures] == [(1, 3, 8, 12)] * 3
    assert not any(p.requires_grad for p in pictures)


def test_tiling_in_space_changes_nothing_but_memory():
    model = small()
    latents, pictures = random(3, 4, 8, 6), random(1, 3, 16, 12)
    whole, moments = model.decode(latents).sample, model.encode(pictures).latent_dist.mean
    model.enable_tiling(3)
    assert off(model.decode(latents).sample, whole) < 1e-5
    assert off(model.encode(pictures).latent_dist.mean, moments) < 1e-5
    model.disable_tiling()
    assert torch.equal(model.decode(latents).sample, whole)


def test_moments_far_from_zero_keep_their_digits():
    x = random(3000, 8) * 0.01 + 100
    moments, norm = Moments(), nn.GroupNorm(2, 8).requires_grad_(False)
    for piece in x.split(700):
        moments.show(piece)
    scale, shift = moments.norm(norm)
    expected = nn.functional.group_norm(x.T[None].double(), 2, eps=norm.eps)[0].T
    assert (x.double() * scale + shift - expected).abs().max() < 2e-2  # float32 itself holds 100 to 7.6e-6 of 0.01
    assert (scale / expected.std() * x.std() - 1).abs().max() < 1e-2


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stream_leaves_no_file_wherever_it_is_left(taken, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(temporal_decoder, "LOW", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shelf.tempfile, "TemporaryFile", _noted(tempfile.TemporaryFile, made))
    pictures = small().stream(random(3, 4, 4, 4), low_memory=True)
    for _ in range(taken):
        next(pictures)
    del pictures
    assert bool(made) == (taken > 0)
    assert all(file.closed for file in made)
    assert not list(tmp_path.iterdir())


def _noted(make, made):
    def noted(*args, **kwargs):
        made.append(make(*args, **kwargs))
        return made[-1]

    return noted


def test_a_full_disk_is_told_before_long_work(monkeypatch):
    monkeypatch.setattr(temporal_decoder, "LOW", 0)
    monkeypatch.setattr(shelf.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(MemoryBudgetError, match="TMPDIR"):
        streamed(small(), random(3, 4, 4, 4), low_memory=True)


def test_two_threads_stream_from_one_model():
    model = small()
    clips = [random(3, 4, 4, 4, seed=i) for i in range(2)]
    found: dict[int, Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: streamed(model, clips[i])})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(off(found[i], model.decode(clips[i]).sample) < 1e-5 for i in range(2))


# ---------------------------------------------------------------- training, kernels, errors


def test_gradients_flow_through_a_decode_as_in_the_reference():
    model = theirs(layers_per_block=2).requires_grad_(True)
    ours = twin(model).requires_grad_(True)
    latents = random(4, 4, 4, 4)
    for m in (model, ours):
        m.decode(latents, num_frames=2).sample.square().mean().backward()
    for name, parameter in ours.named_parameters():
        expected = dict(model.named_parameters())[name].grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            assert (parameter.grad - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-7, name


def test_no_three_dimensional_convolution_is_dispatched():
    ranks: set[int] = set()

    class Ranks(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "convolution" in str(func):
                ranks.add(args[1].ndim)
            return func(*args, **(kwargs or {}))

    model = small()
    with torch.no_grad(), Ranks():
        model.decode(random(3, 4, 4, 4))
        streamed(model, random(3, 4, 4, 4))
        model.encode(random(1, 3, 8, 8))
    assert ranks == {4}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.decode(random(5, 4, 2, 2), num_frames=2), "multiple"),
        (lambda m: m.decode(random(4, 4, 2, 2), num_frames=0), "multiple"),
        (lambda m: m.decode(random(0, 4, 2, 2)), "multiple"),
        (lambda m: list(m.stream(random(0, 4, 2, 2))), "no latents"),
    ],
)
def test_what_cannot_be_decoded_is_said(call, says):
    with pytest.raises(InputError, match=says):
        call(small())


@pytest.mark.parametrize(
    "fields",
    [
        {"down_block_types": ("DownEncoderBlock2D",)},
        {"norm_num_groups": 5},
        {"down_block_types": ("AttnDownEncoderBlock2D",) * 2},
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(fields):
    with pytest.raises(CheckpointError):
        small(**fields)


def test_an_image_decoder_in_the_same_folder_still_is_an_image_autoencoder(tmp_path):
    reference.autoencoder().save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path).decode(random(1, 4, 2, 2)).sample.shape == (1, 3, 4, 4)
    with pytest.raises(CheckpointError, match="AutoencoderKL"):
        AutoencoderKLTemporalDecoder.from_pretrained(tmp_path)


# ---------------------------------------------------------------- memory


def needs(model: AutoencoderKLTemporalDecoder, frames: int, h: int, w: int, low_memory: bool) -> Needs:
    latents = torch.empty(frames, 4, h, w, device="meta", dtype=model.dtype)

    def drain() -> None:
        for _ in model.stream(latents, low_memory):
            pass

    return trace(drain, resident=[model])


def published() -> AutoencoderKLTemporalDecoder:
    with torch.device("meta"):
        return AutoencoderKLTemporalDecoder(PUBLISHED).to(torch.float16).eval()


@pytest.mark.slow
@pytest.mark.parametrize(("low_memory", "bar"), [(False, 4.5 * GIB), (True, 1.5 * GIB)])
def test_25_frames_of_576_by_1024_are_decoded_in_little_memory(low_memory, bar):
    found = needs(published(), 25, 72, 128, low_memory)
    assert found.peak <= bar
    assert found.flops <= 1.08 * 174e12


def test_a_stream_holds_less_than_a_quarter_of_the_references_memory():
    with torch.device("meta"):
        model = diffusers.AutoencoderKLTemporalDecoder(**PUBLISHED).to("meta", torch.float16).eval()
    latents = torch.empty(25, 4, 18, 32, device="meta", dtype=torch.float16)
    reference_needs = trace(lambda: model.decode(latents, num_frames=25).sample)
    found = needs(published(), 25, 18, 32, low_memory=False)
    assert found.peak <= reference_needs.peak / 4
    assert found.flops <= 1.05 * reference_needs.flops
