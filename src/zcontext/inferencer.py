"""Inferencer: answers prompts in which symbols stand wherever text could.

Symbols and text take consecutive positions under the INFER adapter. What it does not know: how
symbols are written, how a prompt is worded (`prompts`), how tokens are chosen (`generation`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.generation import Decoding, Generated, Prefill, generate, stream
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prefixes import PrefixCache, prefix_key
from zcontext.prompts import (
    Piece,
    check_parts,
    encode_parts,
    encode_turns,
    n_positions,
    question_parts,
)
from zcontext.spans import UNKNOWN, Answer, ChatMessage, Part
from zcontext.tokenization import text_tokenizer
from zcontext.vocabulary import Symbols, ZVocabulary


class Inferencer:
    """Answers prompts in which symbols stand wherever text could.

    Args:
        model: The model that reads.
        prefix_cache_bytes: Memory for keys and values of prefixes that end in symbols, kept across
            questions; 0 keeps none. Answers are the same either way.
        unknown_bias: Added to the score of `unknown` where a reply in a chat begins (the log-odds
            of saying so): above 0 it rather says that the context does not tell than guesses,
            below 0 it rather guesses.

    Attributes:
        reply_bias: The same as a bias on the token that `unknown` begins with.

    Raises:
        ConfigError: `prefix_cache_bytes` is negative, or `unknown_bias` is not finite.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        *,
        prefix_cache_bytes: int = 256 << 20,
        unknown_bias: float = 0.0,
    ) -> None:
        if not math.isfinite(unknown_bias):
            raise ConfigError(
                f"unknown_bias is {unknown_bias}: give a finite number, 0 for none",
                field="unknown_bias",
                value=unknown_bias,
            )
        self.model = model
        self.prefixes = PrefixCache(max_bytes=prefix_cache_bytes)
        self.unknown_bias = unknown_bias
        first = text_tokenizer(model.tokenizer).ids(UNKNOWN)[0]
        self.reply_bias: dict[int, float] = {first: unknown_bias} if unknown_bias else {}

    @property
    def codec(self) -> str:
        """Digest of the codec, 64 hex digits."""
        return self.model.codec

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols it reads."""
        return self.model.vocabulary

    @property
    def context_length(self) -> int:
        """Most positions, prompt and answer together."""
        return self.model.context_length

    def complete(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """What follows the parts, without any chat format.

        Args:
            parts: Text and symbols, in order.
            settings: How to generate; None is greedy.

        Returns:
            The answer.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            VocabularyError: A text holds a lone surrogate.
            ContextOverflowError: The prompt leaves no position for an answer.
        """  # noqa: DOC502 - raised by the steps
        return self._answer(self._completion(parts), settings, reply=False)

    def stream(
        self, parts: Sequence[Part], *, settings: GenerationSettings | None = None
    ) -> Generator[str, None, Answer]:
        """The text of `complete`, piece by piece; its errors are raised before the first piece.

        Args:
            parts: Text and symbols, in order.
            settings: How to generate; None is greedy.

        Returns:
            Pieces of text, none empty; as a generator it returns the `Answer`.
        """
        return self._streamed(self._completion(parts), settings, reply=False)

    def chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Answer:
        """The assistant's next turn, in the chat format of the base.

        Args:
            messages: The turns so far.
            settings: How to generate; None is greedy.

        Returns:
            The answer.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            VocabularyError: A text holds a lone surrogate.
            SpanError: A role is not a plain word.
            ModelError: The base's chat template refuses the messages.
            ContextOverflowError: The prompt leaves no position for an answer.
        """  # noqa: DOC502 - raised by the steps
        return self._answer(self._turns(messages), settings, reply=True)

    def stream_chat(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Generator[str, None, Answer]:
        """The text of `chat`, piece by piece; its errors are raised before the first piece.

        Args:
            messages: The turns so far.
            settings: How to generate; None is greedy.

        Returns:
            Pieces of text, none empty; as a generator it returns the `Answer`.
        """
        return self._streamed(self._turns(messages), settings, reply=True)

    def ask(
        self,
        question: str,
        context: Sequence[Part],
        *,
        settings: GenerationSettings | None = None,
    ) -> Answer:
        """The answer to a question about a context, in the prompt INFER was trained on.

        Args:
            question: What is asked.
            context: Text and symbols to answer from.
            settings: How to generate; None is greedy.

        Returns:
            The answer.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            VocabularyError: A text holds a lone surrogate.
            ModelError: The base's chat template refuses the messages.
            ContextOverflowError: The prompt leaves no position for an answer.
        """  # noqa: DOC502 - raised by the steps
        return self.chat(question_parts(question, context), settings=settings)

    def ask_many(
        self,
        questions: Sequence[str],
        contexts: Sequence[Sequence[Part]],
        *,
        settings: GenerationSettings | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """`ask` for many questions, as `chat_many` does it.

        Args:
            questions: What is asked.
            contexts: Text and symbols to answer each of them from.
            settings: How to generate; None is greedy.
            batch_size: Questions in one pass.

        Returns:
            One answer each.

        Raises:
            ConfigError: There are not as many contexts as questions.
        """
        if len(questions) != len(contexts):
            told = f"{len(questions)} questions on {len(contexts)} contexts"
            told += "; give one context for each question"
            raise ConfigError(told, field="contexts", value=len(contexts))
        chats = [question_parts(*asked) for asked in zip(questions, contexts, strict=True)]
        return self.chat_many(chats, settings=settings, batch_size=batch_size)

    def chat_many(
        self,
        chats: Sequence[Sequence[ChatMessage]],
        *,
        settings: GenerationSettings | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """`chat` for many chats, several in one pass, with its errors; prefixes are not kept.

        Args:
            chats: The turns so far of each.
            settings: How to generate; None is greedy.
            batch_size: Chats in one pass.

        Returns:
            One answer per chat, in order; `seconds` is a pass's time shared evenly.

        Raises:
            ConfigError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(
                f"batch_size={batch_size}; give 1 or more", field="batch_size", value=batch_size
            )
        chosen = settings or GenerationSettings()
        prompts = [self._turns(messages) for messages in chats]
        # Prompts of like length share a pass, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda at: n_positions(prompts[at]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            together = order[start : start + batch_size]
            started = time.perf_counter()
            rows = [self._row(prompts[at], chosen, reply=True) for at in together]
            results = generate(self.model, "infer", rows, settings=chosen)
            seconds = (time.perf_counter() - started) / len(together)
            for at, result in zip(together, results, strict=True):
                answers[at] = _as_answer(prompts[at], result, seconds=seconds)
        return [answers[at] for at in range(len(prompts))]

    def count(self, parts: Sequence[Part]) -> int:
        """Positions the parts take: one per base token, one per symbol.

        Args:
            parts: Text and symbols, in order.

        Returns:
            The count.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            VocabularyError: A text holds a lone surrogate.
        """  # noqa: DOC502 - raised by the steps
        return n_positions(self._encoded(parts))

    def token_ids(self, parts: Sequence[Part]) -> list[int]:
        """Ids for counters: base ids for text, one id beyond them (by its first code) per symbol.

        Args:
            parts: Text and symbols, in order; refused as by `count`.

        Returns:
            One id per position.
        """
        ids: list[int] = []
        for piece in self._encoded(parts):
            if isinstance(piece, Symbols):
                ids.extend(self.model.base_vocab + code[0] for code in piece.codes)
            else:
                ids.extend(piece)
        return ids

    def _completion(self, parts: Sequence[Part]) -> list[Piece]:
        return self._encoded(parts) or [[self.model.start_token]]

    def _encoded(self, parts: Sequence[Part]) -> list[Piece]:
        check_parts(parts, self.vocabulary)
        return encode_parts(self.model.tokenizer, parts)

    def _turns(self, messages: Sequence[ChatMessage]) -> list[Piece]:
        return encode_turns(self.model.tokenizer, messages, self.vocabulary)

    def _decoding(
        self, pieces: list[Piece], settings: GenerationSettings | None, *, reply: bool
    ) -> Decoding:
        chosen = settings or GenerationSettings()
        whole = self._row(pieces, chosen, reply=reply)
        n = self._n_prefix(pieces)
        past = self._past(pieces, whole.embeddings[:n]) if n else None
        rest = dataclasses.replace(
            whole, embeddings=whole.embeddings[n:], positions=whole.positions[n:]
        )
        return Decoding(self.model, "infer", [rest], settings=chosen, past=past)

    def _row(
        self, pieces: Sequence[Piece], settings: GenerationSettings, *, reply: bool
    ) -> Prefill:
        """A prompt as one row, with as long an answer as there is room for."""
        n, room = n_positions(pieces), self._room(pieces)
        longest = min(settings.max_new_tokens, room)
        embedded = embed_pieces(self.model, pieces)
        bias = self.reply_bias if reply else {}
        return Prefill(embedded, torch.arange(n), n, longest, first_bias=bias)

    def _room(self, pieces: Sequence[Piece]) -> int:
        """Positions left for an answer."""
        n_prompt = n_positions(pieces)
        room = self.context_length - n_prompt
        if room < 1:
            n_symbols = sum(len(piece) for piece in pieces if isinstance(piece, Symbols))
            raise ContextOverflowError(
                f"the prompt takes {n_prompt:,} positions ({n_prompt - n_symbols:,} tokens, "
                f"{n_symbols:,} symbols) of {self.context_length:,} and leaves none for an "
                "answer; compress more, or give fewer documents"
            )
        return room

    def _n_prefix(self, pieces: Sequence[Piece]) -> int:
        """Positions up to the last symbol; one at least stays for the pass that answers."""
        ends = [at for at, piece in enumerate(pieces) if isinstance(piece, Symbols)]
        if not ends:
            return 0
        return min(n_positions(pieces[: ends[-1] + 1]), n_positions(pieces) - 1)

    def _past(self, pieces: Sequence[Piece], embeddings: Tensor) -> Any:
        """Keys and values of the prefix, in a pass of its own whether it is kept or not.

        One pass over the whole prompt would round differently, and the answer would depend on
        what was asked before.
        """
        ends = [at for at, piece in enumerate(pieces) if isinstance(piece, Symbols)]
        n = len(embeddings)
        key = prefix_key(f"{self.codec}/{n}", pieces[: ends[-1] + 1])
        found = self.prefixes.get(key)
        if found is not None:
            return found
        with self.model.using("infer"), torch.no_grad():
            found = self.model.run(
                embeddings.unsqueeze(0),
                positions=torch.arange(n).unsqueeze(0),
                mask=torch.ones(1, n, dtype=torch.long),
                use_cache=True,
            ).cache
        self.prefixes.put(key, found)
        return found

    def _streamed(
        self, pieces: list[Piece], settings: GenerationSettings | None, *, reply: bool
    ) -> Generator[str, None, Answer]:
        started = time.perf_counter()
        # Here, so that errors come before a piece.
        decoding = self._decoding(pieces, settings, reply=reply)

        def told() -> Generator[str, None, Answer]:
            yield from stream(decoding)
            seconds = time.perf_counter() - started
            return _as_answer(pieces, decoding.results()[0], seconds=seconds)

        return told()

    def _answer(
        self, pieces: list[Piece], settings: GenerationSettings | None, *, reply: bool
    ) -> Answer:
        started = time.perf_counter()
        decoding = self._decoding(pieces, settings, reply=reply)
        while not decoding.done:
            decoding.step()
        seconds = time.perf_counter() - started
        return _as_answer(pieces, decoding.results()[0], seconds=seconds)


def _as_answer(pieces: Sequence[Piece], result: Generated, *, seconds: float) -> Answer:
    n_symbols = sum(len(piece) for piece in pieces if isinstance(piece, Symbols))
    return Answer(
        text=result.text,
        stop_reason=result.stop_reason,
        n_prompt_tokens=n_positions(pieces) - n_symbols,
        n_prompt_symbols=n_symbols,
        n_output_tokens=len(result.ids),
        seconds=seconds,
    )
