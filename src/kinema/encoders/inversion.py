"""Words that were learned as vectors (textual inversion): read from files, kept beside the tokenizer and the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class Inversions(Mapping[str, Tensor]):
    """Learned words and their vectors, (vectors, d) each; a value that never changes.

    Neither the tokenizer nor the model is touched: `encode` recognises the words itself and gives the model a token
    table of the rows one call needs. So loading and unloading are exact, models shared between pipelines stay
    apart, and a call under way keeps the words it began with. A word of several vectors stands for all of them in
    order; `word_1`, `word_2`, … name those after the first, as in the reference. Case does not matter.
    """

    words: Mapping[str, Tensor] = field(default_factory=dict)

    def adding(self, found: Mapping[str, Tensor], tokenizer: CLIPTokenizer, width: int) -> Inversions:
        """These words and those found in a file.

        Args:
            found: word to vectors, as `read_inversion` gives them.
            tokenizer: whose own words must not be shadowed.
            width: d of the text model's token table.

        Raises:
            InputError: a word is already in the tokenizer's vocabulary or already loaded.
            CheckpointError: the vectors are not as wide as the model's.
        """
        taken = {name.lower() for name in self.names} | set(tokenizer.get_vocab())
        for word, vectors in found.items():
            if vectors.shape[1] != width:
                raise CheckpointError(
                    f"The embedding of {word!r} is {vectors.shape[1]} wide and this text encoder's are {width}: "
                    "it was learned for another model."
                )
            for name in _names(word, len(vectors)):
                if name in taken or name.lower() in taken:
                    raise InputError(
                        f"{name!r} is already a token here; pass token= to give the embedding another name."
                    )
            taken |= {name.lower() for name in _names(word, len(vectors))}
        return Inversions({**self.words, **found})

    def removing(self, words: str | Iterable[str] | None = None) -> Inversions:
        """Without these words, or without any.

        Raises:
            InputError: a word is not loaded.
        """
        if words is None:
            return Inversions()
        away = [words] if isinstance(words, str) else list(words)
        for word in away:
            if word not in self.words:
                raise InputError(f"{word!r} is not a loaded token; loaded are {', '.join(self.words) or 'none'}.")
        return Inversions({word: v for word, v in self.words.items() if word not in away})

    @cached_property
    def names(self) -> dict[str, range]:
        """Everything a prompt may say, and the rows of `table` it stands for."""
        names: dict[str, range] = {}
        start = 0
        for word, vectors in self.words.items():
            for i, name in enumerate(_names(word, len(vectors))):
                names[name] = range(start + i, start + (len(vectors) if i == 0 else i + 1))
            start += len(vectors)
        return names

    @cached_property
    def table(self) -> Tensor:
        """All vectors, (rows, d)."""
        return torch.cat(list(self.words.values()))

    def split(self, text: str) -> Iterator[str | range]:
        """The text between the learned words, and for each word its rows; the longest name wins."""
        if not self.words:
            yield text
            return
        rows = {name.lower(): found for name, found in self.names.items()}
        pattern = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True))
        for part in re.split(f"({pattern})", text, flags=re.IGNORECASE):
            if part:
                yield rows.get(part.lower(), part)

    def __getitem__(self, word: str) -> Tensor:
        return self.words[word]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)


NOTHING = Inversions()


def read_inversion(
    state: Tensor | Mapping[str, object],
    token: str | Sequence[str] | None = None,
    where: str = "The embedding",
    half: str | None = None,
) -> dict[str, Tensor]:
    """The words a file holds, and their vectors, (vectors, d) in float32.

    Read are `{word: vectors}` (diffusers), `{"string_to_param": {"*": vectors}, "name": word}` (AUTOMATIC1111's .pt),
    `{"emb_params": vectors}` (its safetensors), bare vectors and SDXL's `{"clip_l": vectors, "clip_g": vectors}`. The
    last three carry no word, so it must be given.

    Args:
        token: the word to use instead of the file's; several for bare vectors of as many rows, one each.
        where: what to call the file in messages.
        half: "clip_l" or "clip_g", for the first or second text encoder of SDXL; None for models of one encoder.

    Raises:
        CheckpointError: this is none of these, or the vectors are not finite numbers of one or two dimensions.
        InputError: a word is needed, or words and vectors are not equally many.
    """
    entries = _entries(state, where, half)
    if token is None:
        if None in entries:
            raise InputError(
                f"{where} does not say which word it stands for; pass token=, for example token='<style>'."
            )
        return {word: _vectors(value, where) for word, value in entries.items() if word is not None}
    tokens: list[Any] = list(token) if isinstance(token, (list, tuple)) else [token]
    if not tokens or not all(isinstance(word, str) and word.strip() for word in tokens) or len({*tokens}) < len(tokens):
        raise InputError(f"token is {token!r}; it must be a word, or several different ones.")
    values = [_vectors(value, where) for value in entries.values()]
    if len(tokens) > 1 and len(values) == 1:
        values = list(values[0].split(1))
    if len(tokens) != len(values):
        raise InputError(
            f"{where} holds {len(values)} embeddings and token names {len(tokens)}; name as many as there are."
        )
    return dict(zip(tokens, values))


def _entries(state: object, where: str, half: str | None) -> dict[str | None, object]:
    """Word to vectors as stored; None where the file does not say the word."""
    if isinstance(state, Tensor):
        return {None: state}
    if isinstance(state, Mapping) and isinstance(held := state.get("string_to_param"), Mapping) and "*" in held:
        return {str(state["name"]) if state.get("name") else None: held["*"]}
    if isinstance(state, Mapping) and set(state) == {"emb_params"}:
        return {None: state["emb_params"]}
    if isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values()):
        if half in state:
            return {None: state[half]}
        if {"clip_l", "clip_g"} & set(state):
            raise CheckpointError(
                f"{where} is for the two text encoders of SDXL, and this model has one of another kind."
            )
        return dict(state)
    raise CheckpointError(
        f"{where} is no textual inversion; expected one word and its vectors, 'string_to_param' or 'emb_params'."
    )


def _vectors(value: object, where: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (1, 2) or not value.numel():
        raise CheckpointError(
            f"{where} holds no vectors; expected floating-point numbers, (vectors, width) or (width,)."
        )
    if not bool(value.isfinite().all()):
        raise CheckpointError(f"{where} holds numbers that are not finite; the file is broken, fetch it again.")
    return value.detach().float().reshape(-1, value.shape[-1]).cpu()


def _names(word: str, count: int) -> list[str]:
    return [word, *(f"{word}_{i}" for i in range(1, count))]
