"""Windows to measure on: pieces of texts that are exactly so many tokens when they stand alone.

It knows tokens through a `Judge`; nothing of symbols.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from zcontext.errors import ConfigError
from zcontext.evaluation.judge import Judge


@dataclass(frozen=True, slots=True)
class TextWindow:
    """A piece of a text that is exactly so many tokens by itself.

    Attributes:
        text: The piece.
        ids: Its tokens.
        source: Number of the text it was cut from.
    """

    text: str
    ids: tuple[int, ...]
    source: int


def cut_windows(
    texts: Iterable[str], *, judge: Judge, n_tokens: int, limit: int, seed: int = 0
) -> list[TextWindow]:
    """Draw windows that are exactly `n_tokens` long when they stand alone.

    A piece whose tokens change when it is cut out (a word split by the cut) is left out, so that
    teacher-forced and free-running figures are about the same tokens.

    Args:
        texts: Where windows are cut from, end to end; what is left over at the end is not used.
            Where they are too short for as many windows as are wanted, neighbours are joined.
        judge: Knows the tokens.
        n_tokens: Length of a window.
        limit: Windows kept at most.
        seed: Of the draw.

    Returns:
        Windows in random order.

    Raises:
        ConfigError: Fewer than two windows came out: shuffling needs two.
    """
    texts = list(texts)
    windows = _cut(texts, judge, n_tokens)
    if len(windows) < limit:
        # Paragraphs that are shorter than a window: neighbours follow each other in the source.
        windows = _cut(_joined(texts, 8 * n_tokens), judge, n_tokens)
    random.Random(seed).shuffle(windows)
    windows = windows[:limit]
    if len(windows) < 2:
        raise ConfigError(
            f"the data hold {len(windows)} windows of {n_tokens} tokens, at least 2 are needed; "
            "give longer texts or a smaller window",
            field="window_tokens",
            value=n_tokens,
        )
    return windows


def _cut(texts: Iterable[str], judge: Judge, n_tokens: int) -> list[TextWindow]:
    windows = []
    for source, text in enumerate(texts):
        _, starts = judge.encode(text)
        starts.append(len(text))
        for first in range(0, len(starts) - n_tokens, n_tokens):
            piece = text[starts[first] : starts[first + n_tokens]]
            ids, _ = judge.encode(piece)
            if len(ids) == n_tokens:
                windows.append(TextWindow(piece, tuple(ids), source))
    return windows


def _joined(texts: Iterable[str], n_chars: int) -> Iterator[str]:
    """Neighbours joined until they are so long."""
    held = ""
    for text in texts:
        held = f"{held}\n{text}" if held else text
        if len(held) >= n_chars:
            yield held
            held = ""
    if held:
        yield held


def other_window(windows: Sequence[TextWindow]) -> list[int]:
    """For each window, one whose symbols are wrong for it: of another text where there is one.

    Args:
        windows: Two or more.

    Returns:
        Index of the other window, per window.
    """
    n = len(windows)
    chosen = []
    for k, window in enumerate(windows):
        later = ((k + step) % n for step in range(1, n))
        chosen.append(next((j for j in later if windows[j].source != window.source), (k + 1) % n))
    return chosen
