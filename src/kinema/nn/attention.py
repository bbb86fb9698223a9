"""Attention, feed-forward and the transformer block made of them, over (rows, tokens, channels)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import one_branch, take_frames, take_rows, widen
from . import ops

if TYPE_CHECKING:
    from .signal import Signal


Norm = Callable[[Tensor], Tensor]  # what tokens go through before they attend
Project = Callable[[nn.Module, Tensor], Tensor]  # (a layer, tokens) → tokens


class Beside(NamedTuple):
    """What a cross-attention knows beside its context: the words of pictures, whose answer is added to the text's."""

    keys: Tensor  # (b, heads, k, d)
    values: Tensor  # (b, heads, k, d)
    scale: float = 1.0  # how much it counts for
    mask: Tensor | None = None  # (1 or b, 1, h, w), of any size: where in the picture it counts

    def of_branch(self, clips: int, branch: int) -> Beside:
        """What belongs to one guidance branch of so many clips."""
        keys, values = (one_branch(x, clips, branch) for x in (self.keys, self.values))
        return self._replace(keys=keys, values=values, mask=one_branch(self.mask, clips, branch))

    def of_clip(self, one: slice) -> Beside:
        """What belongs to one clip."""
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[one]
        return self._replace(keys=self.keys[one], values=self.values[one], mask=mask)

    def of_rows(self, start: int, stop: int, clips: int) -> Beside:
        """What belongs to these rows."""
        keys, values = (take_rows(x, start, stop, clips) for x in self[:2])
        mask = None if self.mask is None else take_rows(self.mask, start, stop, clips)
        return self._replace(keys=keys, values=values, mask=mask)


class Memory(NamedTuple):
    """What a cross-attention knows of its context: the half that does not change from step to step."""

    keys: Tensor  # (b, heads, k, d), never repeated for each frame
    values: Tensor  # (b, heads, k, d)
    answer: Tensor | None = None  # (b, 1, c): a lone token leaves nothing to choose, the result is known
    weights: Tensor | None = None  # (b, 1, 1, k): logarithms of how much each token counts, where not all count alike
    each: bool = False  # whether every row is one frame's, not one clip's: b is then branches·clips·f
    beside: tuple[Beside, ...] = ()

    def at_frames(self, frames: Sequence[int], of: int) -> Memory:
        """What belongs to some of a clip's `of` frames."""
        if not self.each:
            return self
        keys, values = (take_frames(x.unflatten(0, (-1, of)), frames).flatten(0, 1) for x in self[:2])
        return self._replace(keys=keys, values=values)

    def of_branch(self, clips: int, frames: int, branch: int) -> Memory:
        """What belongs to one guidance branch of so many clips of `frames` frames each."""
        rows = clips * (frames if self.each else 1)
        keys, values = (one_branch(x, rows, branch) for x in (self.keys, self.values))
        answer, weights = (one_branch(x, clips, branch) for x in (self.answer, self.weights))
        beside = tuple(one.of_branch(clips, branch) for one in self.beside)
        return Memory(keys, values, answer, weights, self.each, beside)

    def of_few(self, clip: int, rows: slice) -> Memory:
        """What belongs to some frames of one clip, which are these rows."""
        one = slice(clip, clip + 1)
        here = rows if self.each else one
        weights = None if self.weights is None else self.weights[one]
        beside = tuple(b.of_clip(one) for b in self.beside)
        return Memory(self.keys[here], self.values[here], None, weights, self.each, beside)

    def rows(self, frames: int) -> int:
        """Of how many clips and guidance branches it knows."""
        return len(self.keys) // (frames if self.each else 1)

    def of_rows(self, start: int, stop: int, clips: int, frames: int) -> Memory:
        """What belongs to these rows, of `frames` frames each."""
        keys, values = (take_rows(x, start, stop, clips, frames if self.each else 1) for x in self[:2])
        answer, weights = (None if x is None else take_rows(x, start, stop, clips) for x in self[2:4])
        beside = tuple(one.of_rows(start, stop, clips) for one in self.beside)
        return Memory(keys, values, answer, weights, self.each, beside)

    def and_beside(self, more: Sequence[Beside]) -> Memory:
        """The same with more beside it, which leaves no answer known before the question."""
        return self._replace(answer=None, beside=(*self.beside, *more)) if more else self


def run(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layer(x)
    return out


class Attention(nn.Module):
    """Self-attention."""

    heads_at_once: int | None = None  # set by `enable_attention_slicing`

    def __init__(self, channels: int, heads: int, width: int, context: int | None = None, bias: bool = False):
        super().__init__()
        context = context or channels
        self.heads = heads
        self.to_q = nn.Linear(channels, width, bias=bias)
        self.to_k = nn.Linear(context, width, bias=bias)
        self.to_v = nn.Linear(context, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, channels))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        return self.told(x, signal)

    def onto(self, x: Tensor, norm: Norm, signal: Signal) -> Tensor:
        """x (rows, n, c) plus what it finds in x normed; x's memory is used again, some rows at a time."""
        if signal.to_first:
            return add(x, self.at_first(norm(x), signal.frames))
        if torch.is_grad_enabled():
            return x + self.told(norm(x), signal)
        rows = max(1, ops.at_once(x.view(-1, x.shape[-1]), x.shape[-1]) // x.shape[1])
        for part in x.split(rows):
            part.add_(self.told(norm(part), signal))
        return x

    def told(self, x: Tensor, signal: Signal) -> Tensor:
        """Each row's tokens look at one another, or where the signal says so at themselves alone."""
        project, merging = self.projecting(signal), signal.merging
        if self in signal.identity:
            return project(self.to_out, project(self.to_v, x))
        if merging is not None and merging.joined and self in merging.of:
            return merging.told(x, lambda few, weights: self.within(few, project, weights))
        return self.within(x, project)

    def projecting(self, signal: Signal) -> Project:
        """How a layer is run on all tokens."""
        return run

    def at_first(self, x: Tensor, frames: int) -> Tensor:
        """x (b·f, n, c): the tokens of every frame look at those of their clip's first."""
        clips = x.unflatten(0, (-1, frames))
        q = self.split(self.to_q(clips.flatten(1, 2)))
        k, v = (self.split(project(clips[:, 0])) for project in (self.to_k, self.to_v))
        return self.join(ops.attend(q, k, v, self.heads_at_once)).view(x.shape)

    def within(self, x: Tensor, project: Project = run, weights: Tensor | None = None) -> Tensor:
        """Each row's tokens look at one another; weights as `ops.attend` has them."""
        q, k, v = (self.split(project(layer, x)) for layer in (self.to_q, self.to_k, self.to_v))
        found = ops.attend(q, k, v, self.heads_at_once, weights)
        return project(self.to_out, found.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(rows, n, heads·d) → (rows, heads, n, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out(x.transpose(1, 2).flatten(2))
        return out


class CrossAttention(Attention):
    """Attention to a context that is the same for every frame and every step."""

    def remember(self, context: Tensor, weights: Tensor | None = None) -> Memory:
        """context (b, k, c'), or (b, f, k, c') → what `forward` needs of it; weights as in `Memory`."""
        each = context.ndim == 4
        context = context.flatten(0, 1) if each else context
        k, v = self.split(self.to_k(context)), self.split(self.to_v(context))
        return Memory(k, v, self.join(v) if context.shape[1] == 1 and not each else None, weights, each)

    def onto(self, x: Tensor, norm: Norm, signal: Signal) -> Tensor:
        memory, frames = signal.memory[self], signal.frames
        if memory.answer is not None:
            return tell(x, memory.answer, frames)
        some = max(1, ops.at_once(x.view(-1, x.shape[-1]), x.shape[-1]) // x.shape[1])
        if some >= len(x) or len(x) < memory.rows(frames) * frames or torch.is_grad_enabled():
            return add(x, self(norm(x), signal))  # all at once, as where guidance branches part
        for clip in range(memory.rows(frames)):
            for first in range(0, frames, some):
                rows = slice(clip * frames + first, clip * frames + min(first + some, frames))
                x[rows].add_(self.ask(norm(x[rows]), memory.of_few(clip, rows)))
        return x

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        memory = signal.memory[self]
        return self.ask(x, memory, memory.rows(signal.frames) * signal.frames)

    def ask(self, x: Tensor, memory: Memory, rows: int = 0) -> Tensor:
        """What tokens x (b·f, n, c) find in what is known; x serves several guidance branches where `rows` are more."""
        q = widen(self.to_q(x), max(rows, len(x)))
        found = self.find(q, memory.keys, memory.values, memory.weights)
        for one in memory.beside:
            more = self.find(q, one.keys, one.values) * one.scale
            found = found + (more if one.mask is None else more * shares(one.mask, len(q), x.shape[1]))
        out: Tensor = self.to_out(found)
        return out

    def find(self, q: Tensor, keys: Tensor, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """q (b·f, n, c) → what it finds, (b·f, n, c); one clip's frames share its keys."""
        rows = self.split(q.view(len(keys), -1, q.shape[-1]))
        found = ops.attend(rows, keys, values, self.heads_at_once, weights)
        return found.transpose(1, 2).flatten(2).view(q.shape)


class FeedForward(nn.Module):
    """Two linear layers around a GELU, the first one gated or not."""

    piece: int | None = None  # tokens at once; set by `enable_forward_chunking`

    def __init__(self, channels: int, gated: bool = True):
        super().__init__()
        self.gated = gated
        up = nn.Module()
        up.proj = nn.Linear(channels, 4 * channels * (1 + gated))
        self.net = nn.ModuleDict({"0": up, "2": nn.Linear(4 * channels, channels)})

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.net["0"].proj, self.net["2"]
        assert isinstance(up, nn.Linear) and isinstance(down, nn.Linear)
        return ops.feed_forward(x, up, down, self.gated, self.piece)

    def onto(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """x (…, c) plus what x normed becomes; x's memory is used again, some tokens at a time."""
        if torch.is_grad_enabled():
            return x + self(norm(x))
        tokens = x.view(-1, x.shape[-1])
        for part in tokens.split(self.piece or ops.at_once(tokens, 4 * x.shape[-1])):
            part.add_(self(norm(part)))
        return x


class TransformerBlock(nn.Module):
    """Two attentions and a feed-forward, each normed before and added after.

    The second attention looks at the context if there is one, else at the sequence again.
    """

    def __init__(self, channels: int, heads: int, context: int | None = None):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, heads, channels)
        attention = CrossAttention if context else Attention
        self.norm2, self.attn2 = nn.LayerNorm(channels), attention(channels, heads, channels, context)
        self.norm3, self.ff = nn.LayerNorm(channels), FeedForward(channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        """x (rows, n, c) is handed over: its memory is used again."""
        return self.ff.onto(self.attend(x, signal), self.norm3)

    def attend(self, x: Tensor, signal: Signal) -> Tensor:
        """What comes before the feed-forward."""
        return self.attn2.onto(self.attn1.onto(x, self.norm1, signal), self.norm2, signal)


def shares(mask: Tensor, rows: int, tokens: int) -> Tensor:
    """A mask (1 or b, 1, h, w) of any size → what it is for each token, (1 or rows, tokens, 1); rows are b·f."""
    ratio = mask.shape[3] / mask.shape[2]
    high = int((tokens / ratio) ** 0.5)
    high += int(tokens % high != 0)
    small = F.interpolate(mask.float(), (high, tokens // high), mode="bicubic").flatten(1)
    small = F.pad(small, (0, tokens - small.shape[1]))[..., None].to(mask.dtype)  # where the ratios differ
    return small if len(small) == 1 else small.repeat_interleave(rows // len(small), 0)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, x repeated where y has been widened to more guidance branches; y's memory is used again."""
    if len(x) != len(y):
        return widen(x, len(y)) + y
    return x + y if torch.is_grad_enabled() else y.add_(x)


def tell(x: Tensor, answer: Tensor, frames: int) -> Tensor:
    """x (b·f, n, c) with a clip's one answer (b, 1, c) added to all its pixels; x's memory is used again."""
    x = widen(x, len(answer) * frames)
    clips, answer = x.unflatten(0, (len(answer), -1)), answer[:, None]  # of one clip x may lie frames first or last
    return (clips + answer if torch.is_grad_enabled() else clips.add_(answer)).flatten(0, 1)
