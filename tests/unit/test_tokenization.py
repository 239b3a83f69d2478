"""User text is text: special tokens in it are characters, and every character has a token."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import zcontext.tokenization
from tiny import SPECIALS, tiny_tokenizer
from zcontext.errors import ConfigError, VocabularyError
from zcontext.tokenization import special_ids, text_tokenizer, token_seams

TOKENIZER = tiny_tokenizer()
PLAIN = text_tokenizer(TOKENIZER)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def poor_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that lacks a control character and the first byte of some planes."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    lacking = {"Ą", "ñ"}  # how byte-level tokenizers spell 0x04 and 0xF1
    assert lacking < alphabet
    vocab = {token: i for i, token in enumerate([*SPECIALS, *sorted(alphabet - lacking)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")


@given(st.lists(st.sampled_from([*SPECIALS, "a", " ", "é"]), max_size=6).map("".join))
def test_special_tokens_spelled_in_text_are_characters(text):
    ids = PLAIN.ids(text)
    assert not set(ids) & special_ids(TOKENIZER)
    assert TOKENIZER.decode(ids) == text
    assert PLAIN.count(text) == len(ids)


def test_the_tokenizer_it_was_made_from_still_knows_its_special_tokens():
    assert TOKENIZER("<|im_end|>", add_special_tokens=False).input_ids == [TOKENIZER.eos_token_id]
    assert special_ids(TOKENIZER) == {0, 1, 2}


@given(unicode_text)
def test_every_token_stands_in_its_text_and_whole_ones_start_characters(text):
    found = PLAIN.locate(text, max_tokens=1000)
    assert len(found) == len(text.encode())
    assert list(found.starts) == [i for i, char in enumerate(text) for _ in char.encode()]
    cuts = [token for token in range(len(found)) if token in found]
    assert len(cuts) == len(text)
    assert len(found) not in found
    assert found.char_at(0) == 0
    assert found.char_at(len(found)) == len(text)


@given(st.text(st.sampled_from("ab é\n."), max_size=300), st.integers(4, 50))
def test_a_long_text_in_chunks_has_the_tokens_of_the_text_as_a_whole(text, chunk):
    whole = PLAIN.locate(text, max_tokens=1000)
    before = zcontext.tokenization.CHUNK_CHARS
    zcontext.tokenization.CHUNK_CHARS = chunk
    try:
        assert PLAIN.locate(text, max_tokens=1000) == whole
        assert PLAIN.ids(text) == list(whole.ids)
    finally:
        zcontext.tokenization.CHUNK_CHARS = before


def test_reading_stops_soon_after_the_limit():
    with pytest.raises(ConfigError, match="more than max_tokens=100 tokens"):
        PLAIN.locate("a" * 10_000_000, max_tokens=100)


def test_characters_the_base_cannot_spell_count_as_replacement_characters():
    poor = text_tokenizer(poor_tokenizer())
    text = "a\x04b\U00041234c"
    found = poor.locate(text, max_tokens=100)
    assert list(found.ids) == list(poor.ids("a\ufffdb\ufffdc"))
    assert found.n_chars == len(text)
    assert list(found.starts) == [0, 1, 1, 1, 2, 3, 3, 3, 4]


def test_sentence_cuts_rise_and_stand_behind_sentence_ends():
    text = 'One. "Two!" Three? 四。五！\n\nSix 3.5 e.g. seven'
    found = PLAIN.locate(text, max_tokens=1000)
    cuts = found.sentence_cuts(text)
    assert list(cuts) == sorted(set(cuts))
    assert all(cut in found for cut in cuts)
    pieces = [text[: found.char_at(cut)] for cut in cuts]
    assert pieces[:2] == ["One.", 'One. "Two!"']
    assert any(piece.endswith("四。") for piece in pieces)
    assert not any(piece.endswith("3.") for piece in pieces)


def test_text_parts_in_front_of_words_and_behind_sentences_and_clauses():
    found = token_seams(TOKENIZER, len(TOKENIZER) + 2)
    told = {text: PLAIN.ids(text)[0] for text in "a7_ .,;\n(-"}
    opening = {text for text, token in told.items() if found.opens[token]}
    assert opening == set(" \n(")
    assert {text: int(found.closes[token]) for text, token in told.items()} == {
        **dict.fromkeys("a7_ (-", 0),
        **dict.fromkeys(",;", 1),
        **dict.fromkeys(".\n", 2),
    }
    # Structure, pieces of characters and ids without a token say nothing.
    silent = [*special_ids(TOKENIZER), PLAIN.ids("\u4e2d")[0], len(TOKENIZER) + 1]
    assert not bool(found.opens[silent].any())
    assert int(found.closes[silent].sum()) == 0
    assert token_seams(TOKENIZER, len(TOKENIZER) + 2) is found


def test_a_word_opens_where_the_mark_of_its_space_is_lost_in_decoding():
    names = ["\u2581the", "the", "."]
    core = Tokenizer(models.BPE(vocab={name: k for k, name in enumerate(names)}, merges=[]))
    core.decoder = decoders.Metaspace()
    found = token_seams(PreTrainedTokenizerFast(tokenizer_object=core), 3)
    assert found.opens.tolist() == [True, False, False]
    assert found.closes.tolist() == [0, 0, 2]


def test_a_lone_surrogate_is_refused():
    for call in (PLAIN.ids, PLAIN.count, lambda text: PLAIN.locate(text, max_tokens=9)):
        with pytest.raises(VocabularyError, match="surrogate"):
            call("a\ud800b")


def test_threads_tokenise_at_the_same_time():
    text = "word <|im_end|> " * 500
    expected, wrong = PLAIN.ids(text), []

    def work():
        wrong.extend(1 for _ in range(10) if PLAIN.ids(text) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert text_tokenizer(TOKENIZER) is PLAIN
