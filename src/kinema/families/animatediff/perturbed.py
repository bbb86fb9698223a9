"""A denoiser that also says what it would predict with less attention, to be guided away from (Ahn et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...nn.attention import Attention, CrossAttention
from ...nn.signal import Prepared, Signal
from .unet import ConditionedUNet, MotionConditions

LAYERS = "mid_block.*attn1"


class Perturbed:
    """A denoiser whose prediction has one more branch, the last: the conditional one, in which tokens of chosen
    self-attentions see themselves alone.

    What runs before the first of these runs once for both.
    """

    def __init__(self, unet: ConditionedUNet, layers: str | Sequence[str] = LAYERS):
        """Takes one pattern or several (regular expressions) that are somewhere in published names of self-attentions.

        Raises:
            InputError: a pattern is in no name.
        """
        self.unet = unet
        self.identity = chosen(unet, [layers] if isinstance(layers, str) else layers)
        self.early = any(module in self.identity for module in unet.down_blocks.modules())

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        return self.unet.prepare(times, conditions)

    def __call__(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the predictions, ((branches + 1)·b, f, c', h, w)."""
        clips = len(latents)
        bent = replace(signal.of_last(clips), identity=self.identity)
        if self.early:
            return torch.cat([self.unet(latents, signal), self.unet(latents, bent)])
        x, skips = self.unet.down(latents, signal)
        last = slice(-clips * signal.frames, None)
        plain = self.unet.rise(x, list(skips), signal)
        return torch.cat([plain, self.unet.rise(x[last], [skip[last] for skip in skips], bent)])


def chosen(unet: nn.Module, layers: Sequence[str]) -> frozenset[nn.Module]:
    """The self-attentions, also those over time, in whose published names one of the patterns is.

    Raises:
        InputError: a pattern is in none, or is none.
    """
    found: set[nn.Module] = set()
    for layer in layers:
        try:
            pattern = re.compile(layer)
        except (re.error, TypeError):
            raise InputError(f"pag_applied_layers has {layer!r}, which is no regular expression.") from None
        matching = {m for name, m in unet.named_modules() if _attends_to_itself(m) and pattern.search(name)}
        if not matching:
            raise InputError(
                f"pag_applied_layers has {layer!r}, which is in no name of a self-attention; see {LAYERS!r}."
            )
        found |= matching
    return frozenset(found)


def _attends_to_itself(module: nn.Module) -> bool:
    return isinstance(module, Attention) and not isinstance(module, CrossAttention)
