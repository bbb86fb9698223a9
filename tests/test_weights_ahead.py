"""Streamed weights come block by block, the next while one is worked with: two at most, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests import svd_tiny
from tests.test_memory_residency import Counter, Network
from torch import Tensor, nn

from kinema.memory import ahead, residency
from kinema.memory.ahead import Ahead, CudaSide, blocks, most
from kinema.memory.needs import bytes_of
from kinema.memory.plan import Stage, StageNeeds, Traces
from kinema.memory.residency import Residency
from kinema.memory.speed import Speed
from kinema.memory.stream import tensors_of

WIDTH = 8
LAYER = 4 * (WIDTH * WIDTH + WIDTH)  # bytes


class Row(nn.Module):
    """Layers one after another, of which a call may leave some out."""

    def __init__(self, layers: int = 6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers))

    def forward(self, x: Tensor, order: Sequence[int] | None = None) -> Tensor:
        for i in range(len(self.layers)) if order is None else order:
            x = self.layers[i](x)
        return x

    def above(self, x: Tensor) -> Tensor:
        """A call of a part, in another order."""
        return self(x, [0, 5, 4, 1])

    def name(self) -> str:
        """A method that reads no weights."""
        return "row"


class Pretended(Counter):
    """A device beside which copies run: it notes what is begun, waited for and given up."""

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.said: list[tuple[str, int]] = []
        self.begun, self.room = 0, room

    def begin(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        if self.room is not None and self.live + sum(t.nbytes for t in tensors) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.begun += 1
        self.said.append(("begin", self.begun))
        return [self(t) for t in tensors], self.begun

    def wait(self, there: int) -> None:
        self.said.append(("wait", there))


def runs(module: nn.Module, side: Pretended, *calls: Callable[[Any], Tensor], block: int) -> list[Tensor]:
    moved = Residency({"it": module}, mode="sequential", bring=side, side=side)
    with pytest.MonkeyPatch.context() as patch, moved.use("it") as it:
        patch.setattr(it._ahead, "_block", block)
        return [call(it) for call in calls]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, WIDTH)


@torch.no_grad()
def test_the_next_block_is_on_its_way_before_one_is_worked_with(x: Tensor) -> None:
    row, side = Row(), Pretended()
    first, second = runs(row, side, lambda it: it(x), lambda it: it(x), block=2 * LAYER)
    assert torch.equal(first, row(x)) and torch.equal(second, row(x))
    assert side.said == [
        ("begin", 1), ("wait", 1), ("begin", 2), ("wait", 2), ("begin", 3), ("wait", 3)
    ]  # fmt: skip
    assert side.live == 0


@torch.no_grad()
def test_calls_of_a_part_are_read_ahead_too_each_in_the_order_of_its_own(x: Tensor) -> None:
    row, side = Row(), Pretended()
    whole, above = row(x), row.above(x)
    calls = [Row.forward, Row.above, Row.forward, Row.above, Row.above]
    found = runs(row, side, *[lambda it, call=call: getattr(it, call.__name__)(x) for call in calls], block=2 * LAYER)
    for call, made in zip(calls, found, strict=True):
        assert torch.equal(made, whole if call is Row.forward else above)
    blocks = {Row.forward: 3, Row.above: 2}
    assert side.begun == sum(blocks[call] for call in calls[2:]), "each but the first of its kind"
    pairs = [pair for n in range(side.begun) for pair in (("begin", n + 1), ("wait", n + 1))]
    assert side.said == pairs and side.live == 0 and side.most <= 4 * LAYER
    assert runs(row, side, lambda it: it.name() == it.name() == "row", block=1) == [True]


@torch.no_grad()
def test_there_are_never_more_than_two_blocks(x: Tensor) -> None:
    side = Pretended()
    runs(Row(9), side, lambda it: it(x), lambda it: it(x), block=2 * LAYER)
    assert side.most == 4 * LAYER


@torch.no_grad()
@pytest.mark.parametrize("order", [[0, 1, 5], [5, 4, 3, 2, 1, 0], [0, 0, 3, 3, 1], []])
def test_a_run_in_another_order_is_right_all_the_same(x: Tensor, order: list[int]) -> None:
    row, side = Row(), Pretended()
    found = runs(row, side, lambda it: it(x), lambda it: it(x, order), lambda it: it(x), block=2 * LAYER)
    assert torch.equal(found[1], row(x, order)) and torch.equal(found[2], row(x))
    assert side.most <= 4 * LAYER + LAYER and side.live == 0
    assert sorted(n for what, n in side.said if what == "wait") == list(range(1, side.begun + 1))


@torch.no_grad()
def test_where_there_is_room_for_one_block_they_come_one_by_one(x: Tensor) -> None:
    row, side = Row(), Pretended(room=3 * LAYER)
    found = runs(row, side, lambda it: it(x), lambda it: it(x), block=2 * LAYER)
    assert torch.equal(found[1], row(x)) and side.most <= 3 * LAYER


@torch.no_grad()
def test_a_run_that_ends_early_leaves_nothing(x: Tensor) -> None:
    row, side = Row(), Pretended()

    def broken(it: Any) -> Tensor:
        with pytest.raises(IndexError):
            it(x, [0, 1, 77])
        return x

    runs(row, side, lambda it: it(x), broken, block=2 * LAYER)
    assert side.live == 0
    assert side.said == [("begin", 1), ("wait", 1), ("begin", 2), ("wait", 2)], "no copy is given up on its way"


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2000, 10**9])
def test_weights_are_read_in_all_ways(block: int) -> None:
    torch.manual_seed(0)
    net, side, x = Network().eval(), Pretended(), torch.randn(3, 16, 4)
    for found in runs(net, side, *[lambda it: it(x)] * 3, block=block):
        assert torch.equal(found, net(x))


def test_parts_that_are_small_enough_stay_whole_and_keep_their_order() -> None:
    net = nn.Sequential(Row(2), Row(2), Row(8))
    read = list(net.parameters())
    made = blocks(net, read, 4 * LAYER)
    assert [t for block in made for t in block] == read
    assert [sum(t.nbytes for t in block) // LAYER for block in made] == [4, 4, 4]
    assert [len(b) for b in blocks(net, read, 3 * LAYER)] == [4, 6, 6, 6, 2]
    assert len(blocks(net, read, 1)) == 12


@torch.no_grad()
def test_a_clip_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    call = {**svd_tiny.SIZE, "image": svd_tiny.picture(), "num_inference_steps": 3, "generator": 0}
    pipe, side = svd_tiny.ours(), Pretended()
    expected = pipe(**call, output_type="latent").frames
    layers = [bytes_of(m) for net in pipe.modules().values() for m in net.modules() if not list(m.children())]
    largest = max(layers)
    monkeypatch.setattr(ahead, "BLOCK", largest)
    monkeypatch.setattr(Ahead.__init__, "__defaults__", (largest,))
    pipe._residency = Residency(pipe.modules(), mode="sequential", bring=side, side=side)
    pipe.memory = None
    assert torch.equal(pipe(**call, output_type="latent").frames, expected)
    assert side.begun > 4 and side.most <= most(bytes_of(pipe.unet), largest) and side.live == 0


@torch.no_grad()
@pytest.mark.parametrize("reuse", [{"every": 3}, {"threshold": 0.3}], ids=str)
def test_a_clip_of_reused_features_reads_ahead_at_steps_between(
    monkeypatch: pytest.MonkeyPatch, reuse: dict[str, Any]
) -> None:
    call = {**svd_tiny.SIZE, "image": svd_tiny.picture(), "num_inference_steps": 5, "generator": 0}
    pipe, side = svd_tiny.ours(), Pretended()
    pipe.enable_deep_reuse(**reuse)
    expected = pipe(**call, output_type="latent").frames
    largest = max(bytes_of(m) for net in pipe.modules().values() for m in net.modules() if not list(m.children()))
    monkeypatch.setattr(ahead, "BLOCK", largest)
    monkeypatch.setattr(Ahead.__init__, "__defaults__", (largest,))
    told: list[tuple[str, int]] = []
    run = Ahead.run

    def noted(self: Ahead, module: nn.Module, method: str = "__call__") -> Any:
        told.append((method, side.begun))
        return run(self, module, method)

    monkeypatch.setattr(Ahead, "run", noted)
    pipe._residency = Residency(pipe.modules(), mode="sequential", bring=side, side=side)
    pipe.memory = None
    assert torch.equal(pipe(**call, output_type="latent").frames, expected)
    assert side.most <= most(bytes_of(pipe.unet), largest) and side.live == 0
    for method in {"denoise_and_keep", "denoise_above"} & {name for name, _ in told}:
        begun = [after - before for (name, before), (_, after) in pairwise(told) if name == method]
        assert begun[0] == 0 and all(begun[1:]), "the first of its kind finds out what it reads"
    assert sum(name == "denoise_above" for name, _ in told) > 1


def test_plans_count_the_second_block_and_the_time_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "BLOCK", 2 * LAYER)
    row = Row(20)
    stages = [Stage("denoise", "it", lambda it: it(torch.empty(3, WIDTH, device="meta")), times=5)]
    here, there = (Traces(stages, {"it": row}, kind=kind).taken(0, 0, "sequential") for kind in ("cpu", "cuda"))
    assert (here.weights, there.weights) == (LAYER, 5 * LAYER)
    assert here.brought == there.brought == 5 * bytes_of(row)
    slow = Speed(flops=1.0, bytes=1.0, link=1.0)
    way = float(here.brought)
    assert here.seconds(slow) - there.seconds(slow) == pytest.approx(min(way, here.seconds(slow) - way))
    assert isinstance(there, StageNeeds)
    assert Traces(stages, {"it": Row(2)}, kind="cuda").taken(0, 0, "sequential").weights == 2 * LAYER


# ------------------------------------------------------------------ streams, pretended


class Stream:
    """What CUDA's streams are told, noted in order."""

    said: list[Any] = []

    def __init__(self, name: Any = "side"):
        self.name = name if isinstance(name, str) else "side"

    def wait_stream(self, other: Stream) -> None:
        self.said.append((self.name, "waits for", other.name))

    def wait_event(self, event: Any) -> None:
        self.said.append((self.name, "waits for", event))

    def record_event(self) -> str:
        self.said.append((self.name, "records"))
        return f"event of {self.name}"

    def __enter__(self) -> None:
        self.said.append((self.name, "copies"))

    def __exit__(self, *_: object) -> None:
        pass


def test_copies_run_beside_and_work_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "said", [])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("work"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    side, tensor = CudaSide(torch.device("cpu")), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    (copy,), there = side.begin([tensor])
    side.wait(there)
    assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
    assert Stream.said == [
        ("side", "waits for", "work"),
        ("side", "copies"),
        ("side", "records"),
        ("work", "waits for", "event of side"),
    ]


def test_without_a_device_that_can_weights_come_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ahead.side_of(torch.device("cpu")) is None
    assert ahead.side_of(torch.device("mps")) is None

    def broken(_: Any) -> Any:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "Stream", broken)
    assert ahead.side_of(torch.device("cuda")) is None
    monkeypatch.setattr(Tensor, "pin_memory", broken)
    row = Row()
    before = [t.data_ptr() for t in tensors_of(row)]
    ahead.pin(tensors_of(row))
    assert [t.data_ptr() for t in tensors_of(row)] == before
    assert residency.side_of is ahead.side_of


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.no_grad()
def test_on_a_gpu_numbers_are_those_of_resident_weights() -> None:
    row, x = Row(8), torch.randn(3, WIDTH, device="cuda")
    moved = Residency({"it": row}, device=torch.device("cuda"), mode="sequential")
    moved.settle()
    with moved.use("it") as it:
        found = [it(x).cpu() for _ in range(3)]
    expected = row.to("cuda")(x).cpu()
    assert all(torch.equal(one, expected) for one in found)
