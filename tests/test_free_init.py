"""FreeInit: its filters and its fresh starts are the reference's; one round of it is no round at all."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.free_init_utils import FreeInitMixin
from tests.pipelines_tiny import SIZE, gen, off, ours

from kinema.errors import InputError
from kinema.sampling.free_init import FreeInit

CALL = {**SIZE, "num_inference_steps": 2, "output_type": "latent"}
SETTINGS = [
    {"method": "butterworth"},
    {"method": "butterworth", "order": 2, "spatial": 0.4, "temporal": 0.7},
    {"method": "ideal", "spatial": 0.3, "temporal": 0.2},
    {"method": "gaussian", "spatial": 0.5, "temporal": 0.25},
    {"method": "gaussian", "temporal": 0},
]


class Theirs(FreeInitMixin):
    """The reference's part that knows no network."""

    def __init__(self, how: FreeInit, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.enable_free_init(how.rounds, how.fast, how.method, how.order, how.spatial, how.temporal)


def scheduler() -> Any:
    return diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear")


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(16, 8, 8), (5, 7, 6)])
def test_a_filter_is_the_references(settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    how = FreeInit(**settings)
    theirs = Theirs(how, None)._get_free_init_freq_filter(
        (1, 1, *size), "cpu", how.method, how.order, how.spatial, how.temporal
    )
    assert (how.filter(*size) - theirs[0, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [(16, 8, 8), (5, 7, 6)])
def test_a_fresh_start_is_the_references(settings: dict[str, Any], size: tuple[int, int, int]) -> None:
    how, noising = FreeInit(**settings), scheduler()
    theirs = Theirs(how, noising)
    start, clean = (torch.randn(2, 4, *size, generator=gen(seed)) for seed in (1, 2))
    for number, latents in enumerate((start, clean)):
        wanted, _ = theirs._apply_free_init(latents, number, 4, torch.device("cpu"), torch.float32, gen(3))
    fresh = torch.randn(clean.shape, generator=gen(3))
    seen = (x.transpose(1, 2) for x in (clean, start, fresh))
    got = how.again(*seen, float(noising.alphas_cumprod[-1])).transpose(1, 2)
    assert off(got, wanted) < 1e-5


@pytest.mark.parametrize("steps", [1, 7, 25])
def test_quick_rounds_take_the_references_steps(steps: int) -> None:
    how, noising = FreeInit(rounds=3, fast=True), scheduler()
    theirs = Theirs(how, noising)
    for number in range(3):
        _, times = theirs._apply_free_init(torch.zeros(1, 4, 2, 4, 4), number, steps, "cpu", torch.float32, gen(0))
        assert len(times) == how.steps(steps, number)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rounds": 0}, "rounds"),
        ({"order": 1.5}, "order"),
        ({"spatial": 1.1}, "from 0 to 1"),
        ({"temporal": "0.2"}, "from 0 to 1"),
        ({"method": "box"}, "butterworth, ideal, gaussian"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        FreeInit(**settings)


# ------------------------------------------------------------------ pipelines


@pytest.fixture(scope="module")
def pipe() -> Any:
    return ours(vae={"block_out_channels": (8, 8, 16)})


@pytest.fixture(autouse=True)
def _as_it_was(pipe: Any) -> Any:
    yield
    pipe.disable_free_init()


def test_one_round_changes_nothing(pipe: Any) -> None:
    plain = pipe("a cat", generator=3, **CALL).frames
    pipe.enable_free_init(num_iters=1)
    assert torch.equal(pipe("a cat", generator=3, **CALL).frames, plain)


@pytest.mark.parametrize("method", ["butterworth", "ideal", "gaussian"])
def test_rounds_are_calls_from_what_the_last_one_left(pipe: Any, method: str) -> None:
    pipe.enable_free_init(2, method=method, spatial_stop_frequency=0.5)
    got = pipe("a cat", generator=gen(3), **CALL).frames
    pipe.disable_free_init()
    source = gen(3)
    start = torch.randn(1, 4, 3, 4, 6, generator=source)
    clean = pipe("a cat", latents=start, **CALL).frames
    how, kept = FreeInit(2, method=method, spatial=0.5), float(pipe.scheduler.alphas_cumprod[-1])
    parts = (x.transpose(1, 2) for x in (clean, start, torch.randn(start.shape, generator=source)))
    again = how.again(*parts, kept).transpose(1, 2)
    assert off(got, pipe("a cat", latents=again, **CALL).frames) < 1e-5


def test_callbacks_count_the_steps_of_each_round(pipe: Any) -> None:
    pipe.enable_free_init(3, use_fast_sampling=True)
    heard: list[int] = []
    call = {**CALL, "num_inference_steps": 3}
    out = pipe("a", generator=3, callback=lambda i, t, x: heard.append(i), **call)
    assert heard == [0, 0, 1, 0, 1, 2] and out.receipt["free_init"]["rounds"] == 3
    steps = [(e.step, e.total) for e in pipe.stream("a", generator=3, **call) if e.stage == "denoise"]
    assert steps == [(i, 6) for i in range(1, 7)]


def test_quick_rounds_with_levels_of_ones_own_are_refused(pipe: Any) -> None:
    pipe.enable_free_init(2, use_fast_sampling=True)
    with pytest.raises(InputError, match="timesteps are given"):
        pipe("a", generator=3, timesteps=[900, 500, 100], **CALL)
