"""Every way of taking less memory gives the same clip, and what is chosen is the fastest that fits."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import animatediff_pipes, i2vgen_tiny, pipelines_tiny, svd_tiny
from tests.pipelines_tiny import off

import kinema
from kinema.checkpoint.files import mapped
from kinema.cli import making
from kinema.distributed import Crew
from kinema.errors import ClipKeptError, InputError, MemoryBudgetError
from kinema.memory import room
from kinema.memory.needs import bytes_of, capped
from kinema.memory.plan import APART, BANDS, FAR, SINGLE, SLACK, SMALL
from kinema.memory.room import free, to_bytes
from kinema.memory.stream import tensors_of
from kinema.pipelines import budget
from kinema.pipelines.budget import ALWAYS
from kinema.sampling.wrappers import Apart

SAME = 1e-5  # of the range: what rounding does when matrices have other numbers of rows
CALL = {"num_inference_steps": 2, "output_type": "latent", "generator": 3}
TEXT = {**CALL, "height": 16, "width": 24, "num_frames": 3}
SHOWN = {**CALL, "height": 16, "width": 32, "num_frames": 3}

FAMILIES: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "ModelScope": (pipelines_tiny.ours, lambda: {"prompt": ["a cat", "a dog"], **TEXT}),
    "SVD": (svd_tiny.ours, lambda: {"image": [svd_tiny.picture(1), svd_tiny.picture(2)], **SHOWN}),
    "I2VGen-XL": (
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        lambda: {"prompt": ["a cat", "a dog"], "image": i2vgen_tiny.picture(), **TEXT},
    ),
    "AnimateDiff": (
        lambda: animatediff_pipes.ours(animatediff_pipes.theirs()),
        lambda: {"prompt": ["a cat", "a dog"], **TEXT},
    ),
}


@cache
def family(name: str) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """A pipeline to read only, a call of two guided clips, and the latents it gives."""
    make, call = FAMILIES[name]
    pipe = make()
    return pipe, call(), pipe(**call()).frames


def own(name: str) -> Any:
    """One to set up."""
    pipe = family(name)[0]
    networks = {part: copy.deepcopy(module) for part, module in pipe.modules().items()}
    made = type(pipe)(**{**pipe.components, **networks})
    made.set_progress_bar_config(disable=True)
    return made


def in_way(pipe: Any, monkeypatch: pytest.MonkeyPatch, **ways: str) -> None:
    monkeypatch.setattr(pipe, "_settled", lambda asked: ways)


@pytest.mark.parametrize("way", [APART, SINGLE, SMALL])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_way_of_denoising_gives_the_same_clips(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, call, expected = family(name)
    pipe = own(name)
    in_way(pipe, monkeypatch, denoise=way)
    rows: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(given[1].rows))
    found = pipe(**call).frames
    assert off(found, expected) < SAME
    if way != SMALL:  # that runs a twin
        assert set(rows) == {2 if way == APART else 1} and len(rows) == 2 * 4 // rows[0]


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_a_way_goes_with_weights_that_come_from_the_host(offload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, call, expected = family("SVD")
    pipe = own("SVD")
    pipe._residency = replace(pipe._residency, mode=offload, bring=lambda t: t.clone())
    in_way(pipe, monkeypatch, denoise=SMALL, decode=BANDS)
    assert off(pipe(**call).frames, expected) < SAME


def test_windows_reuse_and_branches_apart_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(way: str) -> torch.Tensor:
        pipe = own("ModelScope")
        pipe.enable_windows(2, 1, drift=False)
        pipe.enable_deep_reuse(every=2)
        in_way(pipe, monkeypatch, denoise=way)
        return pipe(**{**family("ModelScope")[1], "num_inference_steps": 3}).frames

    assert off(made(SINGLE), made("")) < SAME


def test_a_denoiser_seen_apart_is_the_denoiser_in_all_else() -> None:
    unet = family("ModelScope")[0].unet
    assert Apart(unet).config is unet.config and Apart(unet).width == unet.width


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("way", [FAR, BANDS])
def test_a_way_of_decoding_gives_the_same_pictures(way: str, chunk: int | None) -> None:
    pipe, _, latents = family("SVD")
    expected = pipe.decode_latents(latents, "pt", decode_chunk_size=chunk)
    low = torch.cat(list(pipe.decode(latents, chunk, low_memory=True, bands=way == BANDS)))
    assert off(low.unflatten(0, expected.shape[:2]), expected) < SAME
    assert not any(getattr(m, "rows", None) for m in pipe.vae.modules()), "the autoencoder itself is not set otherwise"


# ------------------------------------------------------------------ what is chosen


def offers(pipe: Any) -> None:
    """As on a machine with an accelerator: weights come as copies."""
    pipe._residency = replace(pipe._residency, bring=lambda t: t.clone())


def size(call: dict[str, Any]) -> dict[str, Any]:
    return {k: call[k] for k in ("height", "width", "num_frames")} | {"clips": 2}


def test_ever_less_memory_takes_ever_slower_plans_and_the_same_clip() -> None:
    pipe = own("ModelScope")
    offers(pipe)
    asked = {"height": 32, "width": 32, "num_frames": 6, "num_inference_steps": 1}
    call = {"prompt": "a cat", "generator": 3, "output_type": "latent", **asked}
    expected, most = pipe(**call).frames, pipe.plan(**asked, memory=None).peak
    said = []
    for share in (1.2, 1, 0.8, 0.5):
        pipe.memory = int(most * share)
        plan = pipe.plan(**asked)
        assert plan.fits and plan.peak * SLACK <= pipe.memory and "within" in str(plan)
        with capped(pipe.memory):
            assert off(pipe(**call).frames, expected) < SAME
        assert pipe._residency.mode == plan.mode
        said.append((plan.mode, plan.way("denoise"), plan.seconds))
    assert said[0][:2] == ("resident", "") and len({s[:2] for s in said}) >= 3, said
    assert [s[2] for s in said] == sorted(s[2] for s in said)


def test_what_somebody_said_of_offloading_stays_as_it_is() -> None:
    pipe = own("ModelScope")
    offers(pipe)
    pipe._residency = replace(pipe._residency, mode="sequential")
    assert pipe.plan(16, 24, 3).mode == "sequential"
    pipe(**family("ModelScope")[1])
    assert pipe._residency.mode == "sequential"


def test_weights_come_back_when_there_is_room_again() -> None:
    _, call, _ = family("ModelScope")
    pipe = own("ModelScope")
    offers(pipe)
    pipe.memory = int(pipe.plan(**size(call), memory=None).peak * 0.6)
    pipe(**call)
    assert pipe._residency.mode != "resident"
    pipe.memory = "auto"
    pipe(**call)
    assert pipe._residency.mode == "resident"


def test_weights_that_are_files_are_free_already(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = kinema.DiffusionPipeline.from_pretrained("toy", dtype=torch.float16)
    monkeypatch.setattr(budget, "free", lambda device: 10**9)
    tensors = {t.data_ptr(): t for m in pipe.modules().values() for t in tensors_of(m)}.values()
    copied = sum(t.nbytes for t in tensors if not mapped(t))
    assert 0 < copied < sum(t.nbytes for t in tensors)
    assert pipe._budget("auto") == 10**9 + copied


def test_where_there_is_no_room_to_time_a_device_plans_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    _, call, _ = family("ModelScope")
    pipe = own("ModelScope")
    offers(pipe)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(budget, "speed_of", full)
    plan = pipe.plan(**size(call), memory=int(pipe.plan(**size(call), memory=None).peak * 0.8))
    assert plan.fits and plan.seconds is None and "at best" not in str(plan)


def test_weights_are_not_moved_from_under_another_call() -> None:
    _, call, _ = family("ModelScope")
    pipe = own("ModelScope")
    offers(pipe)
    events = pipe.stream(**call)
    next(e for e in events if e.stage == "denoise")
    pipe.memory = int(pipe.plan(**size(call), memory=None).peak * 0.6)
    with pytest.raises(MemoryBudgetError):
        pipe(**call)
    assert pipe._residency.mode == "resident"
    events.close()
    pipe(**call)
    assert pipe._residency.mode != "resident"


@pytest.mark.parametrize("alike", [lambda p: type(p).from_pipe(p), lambda p: type(p)(**p.components)])
def test_weights_are_not_moved_from_under_another_pipeline(alike: Callable[[Any], Any]) -> None:
    _, call, _ = family("ModelScope")
    pipe = own("ModelScope")
    other = alike(pipe)
    for one in (pipe.to("cpu"), other):
        offers(one)
        one.memory = int(one.plan(**size(call), memory=None).peak * 0.6)
        with pytest.raises(MemoryBudgetError):
            one(**call)
        assert one._residency.mode == "resident"
    del other, one
    pipe(**call)
    assert pipe._residency.mode != "resident"


def test_with_room_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call, expected = family("ModelScope")
    monkeypatch.setattr("kinema.pipelines.budget.Traces", None)
    assert torch.equal(pipe(**call).frames, expected)
    monkeypatch.setattr(pipe, "_memory", None)
    assert torch.equal(pipe(**call).frames, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_call_certainly_stays_below_is_more_than_it_takes(name: str) -> None:
    pipe = family(name)[0]
    known = pipe.plan(32, 64, 9, clips=2, memory=None).peak
    asked = {"height": 32, "width": 64, "frames": 9, "clips": 2, "branches": 2, "decode_frames": 9}
    assert known < pipe._certainly_takes(asked) - ALWAYS


def test_what_is_refused_is_told_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = own("ModelScope")
    pipe.memory = int(pipe.plan(32, 32, 4, memory=None).peak * SLACK)
    with pytest.raises(MemoryBudgetError, match=r"(\d+) frames? of this size fit; 12 frames of (\d+)×(\d+)") as said:
        pipe("a cat", height=32, width=32, num_frames=12, num_inference_steps=50)
    words = str(said.value).replace("×", " ").split()
    frames = int(words[words.index("frames") - 1])
    width, height = (int(words[words.index("(width") - i]) for i in (2, 1))
    monkeypatch.setattr(pipe, "_refusal", lambda *_: str(said.value))
    assert 4 <= frames < 12 and pipe.plan(32, 32, frames).fits and not pipe.plan(32, 32, frames + 1).fits
    assert width == height < 32 and pipe.plan(height, width, 12).fits
    assert str(pipe.plan(32, 32, 12)).endswith(str(said.value))


def test_too_little_for_anything_is_said() -> None:
    pipe = own("ModelScope")
    pipe.memory = "100kB"
    with pytest.raises(MemoryBudgetError, match="and there are 100 kB; the weights alone take"):
        pipe("a cat", **TEXT)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (6_000_000_000, 6 * 10**9),
        ("6GB", 6 * 10**9),
        ("5.5 GiB", 5.5 * 2**30),
        ("512mb", 512 * 10**6),
        ("1e9", None),
        ("much", None),
        (0, None),
        (-1, None),
        (True, None),
        ("6GX", None),
        (float("nan"), None),
    ],
)
def test_sizes_are_read_as_people_write_them(said: Any, meant: float | None) -> None:
    if meant is None:
        with pytest.raises(InputError, match="such as '6GB'"):
            to_bytes(said)
    else:
        assert to_bytes(said) == meant


def test_a_pipeline_is_set_when_loaded_and_later_and_others_made_of_it_are_too() -> None:
    from kinema import DiffusionPipeline, VideoToVideoSDPipeline

    pipe = DiffusionPipeline.from_pretrained("kinema/toy-text-to-video", memory="2GB")
    assert pipe.memory == 2 * 10**9
    assert VideoToVideoSDPipeline.from_pipe(pipe).memory == 2 * 10**9
    pipe.memory = None
    assert pipe.memory is None
    with pytest.raises(InputError, match="memory is 'lots'"):
        pipe.memory = "lots"
    with pytest.raises(InputError, match="memory is 'lots'"):
        DiffusionPipeline.from_pretrained("nowhere", memory="lots")


def test_free_memory_is_the_least_of_what_machine_and_container_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert (free(cpu) or 0) > 0
    monkeypatch.setattr(room, "_available", lambda: 7)
    monkeypatch.setattr(room, "_left", lambda: [None, 5])
    assert free(cpu) == 5
    assert free(torch.device("meta")) is None


def test_a_device_without_room_for_all_weights_is_run_on_from_the_host() -> None:
    pipe = own("ModelScope")
    pipe.memory = sum(map(bytes_of, pipe.modules().values())) - 1
    pipe.run_on("cpu")
    assert pipe._residency.mode == "model" and pipe._moved_by_plan
    pipe.memory = None
    pipe.run_on("cpu")
    assert pipe._residency.mode == "resident"


# ------------------------------------------------------------------ decoding


class Failing:
    """An autoencoder without room, for as often as is said."""

    def __init__(self, pipe: Any, times: int, error: BaseException):
        self.decode, self.left, self.error = type(pipe).decode.__get__(pipe), times, error
        self.asked: list[dict[str, Any]] = []

    def __call__(self, latents: torch.Tensor, **how: Any) -> Iterator[torch.Tensor]:
        self.asked.append(how)
        for i, part in enumerate(self.decode(latents, **how)):
            if i and self.left:
                self.left -= 1
                raise self.error
            yield part


OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    MemoryError("the disk is full"),
]


@pytest.mark.parametrize("error", OUT)
@pytest.mark.parametrize("name", ["ModelScope", "SVD"])
def test_decoding_that_runs_out_of_memory_is_done_again_in_less(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, call, latents = family(name)
    chunk = {"decode_chunk_size": 2} if name == "ModelScope" else {}
    expected = pipe.decode_latents(latents, "pt", **chunk)
    failing = Failing(pipe, 2, error)
    monkeypatch.setattr(pipe, "decode", failing)
    events = list(pipe.stream(**{**call, **chunk, "output_type": "pt"}))
    assert off(events[-1].output.frames, expected) < SAME
    assert [e.step for e in events if e.stage == "decode"][-1] == 6
    if name == "ModelScope":
        assert failing.asked == [{"chunk": 2}, {"chunk": 1}, {"chunk": 1, "bands": True}]
    else:
        assert [(how["low_memory"], how.get("bands", False)) for how in failing.asked] == [
            (False, False),
            (True, False),
            (True, True),
        ]


@pytest.mark.parametrize("error", OUT)
def test_a_clip_that_cannot_be_decoded_is_kept(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call, latents = family("SVD")
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "decode", Failing(pipe, 99, error))
        with pytest.raises(ClipKeptError, match=r"pipe.decode_latents\(error.latents\)") as kept:
            pipe(**{**call, "output_type": "pt"})
    assert torch.equal(kept.value.latents, latents) and isinstance(kept.value, MemoryBudgetError)
    assert str(error) in str(kept.value), "what the last try said"
    again = pickle.loads(pickle.dumps(kept.value))
    assert torch.equal(again.latents, latents) and str(again) == str(kept.value)
    whole = pipe(**{**call, "output_type": "pt"}).frames
    assert torch.equal(pipe.decode_latents(kept.value.latents, "pt"), whole)


def test_the_command_line_writes_what_it_cannot_decode(tmp_path: Path) -> None:
    latents = family("SVD")[2]
    with pytest.raises(ClipKeptError, match=r"clip\.mp4\.latents\.safetensors"), making.keeping(tmp_path / "clip.mp4"):
        raise ClipKeptError("no room", latents)
    assert torch.equal(load_file(tmp_path / "clip.mp4.latents.safetensors")["latents"], latents)


def test_an_error_of_another_kind_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call, _ = family("SVD")
    monkeypatch.setattr(pipe, "decode", Failing(pipe, 1, RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        pipe(**{**call, "output_type": "pt"})


def test_each_of_several_processes_can_decode_what_was_kept() -> None:
    pipe, _, latents = family("ModelScope")
    expected = pipe.decode_latents(latents, "pt")
    other = type(pipe)(**pipe.components)
    other._crew = Crew(0, 2)
    assert torch.equal(other.decode_latents(latents, "pt"), expected)


def test_latents_to_decode_are_checked() -> None:
    pipe, _, latents = family("SVD")
    with pytest.raises(InputError, match="b, f, c, h, w"):
        pipe.decode_latents(latents[0])
    with pytest.raises(InputError, match="output_type"):
        pipe.decode_latents(latents, "latent")
