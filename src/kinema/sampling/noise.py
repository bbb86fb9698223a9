"""Where randomness comes from. A seed gives the same noise on every device, in every dtype, anywhere in a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from hashlib import blake2b
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

    @property
    def streams(self) -> Sequence[OneStream]:
        """What it is drawn from: one stream for all clips, or one for each."""
        ...

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        """Unit noise of this shape, float32, on the host.

        Args:
            purpose: what for; sources may keep streams apart by it.
            time: the axis of a clip's frames, of which seeds draw those beyond the first few one by one. Axis 0 holds
                the frames of one clip after those of another.
        """
        ...

    def order(self, clips: int, count: int) -> Tensor:
        """(clips, count): the numbers from 0 to count - 1 in a random order for each clip."""
        ...

    def aside(self) -> Noise:
        """Noise of its own for another purpose; drawing from it leaves this one's numbers as they are."""
        ...


class OneStream:
    """All clips draw from one generator in turn, as the reference does; None is PyTorch's global one."""

    def __init__(self, source: torch.Generator | np.random.Generator | None = None):
        self.source = source

    @property
    def streams(self) -> Sequence[OneStream]:
        return [self]

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        if self.source is None or isinstance(self.source, torch.Generator):
            device = self.source.device if self.source is not None else torch.device("cpu")
            return torch.randn(tuple(shape), generator=self.source, device=device).cpu()
        return torch.from_numpy(self.source.standard_normal(tuple(shape))).float()

    def order(self, clips: int, count: int) -> Tensor:
        """The same for all clips, which share this stream."""
        if self.source is None or isinstance(self.source, torch.Generator):
            device = self.source.device if self.source is not None else torch.device("cpu")
            order = torch.randperm(count, generator=self.source, device=device).cpu()
        else:
            order = torch.from_numpy(self.source.permutation(count))
        return order.expand(clips, -1)

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


class SeedStream(OneStream):
    """One clip's noise from a seed: its first frames as a generator draws them, each later one from its own stream.

    So what a frame gets does not depend on how many there are, from `frames` on.
    """

    def __init__(self, seed: int, frames: int | None = None):
        super().__init__(_started(seed))
        self.seed, self.frames = seed, frames
        self._later: dict[int, torch.Generator] = {}

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        if time is None or self.frames is None or shape[time] <= self.frames:
            return super().draw(shape, purpose)
        known, one = list(shape), list(shape)
        known[time], one[time] = self.frames, 1
        later = (torch.randn(one, generator=self._stream(frame)) for frame in range(self.frames, shape[time]))
        return torch.cat([super().draw(known, purpose), *later], dim=time)

    def _stream(self, frame: int) -> torch.Generator:
        if frame not in self._later:
            key = blake2b(f"{self.seed} {frame}".encode(), digest_size=8).digest()
            self._later[frame] = torch.Generator().manual_seed(int.from_bytes(key, "little"))
        return self._later[frame]


class StreamPerClip:
    """Each clip draws from a stream of its own, so it is the clip it would have been alone."""

    def __init__(self, streams: Sequence[OneStream]):
        self.streams = streams

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        rows = shape[0] // len(self.streams)
        return torch.cat([stream.draw((rows, *shape[1:]), purpose, time) for stream in self.streams])

    def order(self, clips: int, count: int) -> Tensor:
        """Each clip's own."""
        return torch.cat([stream.order(clips // len(self.streams), count) for stream in self.streams])

    def aside(self) -> StreamPerClip:
        """The asides of all clips' streams."""
        return StreamPerClip([stream.aside() for stream in self.streams])


class ClipByClip:
    """Noise for solvers that see frames, drawn clip by clip: in the order of (b, c, f, h, w)."""

    def __init__(self, noise: Noise, frames: int):
        self.noise, self.frames = noise, frames

    @property
    def streams(self) -> Sequence[OneStream]:
        return self.noise.streams

    def draw(self, shape: Sequence[int], purpose: str = "step", time: int | None = None) -> Tensor:
        """(b·f, c, h, w); of whole clips as it comes."""
        if len(shape) != 4:
            return self.noise.draw(shape, purpose, time)
        rows, channels, *size = shape
        clips = self.noise.draw((rows // self.frames, channels, self.frames, *size), purpose, time=2)
        return clips.transpose(1, 2).flatten(0, 1)

    def order(self, clips: int, count: int) -> Tensor:
        return self.noise.order(clips, count)

    def aside(self) -> ClipByClip:
        return ClipByClip(self.noise.aside(), self.frames)


def noise_from(generator: Generators, prompts: int, videos_per_prompt: int = 1, *, frames: int | None = None) -> Noise:
    """The noise of `prompts · videos_per_prompt` clips, those of one prompt next to each other.

    Args:
        generator: a torch or numpy generator all clips share, in the reference's order; an int seed, which starts every
            prompt alike and counts up over its videos; a list of either, one a clip or one a prompt; None draws anew.
        frames: how many a seed draws together, as a generator does; it draws each frame after them alone, so that
            longer clips begin with the noise of shorter ones. None draws all together.

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
    return StreamPerClip([SeedStream(index(g), frames) if _is_seed(g) else OneStream(_usable(g)) for g in generator])  # type: ignore[arg-type]


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
