"""IP-Adapter files, as h94 and their kin publish them: what kind it is, how wide, and which weights go where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import CheckpointError
from .files import open_weights
from .keys import State
from .originals import shapes

FILES = ("ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin", "ip-adapter_sdxl.safetensors", "ip-adapter_sdxl.bin")
PROJECTION, ATTENTION = "image_proj.", "ip_adapter."

Kind = Literal["plain", "plus", "full", "faceid", "faceid-plus"]


@dataclass(frozen=True)
class IPAdapterFile:
    """One IP-Adapter: what turns a picture into words, and what the U-Net's attentions read of them."""

    kind: Kind
    tokens: int  # words a picture becomes; 257 for "full", all that the image encoder's last layer says
    image_width: int  # of what it reads: the encoder's projection, for "plus" and "full" its hidden states
    context_width: int  # of the text that the U-Net attends to
    face_width: int | None  # of a face recogniser's embedding, which FaceID reads
    projection: State = field(repr=False)  # under `image_proj.`, as named in the file
    pairs: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)  # (to_k_ip, to_v_ip) in the order of `attentions`
    lora: State = field(repr=False)  # of FaceID: "3.to_q_lora.down.weight" and its like, by all attentions' numbers
    where: str = "The IP-Adapter"

    def placed(self, keys: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """What each cross-attention of a U-Net gets: its published module name -> (to_k_ip, to_v_ip), (out, context).

        Args:
            keys: the U-Net's published keys.

        Raises:
            CheckpointError: it has another number of them.
        """
        names = [name for name in attentions(keys) if name.endswith(".attn2")]
        if len(names) != len(self.pairs):
            raise CheckpointError(
                f"{self.where} is for a U-Net of {len(self.pairs)} cross-attentions and this one has {len(names)}: "
                "it was made for another base model."
            )
        return dict(zip(names, self.pairs))

    def lora_of(self, keys: Iterable[str]) -> State:
        """FaceID's LoRA under names that LoRA files use, for a U-Net of these published keys; empty for others.

        Raises:
            CheckpointError: the U-Net has fewer attentions.
        """
        names = attentions(keys)
        found: State = {}
        for key, value in self.lora.items():
            number, _, rest = key.partition(".")
            if int(number) >= len(names):
                raise CheckpointError(f"{self.where} has a LoRA for attention {number}, and the U-Net {len(names)}.")
            found[f"unet.{names[int(number)]}.processor.{rest}"] = value
        return found


def attentions(keys: Iterable[str]) -> list[str]:
    """The attentions of an image U-Net by published module names, in the order IP-Adapter files count them.

    That is down, up, middle, and self before cross; motion modules do not count.
    """
    found = {m[1] for key in keys if ".motion_modules." not in key and (m := _ATTENTION.match(key))}
    return sorted(found, key=_order)


_ATTENTION = re.compile(r"(.*\.transformer_blocks\.\d+\.attn[12])\.to_q\.weight$")
_STAGES = ("down_blocks", "up_blocks", "mid_block")


def _order(name: str) -> tuple[int, list[int]]:
    return _STAGES.index(name.partition(".")[0]), [int(n) for n in re.findall(r"\d+", name)]


def read_ip_adapter(source: str | Path | Mapping[str, Tensor]) -> IPAdapterFile:
    """An IP-Adapter from a file (`.bin` nested, `.safetensors` flat) or a mapping of its tensors, mapped, not copied.

    Raises:
        CheckpointError: it cannot be read or is none.
    """
    weights, where = (source, "The IP-Adapter") if isinstance(source, Mapping) else (open_weights(source), str(source))
    projection = {key.removeprefix(PROJECTION): weights[key] for key in weights if key.startswith(PROJECTION)}
    inside = {key.removeprefix(ATTENTION): weights[key] for key in weights if key.startswith(ATTENTION)}
    numbers = sorted(int(key.partition(".")[0]) for key in inside if key.endswith(".to_k_ip.weight"))
    if not projection or not numbers:
        raise CheckpointError(f"{where} is no IP-Adapter: it lacks {PROJECTION}* or {ATTENTION}*.to_k_ip.weight.")
    if lost := [n for n in numbers if f"{n}.to_v_ip.weight" not in inside]:
        raise CheckpointError(f"{where} has no {ATTENTION}{lost[0]}.to_v_ip.weight; the file is incomplete.")
    pairs = tuple((inside[f"{n}.to_k_ip.weight"], inside[f"{n}.to_v_ip.weight"]) for n in numbers)
    context = pairs[0][0].shape[1]
    kind, tokens, image, face = _kind(projection, context, where)
    lora = {key: value for key, value in inside.items() if "_lora." in key}
    return IPAdapterFile(kind, tokens, image, context, face, projection, pairs, lora, where)


def _kind(state: State, context: int, where: str) -> tuple[Kind, int, int, int | None]:
    """Kind, tokens, width of the image's embedding, width of a face's."""
    if "perceiver_resampler.proj_in.weight" in state:
        seen, face, words = shapes(state, where, "perceiver_resampler.proj_in.weight", "proj.0.weight", "proj.2.weight")
        return "faceid-plus", words[0] // seen[0], seen[1], face[1]
    if "latents" in state:
        latents, seen = shapes(state, where, "latents", "proj_in.weight")
        return "plus", latents[1], seen[1], None
    if "proj.3.weight" in state:
        (seen,) = shapes(state, where, "proj.0.weight")
        return "full", 257, seen[1], None
    if "proj.2.weight" in state:
        face, words = shapes(state, where, "proj.0.weight", "proj.2.weight")
        return "faceid", words[0] // context, 0, face[1]
    (words,) = shapes(state, where, "proj.weight")
    return "plain", words[0] // context, words[1], None
