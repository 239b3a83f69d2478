"""Prompts of text and symbols: what a reader sees, position by position.

What it is: the one place that decides how a question is put, how a chat is laid out by the base's
template, and which token ids or symbols stand where. Training and answering both use it, so the
INFER adapter meets the very prompts it was trained on. What it does not know: models, embeddings.

User text never becomes structure: a special token spelled in it is tokenised as characters, and
the chat template only ever sees placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from zcontext.errors import ModelError, SpanError
from zcontext.spans import QUESTION_PROMPT, ChatMessage, Part
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import Symbols, ZVocabulary

Piece = list[int] | Symbols
"""Token ids or symbols that stand one after another in a prompt."""

_ROLE = re.compile(r"[\w-]+\Z", re.ASCII)
_PLACEHOLDER = re.compile(r"@@zcontext-part-(\d+)@@")


def question_parts(question: str, context: Sequence[Part]) -> list[ChatMessage]:
    """The prompt of `ask`: one user message with the context, then the question.

    Args:
        question: What is asked.
        context: Text and symbols to answer from, in order.

    Returns:
        The messages; the answer is the assistant's next turn.
    """
    head, tail = QUESTION_PROMPT.split("{context}")
    # Not format(): a question may hold braces.
    return [ChatMessage("user", (head, *context, tail.replace("{question}", question)))]


def check_parts(parts: Sequence[Part], vocabulary: ZVocabulary) -> None:
    """Refuse parts that a codec cannot read, or that only look like symbols.

    Args:
        parts: Text and symbols.
        vocabulary: Of the codec that reads them.

    Raises:
        CodecMismatchError: Another codec wrote the symbols.
        UnknownSymbolError: The symbols are deeper than the codec.
        SymbolCollisionError: A text spells symbols.
    """  # noqa: DOC502 - raised by the vocabulary
    for part in parts:
        if isinstance(part, Symbols):
            vocabulary.check(part)
        else:
            vocabulary.guard(part)


def encode_parts(tokenizer: Any, parts: Sequence[Part]) -> list[Piece]:
    """Text and symbols as they follow one another, with what the base wants in front of a text.

    Args:
        tokenizer: The base's fast tokenizer.
        parts: Text and symbols.

    Returns:
        Pieces in order; neighbouring texts are tokenised as one, no piece is empty.

    Raises:
        VocabularyError: A text holds a lone surrogate.
    """  # noqa: DOC502 - raised by the tokenizer
    plain = text_tokenizer(tokenizer)
    return _join([list(plain.opening), *encode_content(tokenizer, parts)])


def encode_messages(
    tokenizer: Any, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
) -> list[Piece]:
    """A chat in the base's own format (a plain `role: content` one if it has no template).

    Args:
        tokenizer: The base's fast tokenizer.
        messages: Turns, in order.
        add_generation_prompt: Open the assistant's turn at the end.

    Returns:
        Pieces in order, no piece is empty.

    Raises:
        ModelError: The base's template refuses these roles, or leaves out or repeats a message.
        SpanError: There is no message, or a role is not a plain word.
        VocabularyError: A text holds a lone surrogate.
    """  # noqa: DOC502 - some raised by the tokenizer
    if not messages:
        raise SpanError("there is no message: give one turn or more, the last one the user's")
    for message in messages:
        if not _ROLE.match(message.role):
            raise SpanError(
                f"role={message.role!r}: give a plain word such as 'user', 'system', 'assistant'"
            )
    rendered = _render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    pieces: list[Piece] = []
    seen = []
    for at, fragment in enumerate(_PLACEHOLDER.split(rendered)):
        if at % 2:
            seen.append(int(fragment))
            if seen[-1] < len(messages):
                pieces += encode_content(tokenizer, messages[seen[-1]].parts)
        elif fragment:
            # Only the template's own text: here special tokens are meant.
            encoded = tokenizer.backend_tokenizer.encode(fragment, add_special_tokens=False)
            pieces.append(list(encoded.ids))
    if seen != list(range(len(messages))):
        raise ModelError(
            f"the chat template of this base shows messages {seen} of {len(messages)}; it must "
            "show each of them once, in order. Give other messages, or use complete()"
        )
    return _join(pieces)


def encode_turns(
    tokenizer: Any, messages: Sequence[ChatMessage], vocabulary: ZVocabulary
) -> list[Piece]:
    """A chat that the assistant is to answer, its parts checked.

    Args:
        tokenizer: The base's fast tokenizer.
        messages: Turns, in order.
        vocabulary: Of the codec that reads them.

    Returns:
        Pieces in order, no piece is empty.

    Raises:
        CodecMismatchError: Another codec wrote the symbols.
        UnknownSymbolError: The symbols are deeper than the codec.
        SymbolCollisionError: A text spells symbols.
        ModelError: The base's template refuses these roles, or leaves out or repeats a message.
        SpanError: There is no message, or a role is not a plain word.
        VocabularyError: A text holds a lone surrogate.
    """  # noqa: DOC502 - raised by the steps
    for message in messages:
        check_parts(message.parts, vocabulary)
    return encode_messages(tokenizer, messages)


def n_positions(pieces: Sequence[Piece]) -> int:
    """Positions that pieces take.

    Args:
        pieces: Token ids and symbols.

    Returns:
        One per token, one per symbol.
    """
    return sum(map(len, pieces))


def encode_content(tokenizer: Any, parts: Sequence[Part]) -> Iterator[Piece]:
    """Text and symbols as they stand within a prompt.

    Args:
        tokenizer: The base's fast tokenizer.
        parts: Text and symbols.

    Yields:
        One piece for each stretch of text and for each part that is symbols, in order.

    Raises:
        VocabularyError: A text holds a lone surrogate.
    """  # noqa: DOC502 - raised by the tokenizer
    plain = text_tokenizer(tokenizer)
    for part in _merge(parts):
        yield plain.ids(part) if isinstance(part, str) else part


def _merge(parts: Sequence[Part]) -> Iterator[Part]:
    """Neighbouring texts as one text."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if texts:
            yield "".join(texts)
            texts = []
        yield part
    if texts:
        yield "".join(texts)


def _join(pieces: Sequence[Piece]) -> list[Piece]:
    """Without empty pieces, and with neighbouring ids in one list."""
    joined: list[Piece] = []
    for piece in pieces:
        if not len(piece):
            continue
        last = joined[-1] if joined else None
        if isinstance(piece, list) and isinstance(last, list):
            joined[-1] = last + piece
        else:
            joined.append(piece)
    return joined


def _render(tokenizer: Any, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
    marks = [
        {"role": message.role, "content": f"@@zcontext-part-{i}@@"}
        for i, message in enumerate(messages)
    ]
    if not getattr(tokenizer, "chat_template", None):
        turns = "".join(f"{mark['role']}: {mark['content']}\n\n" for mark in marks)
        return turns + ("assistant:" if add_generation_prompt else "")
    from jinja2 import TemplateError

    try:
        rendered = tokenizer.apply_chat_template(
            marks, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"the chat template of this base refuses the roles {roles}: {error}. Give roles in an "
            "order it knows, or use complete()"
        ) from error
    return str(rendered)
