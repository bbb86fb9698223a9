"""Clips for the media tests, and how far a decoded one is from what was written."""

from __future__ import annotations

import numpy as np
from PIL import Image


def gradient(frames=12, height=48, width=64):
    """(f, h, w, 3) bytes: smooth colours that drift."""
    y, x = np.mgrid[:height, :width]
    planes = [[(x + 2 * i) / (width + 2 * frames), y / height, np.full(x.shape, i / frames)] for i in range(frames)]
    return (np.stack([np.stack(p, -1) for p in planes]) * 255).round().astype(np.uint8)


PATCHES = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255],
     [255, 255, 255], [0, 0, 0], [128, 128, 128], [200, 120, 60], [40, 90, 160], [230, 180, 200]], np.uint8
)  # fmt: skip


def chart(frames=8, patch=32):
    """(f, 3·patch, 4·patch, 3) bytes: twelve even patches, pure and mixed."""
    picture = PATCHES.reshape(3, 4, 3).repeat(patch, 0).repeat(patch, 1)
    return np.stack([picture] * frames)


def chart_error(pictures, patch=32):
    """The largest distance, in levels, of any patch's mean from what it should be; edges are left out."""
    worst = 0.0
    for picture in pictures:
        pixels = np.asarray(picture, float)
        for i, colour in enumerate(PATCHES):
            top, left = i // 4 * patch, i % 4 * patch
            inside = pixels[top + 6 : top + patch - 6, left + 6 : left + patch - 6]
            worst = max(worst, float(np.abs(inside.mean((0, 1)) - colour).max()))
    return worst


def pixels(pictures):
    return np.stack([np.asarray(p) for p in pictures])


def error(pictures, frames):
    """Root mean square error in levels of 255."""
    return float(np.sqrt(((pixels(pictures).astype(float) - frames) ** 2).mean()))


def pictures(frames):
    return [Image.fromarray(frame) for frame in frames]
