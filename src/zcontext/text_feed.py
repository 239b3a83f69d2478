"""Tokens in, finished text out, piece by piece.

What it is: the incremental decoder of a generated answer. It never lets out half a character, nor
any part of a stop string. What it does not know: models, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"


class TextFeed:
    """Decodes one answer as its tokens arrive.

    Args:
        tokenizer: The base's fast tokenizer.
        stop: Strings that end the text; they are not part of it.
    """

    def __init__(self, tokenizer: Any, *, stop: Sequence[str] = ()) -> None:
        self._core = tokenizer.backend_tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._read = 0
        self._n_decoded = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take a token.

        Args:
            token: Its id.

        Returns:
            Text that is final now; may be empty.
        """
        if self.stopped:
            return ""
        self._ids.append(token)
        self._held += self._decoded()
        return self._release()

    def finish(self) -> str:
        """The text still held back, once no token follows. Half a character is dropped.

        Returns:
            The rest.
        """
        rest, self._held = ("", "") if self.stopped else (self._held, "")
        return rest

    def _decoded(self) -> str:
        """What the newest token adds to the text, without a character that is not whole yet."""
        text = self._core.decode(self._ids, skip_special_tokens=False)
        whole = not text.endswith(_INCOMPLETE)
        # Only the last character can be incomplete; it is let out as it is once more follows.
        new = text[self._n_decoded :] if whole else text[self._n_decoded : -1]
        if not whole:
            self._n_decoded += len(new)
            return str(new)
        # Start over with the tokens since the last clean place: some decoders treat the first
        # token of a text differently, so one place is kept as context.
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._n_decoded = len(self._core.decode(self._ids, skip_special_tokens=False))
        return str(new)

    def _release(self) -> str:
        ends = [at for at in map(self._held.find, self._stop) if at >= 0]
        if ends:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        at = len(self._held) - keep
        text, self._held = self._held[:at], self._held[at:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
