"""A CLIP tokenizer for a small vocabulary: each of its words is one token, and any other text still has some."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 16  # tokens a prompt has room for


def bytes_as_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the published order (Radford et al. 2019, GPT-2's encoder)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in shown]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(len(rest))]


def merges_for(words: Iterable[str]) -> list[tuple[str, str]]:
    """The merges, in order of rank, that make each word one token: a word reuses those of the words before it."""
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            parts = _merged(parts, pair)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _merged(parts, merges[-1])
    return merges


def files_for(words: Iterable[str]) -> dict[str, str]:
    """The published files of a CLIP tokenizer: names and contents."""
    letters = bytes_as_letters()
    merges = merges_for(words)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings: dict[str, Any] = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        **special,
    }
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "tokenizer_config.json": json.dumps({**settings, "errors": "replace", "add_prefix_space": False}, indent=2),
        "special_tokens_map.json": json.dumps(special, indent=2),
    }


def write(folder: Path, words: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files_for(words).items():
        (folder / name).write_text(text, encoding="utf-8")


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out
