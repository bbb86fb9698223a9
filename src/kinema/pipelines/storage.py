"""A pipeline's weights in eight bits: less memory for a measured difference, off unless asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..memory.needs import amount
from ..memory.plan import Stage
from ..memory.storage import FORMATS, Format, Stored, restore, store, stored
from ..memory.stream import converted
from .inputs import choice

log = logging.getLogger("kinema")

PROBE = 4, 16  # frames, and latent pixels a side, of the random clip on which predictions are compared


class WeightStorage:
    """Networks whose weights are kept in eight bits and made anew, in the format they compute in, at each use."""

    name_or_path: str
    device: torch.device
    dtype: torch.dtype
    unet: Any
    _adapters: Any

    def enable_weight_storage(
        self,
        format: Format = "int8",
        components: str | Iterable[str] = ("unet",),
        *,
        keep_originals: bool = False,
    ) -> None:
        """Weights of linear layers and convolutions take a byte each; what that changes is measured and logged.

        Args:
            format: "int8", whole numbers with a scale for each output channel, is nearer; "float8", the four exponent
                and three fraction bits of accelerators, keeps small weights of channels that have a few large ones.
            components: the networks to do it in ("unet", "text_encoder", "vae", …).
            keep_originals: whether the host keeps the weights as they were, for `disable_weight_storage` to give back.

        Raises:
            InputError: a format or component is not known, or stored already; a LoRA has weights by frame, which need
                full ones; or another pipeline has LoRAs on one of the networks and not on the others.
        """
        choice("format", format, FORMATS)
        named = [components] if isinstance(components, str) else list(components)
        there: Mapping[str, nn.Module] = self.modules()  # type: ignore[attr-defined]
        for name in named:
            if name not in there:
                raise InputError(f"components names {name!r}; there are {', '.join(there)}.")
            if (held := stored(there[name])) is not None:
                raise InputError(f"{name} is stored as {held.format} already; call disable_weight_storage() first.")
        adapters = getattr(self, "_adapters", None)
        for name in named:
            if adapters is not None and (lora := adapters.by_frame_in(name)) is not None:
                raise InputError(
                    f"LoRA {lora!r} has weights by frame, which need the full weights of {name}; give it one weight "
                    "first."
                )
        self._others_forget(there[name] for name in named)
        with nullcontext() if adapters is None else adapters.off():
            exact = self._predicted() if "unet" in named else None
            for name in named:
                made = store(there[name], format, keep_originals)
                error = None if exact is None or name != "unet" else off(self._predicted(), exact)
                there[name].__dict__["prediction_error"] = error
                log.warning("weight_storage: %s", _said(name, made, error))

    def disable_weight_storage(self) -> None:
        """Weights take their full size again; what eight bits could not hold is back only where originals were kept."""
        if not self._stored():
            return
        self._others_forget(self.modules()[name] for name in self._stored())  # type: ignore[attr-defined]
        adapters = getattr(self, "_adapters", None)
        with nullcontext() if adapters is None else adapters.off():
            for name, module in self.modules().items():  # type: ignore[attr-defined]
                held = stored(module)
                if held is not None and not restore(module):
                    log.warning(
                        "%s keeps the rounding of %s, since its originals were not kept; load it again to have them, "
                        "or store it with keep_originals=True", name, held.format,
                    )  # fmt: skip
                module.__dict__.pop("prediction_error", None)

    def _others_forget(self, modules: Iterable[nn.Module]) -> None:
        """Nobody holds on to the weights of these networks, which are about to be held otherwise."""

    def _stored(self) -> dict[str, Stored]:
        modules: Mapping[str, nn.Module] = self.modules()  # type: ignore[attr-defined]
        return {name: held for name, module in modules.items() if (held := stored(module)) is not None}

    def _storage_receipt(self) -> dict[str, Any]:
        """The format of each network in eight bits, and the errors as they were measured."""
        told: dict[str, Any] = {}
        for name, held in self._stored().items():
            told[name] = {"format": held.format, "weights": held.error}
            error = getattr(self, name).__dict__.get("prediction_error")
            if error is not None:
                told[name]["prediction"] = error
        return {"weight_storage": told} if told else {}

    @torch.no_grad()
    def _predicted(self) -> Tensor:
        """What the denoiser predicts of a random clip, in float32; the same clip each time."""
        stage = self._denoising(*PROBE)
        nets: Mapping[str, Any] = {"unet": self.unet, **self._besides()}
        ready = {n: net if self.dtype == torch.float32 else converted(net, torch.float32) for n, net in nets.items()}
        with _Chance(self.device):
            made: Tensor = stage.run(ready.pop("unet"), **{name: ready[name] for name in stage.beside})
        return made.float()

    def _besides(self) -> Mapping[str, nn.Module]:
        """What works beside the denoiser, by name."""
        return {}

    def _denoising(self, frames: int, side: int) -> Stage:
        """The denoise stage of one clip of so many frames and latent pixels a side, unguided."""
        raise NotImplementedError


class _Chance(TorchFunctionMode):
    """Tensors that would have no contents hold random numbers instead, float32; those a network makes to fill stay."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.dice = device, torch.Generator().manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        hollow = func is torch.empty and str(kwargs.get("device")) == "meta"
        if not hollow and func is not Tensor.new_empty:
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": "meta"})
        if not made.is_floating_point():
            return func(*args, **{**kwargs, "device": self.device})
        return torch.randn(made.shape, generator=self.dice).to(self.device)


def off(found: Tensor, wanted: Tensor) -> float:
    """How far a prediction is from another, as a share of its size."""
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


def _said(name: str, held: Stored, error: float | None) -> str:
    prediction = "" if error is None else f", of a prediction {error:.2%} (on random inputs)"
    return (
        f"{name} as {held.format}, {amount(held.before)} of weights in {amount(held.after)}; error of the weights "
        f"{held.error:.2%}, at most {held.worst[1]:.2%} in {held.worst[0]}{prediction}"
    )
