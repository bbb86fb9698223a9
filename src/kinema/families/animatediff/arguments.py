"""What the pipelines of this family can be told: each argument once, and which pipeline takes which, in what order."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ...errors import InputError
from ...pipelines.compat import familiar_names
from ...pipelines.output import VideoOutput

REQUIRED = inspect.Parameter.empty

# name: (default, type, meaning)
TABLE: Mapping[str, tuple[Any, str, str]] = MappingProxyType(
    {
        "prompt": (
            None,
            "str | Mapping[int, str] | list | None",
            "what to show; a list makes a batch. {0: …, 8: …} says what to show from a frame on; frames between two "
            "are shown what lies between. Longer ones than 77 tokens are read whole.",
        ),
        "prompt_2": (None, "str | list[str] | None", "what SDXL's second text encoder is told; `prompt` by default."),
        "image": (REQUIRED, "PictureInput", "the picture a clip begins with, or a batch of them."),
        "video": (
            None,
            "Any",
            "one clip, for all prompts, or one for each: PIL images, arrays or tensors in any usual form; `load_video` "
            "reads files.",
        ),
        "num_frames": (
            16,
            "int",
            "how many frames, 1 or more; motion modules were trained on 16, and more than they know places for (24 or "
            "32) are made in windows.",
        ),
        "height": (None, "int | None", "of the clip in pixels, a multiple of 8; the model's own by default (512)."),
        "width": (None, "int | None", "as `height`."),
        "num_inference_steps": (50, "int", "more is slower and up to a point better; 20 to 50."),
        "enforce_inference_steps": (
            False,
            "bool",
            "run as many steps as asked for, whatever the strength; given latents are noised, too.",
        ),
        "timesteps": (None, "Sequence[int] | None", "a schedule of one's own, noisiest first."),
        "sigmas": (None, "Sequence[float] | None", "a schedule of one's own, noisiest first."),
        "denoising_end": (None, "float | None", "stop where this share of the noise is gone, 0 to 1."),
        "guidance_scale": (7.5, "float", "how closely to follow the prompt, 1 (not guided) to about 15."),
        "strength": (
            0.8,
            "float",
            "how far from what the clip starts with, above 0 (hardly) to 1 (only the text counts).",
        ),
        "negative_prompt": (
            None,
            "str | Mapping[int, str] | list | None",
            "what not to show; used where guided; {0: …, 8: …} as for `prompt`.",
        ),
        "negative_prompt_2": (None, "str | list[str] | None", "the same for SDXL's second text encoder."),
        "num_videos_per_prompt": (1, "int", "clips of each prompt; those of one prompt lie next to each other."),
        "eta": (0.0, "float", "of DDIM, 0 (the same clip from the same noise) to 1 (fresh noise at each step)."),
        "generator": (None, "Generators", "an int seed, a torch or numpy generator, or a list of these, one a clip."),
        "latents": (
            None,
            "Tensor | None",
            "what to start from, (b, c, f, h/8, w/8), instead of drawing it: noise, or with `strength` a clip's.",
        ),
        "prompt_embeds": (None, "Tensor | None", "(b, k, c), instead of texts."),
        "negative_prompt_embeds": (None, "Tensor | None", "(b, k, c), instead of texts."),
        "pooled_prompt_embeds": (None, "Tensor | None", "(b, c): SDXL's whole text as one vector."),
        "negative_pooled_prompt_embeds": (None, "Tensor | None", "(b, c): the same of what not to show."),
        "ip_adapter_image": (None, "Any", "pictures for loaded IP-Adapters, one (or a list of them) for each adapter."),
        "ip_adapter_image_embeds": (
            None,
            "list[Tensor] | None",
            "what CLIP makes of them, (branches, n, c) for each adapter, instead of pictures; for FaceID what is said "
            "of a face, for FaceID-Plus pairs of that and a picture.",
        ),
        "conditioning_frames": (
            None,
            "Any",
            "what ControlNets are shown: a clip's frames (for several nets a list of clips); for SparseCtrl as many as "
            "`controlnet_frame_indices`.",
        ),
        "motion_scale": (
            1.0,
            "float | Sequence[float] | Mapping[Any, Any]",
            "how much motion modules count for, 0 (frames are pictures of their own) to about 1.5; one number a frame, "
            "or {frame: number}, if it changes; {name: any of these} of several motion adapters.",
        ),
        "preset": (
            None,
            "str | None",
            "what distilled weights need: scheduler, steps and guidance, where the call says nothing else: "
            '"lightning-1", "lightning-2", "lightning-4", "lightning-8", "lcm", "animatelcm" or "tcd".',
        ),
        "output_type": ("pil", "str", '"pil", "np", "pt" or "latent".'),
        "return_dict": (True, "bool", "kept for old code; the output is a tuple and has `.frames` either way."),
        "cross_attention_kwargs": (
            None,
            "Mapping[str, Any] | None",
            '{"scale": s}: the strength of loaded LoRAs in this call; {"ip_adapter_masks": [(1, n, h, w), …]}: where '
            "in the picture each IP-Adapter counts.",
        ),
        "guidance_rescale": (0.0, "float", "0 to 1, against over-exposure by strong guidance (Lin et al. 2023)."),
        "original_size": (None, "tuple[int, int] | None", "(height, width) SDXL is told of; the clip's by default."),
        "crops_coords_top_left": ((0, 0), "tuple[int, int]", "(top, left) SDXL is told of."),
        "target_size": (None, "tuple[int, int] | None", "(height, width) SDXL is told of; the clip's by default."),
        "negative_original_size": (None, "tuple[int, int] | None", "the same for the branch without the prompt."),
        "negative_crops_coords_top_left": ((0, 0), "tuple[int, int]", "the same for the branch without the prompt."),
        "negative_target_size": (None, "tuple[int, int] | None", "the same for the branch without the prompt."),
        "controlnet_conditioning_scale": (1.0, "float | list[float]", "how much each ControlNet counts for, 0 to 2."),
        "controlnet_frame_indices": ([0], "Sequence[int]", "which frames `conditioning_frames` are, from 0."),
        "guess_mode": (False, "bool", "let the ControlNet guess without a prompt; guidance 3 to 5 suits it."),
        "control_guidance_start": (0.0, "float | list[float]", "the share of steps after which ControlNets begin."),
        "control_guidance_end": (1.0, "float | list[float]", "the share of steps after which ControlNets end."),
        "clip_skip": (None, "int | None", "how many of the text encoder's last layers to leave out."),
        "pag_scale": (3.0, "float", "how far from the perturbed prediction; 0 is off, 1 to 5 usual."),
        "pag_adaptive_scale": (0.0, "float", "how fast `pag_scale` falls as noise goes, 0 (not) to 1."),
        "callback_on_step_end": (
            None,
            "Callable | None",
            'called as f(pipe, step, time, {"latents": …}) after every step; latents (b, c, f, h, w) in the mapping it '
            "returns are gone on with.",
        ),
        "callback_on_step_end_tensor_inputs": (["latents"], "Sequence[str]", "what to give it."),
        "video_length": (8, "int", "how many frames, 1 or more."),
        "motion_field_strength_x": (
            12,
            "float",
            "how far the picture moves to the left from frame to frame, in 512ths.",
        ),
        "motion_field_strength_y": (12, "float", "how far the picture moves up from frame to frame, in 512ths."),
        "t0": (44, "int", "how many steps before the last the first frame is moved to make the others."),
        "t1": (
            47,
            "int",
            "and how many before the last they go on from there, with fresh noise; more is freer motion.",
        ),
        "frame_ids": (None, "list[int] | None", "how many frames' motion each frame is from the first; 0, 1, 2, …"),
        "decode_chunk_size": (None, "int | None", "frames decoded at once, 1 by default; the picture does not change."),
        "callback": (None, "Callable | None", "older: called as f(step, time, latents)."),
        "callback_steps": (1, "int | None", "older: after how many steps."),
        "prompt_weighting": (False, "bool", "whether `(word:1.3)` and `[word]` weigh words."),
        "long_prompts": (
            "blocks",
            "LongPrompts",
            'what becomes of text beyond 77 tokens: "blocks" (all is read), "cut" (as in the reference) or "refuse".',
        ),
    }
)
# What a pipeline takes that has no such argument; only some begin part of the way, so that has none.
DEFAULTS = {name: default for name, (default, _, _) in TABLE.items() if default is not REQUIRED and name != "strength"}

_EMBEDS = "prompt_embeds negative_prompt_embeds"
_PICTURES = "ip_adapter_image ip_adapter_image_embeds"
_AFTER = "callback_on_step_end callback_on_step_end_tensor_inputs"
_START = "num_inference_steps guidance_scale negative_prompt num_videos_per_prompt eta generator latents"
_OUT = "output_type return_dict cross_attention_kwargs"
_CONTROL = "controlnet_conditioning_scale guess_mode control_guidance_start control_guidance_end"
_FOOTAGE = (
    "video prompt height width num_inference_steps enforce_inference_steps timesteps sigmas guidance_scale strength "
    f"negative_prompt num_videos_per_prompt eta generator latents {_EMBEDS} {_PICTURES}"
)
_SIZES = (
    "original_size crops_coords_top_left target_size "
    "negative_original_size negative_crops_coords_top_left negative_target_size"
)

TEXT = f"prompt num_frames height width {_START} {_EMBEDS} {_PICTURES} {_OUT} clip_skip {_AFTER} decode_chunk_size"
CONTROL = (
    f"prompt num_frames height width {_START} {_EMBEDS} {_PICTURES} conditioning_frames {_OUT} {_CONTROL} "
    f"clip_skip {_AFTER} decode_chunk_size"
)
SPARSE = (
    f"prompt height width num_frames {_START} {_EMBEDS} {_PICTURES} conditioning_frames {_OUT} "
    f"controlnet_conditioning_scale controlnet_frame_indices guess_mode clip_skip {_AFTER}"
)
VIDEO = f"{_FOOTAGE} {_OUT} clip_skip {_AFTER} decode_chunk_size"
VIDEO_CONTROL = f"{_FOOTAGE} conditioning_frames {_OUT} {_CONTROL} clip_skip {_AFTER} decode_chunk_size"
SDXL = (
    "prompt prompt_2 num_frames height width num_inference_steps timesteps sigmas denoising_end guidance_scale "
    "negative_prompt negative_prompt_2 num_videos_per_prompt eta generator latents "
    f"{_EMBEDS} pooled_prompt_embeds negative_pooled_prompt_embeds {_PICTURES} {_OUT} guidance_rescale {_SIZES} "
    f"clip_skip {_AFTER}"
)
PAG = f"{TEXT} pag_scale pag_adaptive_scale"
PIA = (
    f"image prompt strength num_frames height width {_START} {_EMBEDS} {_PICTURES} motion_scale {_OUT} "
    f"clip_skip {_AFTER}"
)
_ZERO = "motion_field_strength_x motion_field_strength_y output_type return_dict callback callback_steps"
ZERO = f"prompt video_length height width {_START} {_ZERO} t0 t1 frame_ids"
ZERO_SDXL = (
    "prompt prompt_2 video_length height width num_inference_steps denoising_end guidance_scale negative_prompt "
    f"negative_prompt_2 num_videos_per_prompt eta generator frame_ids {_EMBEDS} pooled_prompt_embeds "
    f"negative_pooled_prompt_embeds latents {_ZERO} cross_attention_kwargs guidance_rescale "
    "original_size crops_coords_top_left target_size t0 t1"
)
OURS = "preset motion_scale guidance_rescale timesteps sigmas decode_chunk_size prompt_weighting long_prompts"


OURS_ZERO = f"{_AFTER} clip_skip guidance_rescale timesteps sigmas decode_chunk_size prompt_weighting long_prompts"


def called_with(names: str, what: str, more: str = "", ours: str = OURS, **defaults: Any) -> Callable[..., VideoOutput]:
    """A pipeline's `__call__`, taking these arguments in this order, then ours by name.

    Args:
        names: the published arguments, in their published order.
        what: what calling does, the first line of its documentation.
        more: arguments of ours beside those that all of these pipelines take.
        ours: those that all take.
        defaults: where the pipeline's differ from the table's.
    """
    published = names.split()
    keyword = [name for name in f"{more} {ours} callback callback_steps".split() if name not in published]
    kinds: list[tuple[str, Any]] = [(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in published]
    kinds += [(name, inspect.Parameter.KEYWORD_ONLY) for name in keyword]
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, kind in kinds:
        default, hint, _ = TABLE[name]
        parameters.append(inspect.Parameter(name, kind, default=defaults.get(name, default), annotation=hint))
    signature = inspect.Signature(parameters, return_annotation="VideoOutput")

    def __call__(*args: Any, **kwargs: Any) -> VideoOutput:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"{type(args[0]).__name__}: {error}.") from None
        bound.arguments.update(args[0].preset(bound.arguments))
        bound.apply_defaults()
        call = dict(bound.arguments)
        made: VideoOutput = call.pop("self").complete(call)
        return made

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    __call__.__doc__ = _document(what, [*published, *keyword])
    return familiar_names(__call__)


def _document(what: str, names: list[str]) -> str:
    lines = [what, "", "Args:"]
    for name in names:
        text = f"{name}: {TABLE[name][2]}"
        lines += textwrap.wrap(text, 108, initial_indent="    ", subsequent_indent="        ")
    lines += [
        "",
        "Raises:",
        "    InputError: an argument cannot be used.",
        "    NumericsError: a stage produced numbers that are not finite.",
    ]
    return "\n".join(lines)
