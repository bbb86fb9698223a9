"""The U every family shares: down, across and up again, keeping what each row made for the way back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layout import to_frames, to_video, widen
from ..products import fast
from . import ops
from .attention import Attention, FeedForward
from .blocks import Downsample, Embedding, SpatialTransformer, Upsample
from .by_frame import by_frame, run_block
from .free_noise import FrameWindows, Weighting, sees_windows
from .freeu import FreeU
from .merging import Merging
from .signal import Merge, Signal

Row = Iterable[tuple[str, nn.Module]]  # blocks in the order they run, each with the column it is stored under
Place = Literal["down", "middle", "up"]


class Stage(nn.Module):
    """Rows of blocks at one resolution, then a change of resolution.

    Checkpoints store a stage by columns (`resnets.0`, `resnets.1`, …, `attentions.0`, …); it runs by rows.
    """

    def __init__(self, rows: Sequence[Row]):
        super().__init__()
        self.rows: list[list[tuple[str, int]]] = []
        for row in rows:
            self.rows.append([])
            for column, block in row:
                if column not in self._modules:
                    self.add_module(column, nn.ModuleList())
                blocks = self.get_submodule(column)
                assert isinstance(blocks, nn.ModuleList)
                self.rows[-1].append((column, len(blocks)))
                blocks.append(block)

    def run(self, row: int, x: Tensor, signal: Signal) -> Tensor:
        for column, i in self.rows[row]:
            x = by_frame(self.get_submodule(column)[i], x, signal, run_block)  # type: ignore[index]
        return x


class Encoder(nn.Module):
    """The way down and across: what a U-Net and the networks that steer one have in common.

    A family says what a row is made of. Latents may come with fewer clips than the conditions have: guidance branches
    that see the same latents are one until the first cross-attention tells them apart, and the blocks before it run
    once for all of them.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        layers: int | tuple[int, ...],
        cross_down: Sequence[bool],
        inputs: int,
        groups: int = 32,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.width, self.groups, self.eps = channels[0], groups, eps
        self.time = 4 * channels[0]
        self.layers = (layers,) * len(channels) if isinstance(layers, int) else layers
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.time_embedding = Embedding(channels[0], self.time)

        self.down_blocks, self.kept = nn.ModuleList(), [channels[0]]  # channels of all that is kept for the way back
        for level, c in enumerate(channels):
            rows = []
            for _ in range(self.layers[level]):
                rows.append(self.row(self.kept[-1], c, level, cross_down[level], "down"))
                self.kept.append(c)
            stage = Stage(rows)
            if level < len(channels) - 1:
                stage.downsamplers = nn.ModuleList([Downsample(c)])
                self.kept.append(c)
            self.down_blocks.append(stage)

        self.mid_block = Stage([self.middle(channels[-1], len(channels) - 1)])

    @abstractmethod
    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        """The blocks of one row, in the order they run."""

    def middle(self, channels: int, level: int) -> Row:
        """A full row, then what of a row does not attend."""
        yield from self.row(channels, channels, level, True, "middle")
        yield from self.row(channels, channels, level, False, "middle")

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        """Latents as frames → the first features."""
        return by_frame(self.conv_in, x, signal)

    def descend(self, latents: Tensor, signal: Signal) -> tuple[Tensor, list[Tensor]]:
        """latents (b, f, c, h, w) → features behind the middle, and what is kept for the way back, in order."""
        with fast(latents):
            x, skips = self.down(latents, signal)
            return self.mid_block.run(0, x, signal), skips

    def down(
        self, latents: Tensor, signal: Signal, rows: int | None = None, begun: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """latents (b, f, c, h, w) → features before the middle, and what is kept for the way back, in order.

        With `rows`, only so many of the first level's. What fewer of them kept may be given as `begun`.
        """
        skips = list(begun) or [self._entered(latents, signal)]
        x, known = skips[-1], len(skips) - 1
        for level, stage in enumerate(stages(self.down_blocks)):
            for row in range(len(stage.rows)):
                if level == 0 and row == rows:
                    return x, skips
                if level == 0 and row < known:
                    continue
                x = stage.run(row, x, signal)
                skips.append(x)
            for down in getattr(stage, "downsamplers", ()):
                x = by_frame(down, x, signal)
                skips.append(x)
        return x, skips

    def _entered(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w), and what rides along with them → the first features."""
        if signal.extra is not None:
            latents = torch.cat([widen(latents, len(signal.extra)), signal.extra], dim=2)
        return self.enter(to_frames(latents), signal)


class VideoUNet(Encoder):
    """Denoises latents. A family says what a row is made of, and what it is conditioned on."""

    merge: Merge | None = None  # set by `enable_freeu`

    def __init__(
        self,
        channels: tuple[int, ...],
        layers: int | tuple[int, ...],
        cross_down: Sequence[bool],
        cross_up: Sequence[bool],
        inputs: int,
        outputs: int,
        groups: int = 32,
        eps: float = 1e-5,
    ):
        super().__init__(channels, layers, cross_down, inputs, groups, eps)
        last, kept = len(channels) - 1, list(self.kept)
        self.up_blocks, x = nn.ModuleList(), channels[-1]
        for level in range(last, -1, -1):
            rows = []
            for _ in range(self.layers[level] + 1):
                rows.append(self.row(x + kept.pop(), channels[level], level, cross_up[last - level], "up"))
                x = channels[level]
            stage = Stage(rows)
            if level > 0:
                stage.upsamplers = nn.ModuleList([Upsample(x)])
            self.up_blocks.append(stage)

        self.conv_norm_out, self.conv_out = nn.GroupNorm(groups, x, eps), nn.Conv2d(x, outputs, 3, padding=1)
        ops.lay_out(self)

    def denoise(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) → what the network predicts of them, (branches·b, f, c', h, w)."""
        with fast(latents):
            return self.rise(*self.down(latents, signal), signal)

    def rise(self, x: Tensor, skips: list[Tensor], signal: Signal) -> Tensor:
        """What `down` made → what the network predicts; the list is emptied on the way, to free what it held."""
        beside = _beside(signal, len(skips))
        x = meet(self.mid_block.run(0, x, signal), beside.pop())
        x = self.climb(x, skips, beside, signal, self.ascent)
        return to_video(self.leave(x, signal), signal.frames)

    def begin(self, latents: Tensor, signal: Signal, fresh: int) -> list[Tensor]:
        """What its first `fresh` rows see and keep for the way back, the first features among them, in order."""
        with fast(latents):
            return self.down(latents, signal, fresh - 1)[1]

    def denoise_and_keep(
        self, latents: Tensor, signal: Signal, fresh: int, begun: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """The same, and the features (branches·b·f, c, h, w) from which its last `fresh` rows start.

        What `begin` made of these latents may be given.
        """
        with fast(latents):
            x, skips = self.down(latents, signal, begun=begun)
            beside = _beside(signal, len(skips))
            x = meet(self.mid_block.run(0, x, signal), beside.pop())
            deep = self.climb(x, skips, beside, signal, self.ascent[:-fresh])
            x = self.climb(deep, skips, beside, signal, self.ascent[-fresh:])
            return to_video(self.leave(x, signal), signal.frames), deep

    def denoise_above(
        self, latents: Tensor, signal: Signal, deep: Tensor, fresh: int, begun: Sequence[Tensor] = ()
    ) -> Tensor:
        """What the network predicts where only its outermost rows see the latents, and those between made `deep`."""
        with fast(latents):
            _, skips = self.down(latents, signal, fresh - 1, begun)
            x = self.climb(deep, skips, _beside(signal, fresh)[:fresh], signal, self.ascent[-fresh:])
            return to_video(self.leave(x, signal), signal.frames)

    @property
    def ascent(self) -> list[tuple[int, int]]:
        """The rows on the way up, as (level, row)."""
        return [(level, row) for level, stage in enumerate(stages(self.up_blocks)) for row in range(len(stage.rows))]

    def climb(
        self,
        x: Tensor,
        skips: list[Tensor],
        beside: list[Tensor | None],
        signal: Signal,
        rows: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Up these rows. Each takes the last of what was kept, and of what networks beside add to it."""
        blocks = list(stages(self.up_blocks))
        merge = self.merge if signal.merge is None else signal.merge
        for level, row in rows:
            for up in getattr(blocks[level - 1], "upsamplers", ()) if level and not row else ():
                x = by_frame(up, x, signal, partial(enlarge, size=skips[-1].shape[2:]))
            skip = meet(skips.pop(), beside.pop())
            if merge is not None:
                x, skip = merge(level, x, skip)
            x = torch.cat([x, widen(skip, len(x))], dim=1)
            del skip
            x = blocks[level].run(row, x, signal)
        return x

    def leave(self, x: Tensor, signal: Signal) -> Tensor:
        """The last features → what is predicted, as frames."""
        return by_frame(self.conv_out, ops.norm_silu(x, self.conv_norm_out), signal)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Strengthens features of the first two stages up (b1, b2) and weakens their skips (s1, s2); see `FreeU`.

        This is for all who use this network; a pipeline's `enable_freeu` is for its own calls.
        """
        self.merge = self.freeu(s1, s2, b1, b2)

    @staticmethod
    def freeu(s1: float, s2: float, b1: float, b2: float) -> Merge:
        """What that changes, to be told in a signal."""
        return FreeU(s1, s2, b1, b2)

    def disable_freeu(self) -> None:
        self.merge = None

    def merging(self, share: float, size: tuple[int, int], corner: int = 0) -> Merging:
        """Joins tokens that are alike in the finest self-attentions of frames, to be told in a signal.

        Args:
            share: of their tokens, 0 to 0.75.
            size: (h, w) of latents.
            corner: which of every 2×2 tokens stays, 0 to 3.
        """
        levels = list(zip(stages(self.down_blocks), reversed(list(stages(self.up_blocks))), strict=True))
        for level, pair in enumerate(levels):
            found = frozenset(block.attn1 for stage in pair for block in _in_frames(stage))
            if found:
                h, w = (-(-side // 2**level) for side in size)
                return Merging(found, share, (h, w), corner)
        return Merging(frozenset(), share, size, corner)

    def frame_windows(self, length: int = 16, stride: int = 4, weighting: Weighting = "pyramid") -> FrameWindows:
        """In which blocks over time see longer clips and blend them (FreeNoise), to be told in a signal.

        Raises:
            InputError: a setting cannot be used, or no block of this network can be shown parts of a clip.
        """
        if not sees_windows(self):
            raise InputError(
                f"FreeNoise does not fit {type(self).__name__}, which tells frames apart by their place in the whole "
                "clip; enable_windows() makes longer clips with it."
            )
        return FrameWindows(length, stride, weighting)

    def set_attention_slice(self, slice_size: str | int | None = "auto") -> None:
        """How many heads attend at once: "auto" half of them, "max" one, or a number; None all. Exact.

        Raises:
            InputError: it is something else.
        """
        fits = slice_size in (None, "auto", "max") or (isinstance(slice_size, int) and slice_size >= 1)
        if not fits:
            raise InputError(f"slice_size is {slice_size!r}; it must be 'auto', 'max', None or a number from 1 up.")
        for module in self.modules():
            if isinstance(module, Attention):
                share = {"auto": max(1, module.heads // 2), "max": 1}
                module.heads_at_once = share.get(slice_size) if isinstance(slice_size, str) else slice_size

    def enable_forward_chunking(self, chunk_size: int | None = None, dim: int = 0) -> None:
        """Tokens a feed-forward takes at once, whatever the axis `dim` they are counted along. Exact.

        Raises:
            InputError: it is not a number of tokens.
        """
        if chunk_size is not None and (not hasattr(chunk_size, "__index__") or int(chunk_size) < 1):
            raise InputError(f"chunk_size is {chunk_size!r}; it must be a whole number, at least 1, or None for all.")
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.piece = chunk_size and max(chunk_size, 1024)  # fewer would only be slower

    def disable_forward_chunking(self) -> None:
        self.enable_forward_chunking(None)


def _in_frames(stage: nn.Module) -> list[Any]:
    """The transformer blocks in which the pixels of each frame attend to one another."""
    blocks: list[Any] = []
    for module in stage.modules():
        if isinstance(module, SpatialTransformer) and module.in_frames:
            blocks += module.transformer_blocks
    return blocks


def enlarge(up: Upsample, x: Tensor, signal: Signal, size: torch.Size) -> Tensor:
    out: Tensor = up(x, size)
    return out


def _beside(signal: Signal, skips: int) -> list[Tensor | None]:
    """What networks beside add to each of the first skips, and where those are all to the middle."""
    beside = list(signal.residuals)
    return beside[: skips + 1] if beside else [None] * (skips + 1)


def meet(x: Tensor, more: Tensor | None) -> Tensor:
    """x + more, of which either may be the same for several guidance branches or clips; both stay as they are."""
    if more is None:
        return x
    rows = max(len(x), len(more))
    return widen(x, rows) + widen(more, rows)


def stages(blocks: nn.ModuleList) -> Iterable[Stage]:
    """The same list, its entries known to be stages."""
    return blocks  # type: ignore[return-value]
