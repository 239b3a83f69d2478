"""Compressed texts as values: the ordered spans of one text, and their stored forms.

Three stored forms, all self-describing and checksummed: `to_json` (readable, codes as plain
integers), `to_bytes` (packed, for stores) and `to_compact` (packed as one ASCII string, for the
metadata of a vector store, which takes flat values only).

Floor 0, standard library only. A document knows the shape of what it holds, not its meaning: it
cannot be read without the codec named in it.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any, Final

from zcontext.errors import CodecMismatchError, CorruptSpanError, ZContextError
from zcontext.packing import ByteReader, ByteWriter
from zcontext.symbols import MAX_DEPTH, Symbols, join
from zcontext.zspan import (
    ZSpan,
    read_span,
    require,
    span_from_dict,
    span_to_dict,
    write_span,
)

SCHEMAS: Final = (1, 2)
"""2 knows literals; a document without any is written in 1, as it always was."""
_MAGIC: Final = b"ZDOC"
_PREFIX: Final = "zdoc"
_CHECK_BYTES: Final = 8
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_COUNTS: Final = ("n_tokens", "n_chars", "n_bytes", "memory")
_FIELDS: Final = ("codec", "text_sha256", "depth", "size", *_COUNTS)
_KEYS: Final = frozenset((*_FIELDS, "schema", "spans", "checksum"))


def joined_parts(found: Iterable[str | Symbols]) -> tuple[str | Symbols, ...]:
    """Symbols and texts in order, neighbours of one kind as one part."""
    parts: list[str | Symbols] = []
    for _, run in groupby(found, key=type):
        texts: list[str] = []
        symbols: list[Symbols] = []
        for part in run:
            if isinstance(part, str):
                texts.append(part)
            else:
                symbols.append(part)
        parts.append(join(symbols) if symbols else "".join(texts))
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class ZDocument:
    """The spans of one text, in order.

    Args:
        spans: They cover the text's tokens and characters exactly once.
        codec: Digest of the codec that wrote them, 64 lower-case hex digits.
        n_tokens: Length of the source in base tokens.
        n_chars: Length of the source in characters.
        n_bytes: Length of the source in UTF-8 bytes.
        text_sha256: SHA-256 of the source's UTF-8 bytes, in hex.
        depth: Codes per symbol.
        size: Codes per stage of the codec.
        memory: Symbols of earlier spans that stood before each span when it was written, and
            that its reader must see as well.

    Raises:
        SpanError: if the spans do not partition the text, or disagree with codec, depth or size.
    """

    spans: tuple[ZSpan, ...]
    codec: str
    n_tokens: int
    n_chars: int
    n_bytes: int
    text_sha256: str
    depth: int
    size: int
    memory: int = 0

    def __post_init__(self) -> None:
        for name in ("codec", "text_sha256"):
            value = getattr(self, name)
            valid = isinstance(value, str) and _DIGEST.match(value) is not None
            require(valid, f"{name}={value!r}: give a digest of 64 lower-case hex digits.")
        for name in _COUNTS:
            value = getattr(self, name)
            require(type(value) is int and value >= 0, f"{name}={value!r}: give an int >= 0.")
        require(
            self.n_chars <= self.n_bytes <= 4 * self.n_chars,
            f"{self.n_chars} characters cannot be {self.n_bytes} bytes of UTF-8.",
        )
        require(
            type(self.depth) is int and 1 <= self.depth <= MAX_DEPTH,
            f"depth={self.depth!r}: give an integer in 1..{MAX_DEPTH}.",
        )
        Symbols((), self.size, self.codec[:4])
        require(isinstance(self.spans, tuple), "spans must be a tuple of ZSpan.")
        self._check_spans()

    def _check_spans(self) -> None:
        at_token = at_char = 0
        for k, span in enumerate(self.spans):
            require(isinstance(span, ZSpan), f"span {k} is a {type(span).__name__}, not a ZSpan.")
            require(
                (span.tokens.start, span.chars.start) == (at_token, at_char),
                f"span {k} starts at token {span.tokens.start}, character {span.chars.start}; the "
                f"one before it ends at {at_token}, {at_char}. Spans must follow one another.",
            )
            require(
                (span.symbols.codec, span.symbols.size) == (self.codec[:4], self.size),
                f"span {k} is of codec {span.symbols.codec} (size {span.symbols.size}), the "
                f"document of {self.codec[:4]} (size {self.size}).",
            )
            require(
                span.symbols.depth in (0, self.depth),
                f"span {k} has depth {span.symbols.depth}, the document {self.depth}.",
            )
            at_token, at_char = span.tokens.end, span.chars.end
        require(
            (at_token, at_char) == (self.n_tokens, self.n_chars),
            f"the spans end at token {at_token}, character {at_char}; the text has "
            f"{self.n_tokens} tokens and {self.n_chars} characters.",
        )

    def check_codec(self, codec: str) -> None:
        """Refuse to be read with another codec than the one that wrote it.

        Args:
            codec: Digest of the codec that is to read.

        Raises:
            CodecMismatchError: Another codec wrote the document.
        """
        if self.codec != codec:
            raise CodecMismatchError(
                f"the document was written by codec {self.codec[:12]}..., this model is "
                f"{codec[:12]}...; load the bundle that wrote it, or compress the text again"
            )

    @property
    def symbols(self) -> Symbols:
        """All symbols, as one run."""
        return join((Symbols((), self.size, self.codec[:4]), *(s.symbols for s in self.spans)))

    @property
    def n_symbols(self) -> int:
        """Symbols of all spans."""
        return sum(len(span.symbols) for span in self.spans)

    @property
    def n_positions(self) -> int:
        """Positions that a reader spends on the document: symbols, and tokens kept as text."""
        return sum(span.n_positions for span in self.spans)

    @property
    def has_literals(self) -> bool:
        """Whether some text is kept as it is."""
        return any(span.literals for span in self.spans)

    @property
    def parts(self) -> tuple[str | Symbols, ...]:
        """What a reader is given: symbols, and the text kept between them, in order."""
        return joined_parts(part for span in self.spans for part in span.parts)

    @property
    def ratio(self) -> float:
        """Source tokens per position that a reader spends; 1.0 for the empty text."""
        if self.n_positions:
            return self.n_tokens / self.n_positions
        return math.inf if self.n_tokens else 1.0

    @property
    def bits(self) -> int:
        """What is stored for a reader: codes, places of segments and literals; no errata."""
        return sum(span.bits for span in self.spans)

    @property
    def n_errata_bytes(self) -> int:
        """Size of all errata, in bytes."""
        return sum(len(span.errata) for span in self.spans)

    @property
    def errata_bits(self) -> int:
        """What the errata take, in bits."""
        return 8 * self.n_errata_bytes

    @property
    def total_bits(self) -> int:
        """What is stored to decompress: codes, places of segments, literals, and errata."""
        return self.bits + self.errata_bits

    @property
    def exact(self) -> bool:
        """Whether it was written with errata, so that its decompression is the source, checked."""
        return all(span.errata or span.is_literal for span in self.spans)

    @property
    def _schema(self) -> int:
        return 2 if self.has_literals else 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` is its inverse."""
        return {
            "schema": self._schema,
            **{name: getattr(self, name) for name in _FIELDS},
            "spans": [span_to_dict(span) for span in self.spans],
            "checksum": self.to_bytes()[-_CHECK_BYTES:].hex(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ZDocument:
        """The inverse of `to_dict`.

        Args:
            data: What `to_dict` returned, or the same read back from JSON.

        Returns:
            The document.

        Raises:
            CorruptSpanError: if anything is missing, unknown, altered or inconsistent.
        """
        try:
            if type(data["schema"]) is not int or data["schema"] not in SCHEMAS:
                raise ValueError(f"schema {data['schema']!r} is none of {SCHEMAS}")
            if set(data) != _KEYS:
                raise ValueError(f"unexpected or missing keys {sorted(set(data) ^ _KEYS)}")
            fields = {key: data[key] for key in _FIELDS}
            tag, size = str(data["codec"])[:4], data["size"]
            spans = tuple(span_from_dict(item, tag=tag, size=size) for item in data["spans"])
            document = cls(spans=spans, **fields)
            document._check_schema(data["schema"])
            if document.to_bytes()[-_CHECK_BYTES:].hex() != data["checksum"]:
                raise ValueError("the checksum does not match the content")
        except (
            *(KeyError, TypeError, ValueError, AttributeError, ZContextError),
            *(OverflowError, RecursionError),  # of numbers and nesting that no document has
        ) as error:
            raise _corrupt(error) from error
        return document

    def to_json(self) -> str:
        """`to_dict` as JSON without spaces, ASCII only."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> ZDocument:
        """The inverse of `to_json`, or CorruptSpanError as from `from_dict`."""
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise _corrupt(error) from error
        return cls.from_dict(data)

    def to_bytes(self) -> bytes:
        """Packed form; the last eight bytes are a checksum."""
        out = ByteWriter()
        schema = self._schema
        out.raw(_MAGIC + bytes([schema]))
        out.raw(bytes.fromhex(self.codec) + bytes.fromhex(self.text_sha256))
        for value in (self.depth, self.size, self.memory, self.n_bytes, len(self.spans)):
            out.varint(value)
        for span in self.spans:
            write_span(out, span, with_literals=schema > 1)
        body = out.getvalue()
        return body + sha256(body).digest()[:_CHECK_BYTES]

    @classmethod
    def from_bytes(cls, data: bytes) -> ZDocument:
        """The inverse of `to_bytes`.

        Args:
            data: What `to_bytes` returned.

        Returns:
            The document.

        Raises:
            CorruptSpanError: if it is not the bytes of a document, whole and unaltered.
        """
        try:
            body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
            if body[:4] != _MAGIC or body[4:5] not in map(bytes, ([n] for n in SCHEMAS)):
                raise ValueError(
                    f"the data start with {body[:5]!r}, not with {_MAGIC!r} and 1 or 2"
                )
            if sha256(body).digest()[:_CHECK_BYTES] != check:
                raise ValueError("the checksum does not match the content")
            schema = body[4]
            source = ByteReader(body, len(_MAGIC) + 1)
            codec, digest = source.raw(32).hex(), source.raw(32).hex()
            depth, size, memory, n_bytes, n_spans = (source.varint() for _ in range(5))
            spans: list[ZSpan] = []
            for _ in range(n_spans):
                previous = spans[-1] if spans else None
                shape: dict[str, Any] = {"depth": depth, "size": size, "tag": codec[:4]}
                spans.append(read_span(source, previous, with_literals=schema > 1, **shape))
            source.finish()
            n_tokens = spans[-1].tokens.end if spans else 0
            n_chars = spans[-1].chars.end if spans else 0
            counts = (n_tokens, n_chars, n_bytes)
            document = cls(tuple(spans), codec, *counts, digest, depth, size, memory)
            document._check_schema(schema)
            return document
        except (TypeError, ValueError, AttributeError, ZContextError) as error:
            raise _corrupt(error) from error

    def to_compact(self) -> str:
        """`to_bytes` as one short ASCII string, safe in JSON, URLs and metadata."""
        packed = base64.urlsafe_b64encode(self.to_bytes()).decode("ascii").rstrip("=")
        return f"{_PREFIX}{self._schema}.{packed}"

    @classmethod
    def from_compact(cls, text: str) -> ZDocument:
        """The inverse of `to_compact`, or CorruptSpanError as from `from_dict`."""
        try:
            head, dot, packed = text.partition(".")
            if not dot or head not in [f"{_PREFIX}{n}" for n in SCHEMAS]:
                raise ValueError(
                    f"the text starts with {text[:8]!r}, not with 'zdoc1.' or 'zdoc2.'"
                )
            data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars="-_", validate=True)
            if data[4:5] != bytes([int(head[-1])]):
                raise ValueError(f"it is named {head} and holds another schema")
        except (TypeError, ValueError, AttributeError) as error:
            raise _corrupt(error) from error
        return cls.from_bytes(data)

    def _check_schema(self, schema: int) -> None:
        """Refuse a schema that this document is not written in: each has one stored form."""
        if schema != self._schema:
            raise ValueError(f"schema {schema} of a document that is written in {self._schema}")


def _corrupt(error: Exception) -> CorruptSpanError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error)
    return CorruptSpanError(
        f"Not a stored document of schema 1 or 2: {reason.rstrip('.')}. It was altered, cut or "
        "written by another version of zcontext: compress the source text again."
    )
