"""Prompts read by two text encoders at once, as SDXL does (Podell et al. 2023): their tokens side by side, and a
whole text as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .clip import with_parts
from .prompts import PLAIN, Block, Reading, blocks_of, run_alone, table_of, to_one_length
from .weighting import weigh

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Pair = tuple[str, str]  # what the first and the second encoder are told


class Spoken(NamedTuple):
    """What two encoders make of prompts."""

    text: Tensor  # (n, k, c): tokens, the channels of both encoders one behind the other
    pooled: Tensor  # (n, c'): whole texts as the second encoder's projection sees them


@dataclass(frozen=True)
class Reader:
    """A text encoder, its tokenizer, and how it reads."""

    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection
    reading: Reading = PLAIN

    def blocks(self, text: str) -> list[Block]:
        return blocks_of(self.tokenizer, self.model, text, self.reading)


@torch.no_grad()
def encode_twofold(
    readers: tuple[Reader, Reader], said: Sequence[Pair], against: Sequence[Pair] = (), *, clip_skip: int = 0
) -> tuple[Spoken, Spoken | None]:
    """What two encoders make of prompts and, where there are any, of their negatives; all of one length k.

    Hidden states are taken before the last layer and before the final norm, as SDXL was trained. Of texts of several
    blocks the whole is what the first block is. A text shorter than what it is paired with is filled up with empty
    blocks, as `encode_pair` does.

    Args:
        readers: the second one's model has a projection.
        against: as many as `said`, or none.
        clip_skip: how many more of the last layers to leave out, for `said` only, as in the reference.

    Raises:
        InputError: a prompt is too long for what was asked, a weight is not a number, or there are not so many layers.
    """
    fewest = min(reader.model.config.num_hidden_layers for reader in readers)
    if not 0 <= clip_skip < fewest:
        raise InputError(f"clip_skip is {clip_skip}; it must be from 0 to {fewest - 1}.")
    texts = [*said, *against]
    read = [[reader.blocks(text) for text in column] for reader, column in zip(readers, zip(*texts), strict=True)]
    for i in range(len(said)):
        _fill(readers, [column[k] for column in read for k in range(i, len(texts), len(said))])
    level = to_one_length([blocks for column in read for blocks in column])
    skips = [clip_skip] * len(said) + [0] * len(against)
    first, second = (_states(reader, level[k * len(texts) :][: len(texts)], skips) for k, reader in enumerate(readers))
    assert second[1] is not None
    both = Spoken(torch.cat([first[0], second[0].to(first[0])], dim=-1), second[1])
    if not against:
        return both, None
    return Spoken(*(x[: len(said)] for x in both)), Spoken(*(x[len(said) :] for x in both))


def _fill(readers: tuple[Reader, Reader], blocks: list[list[Block]]) -> None:
    """Brings what is said of one clip, the first half by the first reader, to one number of blocks."""
    longest, half = max(map(len, blocks)), len(blocks) // 2
    for reader, its in zip(readers, (blocks[:half], blocks[half:]), strict=True):
        empty = reader.blocks("")
        for one in its:
            one += empty * (longest - len(one))


def _states(reader: Reader, prompts: list[list[Block]], skips: list[int]) -> tuple[Tensor, Tensor | None]:
    """(n, k, d) of one encoder, and (n, c') if it has a projection; every different block is encoded once and alone."""
    wanted = {(block, skip): None for prompt, skip in zip(prompts, skips, strict=True) for block in prompt}
    model = reader.model
    table, place = table_of(model, [block for block, _ in wanted], reader.reading.inversions)
    if table is not None:
        model = with_parts(model, table=table)
    known: dict[tuple[Block, int], Tensor] = {}
    whole: dict[Block, Tensor] = {}
    for block, skip in wanted:
        made = run_alone(model, block, place, output_hidden_states=True)
        known[block, skip] = weigh(made.hidden_states[-2 - skip][0], block.weights)
        if getattr(made, "text_embeds", None) is not None:
            whole[block] = made.text_embeds[0]
    texts = [torch.cat([known[b, skip] for b in prompt]) for prompt, skip in zip(prompts, skips, strict=True)]
    return torch.stack(texts), torch.stack([whole[prompt[0]] for prompt in prompts]) if whole else None
