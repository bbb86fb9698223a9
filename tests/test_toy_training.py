"""The training loop: a seed makes the same weights, killed or not, alone or with help, and says what it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kinema.errors import InputError, KinemaError, NumericsError
from kinema.families.modelscope import UNet3DConditionModel
from kinema.train import autoencoder, diffusion, recipe
from kinema.train.crew import Crew
from kinema.train.data import pictures, some_scenes
from kinema.train.log import curves, read
from kinema.train.loop import Dice, Stage, finished, pace, run
from kinema.train.optim import orthogonal


def stage(steps: int = 12, parts: int = 1, fail_at: int | None = None) -> Stage:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))

    def loss(step: int, dice: Dice) -> tuple[torch.Tensor, dict[str, float]]:
        if step == fail_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 16, generator=dice.torch)
        return (model(x) - x.flip(1)).square().mean(), {"first": float(x[0, 0])}

    return Stage("test", model, loss, steps, parts=parts)


def weights(s: Stage) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in s.model.parameters()])


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, broken, again = stage(), stage(fail_at=7), stage()
    run(whole, tmp_path / "a", seed=3, progress=False)
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path / "b", seed=3, progress=False, every=0)
    run(again, tmp_path / "b", seed=3, progress=False)
    assert torch.equal(weights(whole), weights(again))
    steps = [line["step"] for line in read(tmp_path / "b" / "test.jsonl")]
    assert steps == list(range(12))


def test_a_finished_stage_is_only_loaded(tmp_path: Path) -> None:
    first, second = stage(), stage(fail_at=0)
    run(first, tmp_path, seed=3, progress=False)
    assert finished(first, tmp_path)
    run(second, tmp_path, seed=3, progress=False)
    assert torch.equal(weights(first), weights(second))


def test_other_seeds_make_other_weights(tmp_path: Path) -> None:
    first, second = stage(), stage()
    run(first, tmp_path / "a", seed=3, progress=False)
    run(second, tmp_path / "b", seed=4, progress=False)
    assert not torch.equal(weights(first), weights(second))


@pytest.mark.skipif(sys.platform == "darwin", reason="processes are not forked there")
def test_a_second_process_changes_nothing_but_the_time(tmp_path: Path) -> None:
    alone, helped = stage(parts=2), stage(parts=2)
    run(alone, tmp_path / "a", seed=3, progress=False)
    run(helped, tmp_path / "b", seed=3, progress=False, processes=2)
    assert torch.equal(weights(alone), weights(helped))


@pytest.mark.skipif(sys.platform == "darwin", reason="processes are not forked there")
def test_a_failing_helper_is_heard() -> None:
    w = nn.Parameter(torch.ones(3))

    def part(step: int, number: int) -> tuple[torch.Tensor, dict[str, float]]:
        if number:
            raise RuntimeError("out of luck")
        return w.sum(), {}

    with Crew(part, 2, [w], processes=2) as crew, pytest.raises(KinemaError, match="out of luck"):
        crew.gradients(0)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    s = stage()
    s.loss = lambda step, dice: (sum(p.sum() for p in s.model.parameters()) * float("nan"), {})
    with pytest.raises(NumericsError, match="stage 'test' is nan at step 0"):
        run(s, tmp_path, seed=0, progress=False)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [pace(i, 100, 10) for i in range(100)]
    assert rates[0] < rates[9] > rates[50] > rates[99]
    assert rates[99] < 0.02


def test_a_cut_off_log_line_is_left_out_and_curves_are_drawn(tmp_path: Path) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(30)) + '{"step": 30, "lo')
    assert len(read(log)) == 30
    curves([log], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 500


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (24, 24)])
def test_an_orthogonal_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.4 and values.max() < 1.4


def test_standardising_latents_leaves_pictures_as_they_were() -> None:
    vae = recipe.built(autoencoder.new, 0, "autoencoder")
    x = pictures(np.random.default_rng(0), 6)
    with torch.no_grad():
        before = vae(x).sample
        autoencoder.standardise(vae, x)
        latents = vae.encode(x).latent_dist.mode()
        assert torch.allclose(vae(x).sample, before, atol=1e-4)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_inflating_an_image_denoiser_changes_no_frame() -> None:
    image = recipe.built(lambda: diffusion.new(diffusion.ImageUNet), 0, "image")
    for p in image.parameters():  # away from zero, where everything would agree
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.02)
    video = recipe.built(lambda: diffusion.new(UNet3DConditionModel), 1, "video")
    diffusion.inflate(video, image)
    noise = torch.Generator().manual_seed(2)
    clean, eps = (torch.randn(2, 4, 8, 8, 8, generator=noise) for _ in range(2))
    text, times = torch.randn(2, 16, 64, generator=noise), torch.tensor([300, 900])
    with torch.no_grad():
        whole = diffusion.error(video, clean, eps, times, text)
        each = [diffusion.error(image, clean[:, [i]], eps[:, [i]], times, text) for i in range(4)]
    assert torch.allclose(whole, torch.stack(each).mean(0), atol=1e-5)


def test_noise_levels_are_those_of_the_shipped_scheduler() -> None:
    from kinema.sampling.schedulers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(diffusion.SCHEDULE)
    assert torch.allclose(scheduler.alphas_cumprod.float().sqrt(), diffusion.ALPHA, atol=1e-5)
    assert diffusion.ALPHA[-1] == 0


def test_levels_are_drawn_as_said() -> None:
    times = diffusion.some_times(np.random.default_rng(0), 1000, 700, 1000)
    assert times.min() >= 0 and times.max() <= 999
    assert 0.63 < (times >= 700).float().mean() < 0.67


def test_stages_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage 'vidoe'"):
        recipe.train_toy(tmp_path, stages=("vidoe",))
    with pytest.raises(InputError, match="'autoencoder' has not been trained"):
        recipe.train_toy(tmp_path, stages=("decoder",), progress=False)
    with pytest.raises(InputError, match="scale is 0"):
        recipe.train_toy(tmp_path, scale=0)


@pytest.mark.slow
def test_a_killed_rehearsal_of_the_whole_recipe_ends_with_the_same_files(tmp_path: Path) -> None:
    """kill -9 in the middle, run again: the model's files are those of a run that was left alone, byte for byte."""
    code = "from kinema.train.recipe import train_toy; import sys; train_toy(sys.argv[1], scale=0.001, progress=False)"

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait(300) == 0
    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "clips.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "model").exists()
    assert start(tmp_path / "killed").wait(300) == 0
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole" / "model").rglob("*") if p.is_file())
    assert len(files) >= 12
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


def test_scenes_of_a_seed_are_the_same() -> None:
    assert some_scenes(Dice.of(0, "clips", 0).numpy, 3) == some_scenes(Dice.of(0, "clips", 0).numpy, 3)
