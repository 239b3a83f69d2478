"""What some texts lost, in one line on standard error, and what readers are given instead.

What it does not know: how anything is measured, or written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from zcontext.cli.console import say
from zcontext.spans import Part, ZDocument

SHOWN: Final = 8
"""Of what was lost, how many are named."""


def named(lost: Iterable[str]) -> str:
    """Lost numbers, names and code: how many, and the first of them.

    Args:
        lost: Each once.

    Returns:
        A part of a sentence.
    """
    items = list(lost)
    shown = ", ".join(items[:SHOWN]) + (", ..." if len(items) > SHOWN else "")
    return f"{len(items)} numbers, names, addresses and pieces of code lost: {shown}"


@dataclass(slots=True)
class Losses:
    """A tally over documents whose spans were measured.

    Attributes:
        wanted: The floor that was asked for; None if there was none.
        action: What becomes of spans below it.
    """

    wanted: float | None = None
    action: str = "keep"
    _n_tokens: int = 0
    _right: float = 0.0
    _n_spans: int = 0
    _n_low: int = 0
    _lost: dict[str, None] = field(default_factory=dict)

    def add(self, document: ZDocument) -> None:
        """Count a document; nothing if it was not measured."""
        for span in document.spans:
            if span.fidelity is None:
                continue
            self._n_tokens += len(span.tokens)
            self._right += span.fidelity.token_accuracy * len(span.tokens)
            self._n_spans += 1
            self._n_low += span.fidelity.token_accuracy < (self.wanted or 0.0)
            self._lost.update(dict.fromkeys(span.fidelity.lost))

    def tell(self) -> None:
        """Say what was lost, where something was measured."""
        if not self._n_tokens:
            return
        told = f"symbols alone bring back {self._right / self._n_tokens:.1%} of the tokens"
        if self.wanted is not None:
            fate = "kept" if self.action == "keep" else "to be read as text"
            told += f"; {self._n_low} of {self._n_spans} windows below {self.wanted:g}, {fate}"
        say(f"{told}; {named(self._lost)}" if self._lost else told)


def parts_for_readers(document: ZDocument, text: str, *, floor: float) -> tuple[Part, ...]:
    """What stands for a document in a prompt: its parts, or the text of what is below a floor.

    Args:
        document: Measured, if there is a floor.
        text: The text it stands for.
        floor: 0 for none.

    Returns:
        Symbols and texts, in order.

    Raises:
        SpanError: The document does not stand for this text, or was not measured.
    """  # noqa: DOC502 - raised by the steps
    if not floor:
        return document.parts
    from zcontext.fidelity import readable_parts

    return readable_parts(document, text, floor=floor)
