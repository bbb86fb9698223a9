"""Prompts become the reference's embeddings, at any length, in any batch, from any thread."""

from __future__ import annotations

import logging
import pathlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests import encoders_tiny as tiny

from kinema.encoders.prompts import PLAIN, Reading, as_prompts, encode, encode_pair
from kinema.errors import InputError

PROMPTS = ["A red circle moves left", "", 'it\'s a "Cat", (sitting) [here] 42  times!', "x" * 75, "<|endoftext|> é"]
LONG = "word " * 50  # 200 tokens: three blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def tok(folder: pathlib.Path):
    return tiny.tokenizer(folder / "plain")


@pytest.fixture(scope="module")
def model():
    return tiny.text_encoder()


def by_hand(model, ids: list[int], layers: int | None = None) -> torch.Tensor:
    """The hidden state after so many layers, normed by the model's own final norm, (k, d)."""
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    norm = dict(model.named_modules())["final_layer_norm"]
    with torch.no_grad():
        return norm(states[-1 if layers is None else layers])[0]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize(
    "changes", [{}, {"use_attention_mask": True}, {"hidden_act": "gelu", "num_attention_heads": 2, "hidden_size": 48}]
)
def test_plain_embeddings_equal_the_reference(folder, pad, changes):
    tok, model = tiny.tokenizer(folder / f"pad-{ord(pad[0])}", pad), tiny.text_encoder(**changes)
    negatives = ["blurry", "", "bad (worse)", "low quality, watermark", "a"]
    with torch.no_grad():
        theirs = tiny.reference(tok, model).encode_prompt(PROMPTS, "cpu", 1, True, negatives)
    ours = encode_pair(tok, model, PROMPTS, negatives)
    for one, other in zip(ours, theirs):
        assert one.shape == (len(PROMPTS), 77, model.config.hidden_size) and one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_cutting_long_prompts_equals_the_reference(tok, model):
    with torch.no_grad():
        theirs = tiny.reference(tok, model).encode_prompt([LONG], "cpu", 1, True, [LONG[::-1]])
    ours = encode_pair(tok, model, [LONG], [LONG[::-1]], Reading(long_prompts="cut"))
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", range(6))
def test_clip_skip_is_an_earlier_hidden_state_through_the_final_norm(tok, model, skip):
    prompt = "a red circle"
    ids = tok([prompt], padding="max_length", max_length=77, truncation=True)["input_ids"][0]
    positive, negative = encode_pair(tok, model, [prompt], [prompt], clip_skip=skip)
    torch.testing.assert_close(positive[0], by_hand(model, ids, -(skip + 1)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(negative[0], by_hand(model, ids), rtol=1e-6, atol=1e-6)


def test_clip_skip_agrees_with_the_reference_where_it_still_runs(tok, model):
    """The reference reaches for an attribute that newer `transformers` lacks; given it, its number is ours."""
    pipe = tiny.reference(tok, model)
    had = hasattr(model, "text_model")
    if not had:
        object.__setattr__(model, "text_model", model)
    try:
        with torch.no_grad():
            theirs = pipe.encode_prompt(PROMPTS, "cpu", 1, True, clip_skip=2)
    finally:
        if not had:
            object.__delattr__(model, "text_model")
    ours = encode_pair(tok, model, PROMPTS, [""] * len(PROMPTS), clip_skip=2)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("skip", [-1, 6, True, 1.5, "1"])
def test_an_impossible_clip_skip_is_refused(tok, model, skip):
    with pytest.raises(InputError, match="0 to 5"):
        encode(tok, model, ["a"], clip_skip=skip)


def test_clip_skip_leaves_the_model_as_it_was(tok, model):
    before = encode(tok, model, ["a cat"])
    encode(tok, model, ["a cat"], clip_skip=2)
    assert model.config.num_hidden_layers == 5
    assert torch.equal(encode(tok, model, ["a cat"]), before)


def test_a_word_at_token_200_changes_the_embedding(tok, model):
    one, other = encode(tok, model, [LONG + "cat"]), encode(tok, model, [LONG + "dog"])
    assert one.shape == other.shape == (1, 3 * 77, 32)
    assert torch.equal(one[:, : 2 * 77], other[:, : 2 * 77])
    assert not torch.allclose(one[:, 2 * 77 :], other[:, 2 * 77 :])


def test_a_long_prompt_is_its_blocks_end_to_end(tok, model):
    ids = tok([LONG], add_special_tokens=False)["input_ids"][0]
    parts = [ids[i : i + 75] for i in range(0, len(ids), 75)]
    whole = [by_hand(model, [tiny.BEGIN, *part, *[tiny.END] * (76 - len(part))]) for part in parts]
    torch.testing.assert_close(encode(tok, model, [LONG])[0], torch.cat(whole), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", [(1, 300), (300, 1), (75, 76), (150, 151), (80, 290), (0, 76)])
def test_prompt_and_negative_have_the_same_length_whatever_theirs(tok, model, lengths):
    positive, negative = encode_pair(tok, model, ["a" * lengths[0]], ["b" * lengths[1]])
    assert positive.shape == negative.shape == (1, 77 * -(-max(lengths) // 75), 32)


def test_the_shorter_side_is_filled_with_empty_blocks(tok, model):
    positive, negative = encode_pair(tok, model, ["a cat"], [LONG])
    assert torch.equal(positive, torch.cat([encode(tok, model, ["a cat"]), *[encode(tok, model, [""])] * 2], dim=1))
    assert torch.equal(negative, encode(tok, model, [LONG]))


def test_an_embedding_does_not_depend_on_the_rest_of_the_batch(tok, model):
    prompts, negatives = ["a cat", LONG, "a dog" * 30, "a cat"], ["", "bad", "bad", "bad " * 30]
    together = encode_pair(tok, model, prompts, negatives)
    assert together[0].shape == together[1].shape == (4, 77 * 6, 32)
    for i, (prompt, negative) in enumerate(zip(prompts, negatives)):
        for whole, alone in zip(together, encode_pair(tok, model, [prompt], [negative])):
            copies = whole.shape[1] // alone.shape[1]
            assert torch.equal(whole[i], alone[0].repeat(copies, 1))


def test_a_context_repeated_whole_is_attended_to_as_once(tok, model):
    """What lets prompts of different lengths share a batch."""
    context = encode(tok, model, ["a cat"]).double()
    asked = torch.randn(1, 9, 32, dtype=torch.float64)
    once = torch.nn.functional.scaled_dot_product_attention(asked, context, context)
    thrice = torch.nn.functional.scaled_dot_product_attention(asked, *[context.repeat(1, 3, 1)] * 2)
    torch.testing.assert_close(once, thrice)


def test_lengths_that_do_not_go_together_are_refused(tok, model):
    with pytest.raises(InputError, match="5, 6, 7 blocks"):
        encode(tok, model, ["a" * 75 * n for n in (5, 6, 7)])
    assert encode(tok, model, ["a" * 75 * 60]).shape == (1, 60 * 77, 32)


def test_cutting_is_never_silent(tok, model, caplog):
    with caplog.at_level(logging.WARNING, "kinema"):
        encode(tok, model, ["a" * 75 + " tail"], Reading(long_prompts="cut"))
    assert "79 tokens" in caplog.text and "tail" in caplog.text
    with pytest.raises(InputError, match="tail"):
        encode(tok, model, ["a" * 75 + " tail"], Reading(long_prompts="refuse"))
    with pytest.raises(InputError, match="'blocks', 'cut' or 'refuse'"):
        Reading(long_prompts="perhaps")


def test_prompts_that_fit_are_the_same_however_long_ones_are_treated(tok, model):
    plain = encode(tok, model, PROMPTS[:4])
    for way in ("cut", "refuse"):
        assert torch.equal(encode(tok, model, PROMPTS[:4], Reading(long_prompts=way)), plain)


@pytest.mark.parametrize("clip_skip", [None, 1])
def test_eight_threads_read_what_one_does(folder, clip_skip):
    """With a tokenizer that keeps cutting and padding settings, which a fast one changes as it is called."""
    tok, model = tiny.tokenizer(folder / "threads"), tiny.text_encoder()
    tok(["a"], padding="max_length", truncation=True)
    prompts = [f"prompt {i} " * (i % 9 + 1) for i in range(48)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: encode(tok, model, [p], clip_skip=clip_skip), prompts))
    for prompt, one in zip(prompts, found):
        assert torch.equal(one, encode(tok, model, [prompt], clip_skip=clip_skip))


def test_half_precision_models_give_half_precision(tok):
    model = tiny.text_encoder().to(torch.bfloat16)
    found = encode(tok, model, ["a (cat:1.3)"], Reading(weighting=True), clip_skip=1)
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())


def test_nothing_is_left_for_gradients(tok, model):
    assert not encode(tok, model, ["a"], PLAIN).requires_grad


def test_prompts_are_one_text_or_several():
    assert as_prompts("a") == ["a"] and as_prompts(["a", "b"]) == ["a", "b"] and as_prompts(("a",)) == ["a"]
    for wrong in (None, 3, [], ["a", 3], b"a", {"a": 1}):
        with pytest.raises(InputError, match="negative_prompt"):
            as_prompts(wrong, "negative_prompt")


def test_there_is_a_negative_for_every_prompt(tok, model):
    with pytest.raises(InputError, match="2 prompts and 1"):
        encode_pair(tok, model, ["a", "b"], ["c"])
