"""Thinking in Z: a reply that is kept as symbols while it is made, and read back when it is whole.

INFER drafts some tokens, the compressor writes them as symbols, and the symbols take the place of
the draft: what follows is drafted with symbols in view and not with their text. However long the
reply, only the newest part of it stands as text. What this module does not know: how symbols are
written, what a prompt is, how tokens are chosen.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zcontext.caches import fork
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings, GenerationSettings, check
from zcontext.decompressor import ZDecompressor
from zcontext.documents import joined_parts
from zcontext.errors import ContextOverflowError
from zcontext.generation import Decoding, Prefill
from zcontext.layouts import embed_pieces
from zcontext.prompts import Piece, encode_content, encode_turns, n_positions
from zcontext.spans import ChatMessage, Part, StopReason, ZDocument
from zcontext.text_feed import TextFeed


@dataclass(frozen=True, slots=True)
class ThinkSettings:
    """When a draft becomes symbols.

    Attributes:
        block: Tokens drafted before the oldest of them are written as symbols.
        recent: Newest tokens that are left as text then, for what follows to hang on to.

    Raises:
        ConfigError: A value is out of its range.
    """

    block: int = 32
    recent: int = 16

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("recent", 0)):
            value = getattr(self, name)
            check(self, name, type(value) is int and value >= least, f"an integer >= {least}")


@dataclass(frozen=True, slots=True)
class Thought:
    """What was thought.

    Attributes:
        documents: The thought itself, in the order of its making; none if it ended at once.
        text: What the decompressor makes of them, all together.
        stop_reason: Why it ended: "end", "length" or "stop".
        n_tokens: Tokens drafted.
        n_prompt_positions: Positions of the prompt.
        n_peak_positions: Most positions of the thought at any time: symbols and draft.
        seconds: For drafting, writing and reading back.
    """

    documents: tuple[ZDocument, ...]
    text: str
    stop_reason: StopReason
    n_tokens: int
    n_prompt_positions: int
    n_peak_positions: int
    seconds: float

    @property
    def parts(self) -> tuple[Part, ...]:
        """Symbols, and what was kept as text between them, for a prompt."""
        return joined_parts(part for document in self.documents for part in document.parts)

    @property
    def n_symbols(self) -> int:
        """Symbols of all documents."""
        return sum(document.n_symbols for document in self.documents)


class Thinker:
    """Replies to prompts, the reply held as symbols.

    Args:
        compressor: Writes the symbols; its model drafts, under INFER.
        settings: When a draft becomes symbols.
        writing: How it does; None means the compressor's own settings. Symbols that a draft spells
            are escaped.
    """

    def __init__(
        self,
        compressor: ZCompressor,
        *,
        settings: ThinkSettings | None = None,
        writing: CompressSettings | None = None,
    ) -> None:
        self.compressor = compressor
        self.settings = settings or ThinkSettings()
        self.writing = (writing or compressor.settings).replace(on_symbols="escape")

    def think(
        self, messages: Sequence[ChatMessage], *, settings: GenerationSettings | None = None
    ) -> Thought:
        """The assistant's next turn, in the chat format of the base.

        Args:
            messages: The turns so far, of text and symbols.
            settings: How to generate; None is greedy.

        Returns:
            The thought.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            VocabularyError: A text holds a lone surrogate.
            SpanError: A role is not a plain word.
            ModelError: The base's chat template refuses the messages.
            ConfigError: The compressor cannot write as it is told to.
            ContextOverflowError: The prompt leaves no position for a thought.
        """  # noqa: DOC502 - some raised by the steps
        chosen, started = settings or GenerationSettings(), time.perf_counter()
        model = self.compressor.model
        pieces = encode_turns(model.tokenizer, messages, model.vocabulary)
        n_prompt = n_positions(pieces)
        if n_prompt >= model.context_length:
            raise ContextOverflowError(
                f"the prompt takes {n_prompt:,} of {model.context_length:,} positions and "
                "leaves none to think in; compress more, or give fewer documents"
            )
        line = _Line(self, pieces, chosen)
        documents = line.run()
        text = "".join(ZDecompressor(model).decompress_many(documents))
        return Thought(
            documents=documents,
            text=text,
            stop_reason=line.reason or "length",
            n_tokens=line.n_tokens,
            n_prompt_positions=n_prompt,
            n_peak_positions=line.n_peak,
            seconds=time.perf_counter() - started,
        )


@dataclass(slots=True)
class _Draft:
    """The newest part of a reply, as tokens and as text.

    Attributes:
        ids: Tokens.
        texts: Of each, the text that was final with it.
    """

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it that is final."""
        return "".join(self.texts)

    def take(self, token: int, text: str) -> None:
        """One more."""
        self.ids.append(token)
        self.texts.append(text)

    def cut(self, most: int) -> int:
        """How many of the first tokens, up to some, are to be parted from the others.

        In front of a word if there is one, where text is tokenised alike with and without what
        follows; else where a character ends; 0 if none does.
        """
        places = range(min(most, len(self.ids)), 0, -1)
        words = (k for k in places if k < len(self.ids) and self.texts[k][:1].isspace())
        whole = (k for k in places if self.texts[k - 1])
        return next(words, 0) or next(whole, 0)

    def part(self, n: int) -> str:
        """Part with the first tokens; their text."""
        text = "".join(self.texts[:n])
        del self.ids[:n], self.texts[:n]
        return text


class _Line:
    """One thought while it is made: what is settled, and the draft behind it."""

    def __init__(
        self, thinker: Thinker, prompt: Sequence[Piece], settings: GenerationSettings
    ) -> None:
        self._compressor, self._model = thinker.compressor, thinker.compressor.model
        self._how, self._writing, self._settings = thinker.settings, thinker.writing, settings
        self._feed = TextFeed(self._model.tokenizer)
        self._draft = _Draft()
        self._cache: Any = None
        self._last = torch.zeros(0)
        self._n_settled = 0
        self.reason: StopReason | None = None
        self.n_tokens = self.n_peak = 0
        self._settle(embed_pieces(self._model, prompt))
        self._n_prompt = self._n_settled

    def run(self) -> tuple[ZDocument, ...]:
        """Draft and write in turns, until the reply ends."""
        documents = []
        while self.reason is None:
            self._go_on()
            draft = self._draft
            if self.reason is not None:
                text = draft.text
            elif n := draft.cut(len(draft.ids) - self._how.recent):
                text = draft.part(n)
            else:
                continue
            if text:
                documents.append(self._compressor.compress(text, settings=self._writing))
            if text and self.reason is None:
                pieces = list(encode_content(self._model.tokenizer, documents[-1].parts))
                self._settle(embed_pieces(self._model, pieces))
        return tuple(documents)

    def _go_on(self) -> None:
        """Draft until there is a block to be written, or to the end."""
        n_held = self._n_settled + len(self._draft.ids)
        due = max(1, self._how.block + self._how.recent - len(self._draft.ids))
        left = min(self._model.context_length - n_held, self._left)
        # Another seed for every block: the same one would draw the same numbers again.
        seed = self._settings.seed + self.n_tokens
        decoding = Decoding(
            self._model,
            "infer",
            [self._prompt(max(1, left))],
            settings=dataclasses.replace(self._settings, seed=seed, stop=()),
            past=self._cache,
        )
        for _ in range(min(due, left)):
            (emitted,) = decoding.step()
            self._take(emitted.token)
            if self.reason is not None:
                return
        if left <= due:
            self._end("length")

    @property
    def _left(self) -> int:
        return self._settings.max_new_tokens - self.n_tokens

    def _prompt(self, longest: int) -> Prefill:
        """What the settled cache lacks, and where it stands."""
        rest, n_held = self._last, self._n_settled
        if ids := self._draft.ids:
            rest = torch.cat([rest, embed_pieces(self._model, [ids]).to(rest)])
        positions = torch.arange(n_held - 1, n_held + len(ids))
        return Prefill(rest, positions, n_held + len(ids), longest)

    def _take(self, token: int | None) -> None:
        self.n_tokens += 1
        if token is None:
            self._end("end")
            return
        draft = self._draft
        draft.take(token, self._feed.push(token))
        self.n_peak = max(self.n_peak, self._n_settled - self._n_prompt + len(draft.ids))
        text = draft.text
        if ends := [at for stop in self._settings.stop if (at := text.find(stop)) >= 0]:
            draft.texts[:] = [text[: min(ends)]]
            self.reason = "stop"

    def _end(self, reason: StopReason) -> None:
        self._draft.texts.append(self._feed.finish())
        self.reason = reason

    def _settle(self, embeddings: Tensor) -> None:
        """Read what is to stay; its last position is left to the pass that goes on from it."""
        whole = (
            torch.cat([self._last.to(embeddings), embeddings]) if self._n_settled else embeddings
        )
        n = self._n_settled + len(embeddings)
        rest, self._last, n_before = whole[:-1], whole[-1:], max(0, self._n_settled - 1)
        self._n_settled = n
        if not len(rest):
            return
        with self._model.using("infer"), torch.no_grad():
            self._cache = self._model.run(
                rest.unsqueeze(0),
                positions=torch.arange(n_before, n - 1).unsqueeze(0),
                mask=torch.ones(1, n - 1, dtype=torch.long),
                cache=None if self._cache is None else fork(self._cache),
                use_cache=True,
            ).cache
