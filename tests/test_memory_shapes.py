"""What a network needs is the same whether operations of known shapes are run again or remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kinema import AutoencoderKLTemporalDecoder
from kinema.memory import needs
from kinema.memory.needs import Needs, trace
from kinema.memory.shapes import Shapes, cost_of


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


class Forgetful(Shapes):
    """Runs every operation."""

    def run(self, func: Any, args: Any, kwargs: Any, tensors: Any, key: Any) -> Any:
        out = func(*args, **kwargs)
        return out, cost_of(func, args, kwargs, tensors, out)


def forgetful(call: Callable[[], Any], **options: Any) -> Needs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(needs, "Shapes", Forgetful)
        return trace(call, **options)


def decoder() -> AutoencoderKLTemporalDecoder:
    """Without contents."""
    with torch.device("meta"):
        return AutoencoderKLTemporalDecoder(
            block_out_channels=(8, 4), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4
        ).requires_grad_(False)


@settings(max_examples=6, deadline=None)
@given(
    frames=st.integers(1, 4),
    side=st.integers(1, 4),
    low_memory=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_a_streamed_decode_needs_what_it_needs_with_every_operation_run(
    frames: int, side: int, low_memory: bool, dtype: torch.dtype
) -> None:
    model = decoder().to(dtype)
    latents = empty(frames, 4, side, 5, dtype=dtype)

    def drain() -> None:
        for _ in model.stream(latents, low_memory):
            pass

    assert trace(drain, resident=[model]) == forgetful(drain, resident=[model])


def test_a_plan_is_the_one_with_every_operation_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import svd_tiny

    found = svd_tiny.ours().plan(16, 32, num_frames=2, memory=None)
    monkeypatch.setattr(needs, "Shapes", Forgetful)
    assert found == svd_tiny.ours().plan(16, 32, num_frames=2, memory=None)


def twice(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: (make(), make())


CALLS: dict[str, Callable[[], Any]] = {
    "views": twice(lambda: empty(4, 6).view(2, 12).t()[1:].contiguous()),
    "a view that does not say so": twice(lambda: torch.ops.aten._unsafe_view(empty(4, 6), (24,))),
    "whole and real numbers": lambda: (
        [empty(3).add(x) for x in (1, 1.0, True)] + [empty(3, dtype=torch.int32).add(x) for x in (1, 1.0, True, 2.0)]
    ),
    "half and single": lambda: [empty(8, dtype=d) * empty(8) for d in (torch.float16, torch.float32) * 2],
    "in place": twice(lambda: empty(5).add_(1).copy_(empty(5)).mul_(empty(1))),
    "in place with new axes": twice(lambda: empty(5, 1, 3).squeeze_(1).t_() + 1),
    "resized": twice(lambda: empty(2).resize_(50)),
    "several results": twice(lambda: torch.native_group_norm(empty(2, 4, 3), None, None, 2, 4, 3, 2, 1e-5)),
    "chunks": twice(lambda: [x + 1 for x in empty(6, 4).chunk(3)]),
    "strides": twice(lambda: [x.relu() for x in (empty(2, 3, 4, 4), empty(2, 4, 4, 3).permute(0, 3, 1, 2))]),
    "a part of a larger storage": twice(lambda: empty(10, 10)[2:4, ::2] + 1),
    "convolutions": twice(lambda: F.conv2d(empty(1, 3, 8, 8), empty(5, 3, 3, 3), empty(5), padding=1)),
    "broadcast": twice(lambda: empty(3, 1).expand(3, 4) * empty(4)),
    "results written where they are told": twice(lambda: torch.add(empty(3), empty(3), out=empty(3))),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_and_needs_are_those_of_operations_that_are_run(name: str) -> None:
    seen: list[list[tuple[Any, ...]]] = []

    def forms(made: Any) -> list[tuple[Any, ...]]:
        if isinstance(made, Tensor):
            return [(made.shape, made.stride(), made.dtype, made.storage_offset(), made.untyped_storage().nbytes())]
        return [form for one in made for form in forms(one)]

    def call() -> Any:
        made = CALLS[name]()
        seen.append(forms(made))
        return made

    assert trace(call) == forgetful(call)
    assert seen[0] == seen[1]


def test_numbers_that_are_there_are_computed_each_time() -> None:
    found: list[float] = []
    trace(lambda: found.extend(float((torch.full((3,), float(i)) + 1).sum()) for i in range(3)))
    assert found == [3, 6, 9]
