"""What the entries of a LoRA file are called by those who write them, and which weight each one means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# How an entry ends: the role its tensor plays for the module named before it.
_ROLES: tuple[tuple[re.Pattern[str], dict[str, str]], ...] = tuple(
    (re.compile(pattern), roles)
    for pattern, roles in (
        (r"\.lora_(A|B)(?:\.[\w-]+)?\.weight$", {"A": "down", "B": "up"}),  # peft, diffusers
        (r"\.lora_(down|up|mid)\.weight$", {}),  # kohya
        (r"\.lora\.(down|up)\.weight$", {}),  # older diffusers
        (r"\.lora_linear_layer\.(down|up)\.weight$", {}),  # older diffusers, text encoders
        (r"_lora\.(down|up)\.weight$", {}),  # attention processors
        (r"(?:[._]lora)?\.(alpha)$", {}),
        (r"\.((?:hada|lokr)_[wt][12](?:_[ab])?)$", {}),  # LyCORIS
        (r"\.(dora_scale)$", {"dora_scale": "magnitude"}),
        (r"\.(lora_magnitude_vector)(?:\.[\w-]+)?$", {"lora_magnitude_vector": "magnitude"}),
    )
)

PEFT = "base_model.model."  # before every key that peft writes

_PARTS = (
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
)

# Attention processors of text encoders were named like those of U-Nets.
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Entry:
    """One key of a file, taken apart."""

    part: str | None  # "unet", "text_encoder", or None where the file does not say
    module: str  # as the file calls it
    role: str  # "down", "up", "mid", "alpha", "magnitude", or as LyCORIS calls it
    flat: bool  # whether dots were written as underscores


def take_apart(key: str) -> Entry | None:
    """What a key says, or None where it is no LoRA's."""
    for pattern, roles in _ROLES:
        if match := pattern.search(key):
            role = roles.get(match[1], match[1])
            module = key[: match.start()].removeprefix(PEFT).removeprefix("module.")  # of training on several devices
            for prefix, part in _PARTS:
                if module.startswith(prefix):
                    return Entry(part, module.removeprefix(prefix), role, prefix.endswith("_"))
            return Entry(None, module, role, False)
    return None


@dataclass(frozen=True)
class Names:
    """The weights of one network by every name a LoRA file may give their modules."""

    exact: Mapping[str, str] = field(repr=False)  # "down_blocks.0.….to_q" -> "down_blocks.0.….to_q.weight"
    flat: Mapping[str, str] = field(repr=False)  # the same with underscores for dots

    @classmethod
    def of(cls, keys: Iterable[str], aliases: Mapping[str, str] | None = None) -> Names:
        """From published keys; `aliases` are further module names -> published module names."""
        exact = {key.removesuffix(".weight"): key for key in keys if key.endswith(".weight")}
        for name in list(exact):  # transformers writes text models with and without this prefix
            bare = name.removeprefix("text_model.")
            exact.setdefault(bare, exact[name])
            exact.setdefault(f"text_model.{bare}", exact[name])
        exact |= {other: exact[name] for other, name in (aliases or {}).items() if name in exact and other not in exact}
        return cls(exact, {name.replace(".", "_"): key for name, key in exact.items()})

    def find(self, entry: Entry) -> str | None:
        """The published key an entry is about; None if this network has no such weight."""
        if entry.flat:
            return self.flat.get(entry.module)
        plain = entry.module.replace(".processor.", ".")
        head, dot, last = plain.rpartition(".")
        for name in (plain, f"{plain}.0", f"{head}{dot}{_TEXT.get(last, last)}"):
            if name in self.exact:
                return self.exact[name]
        return None
