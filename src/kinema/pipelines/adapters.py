"""LoRA and FreeU on a pipeline's networks: set before calls, never during them."""

from __future__ import annotations

from typing import Any

from .video import VideoPipeline


class AdaptablePipeline(VideoPipeline):
    """A pipeline whose networks take LoRAs."""
