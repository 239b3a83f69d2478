"""A document while it is written: its windows, what is left of its budget, the spans so far.

What it does not know: models. It says which window comes next and takes the codes written for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

from torch import Tensor

from zcontext.config import DEFAULT_WINDOW, MIN_RATIO, CompressSettings
from zcontext.segmentation import DocumentBudget
from zcontext.spans import ZDocument, ZSpan
from zcontext.tokenization import TokenizedText
from zcontext.vocabulary import Symbols, ZVocabulary, utf8_bytes
from zcontext.windows import Extent, Window, WindowPlan
from zcontext.writing import Codes, WindowTask, Written


@dataclass(slots=True)
class Draft:
    """A document while it is written, window by window.

    Attributes:
        text: The source, guarded.
        tokens: Its tokens and their places.
        settings: In force, defaults filled in.
        vocabulary: Of the codec.
        windows: All windows of the document.
        budget: What is left to spend.
        spans: Written so far.
        earlier: Codes of symbols that stood before the newest span when it was written.
    """

    text: str
    tokens: TokenizedText
    settings: CompressSettings
    vocabulary: ZVocabulary
    windows: tuple[Window, ...]
    budget: DocumentBudget
    spans: list[ZSpan] = field(default_factory=list)
    earlier: Codes = ()
    _memory: Codes = ()
    _again: int | None = None

    @classmethod
    def of(
        cls,
        text: str,
        tokens: TokenizedText,
        *,
        settings: CompressSettings,
        vocabulary: ZVocabulary,
        mean_surprisal: float,
    ) -> Draft:
        """Lay out windows and budget of a text.

        Args:
            text: The source, guarded.
            tokens: Its tokens and their places.
            settings: In force, with one budget.
            vocabulary: Of the codec.
            mean_surprisal: The codec's calibrated bits per token.

        Returns:
            A draft without spans.

        Raises:
            WindowError: A window holds no place to cut that splits no character.
        """  # noqa: DOC502 - raised by the plan
        n = len(tokens)
        if settings.ratio is not None:
            budget = DocumentBudget.for_ratio(
                settings.ratio, n_tokens=n, mean_surprisal=mean_surprisal
            )
        elif settings.max_symbols is not None:
            budget = DocumentBudget(n, min(n, settings.max_symbols), None, mean_surprisal)
        else:
            budget = DocumentBudget(n, None, settings.bits_per_symbol, mean_surprisal)
        plan = WindowPlan(window=settings.window or DEFAULT_WINDOW, context=settings.context)
        windows = plan.cover(n, cuts=tokens.sentence_cuts(text), allowed=tokens)
        return cls(text, tokens, settings, vocabulary, windows, budget)

    @property
    def done(self) -> bool:
        """Whether every window is written."""
        return len(self.spans) == len(self.windows)

    def task(self) -> WindowTask:
        """The next window."""
        window = self.windows[len(self.spans)]
        left = len(self.windows) - window.index - 1
        again = self._again

        def take(surprisal: Tensor) -> int:
            if again is not None:  # its share of the budget was taken the first time
                return again
            return self.budget.take(surprisal, windows_left=left)

        return WindowTask(
            ids=self.tokens.ids[window.context.start : window.target.end],
            start=len(window.context),
            memory=self._memory,
            depth=self.settings.depth or self.vocabulary.depth,
            take=take,
        )

    def add(self, written: Written) -> ZSpan:
        """Take the next window's symbols."""
        target = self.windows[len(self.spans)].target
        last = len(self.spans) + 1 == len(self.windows)
        end = len(self.text) if last else self.tokens.char_at(target.end)
        chars = Extent(self.tokens.char_at(target.start), end)
        symbols = Symbols(written.codes, self.vocabulary.size, self.vocabulary.tag)
        self.spans.append(ZSpan(symbols, target, chars, ends=written.ends or None))
        self._again, self.earlier = None, self._memory
        if self.settings.memory:
            self._memory = (self._memory + written.codes)[-self.settings.memory :]
        return self.spans[-1]

    def finer(self) -> bool:
        """Take the newest span back, so that it is the next window again, at half its ratio.

        Returns:
            False if it stands: it already has a symbol for every `MIN_RATIO` tokens.
        """
        span = self.spans[-1]
        n_symbols = min(int(len(span.tokens) / MIN_RATIO), max(1, 2 * len(span.symbols)))
        if n_symbols <= len(span.symbols):
            return False
        self.spans.pop()
        self._memory, self._again = self.earlier, n_symbols
        return True

    def finish(self) -> ZDocument:
        """The document."""
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
