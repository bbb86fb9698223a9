"""What pipelines that read prompts with SDXL's two text encoders share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checkpoint.files import open_weights
from ..checkpoint.hub import hub_options
from ..encoders.inversion import NOTHING, Inversions, read_inversion
from ..encoders.prompts import Reading
from ..encoders.twofold import Pair, Reader, Spoken, encode_twofold
from ..errors import InputError
from . import inputs
from .files import nested, weights_file
from .overflow import Lift, healed
from .text import TextPipeline

log = logging.getLogger("kinema")


@dataclass(frozen=True)
class TwoPrompts:
    """What clips are to show and not to show, one of each a clip, as two encoders are told or as they would tell it."""

    positive: tuple[Pair, ...] | Spoken
    negative: tuple[Pair, ...] | Spoken | None  # None: nothing is said, which is zeros

    def __len__(self) -> int:
        return len(self.positive[0] if isinstance(self.positive, Spoken) else self.positive)


class TwoTextsPipeline(TextPipeline):
    """A pipeline with `text_encoder`, `text_encoder_2` and their tokenizers among its parts."""

    settings: ClassVar[Mapping[str, Any]] = {"force_zeros_for_empty_prompt": True}
    inherited: ClassVar[tuple[str, ...]] = ("inversions_2",)
    inversions_2: Inversions = NOTHING  # learned words of the second encoder

    text_encoder_2: Any
    tokenizer_2: Any
    force_zeros_for_empty_prompt: bool

    def two_prompts(self, call: Mapping[str, Any]) -> TwoPrompts:
        """Sorts out the ways of saying what a clip should be.

        Raises:
            InputError: none or both of a pair are given, types are wrong, or batch lengths differ.
        """
        width = self.text_encoder.config.hidden_size + self.text_encoder_2.config.hidden_size
        given = call["prompt_embeds"], call["negative_prompt_embeds"]
        asked = inputs.prompts(call["prompt"], call["negative_prompt"], *given, width)
        said, against = asked.positive, asked.negative
        positive: tuple[Pair, ...] | Spoken
        if isinstance(said, Tensor):
            positive = Spoken(said, self._pooled("pooled_prompt_embeds", call, len(said)))
        else:
            positive = _paired("prompt_2", call["prompt_2"], said)
        if isinstance(against, Tensor):
            return TwoPrompts(positive, Spoken(against, self._pooled("negative_pooled_prompt_embeds", call, len(said))))
        if call["negative_prompt"] is None and self.force_zeros_for_empty_prompt:
            if call["negative_prompt_2"]:
                log.warning("negative_prompt_2 is not read where negative_prompt is not given; give both.")
            return TwoPrompts(positive, None)
        return TwoPrompts(positive, _paired("negative_prompt_2", call["negative_prompt_2"], against))

    def _pooled(self, name: str, call: Mapping[str, Any], clips: int) -> Tensor:
        value, shape = call[name], (clips, self.text_encoder_2.config.projection_dim)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise InputError(
                f"{name} is {got}; where embeddings are given, it must be a tensor {shape} made with them."
            )
        return inputs.finite(name, value)

    def spoken(
        self,
        asked: TwoPrompts,
        *,
        guided: bool,
        clip_skip: int | None = None,
        reading: Reading | None = None,
        copies: int = 1,
        lora_scale: float | None = None,
    ) -> Spoken:
        """Text and whole texts, (branches·n·copies, …): of negatives first where guided, copies next to each other.

        Raises:
            InputError: embeddings given and embeddings made are not of one length.
            NumericsError: they are not finite.
        """
        reading = reading or Reading(inversions=self.inversions)

        def made(lift: Lift) -> Spoken:
            with ExitStack() as places:
                first, second = (
                    lift(self._with_lora(name, places.enter_context(self._residency.use(name)), lora_scale))
                    for name in ("text_encoder", "text_encoder_2")
                )
                readers = (
                    Reader(self.tokenizer, first, reading),
                    Reader(self.tokenizer_2, second, replace(reading, inversions=self.inversions_2)),
                )
                branches = _branches(readers, asked, guided, clip_skip or 0)
            if len({x.text.shape[1:] for x in branches}) > 1:
                shapes = " and ".join(str(tuple(x.text.shape[1:])) for x in reversed(branches))
                raise InputError(f"Embeddings of the prompt and the negative prompt are {shapes}; give both, alike.")
            device, like = self.execution_device, self.text_encoder_2.dtype
            columns = [[x.to(device, like).repeat_interleave(copies, 0) for x in column] for column in zip(*branches)]
            return Spoken(*map(torch.cat, columns))

        return healed("encode", ["text_encoder", "text_encoder_2"], self.text_encoder_2.dtype, made)

    def encode_prompt(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        device: Any = None,
        num_videos_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Embeddings (n, k, c) of prompts and of negatives, then both pooled, (n, c): to keep, weigh, mix and pass in.

        Those of negatives are None where not guided.
        """
        call = {
            "prompt": prompt,
            "prompt_2": prompt_2,
            "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        both = self.spoken(
            self.two_prompts(call),
            guided=do_classifier_free_guidance,
            clip_skip=clip_skip,
            copies=inputs.whole("num_videos_per_prompt", num_videos_per_prompt),
            lora_scale=lora_scale,
        )
        text, pooled = (x if device is None else x.to(device) for x in both)
        if not do_classifier_free_guidance:
            return text, None, pooled, None
        (negative, positive), (whole_negative, whole) = text.chunk(2), pooled.chunk(2)
        return positive, negative, whole, whole_negative

    def load_textual_inversion(
        self, source: Any, token: str | None = None, text_encoder: Any = None, tokenizer: Any = None, **hub: Any
    ) -> None:
        """Teaches prompts a word from a file or dictionary that holds vectors for both encoders, or a list of these.

        Args:
            source: a file with `clip_l` and `clip_g`; with `text_encoder` one encoder's vectors.
            token: the word.
            text_encoder: the one of this pipeline's encoders that the vectors are for, where they are for one.
            tokenizer: kept for old code; each encoder has its own.

        Raises:
            CheckpointError: it holds no embedding, or one for another text encoder.
            InputError: the word is known already, or an argument is not.
        """
        hub_options(hub, "load_textual_inversion")
        halves = [
            (half, name, words, encoder)
            for half, name, words, encoder in (
                ("clip_l", "tokenizer", "inversions", self.text_encoder),
                ("clip_g", "tokenizer_2", "inversions_2", self.text_encoder_2),
            )
            if text_encoder is None or encoder is text_encoder
        ]
        if not halves:
            raise InputError("text_encoder is none of this pipeline's; pass pipe.text_encoder or pipe.text_encoder_2.")
        learned = {words: getattr(self, words) for _, _, words, _ in halves}
        for one in source if isinstance(source, (list, tuple)) else [source]:
            where, word = "The embedding", token
            if isinstance(one, (str, Path)):
                path = weights_file(one, **hub)
                where, one = str(path), nested(open_weights(path))
                word = token or path.stem
            for half, name, words, encoder in halves:
                width = encoder.get_input_embeddings().weight.shape[1]
                found = read_inversion(one, word, where, half)
                learned[words] = learned[words].adding(found, getattr(self, name), width)
        for words, value in learned.items():
            setattr(self, words, value)

    def unload_textual_inversion(self, tokens: str | list[str] | None = None) -> None:
        """Forgets these words, or all that were taught."""
        away = [tokens] if isinstance(tokens, str) else tokens
        both = {"inversions": self.inversions, "inversions_2": self.inversions_2}
        if unknown := [t for t in away or () if not any(t in words for words in both.values())]:
            raise InputError(f"{unknown[0]!r} is not a loaded token.")
        for name, words in both.items():
            setattr(self, name, words.removing(None if away is None else [t for t in away if t in words]))


def _branches(readers: tuple[Reader, Reader], asked: TwoPrompts, guided: bool, clip_skip: int) -> list[Spoken]:
    """What is not to be shown, where guided, and what is."""
    positive, negative = asked.positive, asked.negative if guided else None
    if not isinstance(positive, Spoken):
        against = () if negative is None or isinstance(negative, Spoken) else negative
        positive, made = encode_twofold(readers, positive, against, clip_skip=clip_skip)
        negative = negative if made is None else made
    elif negative is not None and not isinstance(negative, Spoken):
        negative, _ = encode_twofold(readers, negative)
    if not guided:
        return [positive]
    if negative is None:
        return [Spoken(*(torch.zeros_like(x) for x in positive)), positive]
    assert isinstance(negative, Spoken)
    return [negative, positive]


def _paired(name: str, second: Any, first: tuple[str, ...]) -> tuple[Pair, ...]:
    """What both encoders are told: the second one the same as the first by default."""
    if not second:
        return tuple((text, text) for text in first)
    texts = inputs.texts(name, second)
    texts = texts * len(first) if isinstance(second, str) else texts
    if len(texts) != len(first):
        raise InputError(f"{name} has {len(texts)} texts for {len(first)} prompts; give one for all, or one for each.")
    return tuple(zip(first, texts, strict=True))
