"""ControlNets: a copy of a denoiser's way down that looks at pictures, and tells the denoiser (Zhang et al. 2023)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.folder import CONFIG, read_json
from ...checkpoint.load import Pretrained
from ...errors import CheckpointError
from ...layout import to_frames, to_video
from ...nn import ops
from ...nn.signal import Prepared, Signal
from ...nn.unet import Encoder, Row, meet
from .configs import check_levels
from .configs_control import ControlNetConfig, SteeringConfig
from .unet import ConditionedEncoder, MotionConditions, UNet2DConditionModel

N = TypeVar("N", bound=nn.Module)


class SteeringNet(ConditionedEncoder):
    """What looks at pictures and at latents, and says what a denoiser should add to what it keeps and to its middle."""

    config: SteeringConfig
    given_latents = True  # whether it looks at the latents, not at pictures alone

    def __init__(self, config: SteeringConfig, channels: int):
        """`channels`: of the pictures it looks at."""
        check_levels(config)
        self.__dict__["config"] = config  # rows are built by it, before a module may have attributes
        cross = ["CrossAttn" in kind for kind in config["down_block_types"]]
        Encoder.__init__(
            self,
            config.block_out_channels,
            config.layers_per_block,
            cross,
            config.in_channels,
            config.norm_num_groups,
            config.norm_eps,
        )
        self.controlnet_cond_embedding = self.embedding(channels)
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(c, c, 1) for c in self.kept)
        self.controlnet_mid_block = nn.Conv2d(self.kept[-1], self.kept[-1], 1)
        for module in (*self.controlnet_down_blocks, self.controlnet_mid_block):
            silence(module)
        self.tell_numbers()
        ops.lay_out(self)

    def embedding(self, channels: int) -> nn.Module:
        """What turns pictures into features of the latents' size."""
        return PictureEmbedding(channels, self.config.conditioning_embedding_out_channels or (), self.width)

    def shown(self, prepared: Prepared, pictures: Tensor) -> Prepared:
        """The same signals, with these pictures (1 or b, f, c, H, W): embedded once, for all steps."""
        hint = self.controlnet_cond_embedding(to_frames(pictures))
        return replace(prepared, hint=to_video(hint, pictures.shape[1]))

    def ordered(self, pictures: Tensor) -> Tensor:
        """Pictures (…, 3, H, W), red first → their channels as it was trained on them."""
        return pictures.flip(-3) if self.config.controlnet_conditioning_channel_order == "bgr" else pictures

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        assert signal.hint is not None
        return meet(super().enter(x, signal), to_frames(signal.hint))

    def forward(self, latents: Tensor, signal: Signal) -> list[Tensor]:
        """latents (b, f, c, h, w) at one step → what to add to every kept skip, in order, then to the middle.

        Rows of the first are the latents', of those behind a cross-attention the conditions': once a guidance branch.
        """
        x, skips = self.descend(latents, signal)
        said = [block(skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        said.append(self.controlnet_mid_block(x))
        return [r.mean((2, 3), keepdim=True) for r in said] if self.config.global_pool_conditions else said


class ControlNetModel(SteeringNet, Pretrained):
    """A published ControlNet, for Stable Diffusion 1.x, 2.x or XL; each frame is told of its own picture."""

    config_class = ControlNetConfig
    config: ControlNetConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = ControlNetConfig.read({**(config or {}), **fields}, "ControlNetModel")
        super().__init__(config, config.conditioning_channels)

    def middle(self, channels: int, level: int) -> Row:
        if self.config.mid_block_type == "UNetMidBlock2D":
            return self.row(channels, channels, level, False, "middle")
        return super().middle(channels, level)

    def prepare(self, times: Tensor, conditions: MotionConditions, pictures: Tensor | None = None) -> Prepared:
        """times (steps,), pictures (1 or b, f, 3, H, W) in [0, 1], eight times the latents' size → all signals."""
        plain = super().prepare(times, replace(conditions, extra=None, motion=None, pictures=()))
        return plain if pictures is None else self.shown(plain, self.ordered(pictures).to(conditions.text))

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A new ControlNet to be trained: it begins with a copy of the denoiser's weights, and says nothing yet."""
        given = {
            "controlnet_conditioning_channel_order": controlnet_conditioning_channel_order,
            "conditioning_embedding_out_channels": conditioning_embedding_out_channels,
            "conditioning_channels": conditioning_channels,
        }
        net = cls(fields_of(unet, ControlNetConfig()) | given)
        return begun_as(net, unet) if load_weights_from_unet else net


def fields_of(unet: UNet2DConditionModel, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a denoiser's configuration says of the same fields, but for pictures it may have been shown."""
    fields: dict[str, Any] = {name: value for name, value in unet.config.write().items() if name in own}
    return fields | {name: None for name in ("encoder_hid_dim", "encoder_hid_dim_type") if name in own}


def begun_as(net: N, unet: nn.Module) -> N:
    """The network with copies of the denoiser's weights, where both have some of a name."""
    state = unet.state_dict()
    with torch.no_grad():
        for name, weight in net.state_dict().items():
            if name in state:
                weight.copy_(state[name])
    return net


class PictureEmbedding(nn.Module):
    """Pictures → features an eighth of their size, by convolutions every second of which halves them."""

    def __init__(self, channels: int, widths: Sequence[int], out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for here, there in itertools.pairwise(widths):
            self.blocks.extend([nn.Conv2d(here, here, 3, padding=1), nn.Conv2d(here, there, 3, padding=1, stride=2)])
        self.conv_out = silence(nn.Conv2d(widths[-1], out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv_in, *self.blocks):
            x = F.silu(conv(x), inplace=not torch.is_grad_enabled())
        out: Tensor = self.conv_out(x)
        return out


class MultiControlNetModel(nn.Module):
    """Several ControlNets in one pipeline; a container with the published name."""

    def __init__(self, controlnets: Iterable[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(controlnets)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes the first to the folder, others beside it: `controlnet`, `controlnet_1`, `controlnet_2`, …"""
        for i, net in enumerate(self.nets):
            net.save_pretrained(_numbered(folder, i), **options)  # type: ignore[operator]

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Loads the folder and those beside it, `controlnet`, `controlnet_1`, …, as many as there are.

        Raises:
            CheckpointError: there is none, or one is broken.
        """
        if not Path(folder).is_dir():
            raise CheckpointError(f"{folder} is not a folder; give that of the first ControlNet.")
        folders = itertools.takewhile(Path.is_dir, (_numbered(folder, i) for i in itertools.count()))
        return cls([_kind(one).from_pretrained(one, **options) for one in folders])


def _kind(folder: Path) -> type[Any]:
    """The class of the network in a folder."""
    from .sparse_controlnet import SparseControlNetModel

    said = read_json(folder / CONFIG).get("_class_name")
    return SparseControlNetModel if said == SparseControlNetModel.__name__ else ControlNetModel


def _numbered(folder: str | Path, i: int) -> Path:
    path = Path(folder)
    return path.with_name(f"{path.name}_{i}") if i else path


def silence(module: nn.Module) -> nn.Module:
    """The module, which from now on says nothing: where training starts."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
