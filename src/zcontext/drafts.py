"""A document while it is written: its windows, what is left of its budget, the spans so far.

What it does not know: models. It says which window comes next and takes the codes written for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

import torch
from torch import Tensor

from zcontext.config import DEFAULT_WINDOW, MIN_RATIO, CompressSettings
from zcontext.emphasis import Emphasis, emphasise, emphasise_end
from zcontext.fragile import protected_places
from zcontext.literals import LaidWindow, lay_windows, symbols_beside, token_extents
from zcontext.needs import Cut, count_facts, fact_tokens, symbols_to_name
from zcontext.pointing import Allowance, Request
from zcontext.segmentation import DocumentBudget
from zcontext.spans import LiteralText, ZDocument, ZSpan
from zcontext.tokenization import TextTokenizer, TokenizedText
from zcontext.vocabulary import Symbols, ZVocabulary, utf8_bytes
from zcontext.windows import Extent, WindowPlan
from zcontext.writing import Codes, WindowTask, WindowWriter, Written, free_places

INLINE_TOKENS: Final = 32
"""Longer literals, and those of several lines, are windows of their own."""


@dataclass(slots=True)
class Draft:
    """A document while it is written, window by window.

    Attributes:
        text: The source, guarded.
        tokens: Its tokens and their places.
        settings: In force, defaults filled in.
        vocabulary: Of the codec.
        windows: All windows of the document, those that are text among them.
        budget: What is left to spend.
        question: Tokens read in front of every window and not written.
        spans: Written so far.
        emphases: How the budget of each window is spent, for the question or on the end; None
            leaves it to the surprisal.
        facts: Which tokens belong to numbers, names and addresses, bool `[n]`; None where they
            are treated like others.
        earlier: Codes of symbols that stood before the newest span when it was written.
        allowance: What is asked of a writer that decides itself; None where the budget does.
    """

    text: str
    tokens: TokenizedText
    settings: CompressSettings
    vocabulary: ZVocabulary
    windows: tuple[LaidWindow, ...]
    budget: DocumentBudget
    question: tuple[int, ...] = ()
    spans: list[ZSpan] = field(default_factory=list)
    emphases: list[Emphasis | None] | None = None
    facts: Tensor | None = None
    earlier: Codes = ()
    _memory: Codes = ()
    allowance: Allowance | None = None
    _again: int | None = None
    _asked: int = 0
    _n_left: int = field(init=False)

    def __post_init__(self) -> None:
        self._n_left = sum(1 for laid in self.windows if laid.n_free)

    @classmethod
    def of(
        cls,
        text: str,
        tokens: TokenizedText,
        *,
        settings: CompressSettings,
        vocabulary: ZVocabulary,
        mean_surprisal: float,
        question: Sequence[int] = (),
        cut: Cut | None = None,
        protected: Sequence[tuple[int, int]] = (),
    ) -> Draft:
        """Lay out windows and budget of a text.

        Args:
            text: The source, guarded.
            tokens: Its tokens and their places.
            settings: In force, with one budget.
            vocabulary: Of the codec.
            mean_surprisal: The codec's calibrated bits per token.
            question: Tokens read in front of every window and not written.
            cut: As for `draft_of`.
            protected: Characters kept as text; `tokens` were cut there.

        Returns:
            A draft without spans.

        Raises:
            ConfigError: What is protected leaves no room under `max_symbols`.
            WindowError: A window holds no place to cut that splits no character.
        """  # noqa: DOC502 - raised by the plan
        n, kept = len(tokens), token_extents(protected, tokens.starts)
        windows = _lay(text, tokens, settings, kept)
        n_literal = sum(len(extent) for extent, _ in kept)
        total = None
        if settings.bits_per_symbol is None:
            total = symbols_beside(
                n, n_literal, ratio=settings.ratio, max_symbols=settings.max_symbols
            )
        price = None if total is not None else settings.bits_per_symbol
        facts = fact_tokens(text, tokens.starts) if settings.facts else None
        depth = settings.depth or vocabulary.depth
        budget = DocumentBudget(
            n - n_literal,
            total,
            price,
            mean_surprisal,
            facts=() if facts is None else count_facts(facts, windows),
            whole=() if cut is None else symbols_to_name(tokens.ids, windows, cut, depth=depth),
        )
        draft = cls(text, tokens, settings, vocabulary, windows, budget, tuple(question))
        draft.facts = facts
        if settings.writer == "autoregressive":
            capped = settings.max_symbols is not None
            total = total or 1  # a price is given where it is None
            draft.allowance = Allowance(n - n_literal, price, total, capped, mean_surprisal)
        return draft

    @property
    def done(self) -> bool:
        """Whether every window that symbols are written for is written."""
        return not self._n_left

    def _pass_literals(self) -> None:
        """Spans of the windows that are text, up to the next one to be written."""
        nothing = Written((), ())
        while len(self.spans) < len(self.windows) and not self.windows[len(self.spans)].n_free:
            self.spans.append(self._span(nothing))

    def task(self) -> WindowTask:
        """The next window."""
        self._pass_literals()
        at = len(self.spans)
        emphasis = None if self.emphases is None else self.emphases[at]
        left = self._n_left - 1
        again = self._again
        allowance = self.allowance

        def take(surprisal: Tensor) -> int:
            if again is not None:  # its share of the budget was taken the first time
                return again
            if emphasis is not None:
                return emphasis.n_slots
            return self.budget.take(surprisal, windows_left=left)

        n_free = self.windows[at].n_free
        return dataclasses.replace(
            self._laid_out(at),
            memory=self._memory,
            take=take,
            fine=None if emphasis is None else self._fine(at, emphasis),
            grain=1 if emphasis is None else emphasis.grain,
            request=None if allowance is None else self._request(allowance, n_free),
        )

    def _laid_out(self, at: int) -> WindowTask:
        """A window as it is read, whatever stood before it."""
        laid, facts = self.windows[at], self.facts
        target = laid.window.target
        ids: Sequence[int] = self.tokens.ids[laid.window.context.start : laid.window.target.end]
        return WindowTask(
            ids=[*self.question, *ids] if self.question else ids,
            start=len(self.question) + len(laid.window.context),
            memory=(),
            depth=self.settings.depth or self.vocabulary.depth,
            take=len,
            facts=None if facts is None else facts[target.start : target.end],
            literals=laid.literals,
            n_question=len(self.question),
            anchored=self.settings.placement == "anchored",
            surprisal=self.settings.surprisal,
        )

    def readings(self) -> list[WindowTask]:
        """The windows that symbols are written for, as they are read, whatever stands before."""
        return [self._laid_out(at) for at, laid in enumerate(self.windows) if laid.n_free]

    @property
    def n_symbols(self) -> int:
        """Symbols of the document, as far as is known before it is read."""
        budget = self.budget
        if budget.n_symbols is not None:
            return budget.n_symbols
        return math.ceil(budget.usual_weight / (budget.bits_per_symbol or math.inf))

    def take_emphases(self, emphases: Iterator[Emphasis]) -> None:
        """Take how the budget of each window of `readings` is spent."""
        self.emphases = [next(emphases) if laid.n_free else None for laid in self.windows]

    def _fine(self, at: int, emphasis: Emphasis) -> Tensor:
        """Which tokens of a window are emphasised; those kept as text are not."""
        laid = self.windows[at]
        if not laid.literals:
            return emphasis.fine
        fine = torch.zeros(len(laid.window.target), dtype=torch.bool)
        fine[free_places(self._laid_out(at))] = emphasis.fine
        return fine

    def _request(self, allowance: Allowance, n: int) -> Request:
        """What the writer is asked for that decides itself; more of it where it was too little."""
        if self._again is not None:
            return Request(allowance.at(n / self._again), n)
        return allowance.next(n, windows_left=self._n_left - 1)

    def add(self, written: Written) -> ZSpan:
        """Take the next window's symbols."""
        if self.allowance is not None and self._again is None:
            n_tokens = self.windows[len(self.spans)].n_free
            self.allowance.spend(len(written.codes), n_tokens=n_tokens)
        self.spans.append(self._span(written))
        self._n_left -= 1
        self._asked = self._again or 0
        self._again, self.earlier = None, self._memory
        if self.settings.memory:
            self._memory = (self._memory + written.codes)[-self.settings.memory :]
        return self.spans[-1]

    def _span(self, written: Written) -> ZSpan:
        laid = self.windows[len(self.spans)]
        target = laid.window.target
        chars = self._chars(target)
        symbols = Symbols(written.codes, self.vocabulary.size, self.vocabulary.tag)
        literals = []
        for each in laid.literals:
            kept = self._chars(Extent(target.start + each.start, target.start + each.end))
            text = self.text[kept.start : kept.end]
            literals.append(LiteralText(each, kept.start - chars.start, text))
        ends = written.ends or None
        return ZSpan(symbols, target, chars, ends=ends, literals=tuple(literals))

    def _chars(self, tokens: Extent) -> Extent:
        last = tokens.end == len(self.tokens)
        end = len(self.text) if last else self.tokens.char_at(tokens.end)
        return Extent(self.tokens.char_at(tokens.start), end)

    def finer(self) -> bool:
        """Take the newest span back, so that it is the next window again, at half its ratio.

        Returns:
            False if it stands: it already has a symbol for every `MIN_RATIO` tokens.
        """
        span = self.spans[-1]
        n_free = len(span.tokens) - span.n_literal_tokens
        # A writer that decides itself may have written less than it was asked for.
        before = max(len(span.symbols), self._asked)
        n_symbols = min(int(n_free / MIN_RATIO), max(1, 2 * before))
        if n_symbols <= before:
            return False
        self.spans.pop()
        self._n_left += 1
        self._memory, self._again = self.earlier, n_symbols
        return True

    def finish(self) -> ZDocument:
        """The document."""
        self._pass_literals()
        data = utf8_bytes(self.text)
        return ZDocument(
            spans=tuple(self.spans),
            codec=self.vocabulary.codec,
            n_tokens=len(self.tokens),
            n_chars=len(self.text),
            n_bytes=len(data),
            text_sha256=sha256(data).hexdigest(),
            depth=self.settings.depth or self.vocabulary.depth,
            size=self.vocabulary.size,
            memory=self.settings.memory,
        )


def _lay(
    text: str,
    tokens: TokenizedText,
    settings: CompressSettings,
    kept: Sequence[tuple[Extent, tuple[int, int]]],
) -> tuple[LaidWindow, ...]:
    """Windows of a text around what is kept of it, in tokens and characters."""
    plan = WindowPlan(window=settings.window or DEFAULT_WINDOW, context=settings.context)
    longest = min(INLINE_TOKENS, (plan.window - plan.context) // 4)
    apart = [len(each) > longest or "\n" in text[begin:end] for each, (begin, end) in kept]
    told = [(each, is_apart) for (each, _), is_apart in zip(kept, apart, strict=True)]
    return lay_windows(
        plan,
        len(tokens),
        blocks=[each for each, is_apart in told if is_apart],
        inline=[each for each, is_apart in told if not is_apart],
        cuts=tokens.sentence_cuts(text),
        allowed=tokens,
    )


def draft_of(
    text: str,
    tokenizer: TextTokenizer,
    *,
    settings: CompressSettings,
    vocabulary: ZVocabulary,
    mean_surprisal: float,
    question: Sequence[int] = (),
    cut: Cut | None = None,
) -> Draft:
    """Tokenise a text and lay it out.

    Args:
        text: The source, guarded.
        tokenizer: Of the base.
        settings: In force, with one budget.
        vocabulary: Of the codec.
        mean_surprisal: The codec's calibrated bits per token.
        question: Tokens read in front of every window and not written.
        cut: Tells where the phrases start that codes name; None has no window's need known.

    Returns:
        A draft without spans.

    Raises:
        ConfigError: The text is longer than `max_tokens`, or what is protected leaves no room.
        VocabularyError: There is nothing that the base has a token for.
    """  # noqa: DOC502 - raised by the steps
    # What spells symbols by itself, though not in its sentence, is not kept but compressed.
    protected = [
        (begin, end)
        for begin, end in protected_places(text, settings.protect)
        if vocabulary.guard(text[begin:end], on_symbols="drop") == text[begin:end]
    ]
    breaks = [edge for place in protected for edge in place]
    draft = Draft.of(
        text,
        tokenizer.locate(text, max_tokens=settings.max_tokens, breaks=breaks),
        settings=settings,
        vocabulary=vocabulary,
        mean_surprisal=mean_surprisal,
        question=question,
        cut=cut,
        protected=protected,
    )
    if settings.emphasis == "end":
        lengths = [laid.n_free for laid in draft.windows if laid.n_free]
        emphases = emphasise_end(lengths, draft.n_symbols)
        if emphases is not None:
            draft.take_emphases(iter(emphases))
    return draft


def emphasise_drafts(drafts: Sequence[Draft], writer: WindowWriter) -> None:
    """Spend the budget of some documents on what a question in front of them is about.

    Args:
        drafts: Nothing of them written; they share one budget, the sum of their own.
        writer: Tells where windows answer the question, how much is enough, what pairs are worth.
    """
    tasks = [task for draft in drafts for task in draft.readings()]
    odds = writer.attend(tasks)
    relevance = [row[free_places(task)] for task, row in zip(tasks, odds, strict=True)]
    n_symbols = sum(draft.n_symbols for draft in drafts)
    opens = [writer.opens(task) for task in tasks]
    emphases = emphasise(
        relevance, n_symbols, opens=opens, enough=writer.enough, pairs=writer.pairs
    )
    if emphases is not None:
        spent = iter(emphases)
        for draft in drafts:
            draft.take_emphases(spent)
