"""Texts that the integration tests compress, and what is checked about them everywhere."""

from __future__ import annotations

from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

RIVER = (
    "The Seine rises in Burgundy and flows 777 km to the Channel. Paris lies on both of its banks. "
    "Barges carry grain and gravel through nineteen locks below the capital."
)
TOWER = (
    "The Eiffel Tower was finished in March 1889 by the company of Gustave Eiffel. It is 330 "
    "metres tall with its antennas, and was the tallest building on earth for forty-one years."
)
BREAD = (
    "A baguette weighs about 250 grams. Its dough holds flour, water, salt and yeast and nothing "
    "else, by a decree of 13 September 1993. Ten million are sold in the country every day."
)
TEXTS = (RIVER, TOWER, BREAD)
SHORT = "See above."


def arrived(codec: ByteCodec) -> list[tuple[int, ...]]:
    """Every symbol of the last prompt that a reader of this codec got, in order."""
    call = codec.calls[-1]
    return [code for part in call.parts if isinstance(part, Symbols) for code in part.codes]


def written(codec: ByteCodec, *rendered: str) -> list[tuple[int, ...]]:
    """The symbols of written texts, in order."""
    return [code for text in rendered for code in codec.vocabulary.parse(text).codes]
