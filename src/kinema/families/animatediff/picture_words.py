"""What turns a picture, as an image encoder sees it, into words for a denoiser's attentions: one module a kind.

Their names are those of the files' `image_proj.` keys. Each maps (n, …) to (n, k, c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...nn import ops


class Reads(NamedTuple):
    """What is read of a picture."""

    what: Literal["image", "face"]  # the image encoder's answer, or a face recogniser's
    width: int  # channels
    tokens: bool = False  # whether that is many vectors, of the layer before the last, and not one


HEAD = 64  # channels of a head, in every published file


class PlainWords(nn.Module):
    """One linear layer makes all words of the picture's embedding (Ye et al. 2023)."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        (out, width), (context,) = state["proj.weight"].shape, state["norm.weight"].shape
        self.proj, self.norm = nn.Linear(width, out), nn.LayerNorm(context)
        self.reads = (Reads("image", width),)

    def forward(self, image: Tensor) -> Tensor:
        """image (n, c') → (n, k, c)."""
        out: Tensor = self.norm(self.proj(image).unflatten(-1, (-1, self.norm.normalized_shape[0])))
        return out


class FullWords(nn.Module):
    """Every token of the image encoder becomes a word."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        (hidden, width), (context, _) = state["proj.0.weight"].shape, state["proj.2.weight"].shape
        self.proj = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, context), nn.LayerNorm(context)
        )
        self.reads = (Reads("image", width, tokens=True),)

    def forward(self, image: Tensor) -> Tensor:
        """image (n, k, c') → (n, k, c)."""
        out: Tensor = self.proj(image)
        return out


class FaceWords(nn.Module):
    """Words of who it is, from a face recogniser's embedding."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        (hidden, width), (out, _) = state["proj.0.weight"].shape, state["proj.2.weight"].shape
        self.proj = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))
        self.norm = nn.LayerNorm(state["norm.weight"].shape[0])
        self.reads: tuple[Reads, ...] = (Reads("face", width),)

    def forward(self, face: Tensor) -> Tensor:
        """face (n, c') → (n, k, c)."""
        out: Tensor = self.norm(self.proj(face).unflatten(-1, (-1, self.norm.normalized_shape[0])))
        return out


class Looking(nn.Module):
    """Latents look at tokens and at themselves (Jaegle et al. 2021)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.heads = inner // HEAD
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q, self.to_kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x (n, m, c), latents (n, k, c) → (n, k, c)."""
        asked = self.norm2(latents)
        q, kv = self.to_q(asked), self.to_kv(torch.cat([self.norm1(x), asked], dim=1))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, dim=-1)))
        out: Tensor = self.to_out(ops.attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class Resampler(nn.Module):
    """Tokens of a picture → as many words as there are latents."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = ""):
        super().__init__()
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        (width, seen), (context, _) = state["proj_in.weight"].shape, state["proj_out.weight"].shape
        self.proj_in, self.proj_out = nn.Linear(seen, width), nn.Linear(width, context)
        self.norm_out = nn.LayerNorm(context)
        self.layers: Any = nn.ModuleList()
        while (layer := f"layers.{len(self.layers)}") + ".0.to_q.weight" in state:
            inner, hidden = state[f"{layer}.0.to_q.weight"].shape[0], state[f"{layer}.1.1.weight"].shape[0]
            feed = (nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
            self.layers.append(nn.ModuleList([Looking(width, inner), nn.Sequential(nn.LayerNorm(width), *feed)]))

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """x (n, m, c'), latents (n, k, c'') → (n, k, c)."""
        x = self.proj_in(x)
        for look, feed in self.layers:
            latents = latents + look(x, latents)
            latents = latents + feed(latents)
        out: Tensor = self.norm_out(self.proj_out(latents))
        return out


class PlusWords(Resampler):
    """Words that latents, the same for all pictures, find among the image encoder's tokens."""

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__(state)
        self.latents = nn.Parameter(torch.empty(state["latents"].shape))
        self.reads = (Reads("image", self.proj_in.in_features, tokens=True),)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """image (n, m, c') → (n, k, c)."""
        return super().forward(image, self.latents.expand(len(image), -1, -1))


class FacePlusWords(FaceWords):
    """Words of who it is, which look at the picture's tokens."""

    shortcut: float | None = None  # version 2: what is found counts for so much beside who it is, not alone

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__(state)
        self.perceiver_resampler = Resampler(state, "perceiver_resampler.")
        self.reads += (Reads("image", self.perceiver_resampler.proj_in.in_features, tokens=True),)

    def forward(self, face: Tensor, image: Tensor) -> Tensor:  # type: ignore[override]
        """face (n, c'), image (n, m, c'') → (n, k, c)."""
        who = super().forward(face)
        found: Tensor = self.perceiver_resampler(image, who)
        return found if self.shortcut is None else who + self.shortcut * found


KINDS: Mapping[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "plain": PlainWords,
    "plus": PlusWords,
    "full": FullWords,
    "faceid": FaceWords,
    "faceid-plus": FacePlusWords,
}
