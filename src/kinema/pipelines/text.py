"""What pipelines that read prompts share: prompts to embeddings, and learned words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..checkpoint.files import open_weights
from ..checkpoint.hub import hub_options
from ..encoders.inversion import NOTHING, Inversions, read_inversion
from ..encoders.prompts import Reading, encode, encode_pair
from ..errors import InputError
from .files import nested, weights_file
from .inputs import Prompts, prompts, whole
from .overflow import Lift, healed
from .video import VideoPipeline


class TextPipeline(VideoPipeline):
    """A pipeline with `text_encoder` and `tokenizer` among its parts."""

    inversions: Inversions = NOTHING
    skips_both: ClassVar[bool] = False  # whether `clip_skip` counts for negative prompts as well

    text_encoder: Any
    tokenizer: Any

    def embeddings(
        self,
        asked: Prompts,
        *,
        guided: bool,
        clip_skip: int | None = None,
        reading: Reading | None = None,
        copies: int = 1,
        lora_scale: float | None = None,
    ) -> Tensor:
        """(branches·n·copies, k, c): of negatives first where guided, copies of one prompt next to each other.

        Raises:
            InputError: embeddings given and embeddings made are not of one length.
            NumericsError: they are not finite.
        """
        reading = reading or Reading(inversions=self.inversions)

        def made(lift: Lift) -> Tensor:
            with self._residency.use("text_encoder") as resident:
                encoder = lift(self._with_lora("text_encoder", resident, lora_scale))
                return self._embedded(encoder, asked, guided, clip_skip, reading, copies)

        return healed("encode", ["text_encoder"], self.text_encoder.dtype, made)

    def _embedded(
        self, encoder: Any, asked: Prompts, guided: bool, clip_skip: int | None, reading: Reading, copies: int
    ) -> Tensor:
        """What this encoder makes of prompts, as `embeddings` gives it."""
        positive, negative = asked.positive, asked.negative
        if guided and not isinstance(positive, Tensor) and not isinstance(negative, Tensor):
            pair = (self.tokenizer, encoder, positive, negative, reading)
            positive, negative = encode_pair(*pair, clip_skip=clip_skip, skip_both=self.skips_both)
        else:
            if not isinstance(positive, Tensor):
                positive = encode(self.tokenizer, encoder, positive, reading, clip_skip=clip_skip)
            if guided and not isinstance(negative, Tensor):
                skip = clip_skip if self.skips_both else None
                negative = encode(self.tokenizer, encoder, negative, reading, clip_skip=skip)
        branches = [x for x in (negative, positive) if isinstance(x, Tensor)] if guided else [positive]
        if len({x.shape[1:] for x in branches}) > 1:
            shapes = " and ".join(str(tuple(x.shape[1:])) for x in reversed(branches))
            raise InputError(f"Embeddings of the prompt and the negative prompt are {shapes}; give both, alike.")
        device, dtype = self.execution_device, self.text_encoder.dtype
        return torch.cat([b.to(device, dtype).repeat_interleave(copies, 0) for b in branches])

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings (n, k, c) of prompts and, where guided, of negatives: to keep, weigh, mix and pass in."""
        asked = prompts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        both = self.embeddings(
            asked,
            guided=do_classifier_free_guidance,
            clip_skip=clip_skip,
            copies=whole("num_images_per_prompt", num_images_per_prompt),
            lora_scale=lora_scale,
        )
        both = both if device is None else both.to(device)
        if not do_classifier_free_guidance:
            return both, None
        negative, positive = both.chunk(2)
        return positive, negative

    def load_textual_inversion(self, source: Any, token: str | None = None, **hub: Any) -> None:
        """Teaches prompts a word from a file (`.safetensors`, `.pt`, `.bin`), a dictionary, or a list of these.

        Raises:
            CheckpointError: it holds no embedding, or one for another text encoder.
            InputError: the word is known already, or an argument is not.
        """
        hub_options(hub, "load_textual_inversion")
        width = self.text_encoder.get_input_embeddings().weight.shape[1]
        for one in source if isinstance(source, (list, tuple)) else [source]:
            where, word = "The embedding", token
            if isinstance(one, (str, Path)):
                path = weights_file(one, **hub)
                where, one = str(path), nested(open_weights(path))
                word = token or (path.stem if set(one) == {"emb_params"} else None)
            found = read_inversion(one, word, where)
            self.inversions = self.inversions.adding(found, self.tokenizer, width)

    def unload_textual_inversion(self, tokens: str | list[str] | None = None) -> None:
        """Forgets these words, or all that were taught."""
        self.inversions = self.inversions.removing(tokens)
