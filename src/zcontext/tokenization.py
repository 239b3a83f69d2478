"""Text as the tokens of a base: user text is text, whatever it spells, and every token has a place.

What it is: a private copy of the base's tokenizer in which special tokens written out in user text
(`<|im_end|>`) are ordinary characters, used from any thread, in memory that does not depend on
how long a text is beyond the tokens themselves. What it does not know: models, chat templates.
"""

from __future__ import annotations

import copy
import re
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from zcontext.anchoring import Seams
from zcontext.errors import ConfigError, VocabularyError
from zcontext.loading import unencodable_bytes
from zcontext.vocabulary import utf8_bytes

CHUNK_CHARS = 1 << 16
"""Characters tokenised in one go: the tokenizer keeps hundreds of bytes for a token it works on."""

_WORD_START = re.compile(r"(?<=\S) (?=\w)")
_SENTENCE_END = re.compile(
    r"[.!?\u2026](?:[\"'\u2019\u201d)\]]*)(?=\s)|[\u3002\uff01\uff1f](?:[\u300d\u300f\u201d]*)|\n+"
)

# What goes on with what stands before it: a word, a piece of a character (U+FFFD), a closing sign.
_GOES_ON = re.compile(r"[\w\ufffd'\u2019-]| *[.,;:!?)\]\u2026\u201d\u3001\u3002\uff01\uff0c\uff1f]")
_CLOSES = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u2019\u201d)\]]*\s*$|\n")
_PAUSES = re.compile(r"[,;:)\]\"\u201d\u3001\uff0c]\s*$")


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The tokens of a text and where they stand in it.

    Attributes:
        ids: Token ids, int32.
        starts: Character at which each token starts, int32, never falling.
        whole: 1 at every token that starts where a character starts, so that a cut before it
            splits none.
        n_chars: Length of the text.
    """

    ids: array[int]
    starts: array[int]
    whole: bytearray
    n_chars: int

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, token: object) -> bool:
        """Whether a cut before a token splits no character: what `WindowPlan.cover` asks."""
        return isinstance(token, int) and 0 <= token < len(self.whole) and bool(self.whole[token])

    def char_at(self, token: int) -> int:
        """The character at which a token's share of the text begins; `n_chars` past the last."""
        if token <= 0:
            return 0
        return self.starts[token] if token < len(self.starts) else self.n_chars

    def sentence_cuts(self, text: str) -> array[int]:
        """Token indices where a sentence has just ended, rising.

        Args:
            text: The text itself.

        Returns:
            Indices that `WindowPlan.cover` takes as `cuts`.
        """
        cuts: array[int] = array("i")
        token = 0
        for match in _SENTENCE_END.finditer(text):
            end = match.end()
            while token < len(self.starts) and self.starts[token] < end:
                token += 1
            if 0 < token < len(self.starts) and (not cuts or cuts[-1] < token):
                cuts.append(token)
        return cuts


class TextTokenizer:
    """Tokenises user text for one base.

    Args:
        tokenizer: A fast tokenizer of transformers; it is copied and left as it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        core = copy.deepcopy(tokenizer.backend_tokenizer)
        # Set once and never again: changing a tokenizer while another thread encodes is an error.
        core.encode_special_tokens = True
        core.no_truncation()
        core.no_padding()
        # Without it offsets keep the space in front of a word, so they cover every character.
        core.post_processor = None
        self._core = core
        self._unencodable = _unencodable(tokenizer)
        opened = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
        plain = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
        n_opening = next((i for i in range(len(opened)) if opened[i : i + 1] == plain[:1]), 0)
        self.opening: tuple[int, ...] = tuple(opened[:n_opening])
        """Special tokens this base wants in front of every text that is not a chat."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text; special tokens in it are characters.

        Returns:
            Its ids; a character the base cannot spell counts as U+FFFD.

        Raises:
            VocabularyError: The text holds a lone surrogate.
        """  # noqa: DOC502 - raised by the check
        utf8_bytes(text)
        found: list[int] = []
        for piece in self._pieces(text):
            found += self._core.encode(piece, add_special_tokens=False).ids
        return found

    def count(self, text: str) -> int:
        """Number of tokens of a text.

        Args:
            text: Any text.

        Returns:
            The count.

        Raises:
            VocabularyError: The text holds a lone surrogate.
        """  # noqa: DOC502 - raised by the check
        utf8_bytes(text)
        pieces = self._pieces(text)
        return sum(len(self._core.encode(p, add_special_tokens=False).ids) for p in pieces)

    def locate(self, text: str, *, max_tokens: int, breaks: Sequence[int] = ()) -> TokenizedText:
        """Tokens of a text with their places.

        Args:
            text: Any text.
            max_tokens: Tokens accepted; reading stops soon after.
            breaks: Characters, rising, at which the text is parted: what lies between two of them
                is tokenised as it would be by itself.

        Returns:
            Tokens and places.

        Raises:
            ConfigError: The text has more than `max_tokens` tokens.
            VocabularyError: The text holds a lone surrogate, or nothing the base has a token for.
        """
        utf8_bytes(text)
        ids: array[int] = array("i")
        starts: array[int] = array("i")
        whole = bytearray()
        base = done = 0
        edges = [0, *breaks, len(text)]
        parted = (text[start:end] for start, end in pairwise(edges) if start < end)
        for piece in (piece for part in parted for piece in self._pieces(part)):
            encoded = self._core.encode(piece, add_special_tokens=False)
            ids.extend(encoded.ids)
            for start, end in encoded.offsets:
                whole.append(base + start >= done)
                done = max(done, base + end)
                starts.append(max(base + start, starts[-1] if starts else 0))
            base += len(piece)
            if len(ids) > max_tokens:
                raise ConfigError(
                    f"the text has more than max_tokens={max_tokens:,} tokens ({base:,} of "
                    f"{len(text):,} characters make {len(ids):,}); raise it, or split the text",
                    field="max_tokens",
                    value=max_tokens,
                )
        if text and not ids:
            raise VocabularyError(
                f"the base's tokenizer has no token for any of the {len(text)} characters of "
                f"{text[:20]!r}; leave such texts out"
            )
        return TokenizedText(ids, starts, whole, len(text))

    def _pieces(self, text: str) -> Iterator[str]:
        """The text in chunks that end in front of a word, where tokens always part."""
        if self._unencodable is not None:
            text = self._unencodable.sub("\ufffd", text)
        start = 0
        while len(text) - start > CHUNK_CHARS:
            limit = start + CHUNK_CHARS
            cut = limit
            for match in _WORD_START.finditer(text, max(start + 1, limit - 1024), limit):
                cut = match.start()
            yield text[start:cut]
            start = cut
        if start < len(text):
            yield text[start:]


def _unencodable(tokenizer: Any) -> re.Pattern[str] | None:
    """Characters that a byte-level tokenizer would drop without a word.

    Replaced one for one, they leave every offset where it is and every character with a token.
    """
    ranges = []
    for byte in sorted(unencodable_bytes(tokenizer)):
        if byte < 0x80:
            first = last = byte
        elif 0xC2 <= byte < 0xE0:
            first, last = (byte & 0x1F) << 6, (byte & 0x1F) << 6 | 0x3F
        elif 0xE0 <= byte < 0xF0:
            first, last = (byte & 0x0F) << 12, (byte & 0x0F) << 12 | 0xFFF
        elif 0xF0 <= byte < 0xF5:
            first, last = (byte & 0x07) << 18, min((byte & 0x07) << 18 | 0x3FFFF, 0x10FFFF)
        else:
            continue  # a byte inside characters: no set of characters is lost whole
        ranges.append(f"{re.escape(chr(first))}-{re.escape(chr(last))}")
    return re.compile(f"[{''.join(ranges)}]") if ranges else None


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of the tokens that are structure and never text.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Returns:
        Ids that no user text is tokenised to.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    marked = {token for token, entry in added.items() if entry.special}
    return frozenset({*marked, *map(int, tokenizer.all_special_ids)})


def text_mask(tokenizer: Any, vocab_size: int) -> Tensor:
    """Which tokens stand for text: structure does not, nor do ids beyond the tokenizer's.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocab_size: Of the model.

    Returns:
        bool `[vocab_size]`.
    """
    text = torch.arange(vocab_size) < len(tokenizer)
    text[sorted(special_ids(tokenizer))] = False
    return text


def token_seams(tokenizer: Any, vocab_size: int) -> Seams:
    """Where text parts easily, told from what each token spells; made once for each tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocab_size: Of the model.

    Returns:
        The seams; tokens that spell no character by themselves begin nothing.
    """
    with _making:
        found = _seams.get(tokenizer)
        if found is None or len(found.opens) < vocab_size:
            core = tokenizer.backend_tokenizer
            names = [core.id_to_token(token) or "" for token in range(vocab_size)]
            texts = core.decode_batch([[k] if name else [] for k, name in enumerate(names)])
            # A decoder may leave out the space that opens a text: its mark is in the name.
            opens = [
                name.startswith("\u2581") or bool(text and not _GOES_ON.match(text))
                for name, text in zip(names, texts, strict=True)
            ]
            closes = [2 if _CLOSES.search(t) else 1 if _PAUSES.search(t) else 0 for t in texts]
            found = _seams[tokenizer] = Seams(torch.tensor(opens), torch.tensor(closes))
        return found


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of some tokens, by themselves.

    Args:
        tokenizer: A fast tokenizer of transformers.
        ids: Of whole characters.

    Returns:
        The text; what has no token, and what some tokenizers normalise, is not as it was.
    """
    text: str = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def spelled(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """What some tokens spell, each by itself.

    Args:
        tokenizer: A fast tokenizer of transformers.
        ids: Any tokens; pieces of characters spell U+FFFD.

    Returns:
        The text, and the character at which each token starts.
    """
    core = tokenizer.backend_tokenizer
    pieces = core.decode_batch([[token] for token in ids], skip_special_tokens=False)
    # A decoder may leave out the space that opens a text: its mark is in the name.
    marked = [(core.id_to_token(token) or "").startswith("\u2581") for token in ids]
    texts = [
        f" {piece}" if has_space and not piece.startswith(" ") else piece
        for piece, has_space in zip(pieces, marked, strict=True)
    ]
    return "".join(texts), [*accumulate(map(len, texts), initial=0)][:-1]


_made: weakref.WeakKeyDictionary[Any, TextTokenizer] = weakref.WeakKeyDictionary()
_seams: weakref.WeakKeyDictionary[Any, Seams] = weakref.WeakKeyDictionary()
_making = Lock()


def text_tokenizer(tokenizer: Any) -> TextTokenizer:
    """The `TextTokenizer` of a tokenizer, made once for each.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Returns:
        The shared instance.
    """
    with _making:
        found = _made.get(tokenizer)
        if found is None:
            found = _made[tokenizer] = TextTokenizer(tokenizer)
        return found
