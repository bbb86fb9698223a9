"""The drawn world and the scorer: what is drawn can be read back, at any size and length, with room to spare."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.errors import InputError
from kinema.toys import scorer
from kinema.toys.world import (
    ATTRIBUTES,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    SHAPES,
    Scene,
    draw,
    some_scene,
)

EVERY = [
    {"shape": shape, "motion": motion}
    for motion in MOTIONS
    for shape in SHAPES
    if (shape, motion) != ("circle", "spins")
]


def scenes(copies: int = 2, seed: int = 11) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [some_scene(rng, **fixed) for _ in range(copies) for fixed in EVERY]


@pytest.mark.parametrize("size", [64, 48])
@pytest.mark.parametrize("frames", [6, 8, 16])
def test_every_attribute_of_a_drawn_clip_is_read_back(size: int, frames: int) -> None:
    some = scenes(1 if frames != 8 else 3)
    for clip, scene in zip(draw(some, frames, size), some):
        said = scorer.read(clip)
        assert {name: getattr(said, name) for name in ATTRIBUTES} == {name: getattr(scene, name) for name in ATTRIBUTES}
        assert said.found == 1


def test_motions_are_told_apart_with_room_to_spare() -> None:
    some = scenes()
    for clip, scene in zip(draw(some), some):
        said = scorer.read(clip)
        far, grown = max(map(abs, said.moved)), abs(said.grown)
        assert (far > 2 * scorer.FAR) if scene.motion in DIRECTIONS else (far < scorer.FAR / 4)
        assert (grown > 1.5 * scorer.GROWN) if scene.motion in ("grows", "shrinks") else (grown < scorer.GROWN / 4)
        if scene.motion == "spins":
            assert said.turned > 1.4 * scorer.TURNED
        elif scene.motion == "stays still":
            assert said.turned < scorer.TURNED / 4


def test_a_blurred_and_noisy_clip_reads_the_same() -> None:
    rng = np.random.default_rng(2)
    some = scenes(1)
    clips = draw(some).astype(np.float32)
    for axis in (2, 3):
        clips = (np.roll(clips, 1, axis) + 2 * clips + np.roll(clips, -1, axis)) / 4
    clips = np.clip(clips + rng.normal(0, 6, clips.shape), 0, 255).astype(np.uint8)
    said = [scorer.read(clip) for clip in clips]
    for name in ("colour", "background", "motion"):
        assert [getattr(s, name) for s in said] == [getattr(s, name) for s in some]
    assert np.mean([a.shape == b.shape for a, b in zip(said, some)]) > 0.9


def test_numbers_between_0_and_1_read_as_bytes_do() -> None:
    clip = draw(scenes(1)[:1])[0]
    bytes_, floats = scorer.read(clip), scorer.read(clip.astype(np.float32) / 255)
    assert (bytes_.colour, bytes_.shape, bytes_.motion) == (floats.colour, floats.shape, floats.motion)
    assert bytes_.moved == pytest.approx(floats.moved, abs=1e-4)


@pytest.mark.parametrize("level", [20, 230])
def test_an_empty_clip_says_that_nothing_was_found(level: int) -> None:
    said = scorer.read(np.full((8, 64, 64, 3), level, np.uint8))
    assert said.found == 0
    assert said.background == ("dark" if level < 128 else "light")


def test_a_clip_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match="frames, height, width, 3"):
        scorer.read(np.zeros((8, 3, 64, 64)))


def test_a_longer_clip_goes_as_far_in_smaller_steps() -> None:
    scene = some_scene(np.random.default_rng(0), motion="moves left")
    short, long = (scorer.read(draw([scene], frames)[0]).moved[0] for frames in (8, 16))
    assert short == pytest.approx(long, rel=0.02)


def test_the_same_random_numbers_draw_the_same_clip() -> None:
    first, second = (draw([some_scene(np.random.default_rng(7))]) for _ in range(2))
    assert (first == second).all()


def test_moments_can_be_named() -> None:
    scene = some_scene(np.random.default_rng(0), motion="grows")
    whole = draw([scene])
    one = draw([scene], 1, at=np.array([[FRAMES - 1]], np.float32))
    assert (one[0, 0] == whole[0, -1]).all()


def test_what_the_world_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no colour 'pink'"):
        some_scene(np.random.default_rng(0), colour="pink")
    with pytest.raises(InputError, match="circle cannot be seen to spin"):
        some_scene(np.random.default_rng(0), shape="circle", motion="spins")
    with pytest.raises(InputError, match="at least one scene"):
        draw([])


def test_colours_are_far_apart() -> None:
    values = np.array(list(COLOURS.values()))
    for i, a in enumerate(values):
        for b in values[i + 1 :]:
            assert np.abs(a - b).sum() > 100
