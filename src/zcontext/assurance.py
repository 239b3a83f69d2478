"""What a written span is held to: read back, written finer where too little came back, corrected.

Every window is read back as soon as it is written, in one teacher-forced forward of the whole
model: each token predicted from the symbols and the *right* tokens before it. That one pass is
enough for exactness. Greedy decoding chooses what the pass finds most likely, as long as the tokens
before are the source's; at the first place where another token would be chosen the errata put the
right one, so the tokens after it again stand behind the source, and so on to the end. No
decoding is needed to verify it.

What could still differ is rounding: other batch sizes, thread counts, devices and dtypes give
scores that differ a little from those of the pass. So places that are right by less than `MARGIN`
are corrected too. What it does not know: how windows are written, where documents are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from zcontext.drafts import Draft
from zcontext.errata import Errata, edits_between
from zcontext.fidelity import Reading, read_span, with_fidelity
from zcontext.layouts import lay_span
from zcontext.model import ZLanguageModel
from zcontext.spans import ZDocument, ZSpan
from zcontext.tokenization import decoded
from zcontext.vocabulary import Symbols
from zcontext.writing import Written

MARGIN: Final = 2.0
"""By how much, in logits, the right token must lead to need no correction.

Between fp32 and bf16 the lead of a token over the best other one differs by 0.09 to 0.14 (root
mean square) and by 1.74 at most on the bundle that ships (5,520 tokens at 4x and 16x, depth 1 and
8, of leads below 6; five differ by more than 1, none tips from a lead of half a logit), in fp32
with another number of threads by 0.00001. At 16x 2.0 corrects 35 tokens in a hundred, 1.0 would
correct 28, where 24 are wrong. Other weights differ by up to 4: no margin is for these. The leads
of tokens that are spelled out differ by more, but no rounding makes them lead by less than 4.
"""


class Assurance:
    """Takes the windows of one draft and sees to it that they are what the settings ask for.

    Args:
        model: The model that reads.
        draft: The document while it is written.
    """

    def __init__(self, model: ZLanguageModel, draft: Draft) -> None:
        self.draft = draft
        self._model = model
        self._readings: list[Reading] = []

    def take(self, written: Written) -> ZSpan | None:
        """Take the next window's symbols.

        Args:
            written: The symbols.

        Returns:
            The span; None if it is to be written again.
        """
        draft, settings = self.draft, self.draft.settings
        span = draft.add(written)
        if not settings.measures:
            return span
        before = Symbols(draft.earlier, draft.vocabulary.size, draft.vocabulary.tag)
        layout = lay_span(self._model, before, span)
        reading = read_span(self._model, layout, _ids(draft, span)).sparing(span)
        wanting = reading.accuracy < settings.floor and settings.on_low_fidelity == "finer"
        if wanting and draft.finer():
            return None
        self._readings.append(reading)
        return span

    def finish(self) -> ZDocument:
        """The document, with fidelity and errata where the settings ask for them."""
        draft = self.draft
        document = draft.finish()
        if not draft.settings.measures:
            return document
        taken = iter(self._readings)
        readings = [
            Reading.of_text(len(span.tokens)) if span.is_literal else next(taken)
            for span in document.spans
        ]
        document = with_fidelity(document, draft.text, draft.tokens, readings)
        if not draft.settings.exact:
            return document
        spans = zip(document.spans, readings, strict=True)
        corrected = tuple(
            span
            if span.is_literal
            else dataclasses.replace(span, errata=self._errata(span, reading))
            for span, reading in spans
        )
        return dataclasses.replace(document, spans=corrected)

    def _errata(self, span: ZSpan, reading: Reading) -> bytes:
        ids = _ids(self.draft, span)
        # Written so that a margin that is no number counts as too small.
        wrong = [place for place, margin in enumerate(reading.margins) if not margin >= MARGIN]
        source = self.draft.text[span.chars.start : span.chars.end]
        edits = edits_between(decoded(self._model.tokenizer, ids), source)
        errata = Errata(tuple((place, ids[place]) for place in wrong), edits)
        return errata.to_bytes(n_tokens=len(span.tokens))


def _ids(draft: Draft, span: ZSpan) -> Sequence[int]:
    return draft.tokens.ids[span.tokens.start : span.tokens.end].tolist()
