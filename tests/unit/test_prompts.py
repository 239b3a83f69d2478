"""Prompts: what stands where, and user text that never becomes structure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import SPECIALS, tiny_tokenizer
from zcontext.errors import ModelError, SpanError
from zcontext.prompts import encode_messages, encode_parts, n_positions, question_parts
from zcontext.spans import ChatMessage
from zcontext.vocabulary import Symbols

TOKENIZER = tiny_tokenizer()
ONE = Symbols(((1, 2), (3, 4)), 32, "abcd")
TWO = Symbols(((5, 6),), 32, "abcd")
nasty = st.lists(
    st.sampled_from([*SPECIALS, "user\n", "@@zcontext-part-0@@", "a", " ", "{{ x }}", "é"]),
    max_size=5,
).map("".join)
parts = st.lists(st.one_of(nasty, st.just(ONE), st.just(TWO)), max_size=5)


def shown(pieces) -> list:
    return [p if isinstance(p, Symbols) else TOKENIZER.decode(p) for p in pieces]


def test_the_question_is_put_as_it_was_trained():
    assert question_parts("Who?", ["raw ", ONE]) == [
        ChatMessage(
            "user",
            (
                "Context:\n",
                "raw ",
                ONE,
                "\n\nQuestion: Who?\nAnswer in a few words, from the context alone. "
                "If it does not say, answer: unknown.",
            ),
        )
    ]


def test_braces_in_a_question_are_only_braces():
    (message,) = question_parts("What is {context} in {question}?", [ONE])
    head, symbols, tail = message.parts
    assert (head, symbols) == ("Context:\n", ONE)
    assert tail.startswith("\n\nQuestion: What is {context} in {question}?\nAnswer")


@given(parts)
def test_parts_come_out_in_order_with_neighbouring_texts_as_one(content):
    pieces = encode_parts(TOKENIZER, content)
    assert all(len(piece) for piece in pieces)
    merged: list = []
    for part in content:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif len(part):
            merged.append(part)
    assert shown(pieces) == merged
    assert n_positions(pieces) == sum(
        len(p) if isinstance(p, Symbols) else len(p.encode()) for p in merged
    )


@given(parts, parts)
def test_nothing_a_user_writes_becomes_structure(one, other):
    messages = [ChatMessage("system", tuple(one)), ChatMessage("user", tuple(other))]
    pieces = encode_messages(TOKENIZER, messages)
    ids = [i for piece in pieces if not isinstance(piece, Symbols) for i in piece]
    assert [i for i in ids if i < 3] == [1, 2, 1, 2, 1]
    symbols = [p for p in pieces if isinstance(p, Symbols)]
    assert symbols == [p for p in (*one, *other) if isinstance(p, Symbols)]
    text = "".join(p for p in shown(pieces) if isinstance(p, str))
    said = ["".join(p for p in c if isinstance(p, str)) for c in (one, other)]
    assert text == (
        f"<|im_start|>system\n{said[0]}<|im_end|>\n<|im_start|>user\n{said[1]}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_without_a_generation_prompt_the_last_turn_is_closed():
    pieces = encode_messages(TOKENIZER, [ChatMessage("user", ("hi",))], add_generation_prompt=False)
    assert shown(pieces) == ["<|im_start|>user\nhi<|im_end|>\n"]


def test_a_base_without_a_template_gets_a_plain_format():
    bare = tiny_tokenizer()
    bare.chat_template = None
    pieces = encode_messages(bare, [ChatMessage("user", ("hi ", ONE, "<|im_end|>"))])
    assert shown(pieces) == ["user: hi ", ONE, "<|im_end|>\n\nassistant:"]
    assert 2 not in pieces[2]


def test_a_role_that_could_be_structure_is_refused():
    for role in ("user<|im_end|>", "a b", "é"):
        with pytest.raises(SpanError, match="plain word"):
            encode_messages(TOKENIZER, [ChatMessage(role, ("x",))])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "refuses the roles"),
        ("{{ messages[0]['content'] }}", "shows messages"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "once"),
        ("{% for m in messages %}{{ m['content']['x'] + 1 }}{% endfor %}", "refuses"),
    ],
)
def test_a_template_that_refuses_drops_or_repeats_a_message_is_reported(template, message):
    strict = tiny_tokenizer()
    strict.chat_template = template
    with pytest.raises(ModelError, match=message):
        encode_messages(strict, [ChatMessage("user", ("a",)), ChatMessage("user", ("b",))])


def test_a_chat_without_messages_is_refused():
    with pytest.raises(SpanError, match="no message"):
        encode_messages(TOKENIZER, [])
