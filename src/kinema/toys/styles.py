"""The styles the world is drawn in: its own, and another that a personalised image model has learned."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Style:
    """How things look, whatever they are."""

    name: str
    dark: RGB  # backgrounds
    light: RGB
    paler: float = 0.0  # how far colours lie towards white


PLAIN = Style("plain", (36.0, 36.0, 36.0), (218.0, 218.0, 218.0))
CHALK = Style("chalk", (12.0, 70.0, 40.0), (192.0, 228.0, 180.0), paler=0.15)  # a green board, pale green paper
STYLES: dict[str, Style] = {style.name: style for style in (PLAIN, CHALK)}
