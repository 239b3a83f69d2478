"""Texts cut to a budget of tokens, as a beginning or as their best pieces in order.

Every peer ends here, so that none is given more room, or less, than another. What it does not know:
how pieces are scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from zcontext.tokenization import TextTokenizer

_SENTENCE = re.compile(
    r".+?(?:[.!?\u2026][\"'\u2019\u201d)\]]*(?=\s)|[\u3002\uff01\uff1f][\u300d\u300f\u201d]*|\n+|\Z)\s*",
    re.DOTALL,
)


def sentences(text: str) -> list[str]:
    """A text as its sentences, each with the white space behind it.

    Args:
        text: Any text.

    Returns:
        Sentences; joined they are the text.
    """
    return [match.group() for match in _SENTENCE.finditer(text)]


def beginning(text: str, *, n_tokens: int, tokens: TextTokenizer) -> str:
    """The beginning of a text that takes at most so many tokens, cut between whole characters.

    Args:
        text: Any text.
        n_tokens: Tokens it may take.
        tokens: The base's tokenizer.

    Returns:
        The text itself where it fits.
    """
    if n_tokens < 1 or not text:
        return ""
    located = tokens.locate(text, max_tokens=max(1, len(text.encode())))
    if len(located) <= n_tokens:
        return text
    # A beginning by itself may be tokenised differently, and take a token more.
    for end in range(n_tokens, 0, -1):
        if end in located:
            cut = text[: located.char_at(end)]
            if tokens.count(cut) <= n_tokens:
                return cut
    return ""


def best_pieces(
    pieces: Sequence[str], scores: Sequence[float], *, n_tokens: int, tokens: TextTokenizer
) -> str:
    """The pieces with the highest scores that fit, in the order of the text.

    The first piece that does not fit whole is cut to the room that is left, so that a budget is
    used up.

    Args:
        pieces: A text in pieces.
        scores: One per piece; of equal ones the earlier wins.
        n_tokens: Tokens the result may take.
        tokens: The base's tokenizer.

    Returns:
        What is kept, joined, without white space around it.
    """
    kept: dict[int, str] = {}
    room = n_tokens
    for at in sorted(range(len(pieces)), key=lambda k: (-scores[k], k)):
        cost = tokens.count(pieces[at])
        if cost > room:
            kept[at] = beginning(pieces[at], n_tokens=room, tokens=tokens)
            break
        kept[at] = pieces[at]
        room -= cost
    joined = ""
    for at in sorted(kept):
        # What stood between two words is not to make one of them.
        apart = at - 1 not in kept or kept[at - 1] != pieces[at - 1]
        if apart and joined[-1:].strip() and kept[at][:1].strip():
            joined += " "
        joined += kept[at]
    return beginning(joined.strip(), n_tokens=n_tokens, tokens=tokens)


def largest_fit(
    shorten: Callable[[int], str], *, n_tokens: int, tokens: TextTokenizer, attempts: int = 4
) -> str:
    """What a method with a loose idea of a budget gives when it is told the right one.

    Args:
        shorten: Shortens to about so many tokens.
        n_tokens: Tokens the result may take.
        tokens: The base's tokenizer.
        attempts: Times it is asked.

    Returns:
        The longest result that fits; the beginning of the shortest one if none does.
    """
    asked = n_tokens
    fitting, shortest = "", ""
    n_fitting, n_shortest = -1, -1
    for _ in range(attempts):
        result = shorten(asked)
        n_result = tokens.count(result)
        if n_fitting < n_result <= n_tokens:
            fitting, n_fitting = result, n_result
        if n_shortest < 0 or n_result < n_shortest:
            shortest, n_shortest = result, n_result
        if 0.9 * n_tokens <= n_result <= n_tokens:
            break
        following = max(1, min(round(asked * n_tokens / max(1, n_result)), 2 * asked))
        if following == asked:
            following -= n_result > n_tokens
        if following == asked or following < 1:
            break
        asked = following
    return fitting if n_fitting >= 0 else beginning(shortest, n_tokens=n_tokens, tokens=tokens)
