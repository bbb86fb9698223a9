"""Denoisers that PyTorch compiles, for every family."""

from __future__ import annotations

from typing import Any


class Compiling:
    """A pipeline whose denoiser may be compiled."""

    unet: Any

    def compile(self, **options: Any) -> None:
        """Has PyTorch compile the denoiser: at the first step of the first clip, which takes minutes for a large one.

        It is one graph without breaks, and later clips of that size and kind use it as it is. With weights from the
        host or made for a call (a LoRA's strength for one call, or by frame), with deep reuse and in plans that work in
        small pieces it runs as written, with the same result. Kinema's own faster kernels are off in what is compiled.

        Args:
            options: as `torch.compile` has them (`mode`, `dynamic`, `backend`, `fullgraph`, which is True by default).
        """
        self.unet.compile(**{"fullgraph": True, **options})
