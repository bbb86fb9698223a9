"""What cannot be used is refused in one sentence, before any network runs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pipelines_tiny import SIZE, as_video_pipe, clip, gen, ours

import kinema
from kinema import CheckpointError, InputError, KinemaError, NumericsError

NAN = float("nan")


class Ran(AssertionError):
    """A network was reached."""


def _ran(*_: Any, **__: Any) -> Any:
    raise Ran


@cache
def silent(video: bool = False) -> Any:
    """A pipeline whose networks must not be reached."""
    pipe = ours()
    for network in (pipe.unet, pipe.vae, pipe.text_encoder):
        network.forward = _ran
    pipe.vae.decode = pipe.vae.encode = pipe.unet.prepare = _ran
    return as_video_pipe(pipe) if video else pipe


def embeddings(n: int = 1, tokens: int = 5, width: int = 32) -> torch.Tensor:
    return torch.zeros(n, tokens, width)


def spoilt(shape: tuple[int, ...]) -> torch.Tensor:
    x = torch.zeros(shape)
    x.view(-1)[-1] = NAN
    return x


TEXT = {
    "a size that does not fit": ({"height": 17, "width": 24}, "nearest that is: 24×16"),
    "a tiny size": ({"height": 1}, "nearest that is"),
    "no height": ({"height": 0}, "height is 0"),
    "a negative width": ({"width": -8}, "width is -8"),
    "half a pixel": ({"height": 16.5}, "height is 16.5"),
    "a size in words": ({"width": "16"}, "width is '16'"),
    "no frames": ({"num_frames": 0}, "num_frames is 0"),
    "negative frames": ({"num_frames": -3}, "num_frames is -3"),
    "frames that are no count": ({"num_frames": 2.0}, "num_frames is 2.0"),
    "frames that are true": ({"num_frames": True}, "num_frames is True"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    "half steps": ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
    "steps that are false": ({"num_inference_steps": False}, "num_inference_steps is False"),
    "more steps than there are": ({"num_inference_steps": 5000}, "1000"),
    "no videos": ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0"),
    "a chunk of nothing": ({"decode_chunk_size": 0}, "decode_chunk_size is 0"),
    "callbacks never": ({"callback_steps": 0}, "callback_steps is 0"),
    "a callback that is none": ({"callback": 3}, "callback is a int"),
    "a callback at the end that is none": ({"callback_on_step_end": "f"}, "callback_on_step_end is a str"),
    "a callback's strange wish": ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
    "guidance that is no number": ({"guidance_scale": NAN}, "guidance_scale is nan"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale is -1"),
    "guidance in words": ({"guidance_scale": "7.5"}, "guidance_scale is '7.5'"),
    "rescaling beyond one": ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
    "eta beyond one": ({"eta": 2}, "eta is 2"),
    "neither prompt nor embeddings": ({"prompt": None}, "neither is given"),
    "prompt and embeddings": ({"prompt_embeds": embeddings()}, "both are given"),
    "negatives twice": ({"negative_prompt": "a", "negative_prompt_embeds": embeddings()}, "both are given"),
    "no prompts": ({"prompt": []}, "empty list"),
    "a prompt that is a number": ({"prompt": 3}, "prompt is a int"),
    "a list of numbers": ({"prompt": ["a", 3]}, "text or a list of texts"),
    "negatives of another number": ({"prompt": ["a", "b"], "negative_prompt": ["x"] * 3}, "2 prompts but 3 negative"),
    "a negative that is a number": ({"negative_prompt": 3}, "negative_prompt is a int"),
    "embeddings of another width": ({"prompt": None, "prompt_embeds": embeddings(width=48)}, r"clips, tokens, 32"),
    "embeddings of too few axes": ({"prompt": None, "prompt_embeds": embeddings()[0]}, "prompt_embeds"),
    "embeddings that are a list": ({"prompt": None, "prompt_embeds": [1.0]}, "prompt_embeds is list"),
    "embeddings of no clips": ({"prompt": None, "prompt_embeds": embeddings(0)}, "prompt_embeds"),
    "NaN embeddings": ({"prompt": None, "prompt_embeds": spoilt((1, 5, 32))}, "prompt_embeds holds"),
    "NaN negative embeddings": ({"negative_prompt_embeds": spoilt((1, 5, 32))}, "negative_prompt_embeds holds"),
    "unequal embeddings": (
        {"prompt": None, "prompt_embeds": embeddings(), "negative_prompt_embeds": embeddings(tokens=6)},
        "must be the same",
    ),
    "embeddings of unequal numbers": (
        {"prompt": ["a", "b"], "negative_prompt_embeds": embeddings(3)},
        "2 prompts but 3 negative",
    ),
    "latents of another shape": ({"latents": torch.zeros(1, 4, 3, 8, 8)}, r"\(1, 4, 3, 8, 12\)"),
    "latents for another batch": ({"latents": torch.zeros(2, 4, 3, 8, 12)}, r"\(1, 4, 3, 8, 12\)"),
    "latents that are an array": ({"latents": np.zeros((1, 4, 3, 8, 12))}, "latents are ndarray"),
    "NaN latents": ({"latents": spoilt((1, 4, 3, 8, 12))}, "latents holds"),
    "an unknown form of output": ({"output_type": "gif"}, "pil, np, pt, latent"),
    "generators of another number": ({"generator": [gen(0), gen(1)]}, "list of 2, but 1 clips"),
    "a generator that is a word": ({"generator": "seed"}, "generator is a str"),
    "a generator that is true": ({"generator": True}, "generator is a bool"),
    "a seed beyond 64 bits": ({"generator": 2**70}, "too large"),
    "one bad generator": ({"prompt": ["a", "b"], "generator": [gen(0), "x"]}, "generator is a str"),
    "an argument that does not exist": ({"num_frame": 3}, "did you mean num_frames"),
    "one argument by two names": ({"decode_chunk_size": 1, "frames_to_decode_at_once": 1}, "the same argument"),
    "more layers skipped than there are": ({"clip_skip": 3}, "clip_skip is 3"),
    "a negative clip_skip": ({"clip_skip": -1}, "clip_skip is -1"),
    "a clip_skip that is a float": ({"clip_skip": 1.5}, "clip_skip is 1.5"),
    "attention arguments that are none": ({"cross_attention_kwargs": 0.5}, "cross_attention_kwargs is 0.5"),
    "attention arguments nobody knows": ({"cross_attention_kwargs": {"gligen": 1}}, "cross_attention_kwargs"),
    "a LoRA scale in words": ({"cross_attention_kwargs": {"scale": "big"}}, "scale"),
    "a way with long prompts nobody knows": ({"long_prompts": "ignore"}, "long_prompts is 'ignore'"),
    "a prompt too long when that is refused": ({"prompt": "ab " * 99, "long_prompts": "refuse"}, "shorten it"),
    "timesteps that rise": ({"timesteps": [1, 500, 900]}, "timesteps"),
    "timesteps beyond training": ({"timesteps": [5000, 1]}, "timestep"),
    "no timesteps": ({"timesteps": []}, "timesteps"),
    "sigmas for a scheduler without": ({"sigmas": [5.0, 1.0]}, "sigmas"),
}
VIDEO = {
    "a strength of nothing": ({"strength": 0}, "strength is 0"),
    "a strength beyond one": ({"strength": 1.2}, "strength is 1.2"),
    "a negative strength": ({"strength": -0.5}, "strength is -0.5"),
    "a strength that leaves no step": ({"strength": 0.1}, "leaves none"),
    "a strength that is true": ({"strength": True}, "strength is True"),
    "no video": ({"video": None}, "Give video"),
    "video and latents": ({"latents": torch.zeros(1, 4, 3, 8, 12)}, "one of the two"),
    "an empty video": ({"video": []}, "video must be frames"),
    "a video without frames": ({"video": np.zeros((0, 16, 24, 3))}, "at least one frame"),
    "a path": ({"video": "clip.mp4"}, "load_video"),
    "frames of different sizes": ({"video": [*clip(2), *clip(1, 24, 24)]}, "differ"),
    "numbers out of range": ({"video": [255 * f for f in clip()]}, "from 0|numbers from"),
    "NaN frames": ({"video": torch.full((3, 3, 16, 24), NAN)}, "not finite"),
    "grey frames": ({"video": np.zeros((3, 16, 24, 1))}, "1 channels"),
    "whole numbers out of range": ({"video": np.full((3, 16, 24, 3), 300)}, "whole numbers from 300 to 300"),
    "objects": ({"video": np.zeros((3, 16, 24, 3), object)}, "expected numbers"),
    "frames of one axis": ({"video": [np.zeros(3), np.zeros(3)]}, "a frame"),
    "latents and another height": (
        {"video": None, "latents": torch.zeros(1, 4, 3, 8, 12), "height": 64},
        "these latents",
    ),
    "a video that does not fit": ({"video": clip(2, 17, 24)}, "nearest that is: 24×16"),
    "no height": ({"height": 0}, "height is 0"),
    "a height that does not fit": ({"height": 17}, "nearest that is"),
    "latents of few axes": ({"video": None, "latents": torch.zeros(4, 3, 8, 12)}, "latents are"),
    "latents of no frames": ({"video": None, "latents": torch.zeros(1, 4, 0, 8, 12)}, "latents are"),
    "NaN latents": ({"video": None, "latents": spoilt((1, 4, 3, 8, 12))}, "latents holds"),
    "more videos than prompts": ({"video": [clip(), clip()]}, "2 clips of video for 1"),
    "two videos for four prompts": ({"prompt": list("abcd"), "video": [clip(), clip()]}, "2 clips of video for 4"),
    "an argument of text to video": ({"num_frames": 3}, "no argument num_frames"),
}


@pytest.mark.parametrize("name", TEXT)
def test_text_to_video_refuses(name: str) -> None:
    wrong, said = TEXT[name]
    with pytest.raises(InputError, match=said) as caught:
        silent()(**{"prompt": "a", **SIZE, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", VIDEO)
def test_video_to_video_refuses(name: str) -> None:
    wrong, said = VIDEO[name]
    with pytest.raises(InputError, match=said) as caught:
        silent(video=True)(**{"prompt": "a", "video": clip(), "num_inference_steps": 3, **wrong})
    assert "\n" not in str(caught.value)


def test_a_stream_checks_its_inputs_before_it_is_read() -> None:
    with pytest.raises(InputError, match="num_frames is 0"):
        silent().stream("a", num_frames=0)
    with pytest.raises(InputError, match="prompts"):
        silent().stream("a", prompts="b")


def test_a_good_call_does_reach_the_networks() -> None:
    for video, call in ((False, SIZE), (True, {"video": clip(), "num_inference_steps": 3})):
        with pytest.raises(Ran):
            silent(video)("a", **call)


NUMBERS = st.one_of(
    st.integers(-2, 40), st.sampled_from([0.5, 8.0, NAN, True, None, "8", np.int64(8), 10**6]), st.floats(-1, 20)
)


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from([*SIZE, "num_videos_per_prompt", "guidance_scale", "eta"]), NUMBERS, min_size=1))
def test_no_size_or_count_ends_in_an_error_of_the_machinery(call: dict[str, Any]) -> None:
    with pytest.raises((InputError, Ran)):
        silent()("a", **{**SIZE, **call})


@settings(max_examples=100)
@given(frames=st.integers(0, 3), height=st.integers(1, 20), width=st.integers(1, 20), strength=NUMBERS, steps=NUMBERS)
def test_no_footage_ends_in_an_error_of_the_machinery(
    frames: int, height: int, width: int, strength: Any, steps: Any
) -> None:
    video = np.zeros((frames, height, width, 3))
    with pytest.raises((InputError, Ran)):
        silent(video=True)("a", video=video, strength=strength, num_inference_steps=steps)


@pytest.mark.parametrize("options", [{"beta_schedule": "cosy"}, {"num_train_timesteps": "many"}])
def test_a_scheduler_option_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(KinemaError, match=next(iter(options))):
        kinema.DDIMScheduler(**options)


def test_a_scheduler_of_another_library_is_named() -> None:
    pipe = kinema.TextToVideoSDPipeline(**{**silent().components, "scheduler": diffusers.EulerDiscreteScheduler()})
    with pytest.raises(InputError, match=r"kinema\.EulerDiscreteScheduler\.from_config"):
        pipe("a", **SIZE)


@pytest.mark.parametrize(
    ("part", "weight", "stage"),
    [
        ("text_encoder", "token_embedding", "encode"),
        ("unet", "conv_out", "denoise"),
        ("vae", "decoder.conv_out", "decode"),
    ],
)
def test_nan_weights_are_found_at_the_stage_they_spoil(part: str, weight: str, stage: str) -> None:
    pipe = ours()
    spoiled = next(p for n, p in getattr(pipe, part).named_parameters() if weight in n)
    spoiled.data.fill_(NAN)
    with pytest.raises(NumericsError, match=stage):
        pipe("a", **SIZE)


# ------------------------------------------------------------------ folders


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    ours().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    import shutil

    return Path(shutil.copytree(good, tmp_path / "model"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def hostile(folder: Path) -> None:
    """Weights that would write a file when unpickled the usual way."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.write_text, (folder / "trap", "sprung"))

    weights = next((folder / "unet").glob("*.safetensors"))
    torch.save({"x": Trap()}, folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()


def spoil(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = next((folder / "unet").glob("*.safetensors"))
    state = load_file(path)
    state["conv_in.weight"][0] = NAN
    save_file(state, path)


FOLDERS = {
    "no component": (lambda f: (f / "unet" / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "vae"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
    "an index that is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json"),
    "an index without the network": (lambda f: rewrite(f / "model_index.json", unet=[None, None]), "unet"),
    "another class's network": (
        lambda f: rewrite(f / "model_index.json", unet=["diffusers", "UNet2DConditionModel"]),
        "UNet2DConditionModel; .* needs a UNet3DConditionModel",
    ),
    "a pipeline nobody knows": (lambda f: rewrite(f / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline"),
    "another architecture": (lambda f: rewrite(f / "unet" / "config.json", cross_attention_dim=48), "unet"),
    "an option that cannot be": (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", beta_schedule="cosy"),
        "beta_schedule",
    ),
    "a scheduler nobody knows": (
        lambda f: rewrite(f / "scheduler" / "scheduler_config.json", _class_name="MagicScheduler"),
        "MagicScheduler",
    ),
    "weights cut short": (lambda f: cut(next((f / "unet").glob("*.safetensors"))), "safetensors"),
    "weights that are not numbers": (spoil, "NaN or infinite"),
    "a hostile pickle": (hostile, r"diffusion_pytorch_model\.bin"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_refused_with(name: str, folder: Path) -> None:
    change, said = FOLDERS[name]
    change(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        kinema.DiffusionPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "trap").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        kinema.DiffusionPipeline.from_pretrained(tmp_path / "missing")


def test_arguments_of_loading_are_checked(good: Path) -> None:
    load = kinema.DiffusionPipeline.from_pretrained
    with pytest.raises(InputError, match="dtype"):
        load(good, torch_dtype="float17")
    with pytest.raises(InputError, match="schedule"):
        load(good, schedule=None)
    with pytest.raises(InputError, match="same argument"):
        load(good, torch_dtype="float16", dtype="float16")
    with pytest.raises(InputError, match="needs text_encoder"):
        load(good, text_encoder=None)
    one = kinema.AutoencoderKL.from_pretrained
    with pytest.raises(InputError, match="same argument"):
        one(good, subfolder="vae", torch_dtype="float16", dtype="float32")
    with pytest.raises(InputError, match=r"AutoencoderKL\.from_pretrained has no argument subfoldr"):
        one(good, subfoldr="vae")
    assert one(good, subfolder="vae", low_cpu_mem_usage=True).dtype == torch.float32
    with pytest.raises(InputError, match="load_lora_weights has no argument adaptername"):
        silent().load_lora_weights({}, adaptername="style")
    with pytest.raises(InputError, match="load_textual_inversion has no argument tokens"):
        silent().load_textual_inversion({}, tokens="<cat>")
    with pytest.raises(CheckpointError, match="fp16"):
        load(good, variant="fp16")


def test_a_stream_refuses_callbacks_which_it_would_not_call() -> None:
    for name in ("callback", "callback_on_step_end"):
        with pytest.raises(InputError, match=f"calls no {name};"):
            silent().stream("a cat", **SIZE, **{name: print})


def test_what_a_callback_gives_back_is_checked() -> None:
    for answer, said in (
        (3, "returned a int"),
        ({"latents": torch.zeros(1, 4, 3, 2, 2)}, r"latents are \(1, 4, 3, 2, 2"),
    ):
        with pytest.raises(InputError, match=said):
            ours()("a cat", **SIZE, callback_on_step_end=lambda *_, answer=answer: answer)
