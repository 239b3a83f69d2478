"""What stands in the prompt under each condition: symbols, text, less text, or nothing.

Symbols of a text are written once per ratio and depth and kept for the run. A context that does not
fit the reader is cut to what fits, its beginning kept, whatever form it has: what was cut off is
lost, as it would be for a user, and `n_over` tells how much it was. It knows a compressor and peers
through their Protocols.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.evaluation.conditions import FOR_QUESTIONS, TO_GO_ON, Condition
from zcontext.evaluation.identities import writer_identity
from zcontext.evaluation.peers import Peer
from zcontext.model import ZLanguageModel
from zcontext.spans import Part, SupportsCompress, SupportsFocus, ZDocument
from zcontext.vocabulary import Symbols


class Contexts:
    """Turns texts into what a reader is given.

    Args:
        compressor: Writes the symbols and counts tokens.
        peers: Methods that shorten text, by name.
        keep_end: Cut text keeps its end instead of its beginning, as who goes on with it would.

    Attributes:
        writer: Digest of what decides how texts are written, for no question: of the codec, where
            the compressor has no model of ours.
    """

    def __init__(
        self,
        compressor: SupportsCompress,
        *,
        peers: Mapping[str, Peer] | None = None,
        keep_end: bool = False,
    ) -> None:
        self.compressor = compressor
        model = getattr(compressor, "model", None)
        self.writer = compressor.codec
        if isinstance(model, ZLanguageModel):
            self.writer = writer_identity(model)
        self._peers = dict(peers or {})
        self._keep_end = keep_end
        self._stored: dict[tuple[str, float, int | None], ZDocument] = {}
        self._lengths: dict[tuple[str, float], int] = {}
        self._written_for: dict[tuple[Any, ...], list[Symbols]] = {}
        self._shortened: dict[tuple[str, str, int, str | None], str] = {}

    @property
    def focus(self) -> str:
        """What decides, beside the writer, how texts are written for a question."""
        focus = getattr(getattr(self.compressor, "model", None), "focus", None)
        return "" if focus is None else str(focus.digest)

    def write(self, texts: Sequence[str], *, ratio: float, depth: int | None) -> None:
        """Have symbols written for texts that have none yet, all together.

        Args:
            texts: Some of them may have been written before.
            ratio: Source tokens per symbol.
            depth: Codes per symbol.
        """
        distinct = dict.fromkeys(texts)
        missing = [text for text in distinct if (text, ratio, depth) not in self._stored]
        # Longest first: windows of like length make one batch.
        missing.sort(key=lambda text: -len(text))
        if missing:
            written = self.compressor.compress_many(missing, ratio=ratio, depth=depth)
            for text, document in zip(missing, written, strict=True):
                self._stored[text, ratio, depth] = document
                self._lengths[text, ratio] = document.n_symbols

    def symbols(self, text: str, condition: Condition) -> Symbols:
        """A text's symbols at the ratio and depth of a condition.

        Args:
            text: Any text.
            condition: Its ratio counts.

        Returns:
            The symbols.
        """
        return self._document(text, condition).symbols

    def n_positions(self, pieces: Sequence[str], condition: Condition) -> int:
        """Positions that the symbols of some passages take: what every rival is held to.

        Args:
            pieces: Passages.
            condition: Its ratio counts.

        Returns:
            The number of symbols.
        """
        ratio = condition.ratio
        # Depth does not change how many symbols there are: any that were written will do.
        missing = [piece for piece in pieces if (piece, ratio) not in self._lengths]
        self.write(missing, ratio=ratio, depth=condition.depth)
        return sum(self._lengths[piece, ratio] for piece in pieces)

    def parts(
        self,
        pieces: Sequence[str],
        condition: Condition,
        *,
        text: str | None = None,
        others: Sequence[str] = (),
        question: str | None = None,
        room: int | None = None,
    ) -> list[Part]:
        """What the reader is given.

        Args:
            pieces: Passages, each compressed by itself.
            condition: In which form.
            text: The passages as one text; joined by blank lines if left out.
            others: Passages of another row, whose symbols are the shuffled ones.
            question: What is asked, for those who write or shorten for it.
            room: Positions there are; what is beyond them is cut off.

        Returns:
            Text and symbols, in order.

        Raises:
            ConfigError: No such peer is here, or the condition is not one of a prompt.
        """
        whole = "\n\n".join(pieces) if text is None else text
        kind = condition.kind
        if kind == "none":
            return []
        if kind in ("symbols", "shuffled"):
            chosen = others if kind == "shuffled" else pieces
            return self._fitting([self.symbols(p, condition) for p in chosen], room)
        if kind == TO_GO_ON or (kind in FOR_QUESTIONS and question is not None):
            return self._fitting(self._written(pieces, condition, question or ""), room)
        if kind == "raw":
            return [self._cut(whole, room)]
        budget = self.n_positions(pieces, condition)
        budget = budget if room is None else min(budget, room)
        if kind == "truncated":
            return [self._cut(whole, budget)]
        if kind == "peer" and condition.method in self._peers:
            peer = self._peers[condition.method]
            question = question if peer.sees_question else None
            key = (condition.method, whole, budget, question)
            if key not in self._shortened:  # once for all readers: it can cost more than reading
                short = peer.shorten(whole, n_tokens=budget, question=question)
                self._shortened[key] = self._cut(short, budget)
            return [self._shortened[key]]
        raise ConfigError(
            f"{condition.name} is not a context that a prompt can hold here; the peers are "
            f"{', '.join(self._peers) or 'none'}",
            field="condition",
            value=condition.name,
        )

    def n_over(
        self,
        pieces: Sequence[str],
        condition: Condition,
        *,
        text: str | None = None,
        room: int,
    ) -> int:
        """Positions that a context would take beyond those there are.

        Args:
            pieces: Passages; another row's, where its symbols are the shuffled ones.
            condition: In which form.
            text: The passages as one text; joined by blank lines if left out.
            room: Positions there are.

        Returns:
            The number; 0 where it fits. What stands for the text at a ratio takes the positions of
            its symbols, an evictor reads all of it.
        """
        if condition.kind == "none":
            return 0
        if condition.kind in ("raw", "evictor"):
            whole = "\n\n".join(pieces) if text is None else text
            return max(0, self.compressor.count_tokens(whole) - room)
        return max(0, self.n_positions(pieces, condition) - room)

    def _document(self, text: str, condition: Condition) -> ZDocument:
        key = (text, condition.ratio, condition.depth)
        if key not in self._stored:
            self.write([text], ratio=condition.ratio, depth=condition.depth)
        return self._stored[key]

    def _written(self, pieces: Sequence[str], condition: Condition, question: str) -> list[Symbols]:
        """Symbols of passages, written for what is to be done with them."""
        key = (tuple(pieces), condition, question)
        if key not in self._written_for:
            documents = self._documents_for(pieces, condition, question)
            self._written_for[key] = [document.symbols for document in documents]
        return self._written_for[key]

    def _documents_for(
        self, pieces: Sequence[str], condition: Condition, question: str
    ) -> Sequence[ZDocument]:
        """Documents of the text, or of what is stored, which stays where it cannot be rewritten."""
        writer, ratio, depth = self.compressor, condition.ratio, condition.depth
        if condition.kind == TO_GO_ON:
            settings = CompressSettings(ratio=ratio, depth=depth, emphasis="end")
            return writer.compress_many(pieces, settings=settings)
        if condition.kind == "refocused":
            documents = [self._document(piece, condition) for piece in pieces]
            if isinstance(writer, SupportsFocus) and writer.refocuses:
                return writer.compress_together(documents, question=question)
            return documents
        if isinstance(writer, SupportsFocus):
            return writer.compress_together(pieces, question=question, ratio=ratio, depth=depth)
        settings = CompressSettings(ratio=ratio, depth=depth, question=question)
        return writer.compress_many(pieces, settings=settings)

    def _fitting(self, runs: Sequence[Symbols], room: int | None) -> list[Part]:
        left = sum(map(len, runs)) if room is None else room
        kept: list[Part] = []
        for run in runs:
            if left > 0 and len(run):
                kept.append(run[:left])
                left -= len(run)
        return kept

    def _cut(self, text: str, n_tokens: int | None) -> str:
        if n_tokens is None:
            return text
        return cut_to(text, n_tokens, self.compressor, keep_end=self._keep_end)


def cut_to(
    text: str, n_tokens: int, compressor: SupportsCompress, *, keep_end: bool = False
) -> str:
    """The longest beginning (or end) of a text that takes at most so many tokens.

    Args:
        text: Any text.
        n_tokens: Tokens it may take.
        compressor: Counts the tokens.
        keep_end: Keep the end instead.

    Returns:
        The part kept.
    """

    def kept(n_chars: int) -> str:
        return text[len(text) - n_chars :] if keep_end else text[:n_chars]

    low, high = 0, len(text)
    # A token has a few characters, so looking from there spares counting the whole text often.
    reach = min(high, max(16, 8 * n_tokens))
    while reach < high and compressor.count_tokens(kept(reach)) <= n_tokens:
        reach *= 2
    high = min(high, reach)
    if compressor.count_tokens(kept(high)) <= n_tokens:
        return kept(high)
    while low < high:
        middle = (low + high + 1) // 2
        if compressor.count_tokens(kept(middle)) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return kept(low)
