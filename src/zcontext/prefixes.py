"""PrefixCache: keys and values of prompt prefixes, kept from one question to the next.

A prefix is named by the codec and by every token and symbol in it, so it is only found by a prompt
that starts with exactly the same. What it does not know: how a prefix is computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from threading import Lock
from typing import Any

from zcontext.caches import fork, n_bytes
from zcontext.errors import ConfigError
from zcontext.prompts import Piece
from zcontext.vocabulary import Symbols


def prefix_key(codec: str, pieces: Sequence[Piece]) -> str:
    """The name of a prefix.

    Args:
        codec: Digest of the codec.
        pieces: Everything that stands in it, in order.

    Returns:
        64 hex digits of a SHA-256.
    """
    digest = sha256(codec.encode())
    for piece in pieces:
        if isinstance(piece, Symbols):
            content = f"z{piece.size},{piece.depth}".encode() + piece.to_bytes()
        else:
            content = b"t" + ",".join(map(str, piece)).encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


class PrefixCache:
    """The most recently used prefixes of one model, as many as fit.

    Args:
        max_bytes: Memory the keys and values may take; 0 keeps nothing.

    Raises:
        ConfigError: `max_bytes` is negative.
    """

    def __init__(self, *, max_bytes: int = 256 << 20) -> None:
        if max_bytes < 0:
            raise ConfigError(
                f"max_bytes must be 0 or more, got {max_bytes}", field="max_bytes", value=max_bytes
            )
        self.max_bytes = max_bytes
        self.n_hits = 0
        self.n_misses = 0
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """Memory taken by what is kept."""
        return self._n_bytes

    def get(self, key: str) -> Any:
        """A fork of what is kept under a key.

        Args:
            key: From `prefix_key`.

        Returns:
            A cache that may be extended, or None.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.n_misses += 1
                return None
            self.n_hits += 1
            self._kept.move_to_end(key)
            return fork(found[0])

    def put(self, key: str, cache: Any) -> None:
        """Keep a prefix; the least recently used ones make room. One that is too big is not kept.

        Args:
            key: From `prefix_key`.
            cache: Its keys and values; the caller may go on extending it.
        """
        size = n_bytes(cache)
        with self._lock:
            if size > self.max_bytes or key in self._kept:
                return
            self._kept[key] = (fork(cache), size)
            self._n_bytes += size
            while self._n_bytes > self.max_bytes:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._n_bytes -= dropped

    def clear(self) -> None:
        """Drop everything: after the INFER adapter was changed, which the codec does not name."""
        with self._lock:
            self._kept.clear()
            self._n_bytes = 0
