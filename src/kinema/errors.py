"""Everything kinema raises on purpose: each message says what was wrong, what was expected and what to do."""

from __future__ import annotations

from typing import Any


class KinemaError(Exception):
    """The parent of all errors kinema raises itself."""


class InputError(KinemaError, ValueError):
    """An argument of a call cannot be used: raised at the edge, before any long work."""


class CheckpointError(KinemaError, ValueError):
    """A file or folder of weights or configuration is missing, broken, hostile, or not what was asked for."""


class MediaError(KinemaError, ValueError):
    """A picture or video cannot be read or written."""


class NumericsError(KinemaError, ArithmeticError):
    """A stage produced numbers that are not finite; the message names the stage."""


class MemoryBudgetError(KinemaError, MemoryError):
    """What was asked for does not fit the memory there is."""


class ParallelError(KinemaError, RuntimeError):
    """Processes that make a clip together lost one another, or one of them failed or was asked for something else."""


class ClipKeptError(MemoryBudgetError):
    """A clip was denoised and there is no room to decode it; it is not lost: `latents` are what it would be made of."""

    def __init__(self, message: str, latents: Any):
        super().__init__(message)
        self.latents = latents  # on the host, laid out as the pipeline's output_type "latent" has them

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.latents)
