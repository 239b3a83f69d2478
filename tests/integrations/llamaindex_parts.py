"""What the LlamaIndex tests share: a corpus, weightless embeddings, and what a reader got."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import BaseNode, NodeWithScore, TextNode

from zcontext.integrations.exchange import stored_span
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec

SIZE = 64
READING = ("complete", "ask")
Code = tuple[int, ...]

PLACES = ["Bern", "Thun", "Brienz", "Interlaken", "Spiez", "Aarau", "Olten", "Solothurn"]
THINGS = ["bridge", "mill", "harbour", "market", "library", "station", "theatre", "garden"]


def passage(at: int, n_sentences: int = 5) -> str:
    """A passage that no other number gives."""
    place = PLACES[at % len(PLACES)]
    return " ".join(
        f"The {THINGS[(at + k) % len(THINGS)]} of {place} number {at} opened in "
        f"{1800 + 7 * at + k} "
        f"and was visited by {131 * at + 17 * k} people."
        for k in range(n_sentences)
    )


def nodes(n: int, **metadata: object) -> list[NodeWithScore]:
    """Retrieved nodes with ids, scores and metadata."""
    return [
        NodeWithScore(
            node=TextNode(text=passage(at), id_=f"node-{at}", metadata={"page": at, **metadata}),
            score=1.0 - at / 100,
        )
        for at in range(n)
    ]


def written(scored: Sequence[NodeWithScore | BaseNode]) -> list[Code]:
    """The symbols that the nodes' records say were written, in order."""
    codes: list[Code] = []
    for each in scored:
        node = each.node if isinstance(each, NodeWithScore) else each
        document = stored_span(node.metadata)
        if document is not None and node.metadata["zcontext_action"] != "raw":
            codes.extend(document.symbols.codes)
    return codes


def arrived(codec: ByteCodec) -> list[Code]:
    """The symbols that the reader was given in all of its calls, in order."""
    return [
        code
        for call in codec.calls
        if call.method in READING
        for part in call.parts
        if isinstance(part, Symbols)
        for code in part.codes
    ]


def reads(codec: ByteCodec) -> int:
    """How often the reader was called."""
    return sum(call.method in READING for call in codec.calls)


def compressions(codec: ByteCodec) -> int:
    """How many texts were compressed."""
    return sum(len(c.texts) for c in codec.calls if c.method in ("compress", "compress_many"))


class WordEmbedding(BaseEmbedding):
    """A bag of hashed words; remembers every text it saw."""

    _seen: list[str] = PrivateAttr(default_factory=list)

    @property
    def seen(self) -> list[str]:
        """The texts embedded so far."""
        return self._seen

    def _embed(self, text: str) -> list[float]:
        self._seen.append(text)
        vector = [0.0] * SIZE
        for word in re.findall(r"\w+", text.lower()):
            vector[zlib.crc32(word.encode()) % SIZE] += 1.0
        norm = sum(x * x for x in vector) ** 0.5 or 1.0
        return [x / norm for x in vector]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)
