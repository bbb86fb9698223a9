"""Training the text tower, first of all and alone: its outputs must tell apart every word that a denoiser is to obey.

Trained together with a denoiser it forgets the words that carry little of the loss, motion above all. So it learns a
code instead: what a caption says of each attribute, colour, shape, motion and background, is a direction of its own,
their sum is the output at the end token and at every token after it, and afterwards the tower is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..toys import tokenizer
from ..toys.captions import SAY, WORDS, some_caption
from ..toys.world import ATTRIBUTES, Scene, some_scene
from .loop import Dice, Stage

WIDTH = 64
LENGTHS = {"colour": 3.5, "shape": 4.5, "motion": 5.5, "background": 2.5}  # longer where words are harder to learn
OPPOSITES = (("moves left", "moves right"), ("moves up", "moves down"), ("grows", "shrinks"), ("dark", "light"))


def new_tower(words: Sequence[str] = WORDS) -> nn.Module:
    """A small CLIP text model for the tokenizer of these words, at random."""
    from transformers import CLIPTextConfig, CLIPTextModel

    size = len({*(c for c in tokenizer.bytes_as_letters())}) * 2 + len(_merged_tokens(words)) + 2
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    tower: nn.Module = CLIPTextModel(config)
    return tower


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the world's words, by way of its published files in `folder`."""
    from transformers import CLIPTokenizer

    tokenizer.write(folder, WORDS)
    return CLIPTokenizer.from_pretrained(folder)


def encode(tower: nn.Module, tokens: Any, captions: Sequence[str]) -> Tensor:
    """Captions → the tower's outputs (b, k, c), as a pipeline asks for them."""
    ids = tokens(
        list(captions), padding="max_length", truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt"
    )
    out: Tensor = tower(ids.input_ids).last_hidden_state
    return out


def codes() -> dict[str, Tensor]:
    """For each attribute the code of each of its values, and last the one for having said nothing, (values + 1, c)."""
    turn = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=turn))[0].T
    free, out = iter(axes), {}
    for name, values in ATTRIBUTES.items():
        found: dict[str, Tensor] = {}
        for value in (*values, ""):
            other = next((a for a, b in OPPOSITES if b == value), None)
            found[value] = -found[other] if other else next(free) * LENGTHS[name]
        out[name] = torch.stack(list(found.values()))
    return out


def text(tower: nn.Module, tokens: Any, steps: int, batch: int = 96) -> Stage:
    """Teaches the tower the code of what a caption says, from its end token on."""
    table = codes()

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        pairs = [loose_caption(dice.numpy, some_scene(dice.numpy)) for _ in range(batch)]
        captions, said = [c for c, _ in pairs], [s for _, s in pairs]
        ids = tokens(
            captions, padding="max_length", truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt"
        ).input_ids
        made = tower(ids).last_hidden_state
        ended = (ids == tokens.eos_token_id).cumsum(1) > 0
        error = (made - target(table, said)[:, None]).square().sum(-1)[ended].mean()
        return error, {"right": correct(table, made[:, -1], said)}

    return Stage("text", tower.requires_grad_(True), loss, steps, rate=1e-2, average=0.995)


def target(table: dict[str, Tensor], said: Sequence[dict[str, str]]) -> Tensor:
    """What captions say, in code, (b, c)."""
    return sum((rows[_places(name, said)] for name, rows in table.items()), torch.zeros(len(said), WIDTH))


def correct(table: dict[str, Tensor], made: Tensor, said: Sequence[dict[str, str]]) -> float:
    """The share of captions of which all attributes can be read back from outputs (b, c)."""
    right = torch.ones(len(said), dtype=torch.bool)
    for name, rows in table.items():
        right &= (made @ rows.T).argmax(1) == _places(name, said)
    return right.float().mean().item()


def loose_caption(rng: np.random.Generator, scene: Scene) -> tuple[str, dict[str, str]]:
    """A caption as people may type it: some out of order, some with words this world does not know."""
    caption, said = some_caption(rng, scene, keep=rng.choice([0.5, 0.8, 1.0]))
    if rng.random() < 0.15:
        ways = [str(rng.choice(SAY[v])) for v in said.values()]
        caption = " ".join(ways[i] for i in rng.permutation(len(ways)))
    words = caption.split()
    if rng.random() < 0.2:
        for _ in range(rng.integers(1, 3)):
            strange = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz,."), rng.integers(1, 4)))
            words.insert(int(rng.integers(0, len(words) + 1)), strange)
    if len(words) > 13:
        return caption, said
    return " ".join(words), said


def _places(name: str, said: Sequence[dict[str, str]]) -> Tensor:
    values = ATTRIBUTES[name]
    return torch.tensor([values.index(s[name]) if name in s else len(values) for s in said])


def _merged_tokens(words: Sequence[str]) -> set[str]:
    return {a + b for a, b in tokenizer.merges_for(words)}
