"""Brackets weigh words when asked to, as in the interface that made the syntax known, and are text otherwise."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import encoders_tiny as tiny

from kinema.encoders.inversion import NOTHING
from kinema.encoders.prompts import Reading, encode, encode_pair
from kinema.encoders.weighting import looks_weighted, parse, weigh
from kinema.errors import InputError

WEIGHTED = Reading(weighting=True)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    return tiny.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model():
    return tiny.text_encoder()


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("\\(literal\\] \\\\", [("(literal] \\", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[less]", [("less", 1 / 1.1)]),
        ("((twice))", [("twice", 1.1**2)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("(a: .5 ) (b:-1) (c:2)", [("a", 0.5), (" ", 1), ("b", -1), (" ", 1), ("c", 2)]),
        ("(a (b:2) [c]:3)", [("a ", 3), ("b", 6), (" ", 3), ("c", 3 / 1.1)]),
        ("(not:a number)", [("not:a number", 1.1)]),
        ("stray) and] :1.5) ", [("stray) and] :1.5) ", 1)]),
        ("(one [two) three]", [("one ", 1.1), ("two", 1), (" three", 1 / 1.1)]),
        ("(line\nbreak:1.2)", [("line\nbreak", 1.2)]),
        ("back\\slash", [("back\\slash", 1)]),
        ("", []),
        ("()", []),
    ],
)
def test_the_syntax_reads_as_documented(prompt, pieces):
    found = parse(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(alphabet="ab ()[]\\:.13-", max_size=40))
def test_any_text_can_be_read_and_only_syntax_is_taken_out(prompt):
    try:
        pieces = parse(prompt)
    except InputError:
        return
    said = iter(prompt)
    assert all(letter in said for letter in "".join(text for text, _ in pieces))


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"'1\.2\.3'"):
        parse("(a:1.2.3)")


@pytest.mark.parametrize("prompt", ["a cat", "a cat, sitting: now", "", "word " * 60, "<|endoftext|> it's 1.5"])
def test_a_prompt_without_weights_equals_plain_exactly(tok, model, prompt):
    assert torch.equal(encode(tok, model, [prompt], WEIGHTED), encode(tok, model, [prompt]))


@pytest.mark.parametrize("prompt", ["a (cat:1.0) sits", "a (cat) sits", "a [cat] sits", "a (cat:1.4) (sits:0.3)"])
def test_brackets_are_text_unless_asked_for(tok, model, prompt):
    with torch.no_grad():
        theirs = tiny.reference(tok, model).encode_prompt([prompt], "cpu", 1, True)[0]
    torch.testing.assert_close(encode(tok, model, [prompt]), theirs, rtol=1e-6, atol=1e-6)


def test_a_weight_that_is_not_used_is_said(tok, model, caplog):
    with caplog.at_level(logging.WARNING, "kinema"):
        encode(tok, model, ["a cat (sitting)"])
        assert not caplog.text
        encode(tok, model, ["a (cat:1.3)"])
    assert "prompt_weighting=True" in caplog.text
    assert looks_weighted("x (cat : .5)") and not looks_weighted("x \\(cat:1.3\\)") and not looks_weighted("at 10:30)")


def test_a_weight_of_one_is_no_weight(tok, model):
    assert torch.equal(encode(tok, model, ["a (cat:1.0) sits"], WEIGHTED), encode(tok, model, ["a cat sits"]))


def test_a_weight_scales_its_tokens_and_the_mean_stays(tok, model):
    plain = encode(tok, model, ["a cat sits"])[0] + 0.5  # CLIP's outputs are far from a mean of zero; these are not
    weights = [1.0] * 77
    weights[2:5] = [1.5] * 3
    found = weigh(plain, weights)
    torch.testing.assert_close(found.mean(), plain.mean())
    scaled = found / plain
    torch.testing.assert_close(scaled[2:5], 1.5 * scaled[:1, :1].expand(3, 32), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled[5:], scaled[:1, :1].expand(72, 32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [[3.0, -1.0], [0.0, 0.0], [-2.0, -2.0], [1e4, 1.0]])
def test_no_weight_gives_numbers_without_bound(weights):
    z = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    found = weigh(z - z.mean(), weights)
    assert bool(found.isfinite().all()) and found.abs().max() <= 2 * max(map(abs, weights)) * (z - z.mean()).abs().max()


def test_weights_are_those_of_the_words_they_surround(tok, model):
    """Begin, end, padding and the other words keep their direction; the weighed word is told apart by its length."""
    plain = encode(tok, model, ["a cat sits"])[0]
    found = encode(tok, model, ["a (cat:1.5) sits"], WEIGHTED)[0]
    factor = (found / plain).median(dim=1).values
    torch.testing.assert_close(factor[2:5] / factor[0], torch.full((3,), 1.5), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(factor[5:] / factor[0], torch.ones(72), rtol=1e-4, atol=1e-4)


def test_weights_reach_long_prompts_and_negatives_alike(tok, model):
    long = "word " * 40
    positive, negative = encode_pair(tok, model, [long + "(cat:1.5)"], ["(bad:0.5)"], WEIGHTED)
    plain, empty = encode_pair(tok, model, [long + "cat"], ["bad"])
    assert torch.equal(positive[:, : 2 * 77], plain[:, : 2 * 77]) and not torch.allclose(positive, plain)
    assert torch.equal(negative[:, 77:], empty[:, 77:]) and not torch.allclose(negative, empty)


def test_weights_and_batches_do_not_mix(tok, model):
    together = encode(tok, model, ["a (cat:1.5)", "a dog"], WEIGHTED)
    assert torch.equal(together[0], encode(tok, model, ["a (cat:1.5)"], WEIGHTED)[0])
    assert torch.equal(together[1], encode(tok, model, ["a dog"])[0])


def test_a_reading_says_what_it_is_by_default():
    assert Reading() == Reading(weighting=False, long_prompts="blocks", inversions=NOTHING)
