"""What a call gives back, and what it says on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from ..errors import InputError

Stage = Literal["encode", "denoise", "decode", "done"]


class VideoOutput(tuple[Any, ...]):
    """A tuple of one, whose element is also `.frames`.

    frames: with output_type "pil" a list of clips, each a list of PIL images; "np" (b, f, h, w, 3) in [0, 1]; "pt"
        (b, f, 3, h, w) in [0, 1]; "latent" (b, c, f, h, w), of SVD (b, f, c, h, w).
    receipt: everything that made it, as plain values.
    """

    receipt: Mapping[str, Any]
    latent: bool  # whether frames are latents, which no file can show

    def __new__(cls, frames: Any, receipt: Mapping[str, Any] | None = None, latent: bool = False) -> Self:
        output = super().__new__(cls, (frames,))
        output.receipt, output.latent = receipt or {}, latent
        return output

    @property
    def frames(self) -> Any:
        return self[0]

    @property
    def images(self) -> Any:
        """The frames of all clips in one row, as code written for TextToVideoZero wants them."""
        return [frame for clip in self[0] for frame in clip]

    @property
    def fps(self) -> float:
        """Frames a second to play a clip at."""
        return float(self.receipt.get("playback_fps") or self.receipt.get("fps") or 8)

    def save(self, path: str | Path, fps: float | None = None, clip: int = 0, **options: Any) -> str:
        """Writes one clip in the format its file name ends with; the receipt goes into the file.

        Raises:
            InputError: there is no such clip, or the output is latents.
            MediaError: the file cannot be written.
        """
        from ..media import save

        clips = len(self.frames)
        if isinstance(clip, bool) or not hasattr(clip, "__index__") or not -clips <= int(clip) < clips:
            raise InputError(f"clip is {clip!r}; this output has {clips}, counted from 0.")
        if self.latent:
            raise InputError('The output is latents, not pictures; ask for output_type "pil", "np" or "pt".')
        rate = fps or self.fps
        told = {**self.receipt, "clip": clip, "playback_fps": rate}
        return str(save(self.frames[clip], path, fps=rate, metadata=told, **options))


@dataclass(frozen=True)
class Event:
    """What a pipeline is doing: `step` of `total` of a stage is done."""

    stage: Stage
    step: int
    total: int
    time: float | None = None  # denoise: what the network was told of the noise level
    latents: Tensor | None = None  # denoise: (b, c, f, h, w), as noisy as the next level
    clean: Tensor | None = None  # denoise: the same, as the network now thinks it will end
    output: VideoOutput | None = None  # done
    index: int | None = None  # denoise: which step of the schedule has ended, counted from 0; None in the midst of one
