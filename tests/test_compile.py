"""A compiled denoiser makes the same clip: one graph, no break, no recompiling for a second clip.

Programs are compiled to PyTorch's own operations (the backend "eager"): this is about what is compiled, not how well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import animatediff_pipes, i2vgen_tiny, pipelines_tiny, svd_tiny
from tests.animatediff_tiny import SMALL
from tests.test_graphs import Pretended
from torch import Tensor
from torch._dynamo.utils import counters

from kinema import products
from kinema.choice import Choice, Verdict
from kinema.nn.kernels import enlarged, winograd
from kinema.place import sent
from kinema.sampling.graphs import Graphs

TEXT: dict[str, Any] = {**pipelines_tiny.SIZE, "prompt": "a red circle", "negative_prompt": "dull"}
FEW = {"layers_per_block": 1}
LEVELS = {"block_out_channels": (16, 32), "motion_layers_per_block": 1}
PIPES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ModelScope": (lambda: pipelines_tiny.ours(unet=FEW), TEXT),
    "SVD": (svd_tiny.ours, {**svd_tiny.SIZE, "image": svd_tiny.picture()}),
    "I2VGen-XL": (
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        {**TEXT, "image": i2vgen_tiny.picture().resize((24, 16))},
    ),
    "AnimateDiff": (
        lambda: animatediff_pipes.ours(animatediff_pipes.theirs(image={**SMALL, **FEW}, adapter=LEVELS)),
        TEXT,
    ),
}


def call_of(name: str, **more: Any) -> dict[str, Any]:
    return {**PIPES[name][1], "num_inference_steps": 2, "output_type": "latent", "generator": 0, **more}


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """Without the traces that are written wherever somebody listens, which take most of the time."""
    listening = [logging.getLogger(name) for name in ("torch.__trace", "torch")]
    before = [logger.disabled for logger in listening]
    for logger in listening:
        logger.disabled = True
    yield
    for logger, was in zip(listening, before, strict=True):
        logger.disabled = was


@cache
def family(name: str) -> Any:
    return PIPES[name][0]()


@cache
def plain(name: str, seed: int = 0, **more: Any) -> Tensor:
    made: Tensor = family(name)(**call_of(name, generator=seed, **more)).frames
    return made


@cache
def compiled(name: str) -> Any:
    """A pipeline on the family's weights, its denoiser compiled: once, for all tests."""
    pipe = family(name)
    unet = type(pipe.unet)(pipe.unet.config).eval().requires_grad_(False)
    unet.load_state_dict(pipe.unet.state_dict())
    made = type(pipe)(**{**pipe.components, "unet": unet})
    made.set_progress_bar_config(disable=True)
    made.compile(backend="eager")
    return made


def graphs() -> int:
    """Programs compiled so far; none of them was broken in two."""
    assert not counters["graph_break"]
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def ready() -> Iterator[Any]:
    """A compiled pipeline whose settings are this test's, and which nothing is compiled for any more."""
    made = type(compiled("ModelScope")).from_pipe(compiled("ModelScope"))
    made.set_progress_bar_config(disable=True)
    made(**call_of("ModelScope"))
    with torch.compiler.set_stance("fail_on_recompile"):
        yield made


def choose_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every faster kernel found to be one, however small what it works on: they stay out of what is compiled."""
    monkeypatch.setattr(Choice, "verdict", lambda self, device, dtype: Verdict(True, "for this test"))
    for module, least in ((winograd, "LEAST"), (winograd, "PIXELS"), (winograd, "MANY"), (enlarged, "LEAST")):
        monkeypatch.setattr(module, least, 1)
    monkeypatch.setattr(products, "LEAST", 1)


@pytest.mark.parametrize("name", PIPES)
def test_a_denoiser_is_one_graph_and_a_second_clip_uses_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"prompt": "two blue squares"} if "prompt" in call_of(name) else {}
    expected, second = plain(name), plain(name, 1, **other)
    if name == "AnimateDiff":
        choose_all(monkeypatch)
    pipe, before = compiled(name), graphs()
    assert torch.equal(pipe(**call_of(name)).frames, expected)
    assert graphs() == before + 1
    with torch.compiler.set_stance("fail_on_recompile"):
        assert torch.equal(pipe(**call_of(name, generator=1, **other)).frames, second)


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_weights_from_the_host_are_those_that_are_used(mode: Any, ready: Any) -> None:
    brought: list[Tensor] = []

    def bring(x: Tensor) -> Tensor:
        brought.append(x)
        return x + 0

    ready._residency = replace(ready._residency, mode=mode, bring=bring)
    assert torch.equal(ready(**call_of("ModelScope")).frames, plain("ModelScope"))
    assert brought


def test_what_is_made_for_a_call_is_not_taken_for_what_was_compiled(ready: Any) -> None:
    ready._settled = lambda asked: {"denoise": "small pieces"}
    assert torch.allclose(ready(**call_of("ModelScope")).frames, plain("ModelScope"), atol=1e-4)


def test_loras_that_are_set_need_no_compiling(ready: Any) -> None:
    """They are sums on the weights, which a program reads where they are."""
    weight = ready.unet.conv_in.weight
    before = weight.data
    weight.data = before * 1.5
    changed = ready(**call_of("ModelScope")).frames
    weight.data = before
    assert not torch.equal(changed, plain("ModelScope"))
    assert torch.equal(ready(**call_of("ModelScope")).frames, plain("ModelScope"))


def test_what_is_compiled_can_be_recorded(ready: Any) -> None:
    there = Pretended()
    ready._graphs = Graphs(there)
    assert all(torch.equal(ready(**call_of("ModelScope")).frames, plain("ModelScope")) for _ in range(2))
    assert there.recorded == 1


def test_numbers_of_the_program_go_to_the_device_without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs cannot be compiled with it."""
    asked: list[str] = []
    there, here = SimpleNamespace(type="cuda"), SimpleNamespace(type="cpu")
    x: Any = SimpleNamespace(device=here, to=lambda *a, **k: asked.append("to"))
    x.pin_memory = lambda: (asked.append("pin"), x)[1]
    sent(x, there)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    sent(x, there)  # type: ignore[arg-type]
    assert asked == ["pin", "to", "to"]
    monkeypatch.undo()
    send = torch.compile(lambda x: x + sent(torch.tensor([1.0, 2.0]), x.device), backend="eager", fullgraph=True)
    assert torch.equal(send(torch.zeros(2)), torch.tensor([1.0, 2.0]))
