"""Frames in any form are the same frames, and what is no clip is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image

from kinema.errors import InputError, MediaError
from kinema.media import convert, to_numpy, to_pil, to_tensor, unit_range
from kinema.media.frames import to_frames

BYTES = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
FLOATS = BYTES.astype(np.float32) / 255
TENSOR = torch.from_numpy(FLOATS).permute(0, 3, 1, 2)
PICTURES = [Image.fromarray(frame) for frame in BYTES]

FORMS = {
    "pictures": PICTURES,
    "tuple of pictures": tuple(PICTURES),
    "list of bytes": list(BYTES),
    "list of floats": list(FLOATS),
    "list of tensors": list(TENSOR),
    "bytes": BYTES,
    "floats": FLOATS,
    "doubles": FLOATS.astype(np.float64),
    "integers": BYTES.astype(np.int64),
    "sixteen bits": BYTES.astype(np.uint16) * 257,
    "batch of one": FLOATS[None],
    "tensor": TENSOR,
    "tensor batch of one": TENSOR[None],
    "byte tensor": torch.from_numpy(BYTES).permute(0, 3, 1, 2),
    "tensor with gradients": TENSOR.clone().requires_grad_(),
    "list of one clip": [PICTURES],
    "list of one array": [FLOATS],
    "output of a pipeline": ([PICTURES],),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_the_same_in_every_form(form):
    frames = to_frames(FORMS[form])
    assert len(frames) == 3
    assert np.array_equal(np.stack(frames), BYTES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_rounded_from_their_own_values(dtype):
    short = TENSOR.to(dtype)
    expected = (short.float() * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(to_frames(short)), expected)


def test_grey_becomes_three_equal_channels():
    grey = FLOATS[..., :1]
    for form in (grey, list(grey[..., 0]), torch.from_numpy(grey).permute(0, 3, 1, 2)):
        frames = np.stack(to_frames(form))
        assert frames.shape == BYTES.shape and np.array_equal(frames, np.repeat(BYTES[..., :1], 3, -1))


def test_alpha_is_laid_on_white():
    clear = np.concatenate([BYTES, np.zeros_like(BYTES[..., :1])], -1)
    assert np.stack(to_frames(clear)).min() == 255


def test_slight_overshoots_are_clamped():
    frames = to_frames(np.stack([np.full((2, 2, 3), -0.4), np.full((2, 2, 3), 1.4)]))
    assert frames[0].max() == 0 and frames[1].min() == 255


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_frames_that_are_not_finite_are_refused_by_number(bad, as_tensor):
    broken = FLOATS.copy()
    broken[1, 2, 3, 0] = bad
    with pytest.raises(MediaError, match=r"Frame 1 .*not finite"):
        to_frames(torch.from_numpy(broken).permute(0, 3, 1, 2) if as_tensor else broken)


@pytest.mark.parametrize("batch", [FLOATS[None].repeat(2, 0), TENSOR[None].repeat(2, 1, 1, 1, 1), [PICTURES] * 2,
                                   [FLOATS] * 2])  # fmt: skip
def test_a_batch_says_to_choose_one(batch):
    with pytest.raises(InputError, match=r"batch of 2 clips; choose one .*\[0\]"):
        to_frames(batch)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([], InputError),
        (np.zeros((0, 4, 4, 3)), InputError),
        (np.zeros((4, 4)), InputError),
        (np.zeros((2, 3, 8, 8)), InputError),  # channels second
        (torch.zeros(2, 8, 8, 3), InputError),  # channels last
        (np.zeros((2, 4, 4, 3), np.complex64), InputError),
        ("clip.mp4", InputError),
        (None, InputError),
        ([None], InputError),
        (np.full((2, 4, 4, 3), 300), MediaError),
        (np.full((2, 4, 4, 3), 255.0), MediaError),  # bytes in a float's clothes
        ([PICTURES[0], PICTURES[0].resize((4, 4))], MediaError),
    ],
)
def test_what_is_no_clip_is_refused_in_one_sentence(wrong, error):
    with pytest.raises(error) as caught:
        to_frames(wrong)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
@pytest.mark.parametrize("channels", [3, 1])
def test_outputs_equal_the_reference_bit_for_bit(output_type, channels):
    decoded = torch.randn(2, 4, channels, 6, 8, generator=torch.Generator().manual_seed(0))
    theirs = VideoProcessor().postprocess_video(decoded.transpose(1, 2), output_type)
    ours = convert(unit_range(decoded), output_type)
    if output_type == "pil":
        theirs, ours = (np.array([[np.asarray(p) for p in clip] for clip in clips]) for clips in (theirs, ours))
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and bool((ours == theirs).all())


def test_an_unknown_output_type_is_refused():
    with pytest.raises(InputError, match="'mp3' is unknown; expected pil, np, pt"):
        convert(TENSOR[None], "mp3")


def test_tensors_arrays_and_pictures_turn_into_one_another():
    video = TENSOR[None]
    assert np.array_equal(to_numpy(video), FLOATS[None]) and to_tensor(video) is video
    assert torch.equal(to_tensor(FLOATS[None]), video)
    assert torch.equal(to_tensor(to_pil(video)), video)
    assert np.array_equal(to_numpy([PICTURES]), FLOATS[None])
