"""Learned words give the reference's embeddings, from every format, and leave model and tokenizer as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from tests import encoders_tiny as tiny

from kinema.encoders.inversion import Inversions, read_inversion
from kinema.encoders.prompts import Reading, encode, encode_pair
from kinema.errors import CheckpointError, InputError

SINGLE = {"<cat-toy>": torch.randn(32, generator=torch.Generator().manual_seed(1))}
SEVERAL = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
A1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": SEVERAL}, "name": "charturner", "step": 500}


@pytest.fixture
def tok(tmp_path):
    return tiny.tokenizer(tmp_path)


@pytest.fixture(scope="module")
def model():
    return tiny.text_encoder()


def loaded(tok, *states, token=None) -> Reading:
    words = Inversions()
    for state in states:
        words = words.adding(read_inversion(state, token), tok, 32)
    return Reading(inversions=words)


@pytest.mark.parametrize(
    ("state", "token", "prompt"),
    [
        (SINGLE, None, "a photo of <cat-toy> backpack"),
        (SINGLE, None, "<cat-toy>, <cat-toy>!"),
        (SINGLE, "<renamed>", "a<renamed>b <cat-toy>"),
        (A1111, None, "charturner, several views of a CHARTURN in a room"),
        (A1111, "<turner>", "a <turner> and <turner> once more"),
        ({"emb_params": SEVERAL}, "<style>", "in <style> style"),
        (SEVERAL, "<style>", "in <style> style"),
        (SEVERAL[0], "<one>", "in <one> style"),
    ],
)
@pytest.mark.parametrize("clip_skip", [None, 1])
def test_embeddings_equal_the_reference(tok, model, state, token, prompt, clip_skip):
    theirs_tok, theirs_model = copy.deepcopy(tok), copy.deepcopy(model)
    pipe = tiny.reference(theirs_tok, theirs_model)
    pipe.load_textual_inversion(state, token=token)
    if clip_skip:
        object.__setattr__(theirs_model, "text_model", theirs_model)
    with torch.no_grad():
        theirs = pipe.encode_prompt([prompt, "a cat"], "cpu", 1, True, [prompt, ""], clip_skip=clip_skip)
    ours = encode_pair(
        tok, model, [prompt, "a cat"], [prompt, ""], loaded(tok, state, token=token), clip_skip=clip_skip
    )
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_several_words_together_equal_the_reference(tok, model):
    pipe = tiny.reference(copy.deepcopy(tok), copy.deepcopy(model))
    pipe.load_textual_inversion(SINGLE)
    pipe.load_textual_inversion(A1111)
    prompt = "charturner with a <cat-toy>, second part"
    with torch.no_grad():
        theirs = pipe.encode_prompt([prompt], "cpu", 1, False)[0]
    torch.testing.assert_close(encode(tok, model, [prompt], loaded(tok, SINGLE, A1111)), theirs, rtol=1e-6, atol=1e-6)


def test_a_part_of_a_word_of_several_vectors_can_be_named(tok, model):
    whole = loaded(tok, A1111)
    part = loaded(tok, {"<part>": SEVERAL[2:]})
    assert torch.equal(encode(tok, model, ["a charturner_2"], whole), encode(tok, model, ["a <part>"], part))


def test_unloading_restores_exactly(tok, model):
    vocabulary, table = dict(tok.get_vocab()), model.get_input_embeddings().weight.clone()
    before = encode(tok, model, ["a <cat-toy>"])
    words = loaded(tok, SINGLE, A1111).inversions
    with_word = encode(tok, model, ["a <cat-toy>"], Reading(inversions=words))
    assert not torch.allclose(with_word, before)
    assert tok.get_vocab() == vocabulary and torch.equal(model.get_input_embeddings().weight, table)
    assert torch.equal(encode(tok, model, ["a <cat-toy>"], Reading(inversions=words.removing())), before)
    rest = words.removing("charturner")
    assert list(rest) == ["<cat-toy>"]
    assert torch.equal(encode(tok, model, ["a <cat-toy>"], Reading(inversions=rest)), with_word)
    with pytest.raises(InputError, match="loaded are <cat-toy>"):
        rest.removing(["charturner"])


def test_a_word_that_is_taken_is_refused(tok):
    words = loaded(tok, SINGLE, A1111).inversions
    for name in ("<cat-toy>", "<CAT-toy>", "charturner_1", "charturner", "a", "a</w>", "<|endoftext|>"):
        with pytest.raises(InputError, match="already a token"):
            words.adding({name: SEVERAL[:1]}, tok, 32)
    with pytest.raises(InputError, match=r"'fresh_1' is already"):
        Inversions().adding({"fresh_1": SEVERAL[:1], "fresh": SEVERAL}, tok, 32)
    with pytest.raises(CheckpointError, match="32 wide and this text encoder's are 768"):
        Inversions().adding(SINGLE | {"<cat-toy>": SEVERAL}, tok, 768)


def test_learned_words_can_be_weighed_and_fill_long_prompts(tok, model):
    words = loaded(tok, A1111).inversions
    reading = Reading(inversions=words, weighting=True)
    weighed = encode(tok, model, ["a (charturner:1.5)"], reading)
    assert not torch.allclose(weighed, encode(tok, model, ["a charturner"], reading))
    assert encode(tok, model, ["charturner " * 26], reading).shape == (1, 2 * 77, 32)
    cut = Reading(inversions=words, long_prompts="cut")
    assert encode(tok, model, ["charturner " * 26 + "a"], cut).shape == (1, 77, 32)


def test_prompts_without_a_learned_word_are_untouched(tok, model):
    assert torch.equal(encode(tok, model, ["a cat toy"], loaded(tok, SINGLE, A1111)), encode(tok, model, ["a cat toy"]))


def test_words_come_from_the_file_or_from_the_call():
    assert list(read_inversion(SINGLE)) == ["<cat-toy>"]
    assert list(read_inversion({"<a>": SEVERAL, "<b>": SEVERAL})) == ["<a>", "<b>"]
    assert read_inversion(SINGLE)["<cat-toy>"].shape == (1, 32)
    split = read_inversion(SEVERAL, ["<a>", "<b>", "<c>"])
    assert all(torch.equal(split[word][0], row) for word, row in zip(split, SEVERAL))
    for nameless in (SEVERAL, {"emb_params": SEVERAL}, {"string_to_param": {"*": SEVERAL}}):
        with pytest.raises(InputError, match="pass token="):
            read_inversion(nameless)
    for wrong in (["<a>", "<b>"], "", [], ["<a>", "<a>"], [3], 3):
        with pytest.raises(InputError):
            read_inversion(SEVERAL[:1], wrong)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": 1},
        {"a": torch.ones(3, dtype=torch.long)},
        {"a": torch.ones(2, 2, 2)},
        {"a": torch.tensor([1.0, float("nan")])},
        {"a": torch.ones(0, 4)},
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
        {"string_to_param": {"+": SEVERAL}},
        "text",
    ],
)
def test_a_file_that_is_no_inversion_is_refused(state):
    with pytest.raises(CheckpointError, match=r"style\.pt"):
        read_inversion(state, where="style.pt")
