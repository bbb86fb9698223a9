"""Pictures as prompts: IP-Adapters on a pipeline, under the names people know; set before calls, never during them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from ...checkpoint.hub import hub_options, local_folder
from ...checkpoint.lora_files import read_lora
from ...encoders.vision import FeatureExtractor
from ...errors import InputError
from ...memory.needs import on_meta
from ...memory.plan import Stage
from ...pipelines import inputs, parts
from ...pipelines.files import weights_file
from ...pipelines.overflow import Lift, healed
from ...pipelines.picture import pictures, pixels_of
from ...pipelines.receipt import plain
from ...pipelines.text_to_video import TextToVideo
from ...products import fast
from .ip_adapter import IPAdapter, Scale, Shown, check_scale

FILES = ("ip-adapter_sd15.safetensors", "ip-adapter_sd15.bin", "ip-adapter_sdxl.safetensors")


class PicturePrompts(TextToVideo):
    """A pipeline that may be shown pictures beside its text."""

    ip_adapters: tuple[IPAdapter, ...] = ()
    ip_scales: tuple[Scale, ...] = ()
    inherited: ClassVar[tuple[str, ...]] = ("ip_adapters", "ip_scales")

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

        FaceID's LoRA becomes active beside those that are, as "faceid_0", "faceid_1", …: the number of its adapter.

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
        networks = self._ready_adapters().networks
        for adapter in loaded:
            if adapter.lora:
                read_lora(adapter.lora, networks)  # so that one that does not fit leaves all as it is
        if self.image_encoder is None and image_encoder_folder is not None and not isinstance(sources[0], Mapping):
            within = "/" in image_encoder_folder or not folders[0]
            self._load_eye(sources[0], image_encoder_folder if within else f"{folders[0]}/{image_encoder_folder}", hub)
        if self.image_encoder is not None and self.feature_extractor is None:
            side = self.image_encoder.config.image_size
            self.feature_extractor = FeatureExtractor(side=(side, side))
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
        there = self._ready_adapters().loaded  # unload_lora_weights() may have taken them off already
        own = [name for i, adapter in enumerate(self.ip_adapters) if adapter.lora and (name := f"faceid_{i}") in there]
        if own:
            self.delete_adapters(own)
        self.ip_adapters = self.ip_scales = ()

    def _receipt(self) -> dict[str, Any]:
        shown = [
            {"kind": adapter.kind, "scale": plain(scale), **({"name": adapter.name} if adapter.name else {})}
            for adapter, scale in zip(self.ip_adapters, self.ip_scales, strict=True)
        ]
        return {**super()._receipt(), **({"ip_adapters": shown} if shown else {})}

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
        shown_to = image if given is None else given
        each = list(shown_to) if isinstance(shown_to, (list, tuple)) else [shown_to]
        if len(each) != len(self.ip_adapters):
            raise InputError(
                f"There are {len(self.ip_adapters)} IP-Adapters, but pictures for {len(each)}; give one for each, or a "
                "list for one that is shown several."
            )
        masks = masks_of(call["ip_adapter_masks"], len(each))
        adapters, scales = self.ip_adapters, self.ip_scales
        asked = [self._read(a, one, given is not None, guided) for a, one in zip(adapters, each, strict=True)]
        for scale, one, mask in zip(scales, asked, masks, strict=True):
            check_count(scale, mask, _count(next(iter(one.values()))))
        if self.image_encoder is None and any(not isinstance(x, Tensor) for one in asked for x in one.values()):
            raise InputError("There is no image encoder; load the IP-Adapter with its own, or give embeddings.")

        def shown() -> list[Shown]:
            made = []
            for adapter, scale, one, mask in zip(adapters, scales, asked, masks, strict=True):
                seen = {k: x if isinstance(x, Tensor) else self._seen(adapter, x, guided) for k, x in one.items()}
                words = adapter.words(**{k: x.repeat_interleave(clips, 0) for k, x in seen.items()})
                made.append(Shown(adapter, words, scale, mask))
            return made

        return shown

    def _besides(self) -> Mapping[str, nn.Module]:
        return {**super()._besides(), **{f"ip_adapter_{i}": one for i, one in enumerate(self.ip_adapters)}}

    def _hollow(self, **asked: Any) -> Callable[[Tensor], Any]:
        plain, twins = super()._hollow(**asked), [on_meta(one) for one in self.ip_adapters]

        def conditions(text: Tensor) -> Any:
            shown = [Shown(twin, _hollow_words(twin, len(text))) for twin in twins]
            return replace(plain(text), pictures=shown)

        return conditions

    def _stages(self, **asked: Any) -> list[Stage]:
        """What CLIP makes of pictures after what it makes of the text."""
        first, *rest = super()._stages(**asked)
        if not self.ip_adapters or self.image_encoder is None:
            return [first, *rest]
        side = self.image_encoder.config.image_size

        def embed(encoder: Any) -> Any:
            pixels = torch.empty(1, 3, side, side, device="meta", dtype=encoder.dtype)
            return encoder(pixels, output_hidden_states=True).hidden_states

        return [first, Stage("encode", "image_encoder", embed, len(self.ip_adapters)), *rest]

    def _read(self, adapter: IPAdapter, shown: Any, embedded: bool, guided: bool) -> dict[str, Any]:
        """What an adapter is to read, by the names `IPAdapter.words` has: embeddings, or pictures to be looked at.

        Raises:
            InputError: it is not what this kind of adapter reads.
        """
        if not adapter.kind.startswith("face"):
            return {"image": checked_embeds(adapter, shown, guided) if embedded else self._pictures(adapter, shown)}
        if not embedded:
            raise InputError(
                "An IP-Adapter FaceID reads what a face recogniser says of a face, not a picture; give that as "
                "ip_adapter_image_embeds (for FaceID-Plus with the picture: [(embedding, picture)])."
            )
        if adapter.kind == "faceid":
            return {"face": checked_embeds(adapter, shown, guided, "face")}
        if not isinstance(shown, (list, tuple)) or len(shown) != 2:
            raise InputError(
                "An IP-Adapter FaceID-Plus reads a face's embedding and a picture; give both as a pair: "
                "ip_adapter_image_embeds=[(embedding, picture)], the picture as such or as the image encoder's states."
            )
        face, image = checked_embeds(adapter, shown[0], guided, "face"), shown[1]
        states = isinstance(image, Tensor)
        seen = checked_embeds(adapter, image, guided) if states else self._pictures(adapter, image)
        if _count(face) != _count(seen):
            raise InputError(f"There are {_count(face)} faces and {_count(seen)} pictures of them; give one of each.")
        return {"face": face, "image": seen}

    def _pictures(self, adapter: IPAdapter, given: Any) -> list[Any]:
        """Pictures for an adapter.

        Raises:
            InputError: there are none, or it reads something else than this pipeline's image encoder makes of them.
        """
        read = next(read for read in adapter.reads if read.what == "image")
        config = None if self.image_encoder is None else self.image_encoder.config
        made = config and (config.hidden_size if read.tokens else config.projection_dim)
        if made not in (None, read.width):
            raise InputError(
                f"The IP-Adapter reads {read.width} numbers of a picture and the image encoder makes {made}; load the "
                "image encoder it was trained with."
            )
        return list(pictures(given, "ip_adapter_image"))

    def _seen(self, adapter: IPAdapter, shown: Sequence[Any], guided: bool) -> Tensor:
        """What CLIP makes of pictures, (branches, n, …): its embedding, or what it knows before its last layer."""
        extractor = FeatureExtractor.of(self.feature_extractor)

        def seen(lift: Lift) -> Tensor:
            with self._residency.use("image_encoder") as resident:
                encoder = lift(resident)
                pixels = torch.stack([extractor.normalize(pixels_of(cropped(p.image, extractor.side))) for p in shown])
                pixels = pixels.to(self.execution_device, encoder.dtype)
                with fast(pixels):
                    if adapter.kind == "plain":
                        made = encoder(pixels).image_embeds
                        nothing = torch.zeros_like(made)
                    else:
                        made, nothing = (
                            encoder(x, output_hidden_states=True).hidden_states[-2]
                            for x in (pixels, torch.zeros_like(pixels))
                        )
                return torch.stack([nothing, made] if guided else [made])

        return healed("encode", ["image_encoder"], self.image_encoder.dtype, seen)


def checked_embeds(adapter: IPAdapter, embeds: Any, guided: bool, what: str = "image") -> Tensor:
    """Embeddings a caller brings for one adapter, (branches, n, …), the branch without pictures first.

    Raises:
        InputError: they are not what the adapter reads.
    """
    read = next(read for read in adapter.reads if read.what == what)
    wanted = (1 + guided, "pictures", *("tokens",) * read.tokens, "channels")
    fits = isinstance(embeds, Tensor) and embeds.ndim == len(wanted) and embeds.numel()
    if not fits or (len(embeds), embeds.shape[-1]) != (1 + guided, read.width):
        got = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        first = ", those of no picture first" if guided else ""
        raise InputError(
            f"ip_adapter_image_embeds has {got} for an IP-Adapter of the kind {adapter.kind!r}; it must be tensors "
            f"({', '.join(map(str, wanted))}) of {read.width} channels{first}."
        )
    return inputs.finite("ip_adapter_image_embeds", embeds)


def _count(shown: Any) -> int:
    """How many pictures, of a list of them or of embeddings (branches, n, …)."""
    return int(shown.shape[1]) if isinstance(shown, Tensor) else len(shown)


def check_count(scale: Scale, mask: Tensor | None, pictures: int) -> None:
    """Refuses scales and masks that do not go with so many pictures.

    Raises:
        InputError: there are not as many.
    """
    several = scale if isinstance(scale, Sequence) else None
    if several is not None and mask is None:
        raise InputError("An IP-Adapter has a scale for each picture, which needs masks; give masks, or one scale.")
    if mask is not None and (mask.shape[1] != pictures or (several is not None and len(several) != pictures)):
        scales = f" and {len(several)} scales" if several is not None else ""
        raise InputError(
            f"An IP-Adapter is shown {pictures} pictures and has {mask.shape[1]} masks{scales}; give one of each for "
            "every picture."
        )


def _hollow_words(adapter: IPAdapter, rows: int, tokens: int = 257) -> Tensor:
    """What attentions read of one picture for each of so many clips and branches, without contents."""
    shapes = {one.what: (rows, 1, *(tokens,) * one.tokens, one.width) for one in adapter.reads}
    return adapter.words(**{what: torch.empty(shape, device="meta") for what, shape in shapes.items()})


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
