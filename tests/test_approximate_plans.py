"""Plans of calls that leave something out: what they predict is what runs take, in memory and in arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.test_memory_grid import FAMILIES, call, known, pipe, told
from torch.utils.flop_counter import FlopCounterMode

import kinema
from kinema import InputError
from kinema.cli.plan import _facts as facts
from kinema.memory.needs import counting, on_meta, trace
from kinema.memory.plan import APART, SMALL, Stage
from kinema.memory.rehearsal import Rehearsed, shaped
from kinema.nn.merging import Merging
from kinema.pipelines import approximate
from kinema.place import standing_for

Settings = dict[str, dict[str, Any]]

KINDS: dict[str, Settings] = {
    "deep": {"deep_reuse": {"every": 2}},
    "adaptive": {"deep_reuse": {"threshold": 0.0}},  # reached at every step, which is what a plan can say
    "interval": {"guidance_interval": {"start": 0.3, "end": 0.7}},
    "guidance": {"guidance_reuse": {"every": 2, "start": 0.0}},
    "merging": {"token_merging": {"ratio": 0.5}},
}
KINDS["all"] = {
    **KINDS["deep"],
    **KINDS["interval"],
    **KINDS["guidance"],
    **KINDS["merging"],
    "windows": {"length": 2, "overlap": 1, "drift": False},
}
OTHERS: dict[str, Settings] = {
    "drifting": {"deep_reuse": {}, "windows": {"length": 2}},
    "mixed": {"deep_reuse": {"threshold": 0.5}},
}
CASES = [*(("ModelScope", kind) for kind in KINDS), ("SVD", "adaptive")]
SLOW = [case for case in itertools.product(FAMILIES, ("deep", "all")) if case not in CASES]
PROMPTS = ["a cat", "a dog", "a bird"]
SIZE = 16, 16, 3  # height, width, frames


@contextmanager
def set_so(made: Any, kind: str) -> Iterator[Any]:
    """The pipeline, with these settings."""
    settings = {**KINDS, **OTHERS}.get(kind, {})
    try:
        for name, said in settings.items():
            getattr(made, f"enable_{name}")(**said)
        yield made
    finally:
        for name in settings:
            getattr(made, f"disable_{name}")()


def asks(family: str) -> dict[str, Any]:
    return {**call(family, *SIZE), "num_inference_steps": 3}


def before_decoding(made: Any, asked: dict[str, Any]) -> list[Stage]:
    """What a call for latents goes through."""
    seen: list[Stage] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "_plan_for", lambda asked, memory: seen.extend(made._stages(**asked)))
        made.plan(**asked)
    return seen[:-1]


def apart(family: str, kind: str, way: str = "", prompts: int = 1, **more: Any) -> tuple[float, float]:
    """How many times what the run takes a plan says, of memory and of arithmetic."""
    made, asked = pipe(family), {**asks(family), **more}
    with set_so(made, kind), pytest.MonkeyPatch.context() as patch:
        stages = before_decoding(made, {**asked, "clips": prompts})
        traces = known(family).at(stages)
        said = [traces.needs(i) for i in range(len(stages) - 1)]
        said.append(traces.needs(len(said), [one.name for one in stages[-1].ways].index(way)))
        patch.setattr(made, "_settled", lambda asked: {"denoise": way})
        given = {**told(family, *SIZE[:2]), **asked, "output_type": "latent"}
        given |= {} if prompts == 1 else {"prompt": PROMPTS[:prompts], "generator": list(range(prompts))}
        run = trace(lambda: made(**given))
    flops = sum(needs.flops * stage.times for needs, stage in zip(said, stages, strict=True))
    return max(needs.peak for needs in said) / run.peak, flops / run.flops


@pytest.mark.parametrize(("family", "kind"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_a_plan_is_what_the_run_takes(family: str, kind: str) -> None:
    memory, arithmetic = apart(family, kind)
    assert 0.97 <= memory <= 1.1
    assert 0.98 <= arithmetic <= 1.02


@pytest.mark.parametrize("guidance_scale", [1.0, 9.0])
def test_where_each_clip_decides_for_itself_it_is_what_the_run_takes_at_most(guidance_scale: float) -> None:
    memory, arithmetic = apart("ModelScope", "mixed", prompts=3, num_inference_steps=4, guidance_scale=guidance_scale)
    assert 0.97 <= memory <= 1.1
    assert 1.1 < arithmetic < 2, "some steps of some clips are not whole"


@pytest.mark.parametrize("way", [APART, SMALL])
def test_and_in_ways_that_take_less(way: str) -> None:
    memory, _ = apart("ModelScope", "deep", way)
    assert 0.97 <= memory <= 1.1


@pytest.mark.parametrize("kind", ["deep", "guidance"])
def test_its_arithmetic_is_what_a_counter_finds_where_every_step_is_run(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = pipe("ModelScope"), asks("ModelScope")
    with set_so(made, kind):
        *_, stage = before_decoding(made, asked)
        said = known("ModelScope").at([stage]).needs(0)
        monkeypatch.setattr(approximate, "Rehearsed", lambda unet: unet)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), standing_for("cpu"):
            before_decoding(made, asked)[-1].run(on_meta(made.unet))
    assert counter.get_total_flops() == pytest.approx(said.flops, rel=1e-3) and stage.entire


def test_time_and_weights_on_their_way_fall_with_what_is_left_out() -> None:
    made, asked = pipe("ModelScope"), {**asks("ModelScope"), "num_inference_steps": 9}
    taken = {}
    for kind in ("", "deep", "adaptive", "interval", "guidance"):
        with set_so(made, kind):
            found = known("ModelScope").at(before_decoding(made, asked)[-1:]).taken(0, 0, "sequential")
            taken[kind] = found.needs.flops * found.times, found.brought
    arithmetic, weights = ({kind: taken[kind][i] / taken[""][i] for kind in taken} for i in (0, 1))
    assert arithmetic["deep"] < 0.8 and arithmetic["guidance"] < 0.8 and arithmetic["interval"] < 0.85
    assert 1 <= arithmetic["adaptive"] < 1.5, "at most, and what is done to measure"
    assert weights["deep"] < 0.8 and weights["guidance"] == pytest.approx(1, abs=0.05)


def test_what_only_the_run_decides_is_said_to_be_at_most() -> None:
    made, asked = pipe("SVD"), call("SVD", *SIZE)
    with set_so(made, "adaptive"):
        plan = made.plan(**asked)
        lines = str(plan).splitlines()
        assert [line.split()[0] for line in lines if "at most" in line] == ["denoise", "denoise"]
        assert [s["name"] for s in facts(plan)["stages"] if s["at_most"]] == ["denoise"]
    with set_so(made, "deep"):
        assert "at most" not in str(made.plan(**asked))


def test_what_does_not_go_together_is_refused_as_by_a_call() -> None:
    made = kinema.AnimateDiffPAGPipeline.from_pretrained("toy-animatediff", torch_dtype=torch.float32)
    made.enable_deep_reuse()
    with pytest.raises(InputError, match="deep_reuse goes neither"):
        made.plan()
    with set_so(pipe("ModelScope"), "drifting"), pytest.raises(InputError, match="drift=False"):
        pipe("ModelScope").plan(**asks("ModelScope"))


# ------------------------------------------------------------------ a network that is run once


class Network(torch.nn.Module):
    """Two layers, of which a call may take the second alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 64), torch.nn.Linear(64, 4)
        self.runs = 0

    def forward(self, x: torch.Tensor, signal: Any) -> torch.Tensor:
        return self.denoise_and_keep(x, signal, 1)[0]

    def denoise_and_keep(self, x: torch.Tensor, signal: Any, fresh: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.runs += 1
        deep = self.first(x)
        return self.second(deep)[:, None], deep

    def begin(self, x: torch.Tensor, signal: Any, fresh: int) -> list[torch.Tensor]:
        self.runs += 1
        return [x]


def test_calls_that_are_told_from_memory_take_what_they_took() -> None:
    net, x = on_meta(Network()), torch.empty(3, 4, device="meta")
    rehearsed = Rehearsed(net)

    def several(denoiser: Any) -> Any:
        kept = [denoiser.denoise_and_keep(x, None, 1) for _ in range(3)]
        return [denoiser(x, {"a": 1}) for _ in range(2)], [made.shape for made, _ in kept]

    told, plain = trace(lambda: several(rehearsed)), trace(lambda: several(net))
    assert net.runs == 2 + 5 and told.read == 5 * sum(t.nbytes for t in net.parameters())
    assert (told.peak, told.largest, told.kept, told.flops, told.moved) == (
        plain.peak, plain.largest, plain.kept, plain.flops, plain.moved
    )  # fmt: skip
    made = []
    trace(lambda: made.extend([rehearsed.denoise_and_keep(x, None, 1) for _ in range(2)]))
    assert all((a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype) for a, b in zip(*made, strict=True))


def test_tokens_joined_at_other_corners_are_alike_where_they_are_as_many() -> None:
    def told(size: tuple[int, int]) -> int:
        return len({shaped(Merging(frozenset(), 0.5, size, corner)) for corner in range(4)})

    assert (told((8, 6)), told((7, 6)), told((7, 5))) == (1, 2, 4)


def test_what_is_given_back_or_cannot_be_told_from_others_is_run_each_time() -> None:
    net, x = on_meta(Network()), torch.empty(3, 4, device="meta")
    rehearsed = Rehearsed(net)
    trace(lambda: [rehearsed.begin(x, None, 1) for _ in range(3)])
    assert net.runs == 3
    trace(lambda: [rehearsed.denoise_and_keep(x, {1, 2}, 1) for _ in range(2)])
    assert net.runs == 5
    assert rehearsed.first is net.first and counting() is None
    rehearsed(x, None)
    assert net.runs == 6, "where nothing is counted it is the network"
    with pytest.raises(TypeError):
        hash(shaped([{1, 2}]))
