"""Pipelines whose denoiser others steer, against the reference's."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.pipelines_tiny import gen, off

import kinema
from kinema import InputError

CLOSE = 1e-4


@pytest.fixture(scope="module", params=["rgb", "scribble"])
def sparse(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """SparseCtrl, which looks at latents or at sketches. The one that looks at sketches halves them as the tiny
    autoencoder does."""
    rgb = request.param == "rgb"
    kind = {} if rgb else {"use_simplified_condition_embedding": False, "conditioning_channels": 3}
    more = {} if rgb else {"conditioning_embedding_out_channels": (8, 16)}
    net = tiny.reference_sparse_control(cross_attention_dim=pipes.WIDTH, **kind, **more)
    theirs = pipes.theirs("AnimateDiffSparseControlNetPipeline", controlnet=net)
    return theirs, pipes.ours(theirs, controlnet=tiny.ours(net))


SPARSE: dict[str, dict[str, Any]] = {
    "first frame": {},
    "two frames, scaled": {"controlnet_frame_indices": [0, 3], "controlnet_conditioning_scale": 0.6},
    "unguided": {"guidance_scale": 1.0, "controlnet_frame_indices": [2]},
    "unguided guess": {"guidance_scale": 1.0, "guess_mode": True},
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_clip_through_given_frames_is_the_reference_s(sparse: tuple[Any, Any], name: str) -> None:
    theirs, ours = sparse
    call = {**pipes.CALL, **SPARSE[name]}
    call["conditioning_frames"] = pipes.clip(len(call.get("controlnet_frame_indices", [0])))
    made = []
    for pipe in (theirs, ours):
        torch.manual_seed(8)  # the reference draws the pictures' latents from this generator, whatever it is given
        made.append(pipe(**call).frames)
    assert off(made[1], made[0]) <= CLOSE


@pytest.mark.parametrize("wrong", [[0, 0], [9], [], [0, 1, 2]], ids=["twice", "behind the end", "none", "too many"])
def test_frames_that_cannot_be_given_are_refused(sparse: tuple[Any, Any], wrong: list[int]) -> None:
    with pytest.raises(InputError):
        sparse[1](**pipes.CALL, conditioning_frames=pipes.clip(2), controlnet_frame_indices=wrong)


def _net(seed: int = 5) -> Any:
    """A ControlNet of the reference with random weights, whose pictures are twice the latents' size, as the tiny
    autoencoder's are."""
    image = tiny.reference_image_model(cross_attention_dim=pipes.WIDTH)
    made = diffusers.ControlNetModel.from_unet(image, conditioning_embedding_out_channels=(8, 16))
    return tiny._shaken(made.eval(), seed)


def _ours(net: Any) -> Any:
    from kinema.checkpoint.fill import fill

    return fill(kinema.ControlNetModel(net.config), dict(net.state_dict()), where="the reference").eval()


@pytest.fixture(scope="module", params=[1, 2], ids=["one net", "two nets"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    nets = [_net(5 + i) for i in range(request.param)]
    theirs = pipes.theirs("AnimateDiffControlNetPipeline", controlnet=nets[0] if len(nets) == 1 else nets)
    mine = [_ours(net) for net in nets]
    return theirs, pipes.ours(theirs, controlnet=mine[0] if len(mine) == 1 else mine)


def _frames(pipe: Any, count: int = 4) -> Any:
    several = hasattr(pipe.controlnet, "nets")
    return [pipes.clip(count) for _ in pipe.controlnet.nets] if several else pipes.clip(count)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled, part of the way": {
        "controlnet_conditioning_scale": 0.6,
        "control_guidance_start": 0.2,
        "control_guidance_end": 0.8,
        "num_inference_steps": 5,
    },
    "unguided": {"guidance_scale": 1.0},
    "unguided guess": {"guidance_scale": 1.0, "guess_mode": True},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_steered_clip_is_the_reference_s(pair: tuple[Any, Any], name: str) -> None:
    theirs, ours = pair
    call = {**pipes.CALL, **CALLS[name]}
    if hasattr(theirs.controlnet, "nets") and "controlnet_conditioning_scale" not in call:
        call["controlnet_conditioning_scale"] = [0.7, 1.3]
    elif hasattr(theirs.controlnet, "nets"):
        call["controlnet_conditioning_scale"] = [0.6, 0.6]
    expected = theirs(conditioning_frames=_frames(theirs), **call, generator=gen(3)).frames
    assert off(ours(conditioning_frames=_frames(theirs), **call, generator=gen(3)).frames, expected) <= CLOSE


def test_footage_steered_is_the_reference_s(pair: tuple[Any, Any]) -> None:
    theirs = diffusers.AnimateDiffVideoToVideoControlNetPipeline(**pair[0].components)
    ours = kinema.AnimateDiffVideoToVideoControlNetPipeline.from_pipe(pair[1])
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    call = {k: v for k, v in pipes.CALL.items() if k != "num_frames"}
    several = hasattr(theirs.controlnet, "nets")
    scale = {"controlnet_conditioning_scale": [0.5, 1.2]} if several else {"controlnet_conditioning_scale": 0.5}
    call |= {"strength": 0.6, "num_inference_steps": 5, "control_guidance_end": 0.7, **scale}
    given = {"video": pipes.clip(4), "conditioning_frames": _frames(theirs)}
    expected = theirs(**given, **call, generator=gen(3)).frames
    assert off(ours(**given, **call, generator=gen(3)).frames, expected) <= CLOSE


@pytest.mark.parametrize(
    "wrong",
    [
        {"conditioning_frames": None},
        {"conditioning_frames": 3},
        {"controlnet_conditioning_scale": [1.0] * 3},
        {"control_guidance_start": 0.8, "control_guidance_end": 0.2},
    ],
    ids=["none", "too few", "too many scales", "backwards"],
)
def test_what_cannot_steer_is_refused_before_time_is_spent(pair: tuple[Any, Any], wrong: dict[str, Any]) -> None:
    ours = pair[1]
    frames = wrong.get("conditioning_frames", 4)
    given = {**wrong, "conditioning_frames": frames if frames is None else _frames(ours, frames)}
    with pytest.raises(InputError):
        ours(**pipes.CALL, **given)


def test_nets_are_saved_and_read(pair: tuple[Any, Any], tmp_path: Any) -> None:
    ours = pair[1]
    ours.save_pretrained(tmp_path)
    again = kinema.AnimateDiffControlNetPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    given = {**pipes.CALL, "conditioning_frames": _frames(ours), "generator": 3}
    assert off(again(**given).frames, ours(**given).frames) <= 1e-5


def test_footage_of_each_prompt_goes_with_its_clips(pair: tuple[Any, Any]) -> None:
    ours = pair[1]
    if hasattr(ours.controlnet, "nets"):
        return  # as for one
    shown = torch.rand(2, 4, 3, 16, 24, generator=gen(1))
    call = {**pipes.CALL, "prompt": ["a red circle", "a star"], "negative_prompt": "dull"}
    made = ours(**call, conditioning_frames=shown, num_videos_per_prompt=2, generator=[1, 2, 3, 4]).frames
    for i in range(4):
        alone = {**call, "prompt": call["prompt"][i // 2], "conditioning_frames": shown[i // 2]}
        assert off(ours(**alone, generator=i + 1).frames[0], made[i]) <= 1e-5
    with pytest.raises(InputError, match="conditioning_frames"):
        ours(**{**call, "prompt": "a star"}, conditioning_frames=torch.rand(3, 4, 3, 16, 24))


def test_sparse_nets_are_saved_beside_others_and_limit_what_is_seen_at_once(
    sparse: tuple[Any, Any], tmp_path: Any
) -> None:
    ours = sparse[1]
    both = kinema.AnimateDiffControlNetPipeline.from_pipe(ours, controlnet=[_ours(_net()), ours.controlnet])
    both.controlnet.save_pretrained(tmp_path / "controlnet")
    again = kinema.MultiControlNetModel.from_pretrained(tmp_path / "controlnet")
    assert [type(net).__name__ for net in again.nets] == ["ControlNetModel", "SparseControlNetModel"]
    with pytest.raises(InputError, match="FreeNoise"):
        both.enable_free_noise(4, 2)
    short = tiny.reference_sparse_control(
        cross_attention_dim=pipes.WIDTH,
        motion_max_seq_length=4,
        use_simplified_condition_embedding=False,
        conditioning_channels=3,
        conditioning_embedding_out_channels=(8, 16),
    )
    pipe = kinema.AnimateDiffSparseControlNetPipeline.from_pipe(ours, controlnet=tiny.ours(short))
    pipe.set_progress_bar_config(disable=True)
    clip = pipe(**{**pipes.CALL, "num_frames": 6}, conditioning_frames=pipes.clip(1)).frames
    assert clip.shape[1] == 6


@pytest.mark.parametrize("wrong", [0, None, "0"])
def test_frame_indices_that_are_no_list_are_refused(sparse: tuple[Any, Any], wrong: Any) -> None:
    with pytest.raises(InputError, match="controlnet_frame_indices"):
        sparse[1](**pipes.CALL, conditioning_frames=pipes.clip(1), controlnet_frame_indices=wrong)
