"""Latents become pictures, in less memory where there is not enough, and are never lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ClipKeptError, InputError
from ..layout import swap_time, to_video
from ..media.frames import convert
from ..memory.moving import is_out_of_memory
from ..memory.plan import BANDS, ONE
from ..memory.room import give_back
from .budget import Budgeted
from .inputs import OUTPUT_TYPES, choice, whole
from .output import Event

log = logging.getLogger("kinema")

Along = Callable[[Iterator[Tensor]], Iterator[Tensor]]  # goes with pictures as they are made
Decode = Callable[..., Iterator[Tensor]]  # (latents, and how) → pictures (n, 3, h, w) on the host


def decoded(
    decode: Decode, latents: Tensor, ways: Mapping[str, Mapping[str, Any]]
) -> Generator[int, None, Tensor | str]:
    """(b, f, c, h, w) latents → all their pictures (b·f, 3, h, w), or why not; yields how many there are on the way.

    Args:
        ways: arguments of `decode` by the name of what they do, from fast to small. Where memory runs out, decoding
            begins again in the next way; where it does in the last, there are no pictures.
    """
    why = ""
    for how in ways.values():
        made: list[Tensor] = []
        try:
            for part in decode(latents, **how):
                made.append(part)
                yield sum(map(len, made))
            return torch.cat(made)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = str(error).splitlines()[0]
        part = None  # type: ignore[assignment]
        made.clear()
        give_back(latents.device)
        log.warning(
            "Memory ran out while %d frames were decoded; they are kept (%s)", latents[:, :, 0, 0, 0].numel(), why
        )
    return why


def kept(latents: Tensor, why: str) -> ClipKeptError:
    """What to say of latents, as people see them, that there is no room to decode, and what the last try said."""
    return ClipKeptError(
        "The clip is denoised, and there is no room to decode it in any way. It is kept: the error's `latents` are the "
        f"clip. Free memory, or move the pipeline (pipe.to('cpu')), then pipe.decode_latents(error.latents). ({why})",
        latents.detach().cpu(),
    )


class Decodes(Protocol):
    """What a request says of decoding."""

    @property
    def decode_chunk(self) -> int | None: ...

    @property
    def low_memory(self) -> bool | None: ...


class Decoding(NamedTuple):
    """How pictures are asked for."""

    decode_chunk: int | None = None
    low_memory: bool | None = None


class Decodable(Budgeted):
    """A pipeline whose latents become pictures."""

    latent_axes: ClassVar[str] = "b, c, f, h, w"  # how latents lie where people see them

    @staticmethod
    def at_edge(latents: Tensor) -> Tensor:
        """(b, f, c, h, w) → the axes people see, and back."""
        return swap_time(latents)

    def decode(
        self,
        latents: Tensor,
        chunk: int | None = None,
        low_memory: bool = False,
        first: int = 0,
        bands: bool = False,
    ) -> Iterator[Tensor]:
        """(b, f, c, h, w) latents → their pictures (n, 3, h, w) on the host, float32 in [0, 1]."""
        raise NotImplementedError

    def _decode_all(self, latents: Tensor, **how: Any) -> Iterator[Tensor]:
        """The same, by all who make the clip together."""
        return self.decode(latents, **how)

    def _made(
        self, latents: Tensor, ways: Mapping[str, Mapping[str, Any]], way: str = "", along: Along = iter
    ) -> Generator[Event, Tensor | None, Tensor]:
        """(b, f, c, h, w) latents → their clips (b, f, 3, h, w) in [0, 1], decoded in this way or a smaller one.

        Raises:
            ClipKeptError: there is no room to decode in any; the error has the latents.
        """
        total, names = latents.shape[0] * latents.shape[1], list(ways)
        yield Event("decode", 0, total)
        steps = decoded(
            lambda latents, **how: along(self._decode_all(latents, **how)),
            latents,
            {name: ways[name] for name in names[names.index(way) :]},
        )
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                if isinstance(end.value, str):
                    raise kept(self.at_edge(latents), end.value) from None
                return to_video(end.value, latents.shape[1])
            yield Event("decode", done, total)

    def _decodings(self, job: Decodes) -> Mapping[str, Mapping[str, Any]]:
        """How to decode, as arguments of `decode`, by the names of ways: from what is asked for to what takes least."""
        single = {} if (job.decode_chunk or 1) == 1 else {ONE: {"chunk": 1}}
        return {"": {"chunk": job.decode_chunk}, **single, BANDS: {"chunk": 1, "bands": True}}

    def decode_latents(
        self,
        latents: Tensor,
        output_type: str = "pil",
        *,
        decode_chunk_size: int | None = None,
        low_memory: bool | None = None,
    ) -> Any:
        """Latents as calls give them with `output_type="latent"`, or as errors keep them → a call's frames.

        Args:
            latents: (b, c, f, h, w), or (b, f, c, h, w) of Stable Video Diffusion.
            output_type: "pil", "np" or "pt".
            decode_chunk_size, low_memory: as calls have them.

        Raises:
            InputError: an argument cannot be used.
            ClipKeptError: there is no room to decode in any way.
            NumericsError: pictures are not finite.
        """
        kind = choice("output_type", output_type, [one for one in OUTPUT_TYPES if one != "latent"])
        if not isinstance(latents, Tensor) or latents.ndim != 5:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents are {got}; they must be a tensor ({self.latent_axes}).")
        chunk = None if decode_chunk_size is None else whole("decode_chunk_size", decode_chunk_size)
        ways = self._decodings(Decoding(chunk, low_memory))
        with torch.no_grad():
            steps = self._made(self.at_edge(latents).to(self.execution_device), ways)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    return convert(end.value, kind)
