"""How much a LoRA counts for by frame: {"frames": {0: 1.0, 8: 0.0}} is fully, then ever less, then not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ..errors import InputError
from .lora_blocks import Blocks

KEY = "frames"


@dataclass(frozen=True)
class Numbers:
    """A number for every frame of a clip: one for each, or some frames' with what lies between on a straight line.

    Raises:
        InputError: it is neither a list of finite numbers nor a mapping from frames, 0 and up, to such.
    """

    given: Mapping[int, float] | Sequence[float]
    name: str  # what these are, for messages

    def __post_init__(self) -> None:
        mapped = isinstance(self.given, Mapping)
        fits = mapped or isinstance(self.given, (list, tuple))
        frames = list(self.given) if mapped else []
        numbers = list(self.given.values()) if isinstance(self.given, Mapping) else list(self.given) if fits else []
        if not fits or not numbers or not all(map(_is_frame, frames)) or not all(map(_is_finite, numbers)):
            raise InputError(
                f"{self.name} is {self.given!r}; it must go from frames, 0 and up, to finite numbers, as "
                "{0: 1.0, 8: 0.0}, or be a list with one for each frame."
            )

    @property
    def constant(self) -> float | None:
        """The one number of all frames, if there is no other; a list's length still has to be that of the clip."""
        numbers = set(self.given.values()) if isinstance(self.given, Mapping) else set()
        return float(numbers.pop()) if len(numbers) == 1 else None

    def along(self, frames: int) -> list[float]:
        """Every frame's: the first from the start on, the last to the end.

        Raises:
            InputError: the clip does not have a frame that is named, or there is not one number for each.
        """
        if not isinstance(self.given, Mapping):
            if len(self.given) != frames:
                raise InputError(f"{self.name} has {len(self.given)} numbers for {frames} frames; give one for each.")
            return [float(number) for number in self.given]
        stops = [(int(frame), float(self.given[frame])) for frame in sorted(self.given)]
        if stops[-1][0] >= frames:
            raise InputError(f"{self.name} names frame {stops[-1][0]}, but the clip's frames are 0 to {frames - 1}.")
        made = [stops[0][1]] * frames
        for (start, here), (end, there) in pairwise(stops):
            for frame in range(start, end):
                made[frame] = here + (there - here) * (frame - start) / (end - start)
        made[stops[-1][0] :] = [stops[-1][1]] * (frames - stops[-1][0])
        return made


@dataclass(frozen=True)
class Framed:
    """A weight that differs by frame, and may by block beside; it is no sum on the weights that all frames share."""

    numbers: Numbers
    blocks: float | Blocks = 1.0

    def __rmul__(self, scale: float) -> Framed:
        return replace(self, blocks=scale * self.blocks)

    def along(self, frames: int) -> list[float]:
        """How much each frame has of `blocks`."""
        return self.numbers.along(frames)


def plain(weight: float | Blocks | Framed) -> Any:
    """A weight as JSON can have it."""
    if isinstance(weight, Framed):
        given, rest = weight.numbers.given, plain(weight.blocks)
        frames = {str(f): n for f, n in given.items()} if isinstance(given, Mapping) else list(given)
        return {KEY: frames, **(rest if isinstance(rest, dict) else {} if rest == 1 else {"times": rest})}
    if isinstance(weight, Blocks):
        return dict(weight.table) if weight.scale == 1 else {"times": weight.scale, **weight.table}
    return weight


def framed(weight: Mapping[str, Any], name: str, keys: Iterable[str]) -> float | Blocks | Framed:
    """What {"frames": …} and weights of blocks beside it say of a network with these keys.

    Raises:
        InputError: it cannot be.
    """
    rest = {key: value for key, value in weight.items() if key != KEY}
    blocks: float | Blocks = Blocks(rest).checked(name, keys) if rest else 1.0
    numbers = Numbers(weight[KEY], f"The weight of LoRA {name!r} by frame")
    return Framed(numbers, blocks) if numbers.constant is None else numbers.constant * blocks


def _is_frame(frame: Any) -> bool:
    return hasattr(frame, "__index__") and not isinstance(frame, bool) and int(frame) >= 0


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) < float("inf")
