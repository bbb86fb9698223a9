"""Steps recorded once and replayed make the same clip, on a pretended recorder: the step, always on the same memory.

What is recorded is a closure over static tensors that is run again at each replay, in turns that are checked. So all
that can go wrong without a GPU can go wrong here.
"""

from __future__ import annotations

import gc
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import pipelines_tiny
from tests.test_animatediff_ranges import lora_of
from tests.test_no_waiting import PIPES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import kinema
from kinema.memory.recording import CudaRecorder, recorder_of
from kinema.nn.signal import Signal
from kinema.place import recording, sent
from kinema.sampling.forms import Unrecordable, anew, form_of
from kinema.sampling.graphs import MOST, Graphed, Graphs

TEXT: dict[str, Any] = {
    **pipelines_tiny.SIZE,
    "num_inference_steps": 2,
    "prompt": "a red circle",
    "output_type": "latent",
    "generator": 0,
}


class Pretended:
    """Records by keeping the step, which a replay runs into the memory that its result had."""

    def __init__(self, wrong: Callable[[Tensor], Tensor] = lambda made: made, fails: str = ""):
        self.wrong, self.fails = wrong, fails
        self.recorded = self.replayed = self.forgotten = self.held = 0
        self.inside = False

    def __call__(self, device: torch.device) -> Pretended:
        return self

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert self.inside
        if self.fails:
            raise RuntimeError(self.fails)
        made = step()
        self.recorded += 1

        def replay() -> Tensor:
            assert self.inside
            self.replayed += 1
            return made.copy_(self.wrong(step()))

        return replay

    @contextmanager
    def turn(self) -> Iterator[None]:
        assert not self.inside
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def forget(self) -> None:
        self.forgotten += 1


class Taped(Pretended):
    """Records as a device does: operations and the memory they read and write, nothing of the program around them."""

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        tape = Tape()
        with tape:
            made = step()
        self.recorded += 1

        def replay() -> Tensor:
            self.replayed += 1
            tape.play()
            return made

        return replay


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, _tensors(made)))
        return made

    def play(self) -> None:
        for func, args, kwargs, made in self.ops:
            for old, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _tensors(made: Any) -> list[Tensor]:
    return [x for x in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(x, Tensor)]


@dataclass(frozen=True)
class Told:
    """What the small network is told."""

    time: Tensor
    memory: dict[nn.Module, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    scale: float = 1.0
    parts: tuple[Any, ...] = ()
    rows: int = 1


class Small(nn.Module):
    """A network that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self._runs, self.loud = nn.Linear(4, 4), [0], 1.0

    def forward(self, latents: Tensor, told: Told) -> Tensor:
        self._runs[0] += 1
        keys = told.memory[self.layer][0] if self.layer in told.memory else 0
        return self.loud * told.scale * self.layer(latents) + told.time + keys

    def prepare(self, times: Tensor, conditions: Any) -> Any:
        return None


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small().requires_grad_(False)


def told(small: Small, seed: int = 0, **more: Any) -> tuple[Tensor, Told]:
    dice = torch.Generator().manual_seed(seed)
    time, keys, latents = (
        torch.randn(4, generator=dice),
        torch.randn(4, generator=dice),
        torch.randn(2, 4, generator=dice),
    )
    return latents, Told(time, {small.layer: (keys, None)}, **more)


def graphed(small: Small, recorder: Any, most: int = MOST) -> Graphed:
    made = Graphed(small, small, Graphs(recorder, most))
    made.prepare(torch.zeros(1), None)
    return made


@torch.no_grad()
def test_one_recording_does_for_whatever_is_told_in_the_same_form(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    made = [denoiser(*told(small, seed)) for seed in range(6)]
    assert all(torch.equal(x, small(*told(small, seed))) for seed, x in enumerate(made))
    assert there.recorded == 1 and there.replayed == 6
    assert len({x.data_ptr() for x in made}) == 6  # nobody is handed what the next replay overwrites


@torch.no_grad()
def test_the_plain_way_runs_until_a_recording_was_found_right_twice(small: Small) -> None:
    there = Pretended()
    denoiser, runs = graphed(small, there), []
    for seed in range(4):
        before = small._runs[0] - there.replayed - there.recorded
        denoiser(*told(small, seed))
        runs.append(small._runs[0] - there.replayed - there.recorded - before)
    assert runs == [1, 1, 0, 0]


@torch.no_grad()
def test_what_stays_the_same_is_not_copied_again_and_what_is_changed_in_place_is(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    latents, first = told(small)
    denoiser(latents, first)
    (kept,) = denoiser.graphs._kept.values()
    for at in (1, 2):
        first.time.add_(at)
        assert torch.equal(denoiser(latents, first), small(latents, first))
    assert not kept.bring([latents, first.time, first.memory[small.layer][0]])
    assert kept.bring([latents, first.time.clone(), first.memory[small.layer][0]])
    kept.inputs[0].fill_(7)  # would show, were it not known to be there
    assert not torch.equal(denoiser(latents, first), small(latents, first))


@torch.no_grad()
def test_another_form_is_another_recording(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    latents, first = told(small)
    others = [
        (latents, first),
        (latents[:1], first),
        (latents, replace(first, scale=2.0)),
        (latents, replace(first, memory={})),
        (latents, replace(first, parts=(frozenset({small.layer}),))),
        (latents, replace(first, parts=(frozenset({small}),))),
        (latents.double(), replace(first, time=first.time.double())),
    ]
    small.layer.float()
    for i, (x, signal) in enumerate(others[:-1], 1):
        assert torch.equal(denoiser(x, signal), small(x, signal))
        assert there.recorded == i
    denoiser(latents.clone(), replace(first, parts=(frozenset({small.layer}),)))
    assert there.recorded == len(others) - 1


@torch.no_grad()
def test_tensors_lie_where_they_are_read_as_they_lay_and_repeats_stay_so(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    latents, first = told(small)
    repeated, apart = (replace(first, time=x) for x in (torch.ones(1, 4).expand(2, 4), torch.randn(2, 4)))
    for signal in (repeated, apart, replace(repeated, time=torch.zeros(1, 4).expand(2, 4)), repeated, apart):
        for x in (latents, torch.randn(4, 2).T, torch.randn(2, 8)[:, ::2]):
            assert torch.allclose(denoiser(x, signal), small(x, signal), atol=1e-6)
    assert there.recorded == 2
    strides = [[x.stride() for x in kept.inputs[:2]] for kept in denoiser.graphs._kept.values()]
    assert strides == [[(4, 1), (0, 1)], [(4, 1), (4, 1)]]


def test_the_form_has_all_but_the_numbers(small: Small) -> None:
    (form, tensors), (again, _) = form_of(told(small)), form_of(told(small, 1))
    assert form == again and len(tensors) == 3
    assert form != form_of(told(small, rows=2))[0]
    with pytest.raises(Unrecordable, match="made for this clip"):
        form_of(told(small, parts=(small,)))
    with pytest.raises(Unrecordable, match="several devices"):
        form_of((torch.empty(1), torch.empty(1, device="meta")))
    with pytest.raises(Unrecordable, match="a slice"):
        form_of(told(small, parts=(slice(0),)))
    signal = Signal(3, torch.zeros(1, 2), {}, residuals=[None, torch.ones(1)], motion={"": (1.0, 0.5)})
    made = anew(signal, lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf)
    assert made.frames == 3 and made.motion == {"": (1.0, 0.5)} and made.residuals[0] is None
    assert made.time.sum() == 2 and made.residuals[1].item() == 2 and signal.time.sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 3])
def test_those_used_last_are_kept(small: Small, keep: int) -> None:
    there = Pretended()
    denoiser = graphed(small, there, keep)
    latents, signal = told(small)
    for size in range(1, keep + 3):
        denoiser.prepare(torch.zeros(1), None)  # a clip each
        denoiser(latents[:1].repeat(size, 1), signal)
        assert len(denoiser.graphs) == min(size, keep)
    before = there.recorded
    denoiser(latents[:1].repeat(keep + 2, 1), signal)
    assert there.recorded == before


@torch.no_grad()
def test_a_clip_with_more_kinds_of_steps_than_are_kept_does_not_record_for_ever(
    small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    there = Pretended()
    denoiser = graphed(small, there, 2)
    latents, signal = told(small)
    for _ in range(3):
        for size in (1, 2, 3, 4):
            x = latents[:1].repeat(size, 1)
            assert torch.equal(denoiser(x, signal), small(x, signal))
    assert there.recorded == 2
    assert caplog.text.count("more than 2 kinds") == 1


CHANGES: dict[str, tuple[Callable[[Small], Any], int]] = {
    "numbers in place": (lambda net: net.layer.weight.add_(1), 1),
    "other memory": (lambda net: setattr(net.layer.weight, "data", net.layer.weight.data + 1), 2),
    "another parameter": (lambda net: setattr(net.layer, "weight", nn.Parameter(torch.ones(4, 4), False)), 2),
    "a setting": (lambda net: setattr(net, "loud", 3.0), 2),
    "another layer": (lambda net: setattr(net, "layer", nn.Linear(4, 4)), 2),
    "nothing": (lambda net: None, 1),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_in_a_network_between_clips_is_seen(small: Small, name: str) -> None:
    change, recordings = CHANGES[name]
    there = Pretended()
    denoiser = graphed(small, there)
    for seed in range(3):
        denoiser(*told(small, seed))
    change(small)
    denoiser.prepare(torch.zeros(1), None)
    assert len(denoiser.graphs) == 2 - recordings
    for seed in range(3):
        assert torch.equal(denoiser(*told(small, seed)), small(*told(small, seed)))
    assert there.recorded == recordings and there.forgotten == recordings - 1


@torch.no_grad()
def test_weights_that_move_during_a_clip_are_seen(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    denoiser(*told(small))
    small.layer.weight.data = small.layer.weight.data + 1
    assert torch.equal(denoiser(*told(small)), small(*told(small)))
    assert there.recorded == 2 and there.forgotten == 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("recorder", "said"),
    [
        (Pretended(wrong=lambda made: made + 1), "wrong numbers"),
        (Pretended(wrong=lambda made: made * float("nan")), "wrong numbers"),
        (Pretended(fails="no kernel\nat all"), "raised RuntimeError: no kernel"),
        (lambda device: None, "cpu has no graphs"),
        (recorder_of, "cpu has no graphs"),
    ],
)
def test_what_cannot_be_recorded_is_dropped_and_it_is_said_once(
    small: Small, recorder: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser = graphed(small, recorder)
    for seed in range(4):
        assert torch.equal(denoiser(*told(small, seed)), small(*told(small, seed)))
    assert len(denoiser.graphs) == 0
    assert caplog.text.count("cuda_graphs") == 1 and said in caplog.text and "at all" not in caplog.text
    if isinstance(recorder, Pretended):
        assert recorder.recorded <= 1 and recorder.forgotten == 1


@torch.no_grad()
def test_a_recording_is_compared_again_when_it_is_told_something_else(caplog: pytest.LogCaptureFixture) -> None:
    net = Small().requires_grad_(False)
    beside: list[Tensor] = []
    denoiser = Graphed(lambda x, signal: net(x, signal) + beside[-1], net, Graphs(Frozen(beside)))
    denoiser._run = denoiser.graphs.begin(net)
    for seed in range(3):
        beside.append(torch.full((4,), float(seed)))
        latents, signal = told(net, seed)
        assert torch.equal(denoiser(latents, signal), net(latents, signal) + seed)
    assert "wrong numbers" in caplog.text and len(denoiser.graphs) == 0


class Frozen(Pretended):
    """Replays with what was beside when it recorded, as a device would with memory nobody copies to."""

    def __init__(self, beside: list[Tensor]):
        super().__init__()
        self.beside = beside

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        then, replay = self.beside[-1], super().record(step)

        def again() -> Tensor:
            self.beside.append(then)
            made = replay()
            self.beside.pop()
            return made

        return again


@torch.no_grad()
def test_a_step_that_overflows_is_no_example(small: Small) -> None:
    there = Pretended()
    denoiser = graphed(small, there)
    latents, signal = told(small)
    assert not denoiser(latents * float("inf"), signal).isfinite().all()
    assert there.recorded == 0
    denoiser(latents, signal)
    assert there.recorded == 1 and len(denoiser.graphs) == 1
    assert not denoiser(latents * float("inf"), signal).isfinite().all()
    assert torch.equal(denoiser(latents, signal), small(latents, signal)) and len(denoiser.graphs) == 1


@torch.no_grad()
def test_hooks_see_every_step(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    there = Pretended()
    denoiser, seen = graphed(small, there), []
    denoiser(*told(small))
    handle = small.layer.register_forward_hook(lambda *_: seen.append(1))
    denoiser.prepare(torch.zeros(1), None)
    for seed in range(3):
        denoiser(*told(small, seed))
    assert len(seen) == 3 and "hooks look into the network" in caplog.text
    handle.remove()
    denoiser.prepare(torch.zeros(1), None)
    denoiser(*told(small))
    assert len(seen) == 3 and len(denoiser.graphs) == 1


@torch.no_grad()
def test_recordings_keep_no_network_and_nothing_they_were_told(small: Small) -> None:
    graphs = Graphs(Light())
    denoiser = Graphed(small, small, graphs)
    denoiser.prepare(torch.zeros(1), None)
    latents, signal = told(small)
    denoiser(latents, signal)
    assert len(graphs) == 1
    refs = [weakref.ref(x) for x in (small, small.layer.weight, latents, signal.time)]
    del small, denoiser, latents, signal
    gc.collect()
    assert [ref() for ref in refs[2:]] == [None, None]


class Light(Pretended):
    """Keeps nothing of a step but its result, as a device does."""

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        made = step()
        return lambda: made


def test_numbers_of_the_program_are_refused_while_a_step_is_recorded() -> None:
    numbers = torch.ones(2)
    with recording():
        assert sent(numbers, numbers.device) is numbers
        with pytest.raises(RuntimeError, match="within a step"):
            sent(numbers, torch.device("meta"))
    assert sent(numbers, torch.device("meta")).is_meta


# ---------------------------------------------------------------- pipelines


@cache
def family(name: str) -> Any:
    return PIPES[name][0]()


def call_of(name: str, **more: Any) -> dict[str, Any]:
    return {**PIPES[name][1], "num_inference_steps": 2, "output_type": "latent", "generator": 0, **more}


@contextmanager
def recorded(pipe: Any) -> Iterator[Pretended]:
    there = Taped()
    pipe._graphs = Graphs(there)
    try:
        yield there
    finally:
        pipe.disable_cuda_graphs()


@pytest.mark.parametrize("name", PIPES)
def test_clips_are_the_same_and_a_second_one_records_nothing(name: str) -> None:
    pipe, call = family(name), call_of(name)
    other = {**call, "generator": 1, **({"prompt": "a blue square"} if "prompt" in call else {})}
    plain = [pipe(**call).frames, pipe(**other).frames]
    with recorded(pipe) as there:
        made = [pipe(**call).frames, pipe(**other).frames, pipe(**call).frames]
        assert there.recorded == 1 and there.replayed == 6
        assert all(torch.equal(a, b) for a, b in zip([*plain, plain[0]], made, strict=True))
    assert there.forgotten == 1 and pipe._graphs is None


def test_other_sizes_and_guidances_have_recordings_of_their_own() -> None:
    pipe = family("ModelScope")
    calls = [TEXT, {**TEXT, "num_frames": 2}, {**TEXT, "guidance_scale": 1.0}]
    plain = [pipe(**call).frames for call in calls]
    with recorded(pipe) as there:
        for _ in range(2):
            assert all(torch.equal(pipe(**call).frames, x) for call, x in zip(calls, plain, strict=True))
        assert there.recorded == len(pipe._graphs) == 3


@torch.no_grad()
def test_fifty_clips_leave_memory_as_it_was(small: Small) -> None:
    there = Taped()
    graphs, counts = Graphs(there), []
    for i in range(50):
        denoiser = Graphed(small, small, graphs)
        denoiser.prepare(torch.zeros(1), None)
        latents, signal = told(small, i)
        for size in (1, 2, 1 + i % 2):
            denoiser(latents[:size], signal)
        if i in (9, 49):
            gc.collect()
            counts.append(sum(type(x) in (Tensor, nn.Parameter) for x in gc.get_objects()))
    assert there.recorded == 2 and counts[1] == counts[0]


def windows(pipe: Any) -> dict[str, Any]:
    pipe.enable_windows(3, 1)
    return {"num_frames": 5}


def interval(pipe: Any) -> dict[str, Any]:
    pipe.enable_guidance_interval(0.0, 0.34)
    return {"num_inference_steps": 6}


def guidance_reuse(pipe: Any) -> dict[str, Any]:
    pipe.enable_guidance_reuse(start=0.0)
    return {}


def free_u(pipe: Any) -> dict[str, Any]:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return {}


@pytest.mark.parametrize(("setting", "recordings"), [(windows, 1), (interval, 2), (guidance_reuse, 2), (free_u, 1)])
def test_recordings_go_with_what_is_around_the_network(setting: Any, recordings: int) -> None:
    pipe = own()
    call = {**TEXT, **setting(pipe)}
    plain = pipe(**call).frames
    with recorded(pipe) as there:
        assert torch.equal(pipe(**call).frames, plain)
        assert there.recorded == recordings


def own(name: str = "ModelScope") -> Any:
    """A pipeline whose settings nobody else has."""
    pipe = family(name)
    made = type(pipe)(**pipe.components)
    made.set_progress_bar_config(disable=True)
    return made


def test_loras_are_seen() -> None:
    pipe = own("AnimateDiff")
    plain = pipe(**TEXT).frames
    with recorded(pipe) as there:
        assert torch.equal(pipe(**TEXT).frames, plain)
        pipe.load_lora_weights(lora_of(pipe.unet, "attentions"), "style")
        with_it = pipe(**TEXT).frames
        assert there.recorded == 2 and not torch.equal(with_it, plain)
        again = pipe(**TEXT, cross_attention_kwargs={"scale": 0.5}).frames  # of weights made for this call
        assert there.recorded == 2 and not torch.equal(again, with_it)
        pipe.unload_lora_weights()
        assert torch.equal(pipe(**TEXT).frames, plain)
        assert there.recorded == 3


def deep_reuse(pipe: Any) -> dict[str, Any]:
    pipe.enable_deep_reuse()
    return {}


def merging(pipe: Any) -> dict[str, Any]:
    pipe.enable_token_merging()
    return {}


def from_host(pipe: Any) -> dict[str, Any]:
    pipe._residency = replace(pipe._residency, mode="sequential", bring=torch.clone)
    return {}


def by_network(pipe: Any) -> dict[str, Any]:
    pipe._residency = replace(pipe._residency, mode="model", bring=torch.clone)
    return {}


def perturbed(pipe: Any) -> dict[str, Any]:
    pipe.__class__ = kinema.AnimateDiffPAGPipeline
    pipe.set_pag_applied_layers("mid")
    return {}


def in_little(pipe: Any) -> dict[str, Any]:
    pipe._settled = lambda asked: {"denoise": "branches apart"}
    return {}


def several(pipe: Any) -> dict[str, Any]:
    pipe._unreplayed = lambda job: type(pipe)._unreplayed(SimpleNamespace(_crew=SimpleNamespace(size=2)), job)
    return {}


def no_room(pipe: Any) -> dict[str, Any]:
    pipe.memory = int(pipe.plan(num_frames=3, height=16, width=24).peak * 1.15)
    return {}


def hooks(pipe: Any) -> dict[str, Any]:
    pipe.unet.conv_in.register_forward_hook(lambda *_: None)
    return {}


REASONS = {
    deep_reuse: "deep_reuse does not ask for whole ones",
    merging: "token_merging does not",
    from_host: "weights come from the host",
    by_network: "weights come from the host",
    in_little: "memory is short (branches apart)",
    no_room: "more memory than there is",
    perturbed: "asked for parts of them",
    several: "several processes",
    hooks: "hooks look into the network",
}


@pytest.mark.parametrize("setting", REASONS, ids=lambda setting: setting.__name__)
def test_where_steps_cannot_be_recorded_they_run_and_the_log_says_why_once(
    setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = own("AnimateDiff" if setting is perturbed else "ModelScope")
    call = {**TEXT, **setting(pipe)}
    plain = pipe(**call).frames
    caplog.set_level(logging.WARNING, "kinema")
    caplog.clear()
    try:
        with recorded(pipe) as there:
            assert all(torch.equal(pipe(**call).frames, plain) for _ in range(2))
            assert there.recorded == 0
    finally:
        pipe.unet.conv_in._forward_hooks.clear()
    said = [r.getMessage() for r in caplog.records if "cuda_graphs" in r.getMessage()]
    assert len(said) == 1 and REASONS[setting] in said[0]


def test_recordings_go_when_weights_do() -> None:
    pipe = pipelines_tiny.ours()
    with recorded(pipe) as there:
        for i, move in enumerate(
            (
                lambda: pipe.to(torch.float64),
                lambda: pipe.to("cpu"),
                pipe.enable_model_cpu_offload,
                lambda: pipe.await_weights("cpu"),
            ),
            1,
        ):
            pipe(**{**TEXT, "num_inference_steps": 1})
            assert len(pipe._graphs) == 1
            move()
            assert len(pipe._graphs) == 0 and there.forgotten == i


def test_pipelines_with_the_same_networks_have_their_recordings_together() -> None:
    pipe = pipelines_tiny.ours()
    with recorded(pipe) as there:
        pipe(**TEXT)
        other = type(pipe).from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        other(**TEXT)
        assert there.recorded == 1


def test_plans_count_what_recordings_hold() -> None:
    pipe = own()
    size = {"height": 16, "width": 24, "num_frames": 3}
    before = pipe.plan(**size)
    pipe.enable_cuda_graphs()
    after = pipe.plan(**size)
    held = next(stage.needs.peak for stage in before.stages if stage.name == "denoise")
    assert [b.peak - a.peak for a, b in zip(before.stages, after.stages, strict=True)] == [held] * len(after.stages)
    assert "graphs" in str(after) and "graphs" not in str(before)
    tight = int(before.peak * 1.15)
    assert pipe.plan(**size, memory=tight).peak == before.peak
    pipe.disable_cuda_graphs()
    assert pipe.plan(**size).peak == before.peak


class Cuda:
    """Stands for `torch.cuda`; notes what is asked of it, in order."""

    CUDAGraph = staticmethod(lambda: SimpleNamespace(replay=lambda: None))

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reserved = 100
        for name in ("work", "Stream"):
            stream = SimpleNamespace(
                name=name, wait_stream=lambda other, name=name: self.note(f"{name} waits for {other.name}")
            )
            stream.record_event = lambda name=name: SimpleNamespace(wait=lambda: self.note(f"after {name}"))
            setattr(self, f"_{name}", stream)

    def note(self, what: str) -> None:
        self.asked.append(what)

    def Stream(self, device: Any) -> Any:
        return self._Stream

    def current_stream(self, device: Any = None) -> Any:
        return self._work

    def set_stream(self, stream: Any) -> None:
        self.note(f"on {stream.name}")

    def graph_pool_handle(self) -> str:
        return "pool"

    def empty_cache(self) -> None:
        self.note("emptied")

    def synchronize(self, device: Any) -> None:
        self.note("waited")

    def memory_reserved(self, device: Any) -> int:
        return self.reserved

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.note(f"on {stream.name}")
        yield
        self.note("on work")

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, *, capture_error_mode: str) -> Iterator[None]:
        assert (pool, stream.name, capture_error_mode) == ("pool", "Stream", "thread_local")
        self.note("recording")
        yield
        self.reserved += 50
        self.note("recorded")


def test_what_is_asked_of_cuda_is_asked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr("kinema.memory.recording.torch", SimpleNamespace(cuda=cuda))
    recorder, made = CudaRecorder(torch.device("cuda:0")), torch.ones(1)

    def step() -> Tensor:
        cuda.note("step")
        return made

    with recorder.turn():
        assert recorder.record(step)() is made
    warm = ["Stream waits for work", "on Stream", "step", "step", "on work", "work waits for Stream", "emptied"]
    assert cuda.asked == [*warm, "recording", "step", "recorded", "on work"]
    assert recorder.held == 50
    with recorder.turn():
        cuda.note("next")
    assert cuda.asked[-2:] == ["after work", "next"]

    def broken() -> Tensor:
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"), recorder.turn():
        recorder.record(broken)
    assert cuda.asked[-1] == "on work"
    recorder.forget()
    assert cuda.asked[-2:] == ["waited", "emptied"] and recorder.held == 0


def test_cuda_takes_what_it_is_given() -> None:
    asked = inspect.signature(torch.cuda.graph.__init__).bind(None, "graph", "pool", "stream", capture_error_mode="x")
    assert {"pool": "pool", "stream": "stream"}.items() <= asked.arguments.items()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PIPES)
def test_on_a_gpu_clips_are_the_same(name: str, caplog: pytest.LogCaptureFixture) -> None:
    import copy

    pipe = family(name)
    parts = {part: copy.deepcopy(module).half().cuda() for part, module in pipe.modules().items()}
    pipe = type(pipe)(**{**pipe.components, **parts})
    plain = [pipe(**call_of(name, generator=seed)).frames for seed in (0, 1)]
    pipe.enable_cuda_graphs()
    made = [pipe(**call_of(name, generator=seed)).frames for seed in (0, 1)]
    assert "cuda_graphs" not in caplog.text and len(pipe._graphs) == 1
    for a, b in zip(plain, made, strict=True):
        assert float((a - b).abs().max()) <= 1e-2 * float(a.std())
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        pipe(**call_of(name))
    assert torch.cuda.memory_allocated() <= before
    pipe.disable_cuda_graphs()
