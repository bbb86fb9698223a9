"""The U every family shares: down, across and up again, keeping what each row made for the way back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layout import to_frames, to_video, widen
from . import ops
from .attention import Attention, FeedForward
from .blocks import Downsample, Embedding, Upsample
from .signal import Signal

Row = Iterable[tuple[str, nn.Module]]  # blocks in the order they run, each with the column it is stored under
Place = Literal["down", "middle", "up"]
Merge = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # changes what meets at an up stage: (stage, x, skip)


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
            x = self.get_submodule(column)[i](x, signal)  # type: ignore[index]
        return x


class VideoUNet(nn.Module):
    """Denoises latents. A family says what a row is made of, and what it is conditioned on.

    Latents may come with fewer clips than the conditions have: guidance branches that see the same latents are one
    until the first cross-attention tells them apart, and the blocks before it run once for all of them.
    """

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
        super().__init__()
        self.width, self.groups, self.eps = channels[0], groups, eps
        self.time = 4 * channels[0]
        last = len(channels) - 1
        counts = (layers,) * len(channels) if isinstance(layers, int) else layers
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.time_embedding = Embedding(channels[0], self.time)

        self.down_blocks, skips = nn.ModuleList(), [channels[0]]
        for level, c in enumerate(channels):
            rows = []
            for _ in range(counts[level]):
                rows.append(self.row(skips[-1], c, level, cross_down[level], "down"))
                skips.append(c)
            stage = Stage(rows)
            if level < last:
                stage.downsamplers = nn.ModuleList([Downsample(c)])
                skips.append(c)
            self.down_blocks.append(stage)

        self.mid_block = Stage([self.middle(channels[-1], last)])

        self.up_blocks, x = nn.ModuleList(), channels[-1]
        for level in range(last, -1, -1):
            rows = []
            for _ in range(counts[level] + 1):
                rows.append(self.row(x + skips.pop(), channels[level], level, cross_up[last - level], "up"))
                x = channels[level]
            stage = Stage(rows)
            if level > 0:
                stage.upsamplers = nn.ModuleList([Upsample(x)])
            self.up_blocks.append(stage)

        self.conv_norm_out, self.conv_out = nn.GroupNorm(groups, x, eps), nn.Conv2d(x, outputs, 3, padding=1)
        ops.lay_out(self)

    @abstractmethod
    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        """The blocks of one row, in the order they run."""

    def middle(self, channels: int, level: int) -> Row:
        """A full row, then what of a row does not attend."""
        yield from self.row(channels, channels, level, True, "middle")
        yield from self.row(channels, channels, level, False, "middle")

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        """Latents as frames → the first features."""
        out: Tensor = self.conv_in(x)
        return out

    def denoise(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) → what the network predicts of them, (branches·b, f, c', h, w)."""
        if signal.extra is not None:
            latents = torch.cat([widen(latents, len(signal.extra)), signal.extra], dim=2)
        x = self.enter(to_frames(latents), signal)

        skips = [x]
        for stage in stages(self.down_blocks):
            for row in range(len(stage.rows)):
                x = stage.run(row, x, signal)
                skips.append(x)
            for down in getattr(stage, "downsamplers", ()):
                x = down(x)
                skips.append(x)

        x = self.mid_block.run(0, x, signal)

        for level, stage in enumerate(stages(self.up_blocks)):
            for row in range(len(stage.rows)):
                skip = skips.pop()
                if self.merge is not None:
                    x, skip = self.merge(level, x, skip)
                skip = widen(skip, len(x))
                x = stage.run(row, torch.cat([x, skip], dim=1), signal)
            del skip
            for up in getattr(stage, "upsamplers", ()):
                x = up(x, skips[-1].shape[2:])

        x = self.conv_out(ops.norm_silu(x, self.conv_norm_out))
        return to_video(x, signal.frames)

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


def stages(blocks: nn.ModuleList) -> Iterable[Stage]:
    """The same list, its entries known to be stages."""
    return blocks  # type: ignore[return-value]
