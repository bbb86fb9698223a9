"""Everything people plug into AnimateDiff goes with everything else: each pair works, and both of it count."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.animatediff_tiny import text_widths
from tests.pipelines_tiny import off

import kinema

FRAMES = 6


@dataclass
class Asked:
    """What is to be plugged in, and what the call says."""

    call: dict[str, Any] = field(
        default_factory=lambda: {**pipes.CALL, "num_frames": FRAMES, "num_inference_steps": 2, "generator": 5}
    )
    nets: list[Any] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    settings: list[Callable[[Any], None]] = field(default_factory=list)


def _lora(part: str, seed: int) -> dict[str, Any]:
    """A LoRA of the weights whose names hold this."""
    unet = _base().unet
    dice, state = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and part in name and ".attn" in name and ".others." not in name:
            wide, deep = module.weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(2, deep, generator=dice)
            state[f"unet.{name}.lora_B.weight"] = torch.randn(wide, 2, generator=dice) * 0.2
    return state


def lora(asked: Asked) -> None:
    asked.settings.append(lambda pipe: pipe.load_lora_weights(_lora("attentions", 1), "style"))


def motion_lora(asked: Asked) -> None:
    asked.settings.append(lambda pipe: pipe.load_lora_weights(_lora("motion_modules", 2), "pan"))


def lora_by_frame(asked: Asked) -> None:
    asked.settings.append(lambda pipe: pipe.load_lora_weights(_lora("attentions", 6), "ink"))
    asked.settings.append(lambda pipe: pipe.set_adapters([*pipe.get_active_adapters()], _weights(pipe)))


def _weights(pipe: Any) -> list[Any]:
    return [{"frames": {1: 1.0, 4: 0.0}} if name == "ink" else 1.0 for name in pipe.get_active_adapters()]


def more_motion(asked: Asked) -> None:
    adapter = tiny.ours(tiny.reference_adapter(8))
    asked.settings.append(lambda pipe: pipe.add_motion_adapter("more", adapter))
    asked.call["motion_scale"] = {"default": {1: 1.0, 4: 0.0}, "more": {1: 0.0, 4: 1.0}}


def control(asked: Asked) -> None:
    image = tiny.reference_image_model(cross_attention_dim=pipes.WIDTH)
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(image, conditioning_embedding_out_channels=(8, 16))
    asked.nets.append(tiny.ours(tiny._shaken(net.eval(), 5)))
    asked.shown.append(pipes.clip(FRAMES))


def sparse(asked: Asked) -> None:
    net = tiny.reference_sparse_control(cross_attention_dim=pipes.WIDTH)
    asked.nets.append(tiny.ours(net))
    asked.shown.append(pipes.clip(2))
    asked.call["controlnet_frame_indices"] = [0, 4]


def travel(asked: Asked) -> None:
    asked.call["prompt"] = {0: "a red circle", 4: "a star"}


def windows(asked: Asked) -> None:
    asked.settings.append(lambda pipe: pipe.enable_windows(length=4, overlap=2))


def free_init(asked: Asked) -> None:
    asked.settings.append(lambda pipe: pipe.enable_free_init(num_iters=2))


def few_steps(asked: Asked) -> None:
    asked.call["preset"] = "lcm"


def footage(asked: Asked) -> None:
    asked.call |= {"video": pipes.clip(FRAMES), "strength": 0.5, "num_inference_steps": 4}
    del asked.call["num_frames"]


def picture(asked: Asked) -> None:
    """An IP-Adapter, shown what CLIP would have said of a picture."""
    unet = _base().unet
    context = pipes.WIDTH
    dice = torch.Generator().manual_seed(4)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=dice) / shape[-1] ** 0.5

    file = {"image_proj.proj.weight": some(4 * context, 12), "image_proj.proj.bias": some(4 * context)}
    file |= {"image_proj.norm.weight": 1 + some(context), "image_proj.norm.bias": some(context)}
    attentions = text_widths(unet)
    for i, width in enumerate(attentions):
        file |= {f"ip_adapter.{2 * i + 1}.to_{k}_ip.weight": some(width, context) for k in "kv"}
    asked.settings.append(lambda pipe: pipe.load_ip_adapter(file, image_encoder_folder=None))
    asked.call["ip_adapter_image_embeds"] = [torch.randn(2, 1, 12, generator=dice)]


CONDITIONS = (lora, motion_lora, picture, control, sparse, travel, windows, free_init, few_steps, footage)
BY_FRAME = (lora_by_frame, more_motion)
PAIRS = [*itertools.combinations(CONDITIONS, 2), *itertools.product(BY_FRAME, CONDITIONS), BY_FRAME]


@cache
def _base() -> Any:
    return pipes.ours(pipes.theirs())


def _made(conditions: tuple[Callable[[Asked], None], ...]) -> Any:
    """A clip made with these plugged in, (f, h, w, 3)."""
    asked = Asked()
    for condition in conditions:
        condition(asked)
    kind = ("VideoToVideo" if footage in conditions else "") + ("ControlNet" if asked.nets else "")
    parts: dict[str, Any] = {}
    if asked.nets:
        several = len(asked.nets) > 1
        parts["controlnet"] = asked.nets if several else asked.nets[0]
        asked.call["conditioning_frames"] = asked.shown if several else asked.shown[0]
    pipe = getattr(kinema, f"AnimateDiff{kind}Pipeline").from_pipe(_base(), **parts)
    pipe.set_progress_bar_config(disable=True)
    try:
        for setting in asked.settings:
            setting(pipe)
        return pipe(**asked.call).frames[0]
    finally:
        pipe.unload_lora_weights()
        pipe.unload_ip_adapter()
        for name in pipe.motion_names[1:]:
            pipe.remove_motion_adapter(name)


@cache
def _alone(condition: Callable[[Asked], None]) -> Any:
    return _made((condition,))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(c.__name__ for c in pair))
def test_two_conditions_work_together_and_both_count(pair: Any) -> None:
    clip = _made(pair)
    assert clip.shape[0] == FRAMES
    assert torch.isfinite(torch.from_numpy(clip)).all()
    for condition in pair:
        assert off(clip, _alone(condition)) > 1e-3, f"{condition.__name__} is all that counts"
