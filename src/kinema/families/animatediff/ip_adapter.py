"""IP-Adapters: pictures as prompts, whose words a denoiser's attentions read beside the text (Ye et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.fill import fill
from ...checkpoint.ip_adapter import IPAdapterFile, read_ip_adapter
from ...checkpoint.keys import State
from ...checkpoint.pairing import check_pairing
from ...errors import InputError
from ...nn.attention import Beside, CrossAttention, Memory
from .picture_words import KINDS, FacePlusWords, Reads

# One number, one for each picture (with masks), or by block: {"down": …, "mid": …, "up": {"block_0": [0.0, 1.0, 0.0]}}.
Scale = float | Sequence[float] | Mapping[str, Any]


class IPAdapter(nn.Module):
    """One adapter, for one denoiser: its state has the published keys, `image_proj.*` and `ip_adapter.N.to_k_ip.*`."""

    def __init__(self, file: IPAdapterFile, names: Sequence[str]):
        """`names`: of the denoiser's cross-attentions, in the order files count them."""
        super().__init__()
        self.kind = file.kind
        self.image_proj = KINDS[file.kind](file.projection)
        self.ip_adapter = nn.ModuleDict()
        self.places = dict(zip(names, (str(2 * i + 1) for i in range(len(names))), strict=True))
        for number, (keys, values) in zip(self.places.values(), file.pairs, strict=True):
            pair = nn.Module()
            pair.to_k_ip = nn.Linear(keys.shape[1], keys.shape[0], bias=False)
            pair.to_v_ip = nn.Linear(values.shape[1], values.shape[0], bias=False)
            self.ip_adapter[number] = pair
        self.name = ""  # of its file
        self.lora: State = {}  # FaceID's, in names that LoRA files use: to be loaded as any other

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Tensor], unet: nn.Module, *, shortcut: float | None = None) -> Self:
        """An adapter from a file or its tensors, in the number format and the place of the denoiser it is for.

        Args:
            unet: `UNetMotionModel` or `UNet2DConditionModel`.
            shortcut: of FaceID-Plus: None for version 1, a number (1 is usual) for version 2; where the file's name
                says version 2, 1 is taken.

        Raises:
            CheckpointError: it cannot be read, is none, or was made for another model.
        """
        file = read_ip_adapter(source)
        keys = list(unet.state_dict())
        check_pairing("IPAdapter", {"cross_attention_dim": file.context_width}, unet.config)  # type: ignore[arg-type]
        places = file.placed(keys)
        with torch.device("meta"):
            adapter = cls(file, list(places))
        like = next(unet.parameters())
        fill(adapter, _state(file), where=file.where, dtype=like.dtype, device=like.device)
        adapter.lora = file.lora_of(keys)
        adapter.name = "" if isinstance(source, Mapping) else Path(source).name
        if isinstance(adapter.image_proj, FacePlusWords):
            second = not isinstance(source, Mapping) and re.search(r"plus[-_]?v2", Path(source).name.lower())
            adapter.image_proj.shortcut = shortcut if shortcut is not None else (1.0 if second else None)
        return adapter.eval().requires_grad_(False)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """What it is shown of each picture."""
        found: tuple[Reads, ...] = self.image_proj.reads  # type: ignore[assignment]
        return found

    def words(self, image: Tensor | None = None, face: Tensor | None = None) -> Tensor:
        """What attentions read of pictures, (rows, n, k, c) for n pictures of every clip and guidance branch.

        Args:
            image: what the image encoder says: (rows, n, c') its embedding for "plain", (rows, n, m, c') the hidden
                states before its last layer for "plus", "full" and "faceid-plus".
            face: (rows, n, c'): a face recogniser's embedding, for "faceid" and "faceid-plus".

        Raises:
            InputError: what the adapter reads is not there.
        """
        given = {"plain": (image,), "plus": (image,), "full": (image,), "faceid": (face,)}.get(self.kind, (face, image))
        if any(x is None for x in given):
            needs = "a face's embedding" if self.kind.startswith("face") else "an image's embedding"
            raise InputError(f"An IP-Adapter of the kind {self.kind!r} needs {needs}.")
        like = next(self.parameters())
        flat = [x.flatten(0, 1).to(like) for x in given if x is not None]
        words: Tensor = self.image_proj(*flat)
        assert given[0] is not None
        return words.unflatten(0, given[0].shape[:2])

    def beside(self, name: str, attention: CrossAttention, memory: Memory, shown: Shown) -> list[Beside]:
        """What one cross-attention knows of the pictures."""
        scale, like = scale_at(shown.scale, name), memory.keys  # the denoiser may have moved since it was loaded
        pair: Any = self.ip_adapter[self.places[name]]
        if shown.masks is None:
            if not isinstance(scale, (int, float)):
                raise InputError("ip_adapter_scale has a number for each picture, which needs masks; give masks too.")
            parts: list[tuple[Tensor, float, Tensor | None]] = [(shown.words.flatten(1, 2), float(scale), None)]
        else:
            count = shown.words.shape[1]
            each = [float(scale)] * count if isinstance(scale, (int, float)) else [float(s) for s in scale]
            if len(each) != count or shown.masks.shape[1] != count:
                raise InputError(
                    f"An IP-Adapter is shown {count} pictures and has {shown.masks.shape[1]} masks and {len(each)} "
                    "scales; give one of each for every picture."
                )
            masks = shown.masks.to(shown.words).split(1, dim=1)
            parts = list(zip(shown.words.unbind(1), each, masks, strict=True))
        return [
            Beside(
                attention.split(F.linear(words, pair.to_k_ip.weight).to(like)),
                attention.split(F.linear(words, pair.to_v_ip.weight).to(like)),
                s,
                None if mask is None else mask.to(like),
            )
            for words, s, mask in parts
            if s != 0
        ]


@dataclass(frozen=True)
class Shown:
    """What one adapter is shown."""

    adapter: IPAdapter
    words: Tensor  # (branches·b, n, k, c), of n pictures
    scale: Scale = 1.0
    masks: Tensor | None = None  # (1 or branches·b, n, h, w) in [0, 1]: where in the clip each picture counts


def with_pictures(
    model: nn.Module, memory: Mapping[nn.Module, Memory], shown: Sequence[Shown]
) -> dict[nn.Module, Memory]:
    """The memory of a model's cross-attentions, with what adapters are shown beside the text."""
    told = dict(memory)
    for one in shown:
        for name, module in model.named_modules():
            if isinstance(module, CrossAttention) and name in one.adapter.places:
                told[module] = told[module].and_beside(one.adapter.beside(name, module, told[module], one))
    return told


def scale_at(scale: Scale, name: str) -> float | Sequence[float]:
    """How much pictures count for at one attention, by its published name; a block that is not named counts nothing."""
    if not isinstance(scale, Mapping):
        return scale
    place, block, number = _where(name)
    here: Any = scale.get(place, 0.0)
    if isinstance(here, Mapping):
        here = here.get(f"block_{block}", 0.0)
    if isinstance(here, (list, tuple)):
        here = here[0] if len(here) == 1 else here[number]
    return here


def check_scale(scale: Scale, adapter: IPAdapter) -> None:
    """Refuses a scale that names blocks the denoiser does not have, or has too few or too many numbers for one.

    Raises:
        InputError: it does; the message says what there is.
    """
    if not isinstance(scale, Mapping):
        numbers = scale if isinstance(scale, Sequence) else [scale]
        if any(isinstance(s, bool) or not isinstance(s, (int, float)) for s in numbers):
            raise InputError(f"An IP-Adapter's scale is {scale!r}; it must be a number, or numbers by block.")
        return
    counts: dict[tuple[str, int], int] = {}
    for place, block, number in map(_where, adapter.places):
        counts[place, block] = max(counts.get((place, block), 0), number + 1)
    places = {place for place, _ in counts}
    if odd := [key for key in scale if key not in places]:
        raise InputError(f"An IP-Adapter's scale names {odd[0]!r}; there are {', '.join(sorted(places))}.")
    for place, within in scale.items():
        blocks = [block for p, block in counts if p == place]
        named = dict(within) if isinstance(within, Mapping) else {f"block_{block}": within for block in blocks}
        for key, numbers in named.items():
            if key not in {f"block_{block}" for block in blocks}:
                there = ", ".join(f"block_{block}" for block in sorted(blocks))
                raise InputError(f"An IP-Adapter's scale names {place}.{key}; with attentions there are {there}.")
            count = counts[place, int(key.removeprefix("block_"))]
            if isinstance(numbers, (list, tuple)) and len(numbers) not in (1, count):
                raise InputError(f"An IP-Adapter's scale has {len(numbers)} numbers for {place}.{key}, not {count}.")


def _where(name: str) -> tuple[str, int, int]:
    """`up_blocks.1.attentions.2.…` → ("up", 1, 2): where an attention is, for scales."""
    place, *rest = name.split(".")
    block = 0 if place == "mid_block" else int(rest[0])
    return place.partition("_")[0], block, int(rest[rest.index("attentions") + 1])


def _state(file: IPAdapterFile) -> State:
    state = {f"image_proj.{key}": value for key, value in file.projection.items()}
    for i, (keys, values) in enumerate(file.pairs):
        state |= {f"ip_adapter.{2 * i + 1}.to_k_ip.weight": keys, f"ip_adapter.{2 * i + 1}.to_v_ip.weight": values}
    return state
