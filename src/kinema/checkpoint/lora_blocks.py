"""How much a LoRA counts for by block: {"down": 0.5, "mid": 1, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1]}}."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError

_PLACE = re.compile(r"^(down|up)_blocks\.(\d+)\.(?:attentions\.(\d+)\.)?|^(mid)_block\.(?:attentions\.(\d+)\.)?")


@dataclass(frozen=True)
class Blocks:
    """The weights of a U-Net's blocks; what is not named counts fully."""

    table: Mapping[str, Any]
    scale: float = 1.0

    def __rmul__(self, scale: float) -> Blocks:
        return Blocks(self.table, scale * self.scale)

    def at(self, key: str) -> float:
        """What counts for one published key. A list has a number for each row of attentions; other layers of such a
        block, and all outside of blocks, count fully."""
        found = _PLACE.match(key)
        if found is None:
            return self.scale
        place, block, row = (found[1], found[2], found[3]) if found[1] else ("mid", "0", found[5])
        here: Any = self.table.get(place, 1.0)
        if isinstance(here, Mapping):
            here = here.get(f"block_{block}", 1.0)
        if isinstance(here, (list, tuple)):
            here = 1.0 if row is None else here[int(row)]
        return self.scale * float(here)

    def checked(self, name: str, keys: Iterable[str]) -> Blocks:
        """The same, if it names nothing that a network with these keys does not have.

        Raises:
            InputError: it does, or holds something else than numbers.
        """
        rows: dict[tuple[str, str], int] = {}
        for key in keys:
            if (found := _PLACE.match(key)) is not None:
                place, block, row = (found[1], found[2], found[3]) if found[1] else ("mid", "0", found[5])
                rows[place, block] = max(rows.get((place, block), 0), 0 if row is None else int(row) + 1)
        for place, here in self.table.items():
            blocks = here if isinstance(here, Mapping) else {f"block_{b}": here for p, b in rows if p == place}
            if not blocks or any((place, str(block).removeprefix("block_")) not in rows for block in blocks):
                there = ", ".join(f"{p}.block_{b}" for p, b in sorted(rows))
                raise InputError(f"The weight of LoRA {name!r} names {place!r}: {here!r}; there are {there}.")
            for block, value in blocks.items():
                numbers = list(value) if isinstance(value, (list, tuple)) else [value]
                count = rows[place, str(block).removeprefix("block_")]
                where = f"The weight of LoRA {name!r} at {place}.{block}"
                if not all(map(_is_finite, numbers)):
                    raise InputError(f"{where} is {value!r}; it must be finite numbers.")
                if isinstance(value, (list, tuple)) and len(numbers) != count:
                    raise InputError(f"{where} has {len(numbers)} numbers; there are {count} rows of attentions.")
        return self


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < float("inf")


def weight_at(weight: float | Blocks, key: str) -> float:
    """What a LoRA counts for at one published key."""
    return weight.at(key) if isinstance(weight, Blocks) else weight
