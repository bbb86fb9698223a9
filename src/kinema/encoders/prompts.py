"""Prompts to embeddings: any length, any emphasis, learned words; a pure function of what it is given.

A prompt is read as blocks of 77 tokens (begin, 75 of text, end), each encoded by itself and laid end to end. What a
prompt's embedding is depends on that prompt and its negative only, never on what else is in the batch: each block
goes through the model alone, and where prompts of a batch have different lengths, shorter ones are repeated whole.
Attention over a context that is repeated whole gives what attention over it once gives (every weight is shared
evenly among the copies), so the clip is the one the prompt would have had alone.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..products import fast
from .clip import with_parts
from .inversion import NOTHING, Inversions
from .weighting import looks_weighted, parse, weigh

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger("kinema")

LongPrompts = Literal["blocks", "cut", "refuse"]

# Prompts of 5, 6 and 7 blocks meet only at 210; nobody means that.
_MOST_BLOCKS = 48

# A fast tokenizer borrows itself mutably when its padding or truncation changes; another thread's call then fails.
# Reading a prompt takes microseconds, so one at a time costs nothing.
_reading = threading.Lock()


@dataclass(frozen=True)
class Reading:
    """How prompts are read; the default is what the reference does, but nothing is cut off."""

    weighting: bool = False
    """Whether `(word:1.3)`, `(word)` and `[word]` are emphasis. Off by default: brackets in published prompts are
    text to the reference, and the same prompt must give the same clip. A weight that is ignored is said in the log."""

    long_prompts: LongPrompts = "blocks"
    """What becomes of text beyond one block: read as more "blocks", "cut" off as in the reference (said in the
    log), or "refuse"d."""

    inversions: Inversions = NOTHING
    """Learned words."""

    def __post_init__(self) -> None:
        if self.long_prompts not in ("blocks", "cut", "refuse"):
            raise InputError(f"long_prompts is {self.long_prompts!r}; it must be 'blocks', 'cut' or 'refuse'.")


PLAIN = Reading()


@dataclass(frozen=True)
class Block:
    """What goes through the model at once."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    real: int  # how many ids are not padding


def as_prompts(prompt: object, name: str = "prompt") -> list[str]:
    """One prompt or a list of them, as a list.

    Raises:
        InputError: it is neither, or the list is empty.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError(f"{name} is {_short(prompt)}; it must be a text or a list of texts.")
    return list(prompts)


def encode(
    tokenizer: CLIPTokenizer,
    model: CLIPTextModel,
    prompts: Sequence[str],
    reading: Reading = PLAIN,
    *,
    clip_skip: int | None = None,
) -> Tensor:
    """The embeddings of prompts, (b, k, d) in the model's dtype and on its device; k is 77 where all prompts fit.

    Args:
        clip_skip: how many of the model's last layers to leave out before its final norm; None and 0 leave out none.

    Raises:
        InputError: a prompt is too long for what was asked, a weight is not a number, or there are not so many layers.
    """
    blocks = [blocks_of(tokenizer, model, prompt, reading) for prompt in prompts]
    return _embed(model, to_one_length(blocks), reading, clip_skip)


def encode_pair(
    tokenizer: CLIPTokenizer,
    model: CLIPTextModel,
    prompts: Sequence[str],
    negatives: Sequence[str],
    reading: Reading = PLAIN,
    *,
    clip_skip: int | None = None,
    skip_both: bool = False,
) -> tuple[Tensor, Tensor]:
    """The embeddings of prompts and of their negatives, each (b, k, d) with one k.

    The shorter of a prompt and its negative is filled up with empty blocks, as AUTOMATIC1111's web interface does.

    Args:
        negatives: as many as prompts.
        clip_skip: for the prompts only, as in the reference; negatives go through the whole model.
        skip_both: whether it counts for negatives as well, as in the reference's I2VGen-XL.

    Raises:
        InputError: as in `encode`, or there are not as many negatives as prompts.
    """
    if len(prompts) != len(negatives):
        raise InputError(f"There are {len(prompts)} prompts and {len(negatives)} negative ones; give one for each.")
    positive = [blocks_of(tokenizer, model, prompt, reading) for prompt in prompts]
    negative = [blocks_of(tokenizer, model, prompt, reading) for prompt in negatives]
    empty = blocks_of(tokenizer, model, "", reading)
    for one, other in zip(positive, negative):
        one += empty * (len(other) - len(one))
        other += empty * (len(one) - len(other))
    level = to_one_length(positive + negative)
    return (
        _embed(model, level[: len(prompts)], reading, clip_skip),
        _embed(model, level[len(prompts) :], reading, clip_skip if skip_both else None),
    )


def times_said(text: Tensor, length: int) -> list[int]:
    """How many times over each row of embeddings (b, k, d) is written, in blocks of `length` tokens.

    Prompts of a batch are brought to one length by repeating shorter ones whole. Attention to nothing else does not
    notice; where there are other tokens beside them, theirs must count for so much less.
    """
    if text.shape[1] % length or text.shape[1] == length:
        return [1] * len(text)
    count = text.shape[1] // length
    shares = [n for n in range(1, count + 1) if count % n == 0]
    blocks = text.unflatten(1, (count, length))
    return [count // next(n for n in shares if torch.equal(row, row.roll(n, 0))) for row in blocks]


def blocks_of(tokenizer: CLIPTokenizer, model: CLIPTextModel, prompt: str, reading: Reading) -> list[Block]:
    """A prompt as blocks of equal length, one at least."""
    length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    room = length - 2
    tokens = _tokens(tokenizer, model, prompt, reading)
    if len(tokens) > room and reading.long_prompts != "blocks":
        lost = _text(tokenizer, [i for i, _ in tokens[room:]])
        said = f"The prompt is {len(tokens)} tokens long and {room} fit"
        if reading.long_prompts == "refuse":
            raise InputError(f"{said}; shorten it by {lost!r}, or take long_prompts='blocks'.")
        log.warning("%s: cut off %r", said, lost)
        tokens = tokens[:room]
    parts = [tokens[start : start + room] for start in range(0, len(tokens), room)] or [[]]
    return [_block(tokenizer, part, length) for part in parts]


def _block(tokenizer: CLIPTokenizer, tokens: list[tuple[int, float]], length: int) -> Block:
    """Begin, text, end, and padding; only text is weighed."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    padding = length - len(tokens) - 2
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Block(
        ids=(begin, *(i for i, _ in tokens), end, *([pad] * padding)),
        weights=(1.0, *(weight for _, weight in tokens), 1.0, *([1.0] * padding)),
        real=len(tokens) + 2,
    )


def _tokens(tokenizer: CLIPTokenizer, model: CLIPTextModel, prompt: str, reading: Reading) -> list[tuple[int, float]]:
    """Token ids and what each is worth; learned words count on from the end of the model's own table."""
    if not reading.weighting and looks_weighted(prompt):
        log.warning("%s holds a weight, which is read as text; ask for prompt_weighting=True to use it", _short(prompt))
    own = len(model.get_input_embeddings().weight)
    tokens: list[tuple[int, float]] = []
    for text, weight in parse(prompt) if reading.weighting else [(prompt, 1.0)]:
        for part in reading.inversions.split(text):
            ids = [own + row for row in part] if isinstance(part, range) else _ids(tokenizer, part)
            tokens += [(i, weight) for i in ids]
    return tokens


def _ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    with _reading:
        # Not verbose: the tokenizer would warn of lengths that are handled here.
        ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)[
            "input_ids"
        ]
    return ids


def _text(tokenizer: CLIPTokenizer, ids: list[int]) -> str:
    with _reading:
        return str(tokenizer.decode([i for i in ids if i < len(tokenizer)]))


def to_one_length(prompts: list[list[Block]]) -> list[list[Block]]:
    """Brings prompts to one number of blocks by repeating each whole."""
    counts = {len(blocks) for blocks in prompts}
    level = math.lcm(*counts)
    if level > max(_MOST_BLOCKS, *counts):
        raise InputError(
            f"Prompts of {', '.join(map(str, sorted(counts)))} blocks of text do not go well together; "
            "run those of different lengths in calls of their own."
        )
    return [blocks * (level // len(blocks)) for blocks in prompts]


@torch.no_grad()
def _embed(model: CLIPTextModel, prompts: list[list[Block]], reading: Reading, clip_skip: int | None) -> Tensor:
    """(b, k, d), every different block encoded once and alone."""
    blocks = list(dict.fromkeys(block for prompt in prompts for block in prompt))
    table, place = table_of(model, blocks, reading.inversions)
    if clip_skip is not None or table is not None:
        model = with_parts(model, skip=clip_skip or 0, table=table)
    known = {block: weigh(run_alone(model, block, place)[0][0], block.weights) for block in blocks}
    return torch.stack([torch.cat([known[block] for block in prompt]) for prompt in prompts])


def run_alone(model: CLIPTextModel, block: Block, place: dict[int, int] | None, **how: Any) -> Any:
    """What the model gives for a block alone; its first tensor is (1, k, d)."""
    ids = block.ids if place is None else [place[i] for i in block.ids]
    mask: dict[str, Any] = {}
    if getattr(model.config, "use_attention_mask", False):
        mask["attention_mask"] = (torch.arange(len(ids), device=model.device) < block.real).long()[None]
    with fast(torch.empty(0, device=model.device, dtype=model.dtype)):
        return model(torch.tensor([ids], device=model.device), **mask, **how)


def table_of(
    model: CLIPTextModel, blocks: list[Block], inversions: Inversions
) -> tuple[Tensor | None, dict[int, int] | None]:
    """Where learned words are said: a token table of just the rows these blocks use, and each id's place in it.

    Learned words come first: the end of a text has the highest of a model's own ids, and stays the highest.
    """
    own = model.get_input_embeddings().weight
    used = sorted({i for block in blocks for i in block.ids})
    if used[-1] < len(own):
        return None, None
    plain = torch.tensor([i for i in used if i < len(own)], device=own.device)
    learned = inversions.table[[i - len(own) for i in used if i >= len(own)]]
    order = [*used[len(plain) :], *used[: len(plain)]]
    return torch.cat([learned.to(own), own[plain]]), {i: place for place, i in enumerate(order)}


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 80 else said[:77] + "..."
