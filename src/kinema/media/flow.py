"""Where each pixel of a frame goes in the next: dense optical flow, coarse to fine.

Lucas and Kanade 1981 in a pyramid of halved frames: at each level a frame is warped by the flow so far, and what is
left is solved for in a Gaussian window around every pixel. Two starts compete at each pixel, from rest and from the
shift of the whole frame that phase correlation finds (Kuglin and Hines 1975), so that fast pans are not lost. Plain
PyTorch, no weights: small movements come out to a few hundredths of a pixel, large ones of small things may be missed.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_WINDOW = 2.0  # standard deviation of the window a movement is solved in, in pixels of a level
_SMALLEST = 10  # no level has a shorter side
_ROUNDS = 4  # of warping and solving a level
_BETTER, _UNSEEN = 0.45, 1e-6  # how much of a misfit a better explanation leaves, and what no eye sees (0.25 in 255)
_NOISE = 2e-4  # squared brightness a pixel, of 1: weaker structure than this says little (noise of 3 in 255)


class Flow(NamedTuple):
    """What moved between pairs of frames; pixels are those of the frames given."""

    vectors: Tensor  # (n, 2, h, w): across and down, to the next frame
    trust: Tensor  # (n, h, w) in 0..1: how surely a pixel's movement can be seen; plain areas show none
    camera: Tensor  # (n, 2, h, w): the affine movement (pan, turn, zoom) that most of each frame agrees on
    before: Tensor  # (n, h, w): how much each pixel changed
    after: Tensor  # (n, h, w): how much of that remains when the movement is undone


def flow(first: Tensor, second: Tensor) -> Flow:
    """Brightness (n, h, w) in 0..1 of frames and of those after them → how every pixel moved."""
    levels = [(first[:, None], second[:, None])]
    while min(levels[-1][0].shape[2:]) >= 2 * _SMALLEST:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    shift = _whole_shift(first, second)[..., None, None].expand(-1, -1, *first.shape[1:])
    rest = torch.zeros_like(shift)
    # The plainer explanation stands unless the next one is clearly better: noise then is not taken for movement.
    vectors, misfit = rest, _misfit(first, second, rest)
    for found in (shift, _descend(levels, rest), _descend(levels, shift)):
        left = _misfit(first, second, found)
        better = left < _BETTER * misfit - _UNSEEN
        vectors, misfit = torch.where(better[:, None], found, vectors), torch.where(better, left, misfit)
    trust = _trust(first[:, None])
    camera = _camera(vectors, trust, (second - first).abs())
    joins = (_misfit(first, second, camera) < misfit) | ~_inside(camera)
    vectors = torch.where(joins[:, None], camera, vectors)
    left = (_warped(second[:, None], vectors)[:, 0] - first).abs()
    return Flow(vectors, trust * _inside(vectors), camera, (second - first).abs(), left)


def length(vectors: Tensor) -> Tensor:
    """(n, 2, h, w) → (n, h, w); many times faster than the norm of so short a dimension."""
    return torch.hypot(vectors[:, 0], vectors[:, 1])


def _descend(levels: list[tuple[Tensor, Tensor]], start: Tensor) -> Tensor:
    """The flow (n, 2, h, w), refined from the coarsest level to the finest."""
    vectors: Tensor = start[..., :1, :1] / 2 ** (len(levels) - 1)
    vectors = vectors.expand(-1, -1, *levels[-1][0].shape[2:])
    for depth, (first, second) in enumerate(reversed(levels)):
        if depth:
            vectors = 2 * F.interpolate(vectors, first.shape[2:], mode="bilinear", align_corners=False)
        for _ in range(_ROUNDS):
            vectors = _refined(first, second, vectors)
    return vectors


def _refined(first: Tensor, second: Tensor, vectors: Tensor) -> Tensor:
    """One round: warp, solve in windows, and step by at most a pixel."""
    moved = _warped(second, vectors)
    across, down = _slopes((first + moved) / 2)
    left = moved - first
    products = torch.cat([across * across, across * down, down * down, across * left, down * left], 1)
    xx, xy, yy, xt, yt = _blurred(products).unbind(1)
    xx, yy = xx + 0.1 * _NOISE, yy + 0.1 * _NOISE
    step = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / (xx * yy - xy * xy)[:, None]
    return vectors + step / length(step)[:, None].clamp(min=1)


def _trust(frame: Tensor) -> Tensor:
    """How surely movement can be seen at each pixel: by the weaker of the two directions of its structure."""
    across, down = _slopes(frame)
    xx, xy, yy = _blurred(torch.cat([across * across, across * down, down * down], 1)).unbind(1)
    weaker = (xx + yy) / 2 - ((xx - yy) ** 2 / 4 + xy * xy).sqrt()
    return weaker**2 / (weaker**2 + _NOISE**2)


def _misfit(first: Tensor, second: Tensor, vectors: Tensor) -> Tensor:
    """(n, h, w): how far, squared, the frames differ around each pixel once a movement is undone.

    Around: three windows wide, so that where an edge runs along the movement its ends decide too.
    """
    off = (_warped(second[:, None], vectors) - first[:, None]) ** 2
    return _blurred(_blurred(_blurred(off)))[:, 0]


def _inside(vectors: Tensor) -> Tensor:
    """(n, h, w): whether a pixel's next place is in the frame, where it can be seen."""
    height, width = vectors.shape[2:]
    y = torch.arange(height, device=vectors.device)[:, None] + vectors[:, 1]
    x = torch.arange(width, device=vectors.device) + vectors[:, 0]
    return (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)


def _camera(vectors: Tensor, trust: Tensor, change: Tensor) -> Tensor:
    """(n, 2, h, w): the affine movement that most of each frame agrees on.

    Reweighted least squares with Cauchy's weights, begun from rest. Plain areas that do not change count
    less, as still: a lone shape before a plain ground is then no camera movement.
    """
    n, _, height, width = vectors.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1).flatten(0, 1).double()  # (h·w, 3)
    moved = vectors.flatten(2).transpose(1, 2).double()  # (n, h·w, 2)
    counts = (trust + 0.75 * (1 - trust) * (change < 0.01) + 1e-6).flatten(1).double()
    fitted = torch.zeros_like(moved)
    for _ in range(10):
        off = ((moved - fitted) ** 2).sum(2)
        weighted = (counts / (1 + off / 0.3**2))[..., None] * basis  # (n, h·w, 3)
        normal = basis.T @ weighted + 1e-6 * torch.eye(3)
        fitted = basis @ torch.linalg.solve(normal, weighted.transpose(1, 2) @ moved)
    return fitted.transpose(1, 2).reshape(n, 2, height, width).to(vectors)


def _whole_shift(first: Tensor, second: Tensor) -> Tensor:
    """(n, h, w) pairs → (n, 2): the shift, in whole pixels, that most of the frame agrees on."""
    height, width = first.shape[1:]
    fade = torch.hann_window(height, False).outer(torch.hann_window(width, False)).to(first)
    spectra = [torch.fft.rfft2((x - x.mean((1, 2), keepdim=True)) * fade) for x in (first, second)]
    cross = spectra[0].conj() * spectra[1]
    whitened = cross / (cross.abs() + 1e-3 * cross.abs().amax((1, 2), keepdim=True) + 1e-12)
    peak = torch.fft.irfft2(whitened, s=(height, width)).flatten(1).argmax(1)
    down, across = peak // width, peak % width
    down = torch.where(down > height // 2, down - height, down)
    across = torch.where(across > width // 2, across - width, across)
    return torch.stack([across, down], 1).to(first)


def _warped(frame: Tensor, vectors: Tensor) -> Tensor:
    """(n, 1, h, w) seen from where its pixels come from: undoes a movement (n, 2, h, w)."""
    height, width = frame.shape[2:]
    y = torch.arange(height, device=frame.device, dtype=frame.dtype)[:, None] + vectors[:, 1]
    x = torch.arange(width, device=frame.device, dtype=frame.dtype) + vectors[:, 0]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(frame, grid, mode="bicubic", padding_mode="border", align_corners=False)


def _slopes(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1, h, w) → brightness a pixel, across and down."""
    wide, high = F.pad(x, (1, 1, 0, 0), mode="replicate"), F.pad(x, (0, 0, 1, 1), mode="replicate")
    return (wide[..., 2:] - wide[..., :-2]) / 2, (high[..., 2:, :] - high[..., :-2, :]) / 2


def _blurred(x: Tensor) -> Tensor:
    """Each channel (..., h, w) blurred by the window; edges are continued."""
    down, across = (_bell(length).to(x) for length in x.shape[-2:])
    return down @ x @ across.T


@cache
def _bell(length: int) -> Tensor:
    """The window as a matrix (length, length): as a product it runs several times faster than as a convolution."""
    reach = int(3 * _WINDOW)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / _WINDOW) ** 2)
    padded = F.pad(torch.eye(length)[:, None], (reach, reach), mode="replicate")
    return F.conv1d(padded, (bell / bell.sum())[None, None])[:, 0].T.contiguous()


def _halved(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False, antialias=True)
