"""Latents to frames that know of one another: Stable Video Diffusion's decoder, for a whole clip or as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..layout import from_strips, from_tokens, to_strips, to_tokens
from ..place import kind_of
from ..products import fast, fast_steps
from . import ops
from .autoencoder import EPS, Autoencoder, Decoded, FrameAttention
from .blocks import PlainResBlock, Upsample
from .line import Ends, Line
from .moments import Moments, silu_of
from .shelf import Shelf
from .spatiotemporal import Mixer, TemporalResBlock

BAND = 1 << 20, 1 << 25  # elements of a clip that go through time at once: on a processor, on an accelerator
PIXELS = 1 << 13  # that go through space at once at least: small frames go together
LOW = 1 << 30  # bytes a clip's activations may take on the device when memory is low


class ClipResBlock(nn.Module):
    """A residual block in space, then one in time, blended. The norms of the second span all frames of a clip."""

    band: int | None = None  # pixels of every frame that go through time at once in `stream`; None: what suits

    def __init__(self, channels: int, out: int, groups: int):
        super().__init__()
        self.spatial_res_block = PlainResBlock(channels, out, groups, EPS)
        self.temporal_res_block = TemporalResBlock(out, None, groups)
        self.time_mixer = Mixer(0.0, of_time=True)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """(b·f, c, h, w) → (b·f, c', h, w)."""
        x = self.spatial_res_block(x)
        return self.time_mixer.add(x, self.temporal_res_block.change(x, frames))

    def stream(self, clip: Iterator[Tensor], frames: int, room: int, line: Line | None) -> Iterator[Tensor]:
        """The same for one clip's frames, a few at a time, (k, c, h, w): they wait on a shelf while time mixes them.

        Args:
            frames: how many there are.
            room: bytes of activations that may wait on the device; what is more waits elsewhere, or is computed again.
            line: who has the clip's other frames, if these are not all.
        """
        h, w, seen = 0, 0, Moments()
        with Shelf(frames, room) as shelf:
            for x in clip:
                h, w = x.shape[2:]
                pixels = to_tokens(self.spatial_res_block(x))
                del x  # before the next one is made
                seen.show(pixels.flatten(0, 1))
                for frame in pixels:
                    shelf.put(frame)
                del pixels, frame
            self._mix(shelf, seen, line)
            yield from map(partial(from_tokens, h=h, w=w), shelf.take(_together(h, w)))

    def _mix(self, shelf: Shelf, seen: Moments, line: Line | None) -> None:
        """What time adds to the frames on a shelf, `seen` being their moments.

        Time mixes frames and not pixels, so a band of pixels of all frames goes through at once. A norm's statistics
        are known only after all bands, hence two rounds; between them the hidden activation is kept if there is room.
        Frames that are elsewhere count by what is next to these, and for the norms.
        """
        block, kept, hidden = self.temporal_res_block, deque[Tensor](), Moments()
        outer = Ends() if line is None else Ends(*line.edges(shelf.frame(0), shelf.frame(-1)))
        keep, edges = 2 * shelf.nbytes <= shelf.room, []
        first, conv1, conv2 = seen.of_all(line).norm(block.norm1), ops.OverTime(block.conv1), ops.OverTime(block.conv2)
        for start, stop in self._bands(shelf):
            y = _over_time(conv1, shelf.read(start, stop), first, outer, start)
            hidden.show(y.flatten(0, 1))
            if line is not None:
                edges.append(y[[0, -1]])
            if keep:
                kept.append(y)
        inner = Ends() if line is None else Ends(*line.edges(*torch.cat(edges, 1)))
        second = hidden.of_all(line).norm(block.norm2)
        for start, stop in self._bands(shelf):
            x = shelf.read(start, stop)
            y = kept.popleft() if keep else _over_time(conv1, x, first, outer, start)
            y = _over_time(conv2, y, second, inner, start)
            shelf.write(start, self.time_mixer.add(x, y))

    def _bands(self, shelf: Shelf) -> Iterator[tuple[int, int]]:
        norm, frames = self.temporal_res_block.norm1, shelf.frames
        local = kind_of(norm.weight) == "cpu"
        size = BAND[not local] // (frames * norm.num_channels)
        if not local:
            size = min(size, 2 * shelf.pixels // frames)  # no more than two frames' worth
        step = self.band or max(1, size)
        return ((start, min(start + step, shelf.pixels)) for start in range(0, shelf.pixels, step))


def _together(h: int, w: int) -> int:
    """How many frames of this size go through space at once."""
    return max(1, PIXELS // (h * w))


def _over_time(conv: ops.OverTime, x: Tensor, norm: tuple[Tensor, Tensor], ends: Ends, start: int) -> Tensor:
    """The convolution over time of normed and activated pixels of a clip, (f, m, c) → (f, m, c)."""
    y = silu_of(ends.around(x, start), *norm).permute(2, 0, 1)
    return ends.within(conv(y[None])[0].permute(1, 2, 0))


class ClipMiddle(nn.Module):
    def __init__(self, channels: int, layers: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(ClipResBlock(channels, channels, groups) for _ in range(layers))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        x = self.resnets[0](x, frames)
        # Published decoders have two layers. Of another number the reference runs what has a partner, and so does this.
        for attention, block in zip(self.attentions, self.resnets[1:], strict=False):
            x = block(attention(x), frames)
        return x

    def stream(self, clip: Iterator[Tensor], frames: int, room: int, line: Line | None) -> Iterator[Tensor]:
        first, *rest = self.resnets
        assert isinstance(first, ClipResBlock)
        clip = first.stream(clip, frames, room, line)
        for attention, block in zip(self.attentions, rest, strict=False):
            assert isinstance(block, ClipResBlock)
            clip = block.stream(map(attention, clip), frames, room, line)
        return clip


class ClipLevel(nn.Module):
    """Residual blocks at one resolution, then twice that resolution if `up`."""

    def __init__(self, channels: int, out: int, layers: int, groups: int, up: bool):
        super().__init__()
        self.resnets = nn.ModuleList(ClipResBlock(out if i else channels, out, groups) for i in range(layers))
        if up:
            self.upsamplers = nn.ModuleList([Upsample(out)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        for block in self.resnets:
            x = block(x, frames)
        return self._enlarged(x)

    def stream(self, clip: Iterator[Tensor], frames: int, room: int, line: Line | None) -> Iterator[Tensor]:
        for block in self.resnets:
            assert isinstance(block, ClipResBlock)
            clip = block.stream(clip, frames, room, line)
        return map(self._enlarged, clip)

    def _enlarged(self, x: Tensor) -> Tensor:
        for up in getattr(self, "upsamplers", ()):
            x = up(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class TemporalDecoder(nn.Module):
    """(b·f, inputs, h, w) latents → (b·f, outputs, h·s, w·s) pictures in about [-1, 1]; all frames of a clip count."""

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, ...], layers: int, groups: int):
        super().__init__()
        self.channels = channels
        self.conv_in = nn.Conv2d(inputs, channels[-1], 3, padding=1)
        self.mid_block = ClipMiddle(channels[-1], layers, groups)
        self.up_blocks = nn.ModuleList()
        for level in range(len(channels) - 1, -1, -1):
            before = channels[min(level + 1, len(channels) - 1)]
            self.up_blocks.append(ClipLevel(before, channels[level], layers + 1, groups, up=level > 0))
        self.conv_norm_out = nn.GroupNorm(groups, channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], outputs, 3, padding=1)
        self.time_conv_out = nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        x = self.mid_block(self.conv_in(x), frames)
        for level in self.up_blocks:
            x = level(x, frames)
        x = self._picture(x)
        return from_strips(ops.conv_over_time(to_strips(x, frames), self.time_conv_out), *x.shape[2:])

    def stream(self, latents: Tensor, low_memory: bool, line: Line | None = None) -> Iterator[Tensor]:
        """The same for one clip (f, c, h, w), each picture as soon as it is there, (1, outputs, h·s, w·s)."""
        frames, room = len(latents), self._largest(latents)
        if low_memory:
            room = min(room, LOW)
        clip: Iterator[Tensor] = map(self.conv_in, latents.split(_together(*latents.shape[2:])))
        for block in (self.mid_block, *self.up_blocks):
            assert isinstance(block, ClipMiddle | ClipLevel)
            clip = block.stream(clip, frames, room, line)
        return self._joined(chain.from_iterable(x.split(1) for x in map(self._picture, clip)), line)

    def _picture(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(ops.norm_silu(x, self.conv_norm_out))
        return out

    def _joined(self, pictures: Iterator[Tensor], line: Line | None) -> Iterator[Tensor]:
        """The last convolution over time: each picture leaves when the one after it is known."""
        outer = Ends()
        if line is not None:  # the picture before the first is the last that another makes
            stretch = list(pictures)
            outer, pictures = Ends(*line.edges(stretch[0], stretch[-1])), iter(stretch)
        here = next(pictures)
        none = torch.zeros_like(here)
        before = none if outer.before is None else outer.before
        for after in chain(pictures, [none if outer.after is None else outer.after]):
            window = to_strips(torch.cat([before, here, after]), 3)
            y = F.conv2d(window, self.time_conv_out.weight[..., 0], self.time_conv_out.bias)
            before, here = here, after
            yield from_strips(y, *here.shape[2:])

    def _largest(self, latents: Tensor) -> int:
        """Bytes of a clip's activations where they are most."""
        sizes = (c * 4**level for level, c in enumerate(reversed(self.channels)))
        largest: int = max(sizes) * len(latents) * latents[0, 0].nbytes
        return largest


class TemporalAutoencoder(Autoencoder):
    """An autoencoder whose decoder sees a clip as a whole."""

    decoder: TemporalDecoder

    def _decoder(
        self, inputs: int, outputs: int, channels: tuple[int, ...], layers: int, groups: int, attention: bool
    ) -> nn.Module:
        return TemporalDecoder(inputs, outputs, channels, layers, groups)

    def decode(self, latents: Tensor, num_frames: int | None = None) -> Decoded:
        """(f, c, h, w), unscaled → pictures (f, 3, h·stride, w·stride) of one clip, in about [-1, 1].

        All activations of all frames are held at once, and gradients flow. Frames decoded together make one another
        what they are: a clip decoded in pieces is another clip, of the same kind.

        Args:
            num_frames: of a clip, where there are several, one after the other: (b·num_frames, c, h, w).

        Raises:
            InputError: the latents are not whole clips.
        """
        frames = len(latents) if num_frames is None else num_frames
        if frames < 1 or len(latents) % frames:
            raise InputError(
                f"{len(latents)} latents cannot be decoded as clips of num_frames={num_frames}; "
                "their number must be a multiple of it."
            )
        x = latents.contiguous(memory_format=torch.channels_last)
        with fast(x):
            pictures = [self.decoder(part, frames) for part in (x.split(frames) if self.use_slicing else [x])]
        return Decoded(pictures[0] if len(pictures) == 1 else torch.cat(pictures))

    def forward(self, pictures: Tensor, num_frames: int | None = None) -> Decoded:
        """Pictures there and back, through the mode of their latents; see `decode` for what num_frames means."""
        return self.decode(self.encode(pictures).latent_dist.mode(), num_frames)

    @torch.no_grad()
    def stream(self, latents: Tensor, low_memory: bool = False, line: Line | None = None) -> Iterator[Tensor]:
        """One clip's latents (f, c, h, w), unscaled → its pictures (1, 3, h·stride, w·stride), one after the other.

        What `decode` gives, but for rounding, in a sixth of its memory: layers work frame by frame or in bands of
        pixels, and wait for one another only where a norm spans the clip. The first picture comes after nearly all of
        the work.

        Args:
            low_memory: large activations wait in the host's memory beside an accelerator, else in a temporary file.
            line: who has the clip's other frames where these are a stretch of it; all of them call this at once.

        Raises:
            InputError: there are no latents.
            MemoryBudgetError: the disk has no room for the temporary file.
        """
        if not len(latents):
            raise InputError("There are no latents to decode; give at least one frame's, (f, c, h, w).")
        laid = latents.contiguous(memory_format=torch.channels_last)
        yield from fast_steps(laid, self.decoder.stream(laid, low_memory, line))
