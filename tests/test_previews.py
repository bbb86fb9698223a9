"""Previews: near the decoded clip, cheap, of the latents they know and no others; while a clip is denoised."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import kinema
from kinema import InputError, NumericsError
from kinema.cli import previews
from kinema.families import AutoencoderKL
from kinema.media import save
from kinema.pipelines.preview import LinearPreview, some_pictures
from kinema.pipelines.preview_decoder import PreviewDecoder, latent_space
from kinema.toys import box
from kinema.toys.world import draw, some_scene

BOX = ("toy", "toy-svd", "toy-i2vgen", "toy-animatediff")


def opened(name: str) -> Any:
    pipe = kinema.DiffusionPipeline.from_pretrained(name, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return opened("toy")


@pytest.fixture(scope="module")
def latents(pipe: Any) -> Any:
    """Of a clip of the drawn world, (1, c, f, h, w), and the clip as the autoencoder gives it back."""
    clip = torch.from_numpy(draw([some_scene(np.random.default_rng(5))], 4)[0]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        found = pipe.vae.encode(clip).latent_dist.mean
    return found.transpose(0, 1)[None]


def decibels(a: Any, b: Any) -> float:
    return float(-10 * np.log10(np.mean(np.square(a - b))))


def test_the_decoder_in_the_box_is_tiny_near_and_cheap(pipe: Any, latents: torch.Tensor) -> None:
    with FlopCounterMode(display=False) as whole:
        exact = pipe.decode_latents(latents, "np")
    with FlopCounterMode(display=False) as cheap:
        near = pipe.preview(latents, "np")
    assert isinstance(pipe.previewer, PreviewDecoder)
    assert exact.shape == near.shape and decibels(exact, near) > 26
    assert cheap.get_total_flops() < whole.get_total_flops() / 10
    files = (box.path("toy") / "preview_decoder").iterdir()
    assert sum(file.stat().st_size for file in files) < 200_000


@pytest.mark.parametrize("name", BOX)
def test_all_models_in_the_box_share_it(name: str) -> None:
    decoder = PreviewDecoder.from_pretrained("toy", subfolder="preview_decoder")
    for dtype in ("float32", "bfloat16"):
        assert decoder.knows(kinema.DiffusionPipeline.from_pretrained(name, torch_dtype=dtype).vae)


def test_of_other_latents_colours_are_guessed(pipe: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fields = {"block_out_channels": (8, 8), "norm_num_groups": 2, "latent_channels": 8}
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        other = AutoencoderKL(fields, down_block_types=down, up_block_types=up).eval()
    assert isinstance(pipe.previewer, PreviewDecoder)
    mine = kinema.TextToVideoSDPipeline.from_pipe(pipe, vae=other)
    frames = mine.preview(torch.randn(2, 8, 3, 6, 4), "pt")
    assert isinstance(mine.previewer, LinearPreview) and frames.shape == (2, 3, 3, 6, 4)
    mine.vae = pipe.vae
    assert isinstance(mine.previewer, PreviewDecoder)


def test_people_can_give_their_own(pipe: Any) -> None:
    mine = kinema.TextToVideoSDPipeline.from_pipe(pipe)
    mine.preview_decoder = lambda latents: latents[:, :3]
    frames = mine.preview(torch.zeros(1, 8, 2, 4, 4), "np")
    assert frames.shape == (1, 2, 4, 4, 3) and (frames == 0.5).all()
    assert kinema.TextToVideoSDPipeline.from_pipe(mine).previewer is mine.preview_decoder


class Own(torch.nn.Conv2d):
    def _apply(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it was moved or converted")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_decoder_that_is_given_stays_where_and_what_it_is(pipe: Any, dtype: torch.dtype) -> None:
    mine = kinema.TextToVideoSDPipeline.from_pipe(pipe)
    mine.preview_decoder = own = Own(8, 3, 1, dtype=dtype)
    assert mine.preview(torch.zeros(1, 8, 2, 4, 4), "np").shape == (1, 2, 4, 4, 3)
    assert own.weight.dtype == dtype


def test_a_linear_preview_says_how_near_it_is(pipe: Any, latents: torch.Tensor) -> None:
    linear = LinearPreview.of(pipe.vae)
    assert linear.decibels > 15
    made = linear(latents[0].transpose(0, 1)).mul(0.5).add(0.5).clamp(0, 1)
    exact = pipe.decode_latents(latents, "pt")[0]
    small = torch.nn.functional.avg_pool2d(exact, 8)
    assert decibels(made.numpy(), small.numpy()) > linear.decibels - 6


def test_it_is_exact_where_an_autoencoder_is_linear() -> None:
    class Averages(torch.nn.Module):
        """Latents are colours of 4×4 pixels, turned."""

        dtype = torch.float32
        turn = torch.tensor([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.1, 2.0]])

        config = SimpleNamespace(scaling_factor=0.5)

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode(self, x: torch.Tensor) -> Any:
            mean = torch.einsum("ij,njhw->nihw", self.turn, torch.nn.functional.avg_pool2d(x, 4)) + 0.3
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))

    vae, x = Averages(), some_pictures(2, 32)
    linear = LinearPreview.of(vae)
    assert linear.decibels > 80
    made = linear(vae.encode(x).latent_dist.mean * 0.5)
    assert (made - torch.nn.functional.avg_pool2d(x, 4)).abs().max() < 1e-4


def test_events_and_callbacks_have_what_to_preview(pipe: Any) -> None:
    asked: dict[str, Any] = {"num_frames": 4, "height": 64, "width": 64, "num_inference_steps": 4, "generator": 0}
    seen = []

    def show(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        assert set(given) == {"clean"}
        seen.append(pipe.preview(given["clean"], "np"))
        return {}

    wish: Any = {"callback_on_step_end": show, "callback_on_step_end_tensor_inputs": ["clean"]}
    clip = pipe("a red square moves up", output_type="np", **wish, **asked).frames
    events = [e for e in pipe.stream("a red square moves up", output_type="np", **asked) if e.clean is not None]
    assert len(seen) == 4 and np.array_equal(seen[-1], pipe.preview(events[-1].clean, "np"))
    assert decibels(seen[-1], clip) > max(20, decibels(seen[0], clip))
    assert np.array_equal(events[-1].clean.shape, events[-1].latents.shape)


def test_latents_that_are_none_of_it_are_refused(pipe: Any, latents: torch.Tensor) -> None:
    with pytest.raises(InputError, match="must be a tensor"):
        pipe.preview(latents[0])
    with pytest.raises(InputError, match="7 channels; this pipeline's have 8"):
        pipe.preview(latents[:, :7])
    with pytest.raises(InputError, match="output_type"):
        pipe.preview(latents, "latent")


def test_the_command_writes_what_a_clip_is_about_to_become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kinema.cli import main

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        return int(end.value.code or 0)

    monkeypatch.chdir(tmp_path)
    settings = ("a red square moves up", "-o", "clip.gif", "--steps", "2", "--frames", "4", "--size", "64x64", "-q")
    assert run("generate", *settings, "--preview", "clip.gif") != 0 and not Path("clip.gif").exists()
    assert run("generate", *settings, "--preview", "clip.mp4") != 0
    assert run("generate", *settings, "--preview", "so-far.gif") == 0
    with Image.open("so-far.gif") as shown:
        assert shown.size == (64, 64)
    assert kinema.read_info("so-far.gif").receipt == {"preview": "step 2 of 2"}
    asked = ("generate", *settings[:2], "again.gif", *settings[3:])
    assert run(*asked, "--preview", "so-far.gif") == 0  # what an earlier run has left is no reason to ask
    asked = ("generate", *settings[:2], "third.gif", *settings[3:])
    assert run(*asked, "--preview", "clip.gif") != 0 and not Path("third.gif").exists()


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".apng"])
def test_only_previews_are_taken_for_previews(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"file{suffix}", np.zeros((2, 8, 8, 3), np.float32)
    assert not previews.left(path)
    path.write_bytes(b"somebody's")
    assert not previews.left(path)
    for receipt in (None, {}, {"prompt": "a"}, {"preview": "mine"}, {"preview": "step 1 of 2", "seed": 0}):
        save(frames, path, metadata=receipt)
        assert not previews.left(path)
    save(frames, path, metadata={"preview": "step 1 of 12"})
    assert previews.left(path)


def test_it_is_told_by_numbers_that_formats_do_not_change(pipe: Any) -> None:
    decoder = PreviewDecoder(latent_channels=8, latent_space=latent_space(pipe.vae))
    assert decoder.knows(pipe.vae) and not PreviewDecoder(latent_channels=8).knows(pipe.vae)
    with pytest.raises(kinema.CheckpointError, match="channels"):
        PreviewDecoder(channels=(0,))


def test_a_preview_that_cannot_be_made_does_not_cost_the_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def preview(self, *_: Any) -> Any:
            raise OSError("no space left")

    event = SimpleNamespace(step=1, total=2, clean=torch.zeros(1, 1, 4, 2, 2))
    seen = list(previews.shown([event, event], Broken(), tmp_path / "so-far.gif", 8.0))
    assert seen == [event, event]
    assert caplog.text.count("No more previews") == 1


def test_latents_that_are_not_numbers_are_no_preview() -> None:
    pipe = kinema.DiffusionPipeline.from_pretrained("toy")
    with pytest.raises(NumericsError, match="preview"):
        pipe.preview(torch.full((1, 8, 2, 8, 8), float("nan")))
