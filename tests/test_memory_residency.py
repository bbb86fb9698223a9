"""Offloading moves weights, one component or one operation at a time, and changes nothing else."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import InputError
from kinema.memory.residency import MODES, Residency

WIDTH = 16


class Network(nn.Module):
    """Uses its weights in every way the real ones do: called, named, sliced, tied, buffered, from several methods."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(4, WIDTH), nn.Conv3d(WIDTH, WIDTH, (3, 1, 1))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.tied = self.down
        self.table = nn.Embedding(7, WIDTH)
        self.register_buffer("ids", torch.arange(5))

    def prepare(self, rows: int) -> Tensor:
        return self.table(self.ids).sum(0).expand(rows, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x[:, :, None].expand(-1, -1, 3, -1), self.conv.weight[..., 0], self.conv.bias)
        y = F.group_norm(y, 4, self.norm.weight, self.norm.bias)[:, :, 0, :1].flatten(1)
        value, gate = self.up.weight.chunk(2)
        y = F.linear(y, value) * F.gelu(F.linear(y, gate, self.up.bias[:WIDTH]))
        return self.tied(self.down(y)) + self.prepare(len(x))


class Counter:
    """A device that is the host in disguise: it counts what lies on it."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.live = self.most = self.moves = 0
        self.fails_after = fails_after

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.moves == self.fails_after:
            raise MemoryError("the device is full")
        copy = tensor.detach().clone()
        size = copy.numel() * copy.element_size()
        self.moves, self.live = self.moves + 1, self.live + size
        self.most = max(self.most, self.live)
        weakref.finalize(copy.untyped_storage(), self.leave, size)
        return copy

    def leave(self, size: int) -> None:
        self.live -= size


@pytest.fixture
def components() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"text_encoder": Network().eval(), "unet": Network().eval()}


def weights(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def run(residency: Residency, x: Tensor) -> Tensor:
    with residency.use("text_encoder") as encoder:
        y = encoder(x)
        y = y + encoder.prepare(len(x))
    with residency.use("unet") as unet:
        for _ in range(2):
            y = unet(y[..., None])
    return y


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, WIDTH, 4)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_numbers_and_leaves_the_weights_as_they_were(components, x, mode):
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in components.items()}
    places = {name: [p.data_ptr() for p in m.parameters()] for name, m in components.items()}
    expected = run(Residency(components), x)
    assert torch.equal(run(Residency(components, mode=mode, bring=Counter()), x), expected)
    for name, module in components.items():
        assert [p.data_ptr() for p in module.parameters()] == places[name]
        assert all(torch.equal(v, before[name][k]) for k, v in module.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@torch.no_grad()
def test_model_offload_has_one_component_on_the_device_at_a_time(components, x):
    device = Counter()
    run(Residency(components, mode="model", bring=device), x)
    assert device.most == weights(components["unet"])
    assert device.live == 0
    tensors = len([*components["unet"].parameters(), *components["unet"].buffers()])
    assert device.moves == 2 * tensors, "each component comes once for its stage, tied weights once"


@torch.no_grad()
def test_sequential_offload_has_one_operations_weights_on_the_device_at_a_time(components, x):
    device = Counter()
    run(Residency(components, mode="sequential", bring=device), x)
    largest = max(weights(m) for m in components["unet"].modules() if not list(m.children()))
    assert 0 < device.most <= largest
    assert device.live == 0


@torch.no_grad()
def test_a_resident_component_never_moves(components, x):
    device = Counter()
    run(Residency(components, bring=device), x)
    assert device.moves == 0


def test_nothing_moves_where_the_device_is_the_host(components):
    assert not any(Residency(components, mode=mode).moves for mode in MODES)
    assert Residency(components, torch.device("meta"), "model").moves


@torch.no_grad()
@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_a_failure_on_the_way_gives_every_weight_back(components, x, mode):
    places = [p.data_ptr() for p in components["text_encoder"].parameters()]
    residency = Residency(components, mode=mode, bring=Counter(fails_after=3))
    for _ in range(2):
        with pytest.raises(MemoryError):
            run(residency, x)
    assert [p.data_ptr() for p in components["text_encoder"].parameters()] == places
    assert torch.equal(run(replace(residency, bring=Counter()), x), run(Residency(components), x))


@torch.no_grad()
def test_uses_of_one_component_may_end_in_any_order(components, x):
    device = Counter()
    residency = Residency(components, mode="model", bring=device)
    first, second = residency.use("unet"), residency.use("unet")
    unet = first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert device.live == device.most == weights(unet), "the second use goes on, on the device"
    second.__exit__(None, None, None)
    assert device.live == 0


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_threads_take_turns_while_components_move_and_get_what_they_would_alone(components, mode):
    device = Counter()
    residency = Residency(components, mode=mode, bring=device)
    inputs = [torch.randn(2, WIDTH, 4, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    with torch.no_grad():
        expected = [run(Residency(components), x) for x in inputs]
    found: list[Tensor | None] = [None] * len(inputs)

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[i] = run(residency, inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(f is not None and torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert device.most <= weights(components["unet"]) and device.live == 0


def test_a_use_may_end_in_another_thread_and_the_next_one_gets_its_turn(components):
    residency = Residency(components, mode="model", bring=Counter())
    held = residency.use("unet")
    held.__enter__()
    closer = threading.Thread(target=held.__exit__, args=(None, None, None))
    closer.start()
    closer.join(10)
    passed = threading.Event()

    def next_one() -> None:
        with residency.use("text_encoder"):
            passed.set()

    threading.Thread(target=next_one, daemon=True).start()
    assert passed.wait(10)


@torch.no_grad()
def test_a_streamed_component_answers_like_the_module_it_stands_for(components):
    residency = Residency(components, torch.device("cpu", 0), "sequential", bring=Counter())
    with residency.use("unet") as unet:
        assert unet.training is False
        assert unet.device == torch.device("cpu", 0)
        assert torch.equal(unet.down(torch.ones(1, WIDTH)), components["unet"].down(torch.ones(1, WIDTH)))
        with pytest.raises(AttributeError):
            _ = unet.nothing


def test_a_wrong_mode_or_name_is_said(components):
    with pytest.raises(InputError, match="'resident', 'model', 'sequential'"):
        Residency(components, mode="sometimes")
    with pytest.raises(InputError, match="no component 'vae'; there are text_encoder, unet"):
        Residency(components).use("vae").__enter__()


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same_numbers_on_an_accelerator(components, x, mode):
    device = torch.device("cuda" if torch.cuda.is_available() else "mps")
    residency = Residency(components, device, mode)
    expected = run(Residency(components), x)
    residency.settle()
    found = run(residency, x.to(device))
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


class Placed(nn.Linear):
    """Makes something of its own where its weights are, in their number format."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.ones(len(self.weight), device=self.weight.device, dtype=self.weight.dtype))


def test_weights_that_are_brought_say_where_they_are_and_what_they_are():
    layer = Placed(4, 4)
    with Residency({"layer": layer}, torch.device("meta"), "sequential").use("layer") as placed:
        assert placed(torch.ones(2, 4, device="meta")).device.type == "meta"
    with Residency({"layer": layer}).use("layer", torch.float64) as wide:
        assert wide(torch.ones(2, 4)).dtype == wide.dtype == torch.float64
    assert layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
