"""LoRA on a pipeline's networks, under the names people know: set before calls, never during them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from ..checkpoint.hub import hub_options
from ..checkpoint.lora import Adapters, has_loras
from ..checkpoint.lora_files import FILES
from ..checkpoint.lora_frames import plain
from ..errors import InputError
from ..memory.stream import Streamed
from .files import weights_file
from .inputs import number
from .video import VideoPipeline

log = logging.getLogger("kinema")

# Of an adapter: one for all networks, or {"unet": …, "text_encoder": …}, the first also by block.
Weight = float | Mapping[str, Any]


@dataclass(eq=False)
class Loras:
    """What is known of the LoRAs on some networks, by all pipelines that have these networks."""

    networks: WeakValueDictionary[str, Any]
    adapters: Adapters | None = None
    disabled: Mapping[str, Mapping[str, Any]] | None = None

    def of(self, networks: Mapping[str, Any]) -> bool:
        """Whether it is about these."""
        if self.adapters is not None:
            return all(self.adapters.networks[part].module is module for part, module in networks.items())
        return all(self.networks.get(part) is module for part, module in networks.items())


class AdaptablePipeline(VideoPipeline):
    """A pipeline whose networks take LoRAs. They are sums on weights, and on full ones cost nothing per step."""

    adapted: tuple[str, ...] = ("unet", "text_encoder")

    def __init__(self, **components: Any):
        super().__init__(**components)
        self._loras = self._known_loras()

    def _known_loras(self) -> Loras:
        """What other pipelines know of these very networks, or nothing yet."""
        own = self._networks()
        others = [other for other in self._other_pipelines() if isinstance(other, AdaptablePipeline)]
        known = (loras for other in others if (loras := getattr(other, "_loras", None)) and other._networks() == own)
        empty = Loras(WeakValueDictionary({part: module for part, module in own.items() if module is not None}))
        return next((loras for loras in known if loras.of(own)), empty)

    def _others_forget(self, modules: Iterable[nn.Module]) -> None:
        wanted = set(modules)
        if any(adapters.change(part) for adapters, part in self._others_on(wanted)):
            gc.collect()  # pipelines that nobody has any more do not count
        for adapters, part in self._others_on(wanted):
            if adapters.change(part):
                raise InputError(
                    "Another pipeline has LoRAs on one of these networks, and other networks beside it; call its "
                    "unload_lora_weights() first."
                )
            adapters.networks[part].let_go()
        own = [] if self._adapters is None else self._adapters.networks.values()
        if any(map(has_loras, wanted - {network.module for network in own if network.changes})):
            log.warning("weights keep LoRAs that no pipeline knows any more; load the networks again to be rid of them")

    def _others_on(self, modules: set[nn.Module]) -> list[tuple[Adapters, str]]:
        """Where pipelines that do not have all of this one's networks may put LoRAs on these."""
        own, known = self._current(), [getattr(other, "_loras", None) for other in self._other_pipelines()]
        there = [loras.adapters for loras in known if loras not in (None, own) and loras.adapters is not None]
        return [(each, part) for each in there for part, network in each.networks.items() if network.module in modules]

    def _networks(self) -> dict[str, Any]:
        return {part: getattr(self, part) for part in self.adapted}

    def _current(self) -> Loras:
        """What is known of the networks as they are now; one may have been assigned."""
        if not self._loras.of(self._networks()):
            self._loras = self._known_loras()
        return self._loras

    @property
    def _adapters(self) -> Adapters | None:
        return self._current().adapters

    @property
    def _disabled(self) -> Mapping[str, Mapping[str, Any]] | None:
        return self._current().disabled

    @_disabled.setter
    def _disabled(self, disabled: Mapping[str, Mapping[str, Any]] | None) -> None:
        self._current().disabled = disabled

    def load_lora_weights(
        self,
        source: str | Path | Mapping[str, Any],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        subfolder: str | None = None,
        **hub: Any,
    ) -> None:
        """Loads a LoRA and makes it active with weight 1, beside those that are.

        Args:
            source: a file, folder, hub id or dictionary, as diffusers, peft or kohya write them.
            adapter_name: to call it by in `set_adapters`; "default_0", "default_1", … by default.
            weight_name, subfolder: which file of a folder or repository.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as huggingface_hub has them.

        Raises:
            CheckpointError: it is no LoRA, or not one for this model; nothing has changed then.
            InputError: the name is taken, an argument is not known, or another pipeline that shares one of the networks
                and not all has LoRAs on it.
        """
        hub_options(hub, "load_lora_weights")
        adapters = self._ready_adapters()
        if isinstance(source, (str, Path)):
            source = weights_file(source, weight_name, subfolder, FILES, **hub)
        name = adapters.load(source, adapter_name)
        try:
            self._others_forget(n.module for part, n in adapters.networks.items() if adapters.loaded[name].get(part))
        except InputError:
            adapters.remove(name)
            raise
        adapters.set({**adapters.active, name: 1.0})

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight] | None = None
    ) -> None:
        """Makes exactly these LoRAs active, each with its weight (1 by default; any number).

        A weight can be {"unet": w, "text_encoder": v}, and of the U-Net by block: {"unet": {"down": 0.5, "mid": 1.0,
        "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1.0]}}}, a list having a number for each row of attentions; what
        is not named counts fully.

        AnimateDiff's U-Net takes weights by frame as well: {"frames": {0: 1.0, 8: 0.0}} is 1 at frame 0, 0 from frame
        8 on, and between in proportion; a list has a number for each frame. Weights of blocks beside it are multiplied
        with these. Frames of equal weights share one sum, so time stays the same; each other takes memory of its own
        for the weights that the LoRA changes, and is made once a call.

        Raises:
            InputError: a name is not loaded, there are not as many weights as names, or one cannot be used.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights: Any = 1.0 if adapter_weights is None else adapter_weights
        if isinstance(weights, (int, float, Mapping)):
            weights = [weights] * len(names)
        if len(weights) != len(names):
            raise InputError(f"There are {len(names)} adapters but {len(weights)} weights; give one for each.")
        self._ready_adapters().set(dict(zip(names, weights, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """The names of LoRAs in force."""
        return list(self._ready_adapters().active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all loaded LoRAs, by network."""
        loaded = self._ready_adapters().loaded
        return {part: names for part in self.adapted if (names := [n for n, d in loaded.items() if d.get(part)])}

    def disable_lora(self) -> None:
        """Takes all LoRAs off until `enable_lora`."""
        adapters = self._ready_adapters()
        if adapters.active:  # taking them off twice must not forget which there were
            self._disabled = adapters.active
        adapters.set({})

    def enable_lora(self) -> None:
        """Puts LoRAs back on that `disable_lora` took off."""
        if self._disabled is not None:
            adapters = self._ready_adapters()
            still = {name: by for name, by in self._disabled.items() if name in adapters.loaded}
            adapters.set({**still, **adapters.active})
            self._disabled = None

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forgets these LoRAs."""
        self._ready_adapters().remove(adapter_names)

    def fuse_lora(
        self,
        components: Sequence[str] = (),
        lora_scale: float = 1.0,
        safe_fusing: bool = True,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Makes LoRAs a part of the model: later `set_adapters` and `unload_lora_weights` leave them on.

        Args:
            components: the networks to do it in ("unet", "text_encoder"), by default all.
            lora_scale: how many times as strong as now.
            safe_fusing: kept for old code; LoRAs with numbers that are not finite are refused when loaded.
            adapter_names: which LoRAs, by default all that are active.

        Raises:
            InputError: a network or a LoRA is not known.
        """
        self._ready_adapters().fuse(adapter_names, number("lora_scale", lora_scale), components or None)

    def unfuse_lora(self) -> None:
        """Makes fused LoRAs ordinary ones again."""
        self._ready_adapters().unfuse()

    def unload_lora_weights(self) -> None:
        """Forgets all LoRAs; the weights are, to the bit, what they were."""
        self._ready_adapters().unload()

    def _ready_adapters(self) -> Adapters:
        loras, networks = self._current(), self._networks()
        if loras.adapters is None:
            by_frame = [part for part, module in networks.items() if hasattr(module, "weighted")]
            loras.adapters = Adapters(networks, by_frame=by_frame)
        return loras.adapters

    def _with_lora(self, part: str, module: Any, scale: float | None, frames: int = 0) -> Any:
        """The network of this part for one call, with LoRAs `scale` times as strong and by frame; nothing shared
        changes."""
        if self._adapters is None:
            return module
        if scale is None or scale == 1:
            made = module
        elif module is not self._adapters.networks[part].module:
            raise InputError("A LoRA scale for one call does not go with sequential offload; use set_adapters instead.")
        else:
            made = self._adapters.scaled(part, number('cross_attention_kwargs["scale"]', scale))
        found = self._adapters.along(part, frames, 1.0 if scale is None else scale)
        if found is None:
            return made
        of, sets = found
        here = [{name: x.to(self.execution_device) for name, x in each.items()} for each in sets]
        if isinstance(made, Streamed):
            return made.made_into(lambda unet: unet.weighted(of, here))  # type: ignore[operator]
        return made.weighted(of, here)

    def _hollow_lora(self, part: str, module: Any, frames: int) -> Any:
        """What plans have of it: the network with room for the weights that differ by frame."""
        found = None if self._adapters is None else self._adapters.along_hollow(part, frames)
        return module if found is None else module.weighted(*found)

    def _copied(self, frames: int) -> int:
        found = None if self._adapters is None else self._adapters.along_hollow("unet", frames)
        return 0 if found is None else sum(x.nbytes for each in found[1] for x in each.values())

    def _receipt(self) -> dict[str, Any]:
        adapters = self._adapters
        on = {} if adapters is None else {**adapters.fused, **adapters.active}
        loras = {name: {part: plain(weight) for part, weight in by.items()} for name, by in on.items()}
        return {**super()._receipt(), **({"loras": loras} if loras else {})}
