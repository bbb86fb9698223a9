"""The command line with an image model, a motion module and what plugs into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.test_cli import Kinema, kinema  # noqa: F401

from kinema.cli import names
from kinema.errors import InputError

SMALL = ("--size", "24x16", "--frames", 4, "--steps", 2, "--seed", 1, "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image model, a motion module, a ControlNet, a motion LoRA, and pictures to steer by."""
    folder = tmp_path_factory.mktemp("plugs")
    theirs = pipes.theirs()
    diffusers.StableDiffusionPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=theirs.tokenizer,
        unet=tiny.reference_image_model(cross_attention_dim=pipes.WIDTH),
        scheduler=theirs.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "image")
    theirs.motion_adapter.save_pretrained(folder / "motion")
    image = tiny.reference_image_model(cross_attention_dim=pipes.WIDTH)
    net = diffusers.ControlNetModel.from_unet(image, conditioning_embedding_out_channels=(8, 16))
    tiny._shaken(net, 5).save_pretrained(folder / "net")
    (folder / "poses").mkdir()
    for i, picture in enumerate(pipes.clip(4)):
        picture.save(folder / "poses" / f"{i:02}.png")
    dice, lora = torch.Generator().manual_seed(2), {}
    for key, module in theirs.unet.named_modules():
        if isinstance(module, torch.nn.Linear) and "motion_modules" in key and ".attn" in key:
            wide, deep = module.weight.shape
            lora[f"unet.{key}.lora_A.weight"] = torch.randn(2, deep, generator=dice)
            lora[f"unet.{key}.lora_B.weight"] = torch.randn(wide, 2, generator=dice) * 0.1
    save_file(lora, folder / "pan.safetensors")
    return folder


def _made(kinema: Kinema, folder: Path, *words: Any) -> Any:  # noqa: F811
    asked = ("-m", folder / "image", "--motion", folder / "motion", *words, *SMALL, "--json", "-o", "a.gif")
    result = kinema("generate", "a red circle", *asked, "--overwrite")
    assert result.code == 0, result.err
    return result.json["files"][0]["receipt"]


def test_an_image_model_and_a_motion_module_make_a_clip(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    receipt = _made(kinema, folder)
    assert (receipt["pipeline"], receipt["num_frames"]) == ("AnimateDiffPipeline", 4)


def test_motion_loras_controls_and_presets_are_taken(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    control = ("--control", f"{folder / 'net'}:{folder / 'poses'}")
    receipt = _made(kinema, folder, "--motion-lora", f"{folder / 'pan.safetensors'}:0.7", *control, "--preset", "lcm")
    assert receipt["pipeline"] == "AnimateDiffControlNetPipeline"
    assert receipt["preset"] == "lcm"
    assert "pan" in str(receipt["loras"]) and "0.7" in str(receipt["loras"])


def test_the_controlnet_in_the_box_is_called_outlines(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    control = ("--model", "toy-animatediff", "--control", f"outlines:{folder / 'poses'}", "--steps", 1, "--frames", 4)
    result = kinema("generate", "a red circle", *control, "--seed", 1, "-o", "a.gif", "--json", "-q")
    assert result.code == 0, result.err
    receipt = result.json["files"][0]["receipt"]
    assert receipt["pipeline"] == "AnimateDiffControlNetPipeline" and receipt["controls"][0][0] == "outlines"


def test_footage_is_taken_by_an_image_model_too(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    _made(kinema, folder)
    words = ("-m", folder / "image", "--motion", folder / "motion", "--video", "a.gif", "--strength", 0.5, "--steps", 4)
    result = kinema("generate", "a star", *words, "-o", "b.gif", "--json")
    assert result.code == 0, result.err
    assert result.json["files"][0]["receipt"]["pipeline"] == "AnimateDiffVideoToVideoPipeline"


def test_windows_and_loops_are_set_by_the_names_they_have_in_python(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    words = ("--window", 3, "--overlap", 2, "--stride", 2, "--loop", "--blend", "linear", "--no-drift")
    asked = _made(kinema, folder, *words, "--noise-type", "shuffle_context")["windows"]
    assert asked == {
        "length": 3,
        "overlap": 2,
        "stride": 2,
        "loop": True,
        "blend": "linear",
        "drift": False,
        "noise_type": "shuffle_context",
    }
    plain = _made(kinema, folder)
    assert "windows" not in plain
    assert _made(kinema, folder, "--loop")["windows"]["loop"]


def test_free_noise_free_init_and_the_authors_numbers_are_asked_for(kinema: Kinema, folder: Path) -> None:  # noqa: F811
    receipt = _made(kinema, folder, "--free-noise", "--free-init", 2, "--numerics", "original")
    assert receipt["free_noise"]["length"] == 16
    assert receipt["free_init"]["rounds"] == 2
    assert receipt["numerics"] == "original"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--window", "0"], "--window is 0; it must be at least 1"),
        (["--window", "4", "--overlap", "4"], "--overlap is 4; it must be less than --window, 4"),
        (["--overlap", "-1"], "--overlap is -1"),
        (["--stride", "0"], "--stride is 0"),
        (["--blend", "soft"], "--blend is 'soft'; it must be one of pyramid, flat, linear"),
        (["--noise-type", "white"], "--noise-type is 'white'"),
        (["--free-noise", "--loop"], "give one of them"),
        (["--free-init", "0"], "--free-init is 0"),
        (["--numerics", "mine"], "numerics 'mine' is unknown"),
    ],
)
def test_settings_of_length_that_cannot_be_used_are_refused_before_a_model_is_loaded(
    kinema: Kinema,  # noqa: F811
    words: list[str],
    says: str,
) -> None:
    result = kinema("generate", "a red circle", "--model", "nobody/nothing", *words, "-o", "a.gif")
    assert result.code == 3 and says in result.err, result.err


def test_a_model_without_a_motion_module_has_no_numerics(kinema: Kinema) -> None:  # noqa: F811
    result = kinema("generate", "a red circle", "--model", "toy", "--numerics", "original", *SMALL, "-o", "a.gif")
    assert result.code == 3 and "takes no --numerics" in result.err, result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--control", "openpose"], "NET:FRAMES"),
        (["--control", "{folder}/net:{folder}/image/unet"], "holds no pictures"),
        (["--preset", "lightning"], "lightning-4"),
    ],
)
def test_what_cannot_be_plugged_in_is_named(
    kinema: Kinema,  # noqa: F811
    folder: Path,
    words: list[str],
    says: str,
) -> None:
    words = [word.format(folder=folder) for word in words]
    asked = ("-m", folder / "image", "--motion", folder / "motion", *words, *SMALL, "-o", "a.gif")
    result = kinema("generate", "a red circle", *asked)
    assert result.code == 3 and says in result.err, result.err


def test_words_of_controls_and_of_motion() -> None:
    assert names.control("openpose:poses/") == ("lllyasviel/control_v11p_sd15_openpose", "poses/")
    assert names.control("my/net:clip.mp4") == ("my/net", "clip.mp4")
    with pytest.raises(InputError):
        names.control(":poses")
    assert [names.amount_of_motion(text) for text in ("calm", "0.4", "v2", "mm.ckpt")] == [True, True, False, False]
