"""Pictures as prompts: IP-Adapters on a pipeline, under the names people know; set before calls, never during them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...checkpoint.hub import hub_options, local_folder
from ...encoders.vision import FeatureExtractor
from ...errors import InputError
from ...pipelines import inputs, parts
from ...pipelines.files import weights_file
from ...pipelines.picture import pictures, pixels_of
from ...pipelines.text_to_video import TextToVideo
from ...pipelines.video import sound
from .ip_adapter import IPAdapter, Scale, Shown, check_scale

FILES = ("ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin", "ip-adapter_sdxl.safetensors")


class PicturePrompts(TextToVideo):
    """A pipeline that may be shown pictures beside its text."""

    ip_adapters: tuple[IPAdapter, ...] = ()
    ip_scales: tuple[Scale, ...] = ()
    inherited = (*TextToVideo.inherited, "ip_adapters", "ip_scales")

    image_encoder: Any
    feature_extractor: Any

    def load_ip_adapter(
        self,
        source: str | Path | Mapping[str, Any] | list[Any],
        subfolder: str | list[str] | None = None,
        weight_name: str | list[str] | None = None,
        image_encoder_folder: str | None = "image_encoder",
        **hub: Any,
    ) -> None:
        """Loads IP-Adapters, in the place of those there are, each with scale 1.

        Args:
            source: a file, folder, hub id or dictionary, or a list of these; one with several weight names is each.
            subfolder, weight_name: which file of a folder or repository; lists for several.
            image_encoder_folder: where CLIP's image model lies, from the subfolder, or with a slash from the folder;
                None: pictures will come as embeddings.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as huggingface_hub has them.

        Raises:
            CheckpointError: it is none, or made for another model; nothing has changed then.
            InputError: there are not as many sources, folders and names.
        """
        hub_options(hub, "load_ip_adapter")
        names = weight_name if isinstance(weight_name, list) else [weight_name]
        sources = source if isinstance(source, list) else [source] * len(names)
        folders = subfolder if isinstance(subfolder, list) else [subfolder] * len(sources)
        names = names * len(sources) if len(names) == 1 else names
        if not len(sources) == len(folders) == len(names):
            raise InputError(
                f"There are {len(sources)} sources, {len(folders)} subfolders and {len(names)} weight names; give one "
                "of each for every IP-Adapter."
            )
        found = [
            one if isinstance(one, Mapping) else weights_file(one, name, folder, FILES, **hub)
            for one, folder, name in zip(sources, folders, names, strict=True)
        ]
        loaded = tuple(IPAdapter.load(one, self.unet) for one in found)
        if self.image_encoder is None and image_encoder_folder is not None and not isinstance(sources[0], Mapping):
            within = "/" in image_encoder_folder or not folders[0]
            self._load_eye(sources[0], image_encoder_folder if within else f"{folders[0]}/{image_encoder_folder}", hub)
        self.unload_ip_adapter()
        self.ip_adapters, self.ip_scales = loaded, (1.0,) * len(loaded)
        for i, adapter in enumerate(loaded):
            if adapter.lora:
                self.load_lora_weights(adapter.lora, adapter_name=f"faceid_{i}")

    def _load_eye(self, source: str | Path, folder: str, hub: Mapping[str, Any]) -> None:
        """CLIP's image model, where it lies beside the adapter."""
        if Path(source).is_file():
            source = Path(source).parent
        place = local_folder(source, subfolder=folder, **hub) if not Path(source).is_dir() else Path(source)
        if not (place / folder / "config.json").is_file():
            return
        self.image_encoder = parts.image_encoder().load(parts.Source(place, dtype=self.dtype), folder)
        self.image_encoder.to(self.device)
        if self.feature_extractor is None:
            side = self.image_encoder.config.image_size
            self.feature_extractor = FeatureExtractor(side=(side, side))

    def set_ip_adapter_scale(self, scale: Scale | list[Scale]) -> None:
        """How much the pictures of each IP-Adapter count for, 0 to 1.

        Args:
            scale: one number; a mapping by block, {"down": …, "mid": …, "up": {"block_0": [0.0, 1.0, 0.0]}}, where
                blocks that are not named count nothing; or a list of these, one for each adapter; inside of that a
                list of numbers, one for each picture with a mask of its own.

        Raises:
            InputError: there are not as many as adapters, or a block is named that is not there.
        """
        if not self.ip_adapters:
            raise InputError("There is no IP-Adapter whose scale could be set; call load_ip_adapter first.")
        each = list(scale) if isinstance(scale, list) else [scale] * len(self.ip_adapters)
        if len(each) != len(self.ip_adapters):
            raise InputError(
                f"There are {len(self.ip_adapters)} IP-Adapters but {len(each)} scales; give one for each."
            )
        for one, adapter in zip(each, self.ip_adapters, strict=True):
            check_scale(one, adapter)
        self.ip_scales = tuple(each)

    def unload_ip_adapter(self) -> None:
        """Forgets all IP-Adapters."""
        for i, adapter in enumerate(self.ip_adapters):
            if adapter.lora:
                self.delete_adapters(f"faceid_{i}")
        self.ip_adapters = self.ip_scales = ()

    def pictures_shown(self, call: Mapping[str, Any], clips: int, guided: bool) -> Callable[[], list[Shown]]:
        """Checks what a call shows to IP-Adapters; how to make of it what the denoiser is told.

        Raises:
            InputError: there are pictures without adapters, adapters without pictures, or not as many.
        """
        image, given = call["ip_adapter_image"], call["ip_adapter_image_embeds"]
        if image is None and given is None:
            if self.ip_adapters:
                raise InputError("IP-Adapters are loaded; give ip_adapter_image, or unload_ip_adapter() first.")
            return list
        if image is not None and given is not None:
            raise InputError("Give either ip_adapter_image or ip_adapter_image_embeds; both are given.")
        if not self.ip_adapters:
            raise InputError("There is no IP-Adapter to show pictures to; call load_ip_adapter first.")
        if given is None and self.image_encoder is None:
            raise InputError("There is no image encoder; load the IP-Adapter with its own, or give embeddings.")
        shown_to = image if given is None else given
        each = list(shown_to) if isinstance(shown_to, (list, tuple)) else [shown_to]
        if len(each) != len(self.ip_adapters):
            raise InputError(
                f"There are {len(self.ip_adapters)} IP-Adapters, but pictures for {len(each)}; give one for each, or a "
                "list for one that is shown several."
            )
        masks = masks_of(call["ip_adapter_masks"], len(each))
        if given is None:
            each = [pictures(one, "ip_adapter_image") for one in each]
        else:
            each = [self._checked(one, guided) for one in each]

        def shown() -> list[Shown]:
            made = []
            for adapter, scale, one, mask in zip(self.ip_adapters, self.ip_scales, each, masks, strict=True):
                seen = one if isinstance(one, Tensor) else self._seen(adapter, one, guided)
                rows = seen.repeat_interleave(clips, 0)
                made.append(Shown(adapter, self._words(adapter, rows), scale, mask))
            return made

        return shown

    def _words(self, adapter: IPAdapter, seen: Tensor) -> Tensor:
        """What attentions read, of what is seen, (branches·clips, n, …)."""
        return adapter.words(face=seen) if adapter.kind == "faceid" else adapter.words(image=seen)

    def _checked(self, embeds: Any, guided: bool) -> Tensor:
        """Embeddings a caller brings, (branches, n, …), the branch without pictures first."""
        if not isinstance(embeds, Tensor) or embeds.ndim not in (3, 4) or len(embeds) != 1 + guided:
            got = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise InputError(
                f"ip_adapter_image_embeds has {got}; it must be tensors ({1 + guided}, pictures, channels), those of "
                "no picture first where guided."
            )
        return inputs.finite("ip_adapter_image_embeds", embeds)

    def _seen(self, adapter: IPAdapter, shown: Sequence[Any], guided: bool) -> Tensor:
        """What CLIP makes of pictures, (branches, n, …): its embedding, or what it knows before its last layer."""
        extractor = FeatureExtractor.of(self.feature_extractor)
        with self._residency.use("image_encoder") as encoder:
            like = next(encoder.parameters())
            pixels = torch.stack([extractor.normalize(pixels_of(cropped(p.image, extractor.side))) for p in shown])
            pixels = pixels.to(self.execution_device, like.dtype)
            if adapter.kind == "plain":
                seen = encoder(pixels).image_embeds
                nothing = torch.zeros_like(seen)
            else:
                seen, nothing = (
                    encoder(x, output_hidden_states=True).hidden_states[-2] for x in (pixels, torch.zeros_like(pixels))
                )
        return sound("encode", torch.stack([nothing, seen] if guided else [seen]))


def cropped(image: Image.Image, side: tuple[int, int]) -> Image.Image:
    """A picture as CLIP is shown it: its shorter side made that long, the middle cut out."""
    high, wide = side
    scale = max(high / image.height, wide / image.width)
    size = (max(wide, int(image.width * scale)), max(high, int(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - wide) // 2, (size[1] - high) // 2
    return image.crop((left, top, left + wide, top + high))


def masks_of(given: Any, adapters: int) -> list[Tensor | None]:
    """Masks (1, n, h, w), one for each adapter; without any, None for each.

    Raises:
        InputError: they are something else.
    """
    if given is None:
        return [None] * adapters
    each = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(each) != adapters or any(not isinstance(m, Tensor) or m.ndim != 4 or len(m) != 1 for m in each):
        raise InputError(
            f"ip_adapter_masks must be {adapters} tensors (1, pictures, height, width), one an IP-Adapter."
        )
    return list(each)
