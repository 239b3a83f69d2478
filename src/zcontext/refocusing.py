"""Writing a stored document again for one question, from its integers alone.

Its gloss (`gloss.py`) is read behind the question like any text and written anew, in as many
symbols as the document has. The document stays what it is, a form of its source: spans cover the
same stretches, literals stay, the source's digest and lengths stand. What was true only of the
symbols that were there goes: errata, and how well they read back. What this module does not know:
models' passes, other texts that were found for the question.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from zcontext.config import CompressSettings
from zcontext.drafts import Draft
from zcontext.errors import ConfigError
from zcontext.gloss import SpanGloss, gloss_of
from zcontext.literals import LaidWindow
from zcontext.model import ZLanguageModel
from zcontext.segmentation import DocumentBudget
from zcontext.spans import ZDocument, ZSpan
from zcontext.terms import focuses
from zcontext.tokenization import TokenizedText
from zcontext.windows import Extent, Window
from zcontext.writing import Written


@dataclass(slots=True, kw_only=True)
class Rewriting(Draft):
    """A stored document while it is written again: one window for each span that names tokens.

    Attributes:
        document: As it is stored.
        glosses: Of all its spans.
        named: Of these, the ones that name tokens; each is a window.
    """

    document: ZDocument
    glosses: tuple[SpanGloss, ...]
    named: tuple[SpanGloss, ...]

    def _span(self, written: Written) -> ZSpan:
        return self.named[len(self.spans)].rewritten(written.codes, written.ends)

    def finish(self) -> ZDocument:
        """The document."""
        written = iter(self.spans)
        spans = tuple(next(written) if each.n_named else each.kept for each in self.glosses)
        return dataclasses.replace(self.document, spans=spans, memory=self.settings.memory)


def reopened(
    document: ZDocument,
    model: ZLanguageModel,
    settings: CompressSettings,
    *,
    question: Sequence[int],
) -> Draft | None:
    """A stored document as a draft, to be written for the question of the settings.

    Args:
        document: Of this model's codec.
        model: Who writes.
        settings: In force; budget and depth are the document's own, and nothing is measured, as
            the text that it could be measured against is not there.
        question: Tokens of the question.

    Returns:
        The draft; None where the document stays as it is: nothing is asked, the model has no
        focus, or the codes name nothing.

    Raises:
        CodecMismatchError: Another codec wrote the document.
        ConfigError: The codes of the codec are no names, or a span does not fit the base with the
            question in front of it.
    """  # noqa: DOC502 - some raised by the steps
    document.check_codec(model.codec)
    model.vocabulary.check(document.symbols)
    if not focuses(settings, model):
        return None
    glosses = gloss_of(model, document)
    named = tuple(gloss for gloss in glosses if gloss.n_named)
    if not named:
        return None
    chosen = dataclasses.replace(
        settings, depth=document.depth, exact=False, min_fidelity=None, on_low_fidelity="keep"
    )
    windows = _windows(named, context=chosen.context)
    _check_room(windows, model, n_before=len(question) + chosen.memory)
    n_named = sum(gloss.n_named for gloss in named)
    n_symbols = min(n_named, sum(len(gloss.span.symbols) for gloss in named))
    ids = array("i", [token for gloss in named for token in gloss.ids])
    return Rewriting(
        text="",
        tokens=TokenizedText(ids, array("i"), bytearray(), 0),
        settings=chosen,
        vocabulary=model.vocabulary,
        windows=windows,
        budget=DocumentBudget(n_named, n_symbols, None, model.config.mean_surprisal),
        question=tuple(question),
        document=document,
        glosses=glosses,
        named=named,
    )


def _windows(named: Sequence[SpanGloss], *, context: int) -> tuple[LaidWindow, ...]:
    windows: list[LaidWindow] = []
    at = 0
    for index, gloss in enumerate(named):
        target = Extent(at, at + len(gloss.ids))
        before = Extent(max(0, at - context), at)
        windows.append(LaidWindow(Window(before, target, index), gloss.literals))
        at = target.end
    return tuple(windows)


def _check_room(windows: Sequence[LaidWindow], model: ZLanguageModel, *, n_before: int) -> None:
    longest = max(laid.window.n_tokens for laid in windows)
    if n_before + longest > model.context_length:
        raise ConfigError(
            f"a stored span that names {longest:,} tokens (with context), behind a question and "
            f"memory of {n_before:,}, needs more than the base's {model.context_length:,} "
            "positions; ask a shorter question, or compress with a smaller window",
            field="question",
            value=n_before,
        )
