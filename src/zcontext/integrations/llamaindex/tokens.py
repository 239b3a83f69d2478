"""TokenIds: the tokenizer to hand to LlamaIndex wherever it counts, one id per symbol.

LlamaIndex counts with cl100k unless told otherwise, at some twenty tokens per written symbol.
What it does not know: what is counted, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from zcontext.errors import CodecMismatchError, VocabularyError
from zcontext.spans import Part, SupportsRead
from zcontext.vocabulary import Symbols, ZVocabulary, has_symbols


class TokenIds:
    """Ids of text mixed with symbols, as a callable.

    It takes whatever stands in a prompt and refuses nothing valid: cut symbols and those of another
    codec are counted as text. Splitters count piece by piece (" a", " b", ...) and add up, so what
    bases want in front of a text, and blanks around symbols, count nothing: else every symbol
    would count as two.

    Args:
        reader: Gives the reader whose tokens are counted; called at the first count.
    """

    def __init__(self, reader: Callable[[], SupportsRead]) -> None:
        self._reader = reader

    def __call__(self, text: str) -> list[int]:
        """The ids of a text.

        Args:
            text: Any text, with or without symbols.

        Returns:
            Base token ids, and one id beyond them per symbol.

        Raises:
            VocabularyError: if the text is not valid Unicode.
        """  # noqa: DOC502 - raised by the reader
        reader = self._reader()
        ids = reader.token_ids(_parts(reader.vocabulary, text))
        return ids[len(reader.token_ids([])) :]

    def encode(self, text: str) -> list[int]:
        """The same, for who looks for a method."""
        return self(text)


def _parts(vocabulary: ZVocabulary, text: str) -> list[Part]:
    if has_symbols(text):
        with suppress(VocabularyError, CodecMismatchError):  # counted as the text it spells
            parts = vocabulary.split(text)
            return [part for part in parts if isinstance(part, Symbols) or part.strip()]
    return [vocabulary.guard(text, on_symbols="escape")]
