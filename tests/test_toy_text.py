"""Captions, their tokenizer and the code the text tower learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.toys import tokenizer
from kinema.toys.captions import SAY, WORDS, plain, some_caption, understood
from kinema.toys.world import ATTRIBUTES, some_scene
from kinema.train import text


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory):
    return text.load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_each_word_of_the_world_is_one_token(tokens) -> None:
    assert [w for w in WORDS if len(tokens(w).input_ids) != 3] == []
    assert [w for w in WORDS if len(tokens(w.upper()).input_ids) != 3] == []


def test_any_other_text_still_has_tokens_that_read_back(tokens) -> None:
    for strange in ("zebra", "naïve", "日本", "a, b; c!", "x" * 9):
        assert tokens.decode(tokens(strange).input_ids[1:-1]).replace(" ", "") == strange.replace(" ", "")


def test_every_caption_fits(tokens) -> None:
    rng = np.random.default_rng(0)
    longest = max(len(tokens(some_caption(rng, some_scene(rng), 1.0, 1.0)[0]).input_ids) for _ in range(300))
    assert longest <= tokenizer.LENGTH == tokens.model_max_length


def test_a_plain_caption_says_it_all() -> None:
    said = {"colour": "red", "shape": "circle", "motion": "moves left", "background": "dark"}
    assert plain(said) == "a red circle moves left on a dark background"
    assert plain({"motion": "spins"}) == "a shape spins"
    assert plain({}) == ""


def test_a_caption_says_what_it_claims_to_and_no_more() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = some_scene(rng)
        caption, said = some_caption(rng, scene, keep=0.5, variety=0.5)
        for name in ATTRIBUTES:
            mentioned = any(way in caption for way in SAY[getattr(scene, name)])
            assert mentioned == (name in said) or getattr(scene, name) == "stays still"


def test_what_a_caption_says_is_understood_however_it_is_said() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        caption, said = some_caption(rng, some_scene(rng), keep=0.7, variety=0.7)
        assert understood(caption) == said, caption
    assert understood("A RED Ball, rising!") == {"colour": "red", "shape": "circle", "motion": "moves up"}
    assert understood("a dog on a blueish sofa") == understood("") == {}


def test_no_two_ways_of_saying_things_are_the_same() -> None:
    ways = [way for many in SAY.values() for way in many]
    assert len(ways) == len(set(ways))


def test_the_files_are_written_as_published(tmp_path: Path) -> None:
    tokenizer.write(tmp_path, WORDS)
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_codes_tell_every_value_of_every_attribute_apart() -> None:
    table = text.codes()
    for name, rows in table.items():
        assert len(rows) == len(ATTRIBUTES[name]) + 1
        apart = torch.cdist(rows, rows) + 1e3 * torch.eye(len(rows))
        assert apart.min() > 1.4 * text.LENGTHS[name] - 1e-3 or name == "background"
    rng = np.random.default_rng(0)
    said = [text.loose_caption(rng, some_scene(rng))[1] for _ in range(50)]
    assert text.correct(table, text.target(table, said), said) == 1


def test_the_tower_fits_its_tokenizer(tokens) -> None:
    tower = text.new_tower()
    assert tower.config.vocab_size == len(tokens)
    assert tower.config.eos_token_id == tokens.eos_token_id
    assert text.encode(tower, tokens, ["a red circle", ""]).shape == (2, tokenizer.LENGTH, text.WIDTH)
