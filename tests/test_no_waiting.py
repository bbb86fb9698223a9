"""While a clip is denoised the program never waits for its device: it asks for no number, and copies nothing there.

Tensors without contents stand for those of a device: whoever asks for a number of theirs is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes, i2vgen_tiny, pipelines_tiny, svd_tiny
from tests.test_animatediff_ranges import lora_of
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kinema.memory.needs import on_meta
from kinema.memory.plan import APART
from kinema.pipelines import overflow, video
from kinema.place import sent
from kinema.sampling import schedulers
from kinema.sampling.guidance import Unguided
from kinema.sampling.loop import denoise
from kinema.sampling.noise import noise_from
from kinema.sampling.watch import Spare

TEXT: dict[str, Any] = {**pipelines_tiny.SIZE, "prompt": "a red circle"}
STEPS = 2


class Made(TorchFunctionMode):
    """Refuses numbers of the program's that a device is made to wait for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            raise AssertionError(f"torch.tensor({args[0]!r}, device=...) waits")
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            asked = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list) for i in asked):
                raise AssertionError(f"numbers of the program's as an index wait: {args[1]}")
        return func(*args, **kwargs)


class Watching(TorchDispatchMode):
    """Refuses what makes a program wait for a device."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if name.startswith(self.WAITS) and any(x.is_meta for x in tensors):
            raise AssertionError(f"{name} waits for a number")
        if name in ("index", "index_put_") and any(i is not None and not i.is_meta for i in args[1]):
            raise AssertionError(f"{name} of {args[0].device} by numbers of the program's waits")
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            there, here = (args[0], args[1]) if name == "copy_" else (out, args[0])
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if there.device != here.device and waits:
                raise AssertionError(f"{name} from {here.device} to {there.device} waits")
        return out


def hollow(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline on tensors without contents, in float16, whose checks before and after the loop are left out."""
    networks = {name: on_meta(m, torch.float16) for name, m in pipe.modules().items()}
    made = type(pipe)(**{**pipe.components, **networks})
    made.set_progress_bar_config(disable=True)
    made.memory = None
    monkeypatch.setattr(overflow, "_finite", lambda made: True)
    monkeypatch.setattr(overflow, "sound", lambda stage, x: x)
    monkeypatch.setattr(video, "sound", lambda stage, x: x)
    return made


PIPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ModelScope": (pipelines_tiny.ours, TEXT),
    "SVD": (svd_tiny.ours, {**svd_tiny.SIZE, "image": svd_tiny.picture()}),
    "I2VGen-XL": (lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()), {**TEXT, "image": i2vgen_tiny.picture()}),
    "AnimateDiff": (lambda: animatediff_pipes.ours(animatediff_pipes.theirs()), TEXT),
}


def denoised(pipe: Any, call: dict[str, Any]) -> int:
    """Denoises a clip, watched from the end of the first step to that of the last; how many steps that were."""
    events = pipe.stream(**{**call, "num_inference_steps": STEPS, "output_type": "latent", "generator": 0})
    event = next(e for e in events if e.stage == "denoise")
    watched = 0
    with Made(), Watching():
        while event.step < event.total:
            event = next(events)
            watched += 1
    return watched


@cache
def family(name: str) -> Any:
    return PIPES[name][0]()


@pytest.mark.parametrize("name", PIPES)
def test_no_step_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert denoised(hollow(family(name), monkeypatch), PIPES[name][1]) == STEPS - 1


def windows(pipe: Any) -> dict[str, Any]:
    pipe.enable_windows(3, 1)
    pipe._settled = lambda asked: {"denoise": APART}
    return {"num_frames": 4, "eta": 1.0, "motion_scale": [1.0, 0.5, 0.2, 0.1]}


def free_noise(pipe: Any) -> dict[str, Any]:
    pipe.enable_free_noise(3, 2)
    return {"num_frames": 5}


def deep_reuse(pipe: Any) -> dict[str, Any]:
    pipe.enable_deep_reuse()
    return {}


def merging(pipe: Any) -> dict[str, Any]:
    pipe.enable_token_merging()
    return {}


def loras_by_frame(pipe: Any) -> dict[str, Any]:
    pipe.unet.load_state_dict(family("AnimateDiff").unet.state_dict(), assign=True)  # sums are of real numbers
    pipe.load_lora_weights(lora_of(pipe.unet, "attentions"), "style")
    pipe.set_adapters("style", {"frames": [1.0, 0.5, 1.0]})
    sets = pipe._adapters.along_hollow("unet", 3)
    pipe._adapters.along = lambda part, frames, scale: sets if part == "unet" else None
    pipe.unet.to("meta")
    return {}


SETTINGS = [loras_by_frame, windows, free_noise, deep_reuse, merging]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_nor_with_what_can_be_set(setting: Callable[[Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = hollow(family("AnimateDiff"), monkeypatch)
    assert denoised(pipe, {**TEXT, **setting(pipe)}) >= STEPS - 1


NAMES = [name for name in schedulers.__all__ if name not in ("Plan", "Scheduler", "SchedulerOutput")]


class Nothing:
    """Predicts what it sees."""

    def prepare(self, times: Tensor, conditions: Any) -> Nothing:
        return self

    def at(self, step: int) -> None: ...

    def __call__(self, latents: Tensor, signal: None) -> Tensor:
        return latents


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_nor_with_any_scheduler(name: str, eta: float) -> None:
    plan = getattr(schedulers, name)().plan(6, eta=eta)
    latents = torch.empty(1, 3, 4, 8, 8, device="meta")
    spare = Spare(lambda: None, at_once=False)  # type: ignore[arg-type, return-value]
    steps = denoise(
        Nothing(),
        latents,
        None,
        schedule=plan.schedule,
        solver=plan.solver,
        guidance=Unguided(),
        noise=noise_from(0, 1),
        dtype=torch.float16,
        spare=spare,
    )
    next(steps)
    with Made(), Watching():
        for _ in range(len(plan.schedule) - 1):
            next(steps)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3).to(x.device),
        lambda x: torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: x[[0, 2]],
        lambda x: x[x > 0],
        lambda x: torch.empty_like(x).copy_(torch.ones(3)),
    ],
)
def test_what_waits_is_noticed(waits: Callable[[Tensor], Any]) -> None:
    x = torch.empty(3, device="meta")
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Made(), Watching():
        waits(x)


def test_what_does_not_is_not() -> None:
    x, numbers = torch.empty(3, device="meta"), torch.ones(3)
    with Made(), Watching():
        sent(numbers, x.device)
        assert float(numbers[0]) * x is not None
        torch.tensor([1.0])
        x[:2].copy_(x[1:])


def test_what_is_sent_is_the_same_wherever_it_goes() -> None:
    numbers = torch.randn(3)
    assert sent(numbers, numbers.device) is numbers
    assert torch.equal(sent(numbers, torch.device("cpu"), torch.float64), numbers.double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("name", PIPES)
def test_no_step_waits_on_a_gpu(name: str, replayed: bool) -> None:
    pipe = family(name)
    parts = {part: copy.deepcopy(module).half().cuda() for part, module in pipe.modules().items()}
    pipe = type(pipe)(**{**pipe.components, **parts})
    call = {**PIPES[name][1], "num_inference_steps": STEPS, "output_type": "latent", "generator": 0}
    if replayed:
        pipe.enable_cuda_graphs()
    pipe(**call)  # what is tried once a process is tried now, and what is recorded is recorded and compared
    events = pipe.stream(**call)
    event = next(e for e in events if e.stage == "denoise")
    torch.cuda.set_sync_debug_mode("error")
    try:
        while event.step < event.total:
            event = next(events)
    finally:
        torch.cuda.set_sync_debug_mode("default")
