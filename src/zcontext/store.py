"""Where compressed documents are kept, under a key made of everything that shaped them.

`store_key` hashes codec, settings and text, so a store never has to be cleared when a setting or
a bundle changes: other settings are other keys. Two stores: `MemoryStore` for one process,
`SQLiteStore` for a file that several processes and threads share.

Floor 0, standard library only. A store knows documents and keys, not models and not the text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from threading import RLock
from typing import Final, Protocol, runtime_checkable

from zcontext.config import CompressSettings, to_json
from zcontext.errors import ConfigError
from zcontext.spans import ZDocument
from zcontext.sqlite_store import SQLiteStore, check_key
from zcontext.vocabulary import utf8_bytes

__all__ = ["MemoryStore", "SQLiteStore", "SpanStore", "store_key"]

_KEY_SCHEMA: Final = b"zcontext.store.1"


def store_key(*, codec: str, settings: CompressSettings, text: str) -> str:
    """The key of a text compressed by a codec under settings: SHA-256, 64 hex digits.

    Every setting is part of it, so a changed setting is never answered with a stale document.
    Pass the settings in force, with defaults filled in: a default is not part of its absence.

    Args:
        codec: Digest of the codec.
        settings: The settings in force.
        text: The source.

    Returns:
        64 lower-case hex digits.

    Raises:
        VocabularyError: if the text holds a lone surrogate.
    """
    digest = sha256(_KEY_SCHEMA)
    for field in (codec.encode(), to_json(settings).encode(), utf8_bytes(text)):
        # Lengths, so that no two different triples run together into the same bytes.
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.hexdigest()


@runtime_checkable
class SpanStore(Protocol):
    """Keeps documents under the keys of `store_key`."""

    def get(self, key: str) -> ZDocument | None:
        """The document, or None if none was put under the key."""

    def get_many(self, keys: Sequence[str]) -> list[ZDocument | None]:
        """`get` for each key, in order."""

    def put(self, key: str, document: ZDocument) -> None:
        """Keep the document; what was under the key is replaced."""

    def __len__(self) -> int:
        """Documents kept."""

    def close(self) -> None:
        """Free what the store holds; closing twice is allowed."""


class MemoryStore:
    """Documents in memory; the least recently used one makes room for a new one.

    Args:
        max_documents: Most documents kept.

    Raises:
        ConfigError: if `max_documents` is below 1.
    """

    def __init__(self, *, max_documents: int = 4096) -> None:
        if type(max_documents) is not int or max_documents < 1:
            raise ConfigError(
                f"max_documents={max_documents!r}: give an integer of 1 or more.",
                field="max_documents",
                value=max_documents,
            )
        self._max_documents = max_documents
        self._documents: OrderedDict[str, ZDocument] = OrderedDict()
        self._lock = RLock()

    def get(self, key: str) -> ZDocument | None:
        """The document, or None if it is not (or no longer) there."""
        with self._lock:
            document = self._documents.get(check_key(key))
            if document is not None:
                self._documents.move_to_end(key)
            return document

    def get_many(self, keys: Sequence[str]) -> list[ZDocument | None]:
        """`get` for each key, in order."""
        return [self.get(key) for key in keys]

    def put(self, key: str, document: ZDocument) -> None:
        """Keep the document, dropping the least recently used one if the store is full."""
        with self._lock:
            self._documents[check_key(key)] = document
            self._documents.move_to_end(key)
            while len(self._documents) > self._max_documents:
                self._documents.popitem(last=False)

    def __len__(self) -> int:
        return len(self._documents)

    def close(self) -> None:
        """Drop all documents."""
        with self._lock:
            self._documents.clear()
