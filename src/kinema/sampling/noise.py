"""Where randomness comes from. A seed gives the same noise on every device, in every dtype, anywhere in a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Protocol, Union

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

Source = Union[torch.Generator, "np.random.Generator", int]
Generators = Source | Sequence[Source] | None


class Noise(Protocol):
    """Standard normal numbers for a batch of clips; rows of one clip lie together."""

    def draw(self, shape: Sequence[int], purpose: str = "step") -> Tensor:
        """Unit noise of this shape, float32, on the host; sources may keep streams apart by `purpose`."""
        ...

    def aside(self) -> Noise:
        """Noise of its own for another purpose; drawing from it leaves this one's numbers as they are."""
        ...


class OneStream:
    """All clips draw from one generator in turn, as the reference does; None is PyTorch's global one."""

    def __init__(self, source: torch.Generator | np.random.Generator | None = None):
        self.source = source

    def draw(self, shape: Sequence[int], purpose: str = "step") -> Tensor:
        if self.source is None or isinstance(self.source, torch.Generator):
            device = self.source.device if self.source is not None else torch.device("cpu")
            return torch.randn(tuple(shape), generator=self.source, device=device).cpu()
        return torch.from_numpy(self.source.standard_normal(tuple(shape))).float()

    def aside(self) -> OneStream:
        """A stream of its own that begins where this one is and leaves this one's numbers alone.

        For what the reference draws from PyTorch's global generator whatever it is given; so where this stream is the
        global one, its aside is itself.
        """
        if self.source is None or self.source is torch.default_generator:
            return self
        if isinstance(self.source, torch.Generator):
            twin = torch.Generator(self.source.device)
            twin.set_state(self.source.get_state())
            seed = int(torch.randint(2**62, (), generator=twin, device=twin.device))
        else:
            seed = int.from_bytes(copy.deepcopy(self.source).bytes(7), "little")
        return OneStream(torch.Generator().manual_seed(seed))


class StreamPerClip:
    """Each clip draws from a generator of its own, so it is the clip it would have been alone."""

    def __init__(self, sources: Sequence[torch.Generator | np.random.Generator | None]):
        self.streams = [OneStream(source) for source in sources]

    def draw(self, shape: Sequence[int], purpose: str = "step") -> Tensor:
        rows = shape[0] // len(self.streams)
        return torch.cat([stream.draw((rows, *shape[1:]), purpose) for stream in self.streams])

    def aside(self) -> StreamPerClip:
        """The asides of all clips' streams."""
        return StreamPerClip([stream.aside().source for stream in self.streams])


class ClipByClip:
    """Noise for solvers that see frames, drawn clip by clip: in the order of (b, c, f, h, w)."""

    def __init__(self, noise: Noise, frames: int):
        self.noise, self.frames = noise, frames

    def draw(self, shape: Sequence[int], purpose: str = "step") -> Tensor:
        """(b·f, c, h, w)."""
        rows, channels, *size = shape
        clips = self.noise.draw((rows // self.frames, channels, self.frames, *size), purpose)
        return clips.transpose(1, 2).flatten(0, 1)

    def aside(self) -> ClipByClip:
        return ClipByClip(self.noise.aside(), self.frames)


def noise_from(generator: Generators, prompts: int, videos_per_prompt: int = 1) -> Noise:
    """The noise of `prompts · videos_per_prompt` clips, those of one prompt next to each other.

    Args:
        generator: a torch or numpy generator all clips share, in the reference's order; an int seed, which starts every
            prompt alike and counts up over its videos; a list of either, one a clip or one a prompt; None draws anew.

    Raises:
        InputError: the list has another length, or holds something that makes no random numbers.
    """
    clips = prompts * videos_per_prompt
    if _is_seed(generator):
        generator = [generator] * prompts  # type: ignore[list-item]
    if not isinstance(generator, (list, tuple)):
        return OneStream(_usable(generator))
    if len(generator) == prompts != clips and all(map(_is_seed, generator)):
        generator = [int(seed) + i for seed in generator for i in range(videos_per_prompt)]
    if len(generator) not in (clips, prompts):
        raise InputError(
            f"generator is a list of {len(generator)}, but {clips} clips are asked for; give one for each."
        )
    return StreamPerClip([_usable(_started(g) if _is_seed(g) else g) for g in generator])


def _is_seed(source: object) -> bool:
    return hasattr(source, "__index__") and not isinstance(source, (bool, Tensor))


def _started(seed: Any) -> torch.Generator:
    try:
        return torch.Generator().manual_seed(index(seed))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"The seed {index(seed)} is too large; use one from 0 to 2**64 - 1.") from error


def _usable(source: object) -> torch.Generator | np.random.Generator | None:
    if source is None or isinstance(source, torch.Generator) or hasattr(source, "standard_normal"):
        return source  # type: ignore[return-value]
    raise InputError(
        f"generator is a {type(source).__name__}; it must be an int seed, a torch.Generator, "
        "a numpy.random.Generator, or a list of them, one a clip."
    )
