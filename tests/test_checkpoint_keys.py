"""Key rules are one piece of data for both directions: writing what was read gives back what was there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.checkpoint.keys import Alias, Drop, Fuse, Rename, Split, Squeeze, State, Table, Transpose, read, write

RULES = (
    Drop(r"position_ids$"),
    Alias(r"\.query\.", ".to_q."),
    Table((("input.0", "conv_in"), ("input.1", "down.0"), ("input.1.op", "down.0.sampler"), ("input.10", "down.9"))),
    Rename(".to_out.0.", ".out."),
    Squeeze(r"\.proj_in\.weight$"),
    Squeeze(r"\.temporal\.weight$", axes=1),
    Transpose(r"projection$"),
    Fuse((".to_k.", ".to_v."), ".to_kv."),
    Split(".in_proj_weight", (".q.weight", ".k.weight", ".v.weight")),
)

SHAPES = {
    "conv.weight": (2, 3, 3, 3),
    "attn.to_q.weight": (2, 3),
    "attn.to_out.0.bias": (2,),
    "proj_in.weight": (2, 3, 1, 1),
    "temporal.weight": (2, 3, 1),
    "projection": (2, 3),
    "attn.in_proj_weight": (6, 2),
    "scale": (),
}
STAGES = ("input.0", "input.1", "input.1.op", "input.10", "input.10.op", "input.2", "other")


def tensor(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def states(draw: st.DrawFn) -> State:
    state: State = {}
    for stage in draw(st.sets(st.sampled_from(STAGES), min_size=1)):
        for name in draw(st.sets(st.sampled_from(sorted(SHAPES)))):
            state[f"{stage}.{name}"] = tensor(SHAPES[name], len(state))
        if draw(st.booleans()):
            state |= {f"{stage}.attn.to_{x}.weight": tensor((4, 3), ord(x)) for x in "kv"}
    return state


@given(states())
def test_what_is_written_is_what_was_read(state: State) -> None:
    back = write(read(state, RULES), RULES)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) and back[k].shape == state[k].shape for k in state)


@given(states())
def test_no_two_keys_become_one(state: State) -> None:
    fused = sum(k.endswith("to_k.weight") for k in state)
    split = sum(k.endswith("in_proj_weight") for k in state)
    assert len(read(state, RULES)) == len(state) - fused + 2 * split


def test_rules_do_what_they_say() -> None:
    state = {
        "input.1.op.bias": tensor((2,), 0),
        "input.10.bias": tensor((2,), 1),
        "x.query.weight": tensor((2, 3), 2),
        "x.position_ids": torch.arange(3),
        "x.proj_in.weight": tensor((2, 3, 1, 1), 3),
        "x.projection": tensor((2, 3), 4),
    }
    ours = read(state, RULES)
    assert set(ours) == {"down.0.sampler.bias", "down.9.bias", "x.to_q.weight", "x.proj_in.weight", "x.projection"}
    assert ours["x.proj_in.weight"].shape == (2, 3)
    assert ours["x.projection"].shape == (3, 2)
    assert read({"x.proj_in.weight": tensor((2, 3), 3)}, RULES)["x.proj_in.weight"].shape == (2, 3)


def test_a_part_without_its_others_stays_apart_to_be_named() -> None:
    state = {"a.to_k.weight": tensor((2, 2), 0), "b.to_v.weight": tensor((2, 2), 1)}
    assert read(state, RULES).keys() == state.keys()


def test_reading_copies_nothing_but_what_is_fused() -> None:
    state = {"input.1.proj_in.weight": tensor((2, 3, 1, 1), 0), "other.projection": tensor((2, 3), 1)}
    ours = read(state, RULES)
    assert {x.data_ptr() for x in ours.values()} == {x.data_ptr() for x in state.values()}
