"""What a file of weights is, told from its keys and shapes alone: a table, most telling marks first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .lora_names import take_apart

Shapes = Mapping[str, tuple[int, ...]]

_BASES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}  # by the width of the text
_LDM = "model.diffusion_model."


@dataclass(frozen=True)
class Kind:
    """One kind of file: all of `needs` must be found in some key, none of `lacks` in any (regular expressions)."""

    name: str
    fits: str | Callable[[Shapes], str]
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    also: Callable[[Shapes], bool] = lambda shapes: True

    def matches(self, shapes: Shapes) -> bool:
        """Whether a file with these keys and shapes is of this kind."""
        found = all(_any(pattern, shapes) for pattern in self.needs)
        return found and not any(_any(pattern, shapes) for pattern in self.lacks) and self.also(shapes)


def kind_of(shapes: Shapes) -> tuple[str, str]:
    """What it is and what it fits; ("unknown", "") where nothing matches."""
    for kind in KINDS:
        if kind.matches(shapes):
            return kind.name, kind.fits if isinstance(kind.fits, str) else kind.fits(shapes)
    return "unknown", ""


def _any(pattern: str, shapes: Shapes) -> bool:
    found = re.compile(pattern)
    return any(found.search(key) for key in shapes)


def _first(pattern: str, shapes: Shapes) -> tuple[int, ...] | None:
    found = re.compile(pattern)
    return next((shape for key, shape in shapes.items() if found.search(key)), None)


def _axis(pattern: str, axis: int) -> Callable[[Shapes], int | None]:
    """The length of an axis of the first tensor whose key fits."""

    def length(shapes: Shapes) -> int | None:
        shape = _first(pattern, shapes)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    return length


_inputs = _axis(r"^(\w+\.)*(?<!coder\.)(?<!embedding\.)(conv_in|input_blocks\.0\.0)\.weight$", 1)
_context = _axis(  # of a LoRA, its matrix A has this width, and its B another
    r"attn2[._](processor\.)?to_k(_lora)?(\.lora)?([._](lora_)?(A|down))?(\.(?!(lora_)?(up|B)\.)[\w-]+)?\.weight$", 1
)
_numbers = _axis(r"(^|\.)label_emb\.0\.0\.weight$", 1)
_positions = _axis(r"(pos_encoder|pos_embed)\.(pe|positional_encoding)$", 1)
_highest = r"(?:^|\.)down_blocks\.(\d+)\."


def _levels(shapes: Shapes) -> int:
    return 1 + max((int(match[1]) for key in shapes if (match := re.search(_highest, key))), default=-1)


def _base(shapes: Shapes) -> str:
    reads = {9: ", inpainting", 8: ", instructions or depth"}.get(_inputs(shapes) or 0, "")
    return _BASES.get(_context(shapes) or 0, "an unknown base model") + reads


def _control_base(shapes: Shapes) -> str:
    return _base({key: shape for key, shape in shapes.items() if key.startswith("control_model.")})


def _motion_lora(shapes: Shapes) -> str:
    return f"AnimateDiff motion module {'v2' if _any(r'mid_block[._]', shapes) else 'v1, v2 or v3'}"


def _ip_base(shapes: Shapes) -> str:
    return _BASES.get(_axis(r"to_k_ip\.weight$", 1)(shapes) or 0, "an unknown base model")


def _lora_base(shapes: Shapes) -> str:
    """LoRA files name the layers they change, and text layers tell the width of the text."""
    if _any(r"temporal_(transformer_blocks|res_block)|spatial_res_block|time_(stack|pos_embed)", shapes):
        return SVD
    if _any(r"image_latents_|local_(image|temporal)_|(context|fps)_embedding", shapes):
        return I2VGEN
    if _any(r"temp_(attentions|convs)|transformer_in|temopral", shapes):
        return f"{MODELSCOPE}, {I2VGEN}"
    if _any(r"lora_te2_|text_encoder_2\.", shapes):
        return "SDXL"
    if (width := _context(shapes)) == 1024:
        return f"Stable Diffusion 2.x, ModelScope text-to-video, {I2VGEN}, {SVD}"
    return _BASES.get(width or 0, "an unknown base model")


def _motion(shapes: Shapes) -> str:
    base = "SDXL" if _levels(shapes) == 3 else "Stable Diffusion 1.5"
    length = _positions(shapes)
    return f"AnimateDiff with {base}" + (f", up to {length} frames" if length else ", any number of frames")


def _motion_only(shapes: Shapes) -> bool:
    return not _any(r"(^|\.)resnets\.\d+\.(conv1|spatial_res_block)", shapes)


def _is_lora(shapes: Shapes) -> bool:
    entries = [take_apart(key) for key in shapes]
    downs = sum(entry is not None and entry.role.startswith(("down", "hada", "lokr")) for entry in entries)
    return downs > 0 and sum(entry is not None for entry in entries) > len(entries) / 2


def _is_embedding(shapes: Shapes) -> bool:
    widths = {shape[-1] for shape in shapes.values() if 1 <= len(shape) <= 2}
    small = len(shapes) <= 4 and all(1 <= len(shape) <= 2 for shape in shapes.values())
    return small and bool(shapes) and widths <= {768, 1024, 1280} and max(s[0] for s in shapes.values()) <= 1280


def _embedding(shapes: Shapes) -> str:
    if _any(r"clip_[lg]$", shapes):
        return "SDXL"
    width = next(iter(shapes.values()))[-1]
    more = ", ModelScope text-to-video" if width == 1024 else ""
    return _BASES.get(width, "a text encoder") + more


SVD = "Stable Video Diffusion"
I2VGEN = "I2VGen-XL"
MODELSCOPE = "ModelScope text-to-video, zeroscope"
_IP = (r"^image_proj\.", r"^ip_adapter\.")
MOTION = r"motion_modules|temporal_attentions|temporal_transformer(?!_blocks)"

KINDS: tuple[Kind, ...] = (
    Kind("IP-Adapter FaceID Plus", _ip_base, (*_IP, r"^image_proj\.perceiver_resampler\.")),
    Kind("IP-Adapter FaceID", _ip_base, (*_IP, r"^ip_adapter\.\d+\.to_q_lora\.")),
    Kind("IP-Adapter Plus", _ip_base, (*_IP, r"^image_proj\.latents$")),
    Kind("IP-Adapter Full", _ip_base, (*_IP, r"^image_proj\.proj\.\d+\.")),
    Kind("IP-Adapter", _ip_base, _IP),
    Kind("motion LoRA", _motion_lora, (MOTION, r"lora"), also=_is_lora),
    Kind("LoRA (LyCORIS: LoHa, LoKr)", _lora_base, (r"\.(hada_w1_a|lokr_w1(_a)?)$",), also=_is_lora),
    Kind("LoRA (kohya)", _lora_base, (r"^lora_(unet|te\d?)_",), also=_is_lora),
    Kind("LoRA (peft)", _lora_base, (r"^base_model\.model\.",), also=_is_lora),
    Kind(
        "LoRA (attention processors)", _lora_base, (r"^(?!unet\.|text_encoder).*\.processor\.to_q_lora",), also=_is_lora
    ),
    Kind("LoRA (diffusers)", _lora_base, also=_is_lora),
    # whole pipelines in one file
    Kind(
        "Stable Video 3D, original single file",
        "orbits around an object",
        (r"diffusion_model\.input_blocks\..*\.time_stack\.",),
        also=lambda s: (_numbers(s) or 0) % 3 != 0,  # told by other numbers than frames a second, motion and noise
    ),
    Kind(
        "Stable Video Diffusion, original single file",
        "image to video",
        (r"diffusion_model\.input_blocks\..*\.time_stack\.", r"^first_stage_model\.decoder\..*\.time_stack\."),
    ),
    Kind(
        "Stable Video Diffusion with image decoder, original single file",
        "image to video",
        (r"diffusion_model\.input_blocks\..*\.time_stack\.", r"^first_stage_model\.decoder\."),
    ),
    Kind(
        "ControlNet with its base model, original file",
        _control_base,
        (r"^control_model\.", rf"^{_LDM}", r"^first_stage"),
    ),
    Kind(
        "SDXL inpainting, single file",
        "image inpainting",
        (rf"^{_LDM}", r"^conditioner\.embedders\.1\."),
        also=lambda s: _inputs(s) == 9,
    ),
    Kind("SDXL, single file", "AnimateDiff with SDXL", (rf"^{_LDM}", r"^conditioner\.embedders\.1\.")),
    Kind("SDXL refiner, single file", "image refinement", (rf"^{_LDM}", r"^conditioner\.embedders\.0\.model\.")),
    Kind("Stable Diffusion 2.x, single file", "image models", (rf"^{_LDM}", r"^cond_stage_model\.model\.")),
    Kind(
        "Stable Diffusion 1.x inpainting, single file",
        "image inpainting",
        (rf"^{_LDM}", r"^cond_stage_model\.transformer\."),
        also=lambda s: _inputs(s) == 9,
    ),
    Kind("Stable Diffusion 1.x, single file", "AnimateDiff", (rf"^{_LDM}", r"^cond_stage_model\.transformer\.")),
    # video networks
    Kind("I2VGen-XL U-Net, original file", I2VGEN, (r"local_image_concat", r"temopral_conv")),
    Kind("I2VGen-XL U-Net", I2VGEN, (r"^image_latents_proj_in\.", r"\.temp_convs\.")),
    Kind("ModelScope U-Net, original file", MODELSCOPE, (r"temopral_conv", r"input_blocks\.0\.1\.")),
    Kind("ModelScope U-Net", MODELSCOPE, (r"^transformer_in\.", r"\.temp_convs\.")),
    Kind("Stable Video Diffusion U-Net, original file", SVD, (r"(^|\.)input_blocks\..*\.time_stack\.",)),
    Kind("Stable Video Diffusion autoencoder, original file", SVD, (r"(^|\.)decoder\.conv_out\.time_mix_conv\.",)),
    Kind("Stable Video Diffusion U-Net", SVD, (r"temporal_res_block\.", r"^add_embedding\.")),
    Kind("Stable Video Diffusion autoencoder", SVD, (r"^decoder\.time_conv_out\.",)),
    # AnimateDiff
    Kind("SparseCtrl RGB", "AnimateDiff v3", (MOTION, r"controlnet_cond_embedding\.weight$")),
    Kind("SparseCtrl scribble", "AnimateDiff v3", (MOTION, r"controlnet_cond_embedding\.conv_in\.")),
    Kind("AnimateLCM-I2V motion module", _motion, (MOTION, r"img_encoder\."), also=_motion_only),
    Kind("FancyVideo motion module", _motion, (MOTION, r"(^|\.)fps_embedding\.", r"(^|\.)motion_embedding\.")),
    Kind("CameraCtrl pose encoder", "AnimateDiff v3", (r"\.qkv_merge\.|(^|\.)encoder_down_conv_blocks\.",)),
    Kind("HotshotXL motion module", _motion, (r"temporal_attentions\.", r"pos_encoder\.positional_encoding")),
    Kind("PIA adapter", _motion, (MOTION,), also=lambda s: _motion_only(s) and _inputs(s) == 9),
    Kind("AnimateDiff motion module for SDXL", _motion, (MOTION,), also=lambda s: _motion_only(s) and _levels(s) == 3),
    Kind("AnimateLCM motion module", _motion, (MOTION, r"mid_block"), (r"pos_(encoder|embed)\.",), _motion_only),
    Kind(
        "AnimateDiff motion module, longer",
        _motion,
        (MOTION,),
        also=lambda s: _motion_only(s) and (_positions(s) or 0) > 32,
    ),
    Kind("AnimateDiff motion module v2", _motion, (MOTION, r"mid_block\."), also=_motion_only),
    Kind("AnimateDiff motion module v1", _motion, (MOTION,), also=lambda s: _motion_only(s) and _positions(s) == 24),
    Kind("AnimateDiff motion module v3", _motion, (MOTION,), also=_motion_only),
    Kind("AnimateDiff U-Net, motion inside", "AnimateDiff", (r"motion_modules\.", r"^conv_in\.")),
    # image networks
    Kind("ControlNet, original file", _base, (r"(^|\.)input_hint_block\.",)),
    Kind("ControlNet", _base, (r"^controlnet_(cond_embedding|down_blocks)\.",)),
    Kind("image U-Net, original file", _base, (r"(^|\.)input_blocks\.0\.0\.weight$", r"(^|\.)output_blocks\.")),
    Kind("image U-Net", _base, (r"^conv_in\.weight$", r"^time_embedding\.", r"^down_blocks\.0\.resnets\.")),
    Kind(
        "autoencoder, original file",
        "ModelScope, I2VGen-XL, AnimateDiff",
        (r"(^|\.)encoder\.down\.0\.block\.", r"(^|\.)decoder\.up\.0\.block\."),
    ),
    Kind(
        "autoencoder",
        "ModelScope, I2VGen-XL, AnimateDiff",
        (r"^encoder\.down_blocks\.0\.resnets\.", r"^decoder\.up_blocks\.0\.resnets\."),
    ),
    # encoders
    Kind(
        "OpenCLIP",
        "ModelScope (text), Stable Video Diffusion and I2VGen-XL (pictures)",
        (r"(^|\.)transformer\.resblocks\.0\.", r"(^|\.)token_embedding\.weight$"),
    ),
    Kind(
        "CLIP vision encoder",
        "Stable Video Diffusion, I2VGen-XL, IP-Adapter",
        (r"(^|\.)vision_model\.|^visual_projection\.",),
        (r"token_embedding",),
    ),
    Kind("CLIP, text and vision", "text and image encoders", (r"vision_model\.", r"token_embedding\.weight$")),
    Kind(
        "CLIP text encoder",
        lambda s: {768: "AnimateDiff", 1024: "ModelScope, I2VGen-XL", 1280: "AnimateDiff with SDXL"}.get(
            _axis(r"token_embedding\.weight$", 1)(s) or 0, "a text-to-video model"
        ),
        (r"(^|\.)embeddings\.token_embedding\.weight$",),
    ),
    Kind("textual inversion", _embedding, also=_is_embedding),
)
