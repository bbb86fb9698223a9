"""The ControlNet in the box: what it is shown, how it is trained, and that shapes go where outlines lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinema.checkpoint.hub import BOX
from kinema.errors import InputError
from kinema.toys import box
from kinema.toys.outlines import outlines, overlap
from kinema.toys.styles import STYLES
from kinema.toys.world import draw, some_scene
from kinema.train import diffusion, evaluate_steering, motion, recipe, steering
from kinema.train.loop import Dice

MODEL = evaluate_steering.MODEL
SHIPPED = MODEL in BOX and (box.path(MODEL) / "controlnet").is_dir()


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda s: s.name)
def test_outlines_are_thin_white_lines_around_the_shape_whatever_it_is_drawn_on(style: object) -> None:
    rng = np.random.default_rng(1)
    clips = draw([some_scene(rng) for _ in range(24)], style=style)  # type: ignore[arg-type]
    lines = outlines(clips)
    assert lines.shape == clips.shape and set(np.unique(lines)) == {0, 255}
    share = (lines > 0).mean((1, 2, 3, 4))
    assert share.min() > 0.01 and share.max() < 0.15
    assert not lines[:, :, :2, :2].any()  # the corners are background


def test_pictures_of_something_else_than_colours_have_no_outlines() -> None:
    with pytest.raises(InputError, match="height, width, 3"):
        outlines(np.zeros((8, 8), np.uint8))


def test_overlap_is_one_of_a_clip_with_itself_and_falls_as_shapes_part() -> None:
    rng = np.random.default_rng(2)
    scene = some_scene(rng, motion="stays still")
    here, near, far = (evaluate_steering.around(scene, angle, 0.0, 0.2) for angle in (0.0, 0.3, np.pi))
    assert overlap(here, here) == 1
    assert 1 > overlap(here, near) > overlap(here, far) == 0


def image() -> torch.nn.Module:
    model = recipe.built(lambda: diffusion.new(diffusion.ImageUNet), 0, "image")
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.02)
    return motion.as_published(model)


def some(count: int = 4) -> steering.Steered:
    rng, dice = np.random.default_rng(3), torch.Generator().manual_seed(3)
    scenes, at = steering.anywhere(rng, count)
    pictures = torch.from_numpy(outlines(draw(scenes, 1, at=at))).movedim(-1, -3)
    return steering.Steered(scenes, torch.randn(count, 1, 8, 8, 8, generator=dice), pictures)


def words(captions: object) -> torch.Tensor:
    return torch.ones(len(list(captions)), 16, 64)  # type: ignore[call-overload]


def test_a_new_controlnet_says_nothing_yet_and_its_error_is_the_image_model_s() -> None:
    unet, frames, dice = image(), some(2), torch.Generator().manual_seed(4)
    noise, text = torch.randn(2, 1, 8, 8, 8, generator=dice), torch.randn(2, 16, 64, generator=dice)
    times, shown = torch.tensor([300, 900]), frames.pictures.float() / 255
    with torch.no_grad():
        steered = steering.error(unet, steering.controlnet(unet), frames.latents, noise, times, text, shown)
        alpha, sigma = (a[times].view(-1, 1, 1, 1, 1) for a in (diffusion.ALPHA, diffusion.SIGMA))
        ready = unet.prepare(times, diffusion.MotionConditions(text, 1))
        signal = diffusion.Signal(1, ready.time[:, 0], ready.memory)
        made = unet(alpha * frames.latents + sigma * noise, signal)
    wrong = (made - (alpha * noise - sigma * frames.latents)).square()
    alone = (wrong * diffusion.attention_to_shapes(frames.latents, 4.0)).flatten(1).mean(1)
    assert torch.allclose(steered, alone, rtol=1e-5)


def test_training_a_controlnet_changes_all_of_it_and_nothing_of_the_image_model() -> None:
    unet = image()
    net, frames = steering.controlnet(unet), some()
    before = {name: p.clone() for name, p in unet.state_dict().items()}
    stage = steering.stage(unet, net, lambda: frames, words, 2, batch=4)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    started = {name: p.clone() for name, p in net.state_dict().items()}
    for step in range(3):  # what is behind two silent layers hears of it only when these speak
        optimiser.zero_grad()
        stage.loss(step, Dice.of(0, "test", step))[0].backward()
        optimiser.step()
    assert all(torch.equal(p, before[name]) for name, p in unet.state_dict().items())
    moved = {name for name, p in net.state_dict().items() if not torch.equal(p, started[name])}
    assert {"conv_in.weight", "controlnet_cond_embedding.conv_out.weight", "controlnet_mid_block.weight"} <= moved
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.skipif(not SHIPPED, reason="this copy has no weights")
@pytest.mark.parametrize("style", STYLES)
def test_a_shape_goes_where_outlines_lie_on_a_way_no_prompt_has_words_for(style: str) -> None:
    """Thresholds lie well below what docs/toy-motion-models.md measures, so that only a real loss trips them."""
    pipes = evaluate_steering.pipelines(style)
    (caption, _, path), *_ = evaluate_steering.some_paths(1, seed=5)
    covers = {
        name: overlap(evaluate_steering.made(pipe, caption, path, 0, name == "with"), path)
        for name, pipe in pipes.items()
    }
    assert covers["with"] > 0.5 and covers["with"] > covers["without"] + 0.2
