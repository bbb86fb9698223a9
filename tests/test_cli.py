"""The command line: what it makes, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema import errors
from kinema.cli import exits, main, names
from kinema.toys.world import DIRECTIONS

SRC = str(Path(__file__).parents[1] / "src")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Kinema = Callable[..., Result]


@pytest.fixture
def kinema(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kinema]:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def run(*words: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        code = end.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with random weights in the published layout."""
    from tests import reference

    folder = tmp_path_factory.mktemp("tiny")
    reference.text_to_video(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image-to-video pipeline with random weights, and a picture beside it."""
    from PIL import Image
    from tests import svd_tiny

    folder = tmp_path_factory.mktemp("moving")
    svd_tiny.ours().save_pretrained(folder)
    Image.new("RGB", (40, 24), (200, 40, 40)).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines with random weights, in folders called as those of the box."""
    from tests import i2vgen_tiny, svd_tiny

    folder = tmp_path_factory.mktemp("box")
    svd_tiny.ours(unet_={"sample_size": 8}).save_pretrained(folder / "image-to-video")
    i2vgen_tiny.twin(i2vgen_tiny.theirs()).save_pretrained(folder / "i2vgen")
    return {"toy-svd": folder / "image-to-video", "toy-i2vgen": folder / "i2vgen"}


@pytest.fixture
def _untrained_box(untrained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of pictures is the same with models that are not trained."""
    from kinema.checkpoint import hub

    for name, folder in untrained.items():
        monkeypatch.setitem(hub.BOX, name, str(folder))


def started(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": SRC}
    return subprocess.Popen(
        [sys.executable, "-m", "kinema", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeds_interrupts,
    )


def heeds_interrupts() -> None:
    """Undoes what a shell does to commands in its background: they and their children start deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# ------------------------------------------------------------------ making videos


def test_generate_writes_a_video_that_says_what_made_it(kinema: Kinema, model: Path) -> None:
    asked = ("--frames", 3, "--steps", 2, "--size", "32x16", "--fps", 12, "--seed", 5, "--guidance", 2)
    made = kinema("generate", "a red circle", "-m", model, "-n", "blue", *asked, "--json", "-o", "a.mp4")
    assert made.code == 0, made.err
    assert made.json["files"][0]["path"] == "a.mp4"
    told = kinema("info", "a.mp4", "--json").json
    assert (told["width"], told["height"], told["frames"], told["fps"]) == (32, 16, 3, 12)
    receipt = told["receipt"]
    assert receipt == made.json["files"][0]["receipt"]
    wanted = {"prompt": "a red circle", "negative_prompt": "blue", "seed": 5, "num_inference_steps": 2}
    assert wanted.items() <= receipt.items()


def test_a_numbered_video_is_the_one_its_seed_alone_gives(kinema: Kinema, model: Path, tmp_path: Path) -> None:
    same = ("-m", model, "--frames", 2, "--steps", 2)
    assert kinema("generate", "a star", *same, "--seed", 7, "--num", 2, "--format", "apng", "-o", "both").code == 0
    assert kinema("generate", "a star", *same, "--seed", 8, "-o", "alone.png").code == 0
    assert _pixels(tmp_path / "both-2.png") == _pixels(tmp_path / "alone.png")
    assert _pixels(tmp_path / "both-1.png") != _pixels(tmp_path / "alone.png")


def _pixels(path: Path) -> list[bytes]:
    from kinema import load_video

    return [frame.tobytes() for frame in load_video(str(path))]


def test_a_video_can_start_from_a_video(kinema: Kinema, model: Path) -> None:
    same = ("-m", model, "--steps", 4, "--seed", 1)
    assert kinema("generate", "a star", *same, "--frames", 3, "-o", "first.png").code == 0
    made = kinema("generate", "a square", *same, "--video", "first.png", "--strength", 0.5, "-o", "second.png")
    assert made.code == 0, made.err
    told = kinema("info", "second.png", "--json").json
    assert told["frames"] == 3
    assert told["receipt"]["strength"] == 0.5
    assert told["receipt"]["video"] == "first.png"


def test_a_video_can_start_from_a_picture(kinema: Kinema, moving: Path) -> None:
    asked = ("-m", moving, "--image", moving / "photo.png", "--size", "32x16", "--frames", 3, "--steps", 2)
    more = ("--motion", "calm", "--guidance", 2, "--set", "noise_aug_strength=0.1", "--seed", 3)
    made = kinema("generate", *asked, *more, "-o", "a.mp4", "--json")
    assert made.code == 0, made.err
    receipt = made.json["files"][0]["receipt"]
    assert receipt["noise_aug_strength"] == 0.1 and receipt["max_guidance_scale"] == 2
    assert 0 < receipt["motion_bucket_id"] < 127 and receipt["fps"] == 7  # this model's own rate
    assert kinema("info", "a.mp4", "--json").json["frames"] == 3


def test_how_fast_a_file_plays_is_told_apart_from_what_the_model_was_told(kinema: Kinema, moving: Path) -> None:
    asked = ("-m", moving, "--image", moving / "photo.png", "--size", "32x16", "--frames", 2, "--steps", 1)
    assert kinema("generate", *asked, "--fps", 12, "--set", "fps=15", "-o", "a.mp4").code == 0
    told = kinema("info", "a.mp4", "--json").json
    assert (told["fps"], told["receipt"]["fps"], told["receipt"]["playback_fps"]) == (12, 15, 12)


@pytest.mark.usefixtures("_untrained_box")
def test_a_demo_never_writes_over_the_picture_it_was_given(kinema: Kinema, moving: Path, tmp_path: Path) -> None:
    own = tmp_path / "demo-image.png"
    own.write_bytes((moving / "photo.png").read_bytes())
    made = kinema("demo", "--image", own, "--out", tmp_path, "--steps", 1)
    assert made.code == 3 and "another --out" in made.err
    assert own.read_bytes() == (moving / "photo.png").read_bytes()


@pytest.mark.usefixtures("_untrained_box")
@pytest.mark.parametrize(
    ("words", "model", "pipeline"),
    [
        ([], "toy-svd", "StableVideoDiffusionPipeline"),
        (["a red circle grows"], "toy-i2vgen", "I2VGenXLPipeline"),
    ],
)
def test_a_picture_without_a_model_goes_to_the_one_in_the_box_that_knows_such(
    kinema: Kinema, moving: Path, words: list[str], model: str, pipeline: str
) -> None:
    made = kinema("generate", *words, "--image", moving / "photo.png", "--steps", 1, "-q", "-o", "a.gif", "--json")
    assert made.code == 0, made.err
    receipt = made.json["files"][0]["receipt"]
    assert (receipt["pipeline"], receipt["num_frames"]) == (pipeline, 8)
    (note,) = [line for line in made.err.splitlines() if line.startswith("Note")]
    assert all(word in note for word in (model, "drawn shapes", "photos", "svd-xt", "i2vgen-xl"))


def test_a_model_that_is_asked_for_by_name_knows_photos(kinema: Kinema, moving: Path) -> None:
    asked = ("-m", moving, "--image", moving / "photo.png", "--size", "32x16", "--frames", 2, "--steps", 1)
    made = kinema("generate", *asked, "-o", "a.gif")
    assert made.code == 0 and "drawn shapes" not in made.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["-p", "a red circle"], 3, "takes no prompt"),
        (["--negative", "blue"], 3, "takes no negative_prompt"),
        (["--motion", "wild"], 3, "calm"),
        (["--set", "speed"], 3, "NAME=VALUE"),
        (["--set", "speed=3"], 3, "takes no speed"),
        (["--video", "b.mp4"], 2, "not both"),
    ],
)
def test_what_a_model_cannot_take_is_named(
    kinema: Kinema, moving: Path, words: list[str], code: int, says: str
) -> None:
    result = kinema("generate", "-m", moving, "--image", moving / "photo.png", *words, "-o", "a.mp4")
    assert result.code == code and says in result.err, result.err


def test_a_picture_that_cannot_be_read_is_refused_before_the_model_is_loaded(kinema: Kinema, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    result = kinema("generate", "-m", "no/model", "--image", tmp_path / "broken.png", "-o", "a.mp4")
    assert result.code == exits.code_of(errors.MediaError("")) and "broken.png" in result.err


def test_another_scheduler_can_be_named(kinema: Kinema, model: Path) -> None:
    same = ("-m", model, "--steps", 3, "--frames", 2, "--seed", 1)
    made = kinema("generate", "a star", *same, "--scheduler", "dpm++-karras", "--json", "-o", "a.gif")
    assert made.code == 0, made.err
    scheduler = made.json["files"][0]["receipt"]["scheduler"]
    assert scheduler["_class_name"] == "DPMSolverMultistepScheduler"
    assert scheduler["use_karras_sigmas"] is True


@pytest.mark.parametrize("name", names.SCHEDULERS)
def test_every_named_scheduler_takes_the_settings_of_a_published_one(name: str) -> None:
    import kinema

    cls, settings = names.scheduler(name)
    published = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = getattr(kinema, cls).from_config(published, **settings)
    assert settings.items() <= dict(scheduler.config).items()


def test_the_demo_is_a_video_an_animation_and_a_contact_sheet(
    kinema: Kinema, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinema.checkpoint import hub

    monkeypatch.setitem(hub.BOX, "toy", str(model))  # the demo itself is the same with a model that is not trained
    made = kinema("demo", "--steps", 2, "--out", "here", "--json")
    assert made.code == 0, made.err
    assert made.json["files"] == ["here/demo.mp4", "here/demo.gif", "here/demo.png"]
    video, animation, sheet = (kinema("info", file, "--json").json for file in made.json["files"])
    assert (video["codec"], animation["container"], sheet["container"]) == ("h264", "gif", "png")
    assert video["frames"] == animation["frames"] == made.json["receipt"]["num_frames"]
    assert video["receipt"] == animation["receipt"] == made.json["receipt"]


@pytest.mark.usefixtures("_untrained_box")
@pytest.mark.parametrize(
    ("words", "pipeline", "told"),
    [
        (["--image"], "StableVideoDiffusionPipeline", {"motion_bucket_id": 191, "image": "(drawn)"}),
        (["a red star grows", "-i"], "I2VGenXLPipeline", {"prompt": "a red star grows", "image": "(drawn)"}),
    ],
)
def test_the_demo_from_a_picture_is_also_that_picture(
    kinema: Kinema, words: list[str], pipeline: str, told: dict[str, object]
) -> None:
    from PIL import Image

    made = kinema("demo", *words, "--steps", 1, "--out", "here", "--json")
    assert made.code == 0, made.err
    ends = (".mp4", ".gif", "-sheet.png", ".png")
    assert made.json["files"] == [f"here/demo-image{end}" for end in ends]
    video, animation, sheet, picture = (kinema("info", file, "--json").json for file in made.json["files"])
    assert (video["codec"], animation["container"]) == ("h264", "gif")
    assert video["frames"] == animation["frames"] == 8
    assert video["receipt"] == animation["receipt"] == sheet["receipt"] == made.json["receipt"]
    assert {"pipeline": pipeline, **told}.items() <= video["receipt"].items()
    assert (picture["width"], picture["height"]) == (video["width"], video["height"])
    assert sheet["width"] > 9 * video["width"]
    first = Image.open("here/demo-image-sheet.png").convert("RGB")
    whole = Image.open("here/demo-image.png").convert("RGB")
    assert any(  # the sheet begins with the picture
        first.crop((4, top, 4 + whole.width, top + whole.height)).tobytes() == whole.tobytes() for top in range(40)
    )
    assert "drawn shapes" not in made.err


@pytest.mark.usefixtures("_untrained_box")
def test_the_demo_takes_a_picture_of_ones_own_and_says_what_to_expect(kinema: Kinema, moving: Path) -> None:
    made = kinema("demo", "--image", moving / "photo.png", "--steps", 1, "-q", "--json")
    assert made.code == 0, made.err
    assert made.json["receipt"]["image"] == str(moving / "photo.png")
    (note,) = [line for line in made.err.splitlines() if "Note" in line]
    assert "toy-svd knows only drawn shapes" in note and "svd-xt" in note
    assert "cut off" not in made.err  # what the model sees is written


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--image", "--image (drawn)"),
        ("--image -q", "--image (drawn) -q"),
        ("x -i --out y", "x -i (drawn) --out y"),
        ("--image a.png -q", "--image a.png -q"),
        ("--image=a.png", "--image=a.png"),
        ("x", "x"),
        ("", ""),
    ],
)
def test_a_picture_is_drawn_where_none_is_named(words: str, meant: str) -> None:
    from kinema.cli.demo import spelled_out

    assert spelled_out(words.split()) == meant.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "motions"), [([], {*DIRECTIONS, "grows", "shrinks"}), (["a blue square moves up"], {"moves up"})]
)
def test_the_demo_from_a_picture_keeps_it_and_moves(kinema: Kinema, words: list[str], motions: set[str]) -> None:
    import numpy as np

    from kinema import load_image, load_video
    from kinema.toys import box, scorer

    name = box.fitting(picture=True, text=bool(words))
    if not (box.path(name) / "model_index.json").exists():
        pytest.skip(f"the weights of {name} are not in this copy")
    assert kinema("demo", *words, "--image", "--seed", 1, "-q").code == 0
    seen = scorer.read(np.stack([np.asarray(frame) for frame in load_video("out/demo-image.mp4")]))
    drawn = scorer.read(np.stack([np.asarray(load_image("out/demo-image.png"))] * 8))
    assert (seen.colour, seen.background) == (drawn.colour, drawn.background)
    assert seen.motion in motions


@pytest.mark.slow
def test_the_demo_shows_what_its_prompt_says(kinema: Kinema) -> None:
    import numpy as np

    from kinema import load_video
    from kinema.checkpoint.hub import box
    from kinema.toys import scorer

    folder = box("toy")
    if folder is None or not (folder / "model_index.json").exists():
        pytest.skip("the model in the box is not in this copy")
    assert kinema("demo", "--out", "out").code == 0
    seen = scorer.read(np.stack([np.asarray(frame) for frame in load_video("out/demo.mp4")]))
    assert (seen.colour, seen.motion, seen.background) == ("red", "moves left", "dark")


# ------------------------------------------------------------------ stopping


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_nothing_and_says_so_by_its_code(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = ("generate", "a star", "-m", model, "--steps", 999, "--frames", 8, "--size", "64x64", "-o", "a.mp4")
    process = started(*words, cwd=tmp_path)
    assert process.stderr is not None
    assert "a.mp4" in process.stderr.readline()  # said just before the first step
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)  # of 999 steps, minutes even on an idle machine
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ being wrong


def test_each_kind_of_error_has_its_exit_code() -> None:
    codes = {
        errors.InputError: 3,
        errors.CheckpointError: 4,
        errors.MediaError: 5,
        errors.MemoryBudgetError: 6,
        errors.NumericsError: 7,
        errors.ParallelError: 8,
        KeyboardInterrupt: 130,
        ValueError: 1,
    }
    assert {kind: exits.code_of(kind("x")) for kind in codes} == codes
    assert len({row.code for row in exits.EXITS}) == len(exits.EXITS)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["generate"], 2, "PROMPT"),
        (["generate", "x", "--no-such-option"], 2, "--no-such-option"),
        (["generate", "x", "--strength", "0.5"], 2, "--video"),
        (["generate", "x", "--scheduler", "dpm+"], 3, "did you mean dpm++"),
        (["generate", "x", "--dtype", "int8"], 3, "float16"),
        (["generate", "x", "--size", "big"], 3, "256x256"),
        (["generate", "x", "--seed", "-1"], 3, "--seed"),
        (["generate", "x", "-o", "a.xyz"], 3, ".mp4"),
        (["generate", "x", "-m", "./none", "--steps", "0"], 3, "--steps is 0; it must be at least 1"),
        (["generate", "x", "-m", "./none", "--frames", "-4"], 3, "--frames is -4"),
        (["generate", "x", "-m", "./none", "--guidance", "nan"], 3, "--guidance is nan"),
        (["generate", "x", "-m", "./none", "--guidance", "-1"], 3, "--guidance is -1"),
        (["generate", "x", "-m", "./none", "--strength", "2"], 3, "--strength is 2; it must be from 0 to 1"),
        (["generate", "x", "-o", "a"], 3, "suffix"),
        (["generate", "x", "--format", "avi"], 3, "webm"),
        (["generate", "x", "--format", "gif", "-o", "a.mp4"], 3, ".gif"),
        (["generate", "x", "-o", "no/such/folder/a.mp4"], 5, "folder does not exist"),
        (["generate", "x", "--video", "none.mp4"], 5, "none.mp4"),
        (["generate", "x", "-m", "./no-such-model", "-o", "a.mp4"], 4, "no-such-model"),
        (["generate", "x", "-m", "no/such-model", "-o", "a.mp4"], 4, "no/such-model"),
        (["generate", "x", "-o", "a.mp4", "--fps", "0"], 3, "fps 0.0 is out of range"),
        (["generate", "x", "-o", "a.mp4", "--lora", "none.safetensors:0.5"], 4, "none.safetensors does not exist"),
        (["demo", "--out", f"{__file__}/out"], 5, "is a file"),
        (["demo", "--image", "none.png"], 5, "no picture none.png"),
        (["demo", "--image", "a red star"], 5, "put a prompt before --image"),
        (["demo", "a red circle spins", "--image"], 3, "circle cannot be seen to spin"),
        (["generate", "--image", "none.png"], 5, "none.png"),
        (["info", "none.mp4"], 5, "none.mp4"),
        (["inspect", "none.safetensors"], 4, "none.safetensors"),
        (["train-toy", "--stage", "dessert"], 3, "the stages are"),
        (["train-toy", "--scale", "0"], 3, "greater than 0"),
    ],
)
def test_a_wrong_command_is_told_so_in_one_line_and_a_code(
    kinema: Kinema, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    result = kinema(*words)
    assert result.code == code, result.err
    assert says.lower() in result.err.lower()
    assert "Traceback" not in result.err
    assert code == 2 or len(result.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_size_the_model_cannot_make_is_refused_with_the_nearest(kinema: Kinema, model: Path, tmp_path: Path) -> None:
    result = kinema("generate", "x", "-m", model, "--size", "33x32", "-o", "a.mp4")
    assert result.code == 3
    assert "32×32" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_asked(kinema: Kinema, model: Path, tmp_path: Path) -> None:
    there = tmp_path / "a.gif"
    there.write_text("mine")
    same = ("generate", "x", "-m", model, "--steps", 1, "--frames", 2, "-o", "a.gif")
    refused = kinema(*same)
    assert refused.code == 3
    assert "--overwrite" in refused.err
    assert there.read_text() == "mine"
    assert kinema(*same, "--overwrite").code == 0
    assert there.read_bytes().startswith(b"GIF8")


def test_an_error_is_json_for_those_who_asked_for_json(kinema: Kinema) -> None:
    result = kinema("generate", "x", "--size", "big", "--json")
    assert result.json["error"]["kind"] == "InputError"
    assert result.json["error"]["exit_code"] == result.code == 3


def test_debug_shows_where_an_error_comes_from(kinema: Kinema) -> None:
    assert "Traceback" in kinema("--debug", "generate", "x", "--size", "big").err
    assert "Traceback" not in kinema("generate", "x", "--size", "big").err


# ------------------------------------------------------------------ looking


def test_the_version_is_kinemas(kinema: Kinema) -> None:
    import kinema as package

    assert kinema("--version").out.strip() == f"kinema {package.__version__}"


def test_models_lists_the_box_and_the_families(kinema: Kinema) -> None:
    listed = kinema("models", "--json").json
    assert [(model["names"][0], model["does"]) for model in listed["box"]] == [
        ("toy", "text to video"),
        ("toy-svd", "picture to video"),
        ("toy-i2vgen", "picture and text to video"),
        ("toy-animatediff", "text to video by an image model that learnt to move"),
    ]
    assert "ModelScope" in listed["families"][0]["name"]
    told = kinema("models").out
    for name in ("text-to-video", "image-to-video", "i2vgen", "animatediff"):
        assert f"kinema/toy-{name}" in told
    assert "the default with --image and a prompt" in told


def test_doctor_reports_versions_devices_memory_and_codecs(kinema: Kinema) -> None:
    import torch

    found = kinema("doctor", "--json").json
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"][0]["device"] == "cpu"
    assert "GB" in found["machine"]["memory"]
    assert found["codecs"]["H.264"] == "libx264"
    assert list(found["models in the box"]) == ["toy", "toy-svd", "toy-i2vgen", "toy-animatediff"]
    assert "libx264" in kinema("doctor").out


def test_inspect_recognizes_a_folder_and_a_file(kinema: Kinema, model: Path) -> None:
    assert "TextToVideoSDPipeline" in kinema("inspect", model).out
    weights = next((model / "unet").glob("*.safetensors"))
    result = kinema("inspect", weights, "--json")
    assert result.code == 0, result.err
    assert "ModelScope" in result.json["kind"]
    assert result.json["problems"] == []


def test_inspect_says_by_its_code_that_something_is_wrong(kinema: Kinema, model: Path, tmp_path: Path) -> None:
    weights = next((model / "unet").glob("*.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:-1000])
    assert kinema("inspect", broken).code == 4


# ------------------------------------------------------------------ words


@given(st.integers(1, 9999), st.integers(1, 9999), st.sampled_from("xX×*:"))
def test_a_size_is_width_by_height(width: int, height: int, between: str) -> None:
    assert names.size(f"{width}{between}{height}") == (width, height)
    assert names.size(str(width)) == (width, width)


@given(st.floats(-4, 4), st.sampled_from(["a.safetensors", "dir/b.bin", "with:colon.safetensors"]))
def test_a_lora_is_a_file_and_a_weight(weight: float, file: str) -> None:
    assert names.lora(f"{file}:{weight}") == (file, weight)
    assert names.lora(file) == (file, 1.0)


def test_output_names_follow_from_what_was_asked() -> None:
    assert names.outputs(None, None, 7, 1) == [Path("kinema-7.mp4")]
    assert names.outputs(None, "frames", 7, 1) == [Path("kinema-7")]
    assert names.outputs(Path("a"), "webm", 7, 1) == [Path("a.webm")]
    assert names.outputs(Path("d/a.gif"), None, 7, 2) == [Path("d/a-1.gif"), Path("d/a-2.gif")]
