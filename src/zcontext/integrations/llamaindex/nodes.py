"""Nodes and their spans: `ZContextPostprocessor` at query time, `ZContextTransform` at index time.

One node in, one node out, in order: a copy with the same id, score, relationships and metadata.
The record of what was done is flat metadata that neither the LLM nor the embedder is shown. Only a
budget of `max_tokens` leaves nodes out.

What it does not know: when text becomes symbols and when it stays text (`exchange` does), and who
reads the nodes afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeVar

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseComponent,
    BaseNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TransformComponent,
)

from zcontext.config import CompressSettings
from zcontext.errors import SymbolCollisionError
from zcontext.integrations.engines import Engine, in_thread
from zcontext.integrations.exchange import (
    ACTION,
    Chunk,
    Exchanged,
    ExchangeSettings,
    Policy,
    guarded,
)
from zcontext.integrations.llamaindex.watch import watch_for_symbols
from zcontext.integrations.opening import AnyExchange, open_exchange
from zcontext.integrations.records import Output
from zcontext.vocabulary import ZVocabulary

AnyNode = TypeVar("AnyNode", bound=BaseNode)


class _Exchanging(BaseComponent):
    """An engine and when it is used. Codec and settings are fields: LlamaIndex keys caches by them.

    Args:
        model: Folder or name of a bundle, a `ZLanguageModel`, or any `SupportsCompress`.
        settings: When text is exchanged for symbols, and for how many.

    Raises:
        ConfigError: if `model` is none of these.
        BundleError: if there is no such bundle.
    """  # noqa: DOC502 - raised by the engine

    settings: ExchangeSettings = Field(description="When text is exchanged, for how many symbols.")
    codec: str = Field(description="Digest of the codec.")

    _engine: Engine = PrivateAttr()

    def __init__(self, model: object, settings: ExchangeSettings) -> None:
        engine = Engine(model)
        fields: dict[str, Any] = {"settings": settings, "codec": engine.vocabulary.codec}
        super().__init__(**fields)
        self._engine = engine


class ZContextPostprocessor(_Exchanging, BaseNodePostprocessor):
    """Puts symbols in the place of retrieved nodes' text.

    Spans that `ZContextTransform` wrote at index time are used as they are, without running or
    loading the model; everything else is compressed on the fly. The docstore keeps the originals,
    under the same ids.

    Args:
        model: Folder or name of a bundle (loaded when something has to be compressed), a
            `ZLanguageModel`, or any `SupportsCompress`.
        ratio: Tokens per symbol.
        max_symbols: Most symbols of one whole result list, instead of a ratio.
        max_tokens: Most positions of one whole result list: the nodes that score best stay text,
            others become symbols at a ratio of `ratio` or more, those without room are left out.
        min_tokens: Shorter nodes stay text.
        min_accuracy: Nodes that read back worse than this share of tokens stay text.
        on_symbols: What to do with text that spells symbols: "refuse", "escape", "drop", "keep".
        keep_text: Keep the source text in the metadata.
        compress: Further settings of the compressor.
        query_aware: Write nodes for the query they were retrieved for: each is then compressed at
            query time, and the spans of `ZContextTransform` are not used. Nodes that are symbols
            already are written again from these, where the codec's codes are names.
        output: "text" cuts nodes down to readable text, for LLMs that know no symbols.
        protect: What is kept as text between symbols: "tables", "code", "json", "numbers",
            "names", "urls", or patterns such as "re:ART-[0-9]+".

    Raises:
        ConfigError: if a setting is out of range or `model` is none of these.
        BundleError: if there is no such bundle.
    """

    def __init__(  # noqa: PLR0913 - an argument for each setting
        self,
        model: object,
        *,
        ratio: float | None = None,
        max_symbols: int | None = None,
        max_tokens: int | None = None,
        min_tokens: int = 32,
        min_accuracy: float | None = None,
        on_symbols: Policy = "refuse",
        keep_text: bool = False,
        compress: CompressSettings | None = None,
        query_aware: bool = False,
        output: Output = "symbols",
        protect: tuple[str, ...] = (),
    ) -> None:
        settings = ExchangeSettings(
            ratio=ratio,
            max_symbols=max_symbols,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            min_accuracy=min_accuracy,
            on_symbols=on_symbols,
            keep_text=keep_text,
            compress=compress,
            query_aware=query_aware,
            output=output,
            protect=protect,
        )
        super().__init__(model, settings)
        watch_for_symbols()

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows it."""
        return "ZContextPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The nodes with symbols for text.

        Raises:
            ZContextError: if the query or a node spells symbols, or one cannot be compressed.
        """
        if query_bundle is not None:
            _check_query(query_bundle.query_str, self._engine.vocabulary, self.settings.on_symbols)
        asked = None if query_bundle is None else query_bundle.query_str
        exchange = open_exchange(self._engine, self.settings, asked)
        scores = [scored.score for scored in nodes]
        changed = exchange.swap(_chunks([scored.node for scored in nodes], scores=scores))
        return [
            NodeWithScore(node=_copy(scored.node, new, exchange), score=scored.score)
            for scored, new in zip(nodes, changed, strict=True)
            if new.record.get(ACTION) != "dropped"
        ]

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """The same, off the event loop and out of its pool."""
        return await in_thread(lambda: self._postprocess_nodes(nodes, query_bundle))


class ZContextTransform(_Exchanging, TransformComponent):
    """Writes the span of each node into its metadata, for an `IngestionPipeline`.

    The text stays, so embeddings, citations and other LLMs see what they always saw. Put it after
    the node parser: a node that is split afterwards no longer fits its span. The cache of the
    pipeline knows codec and settings, so another bundle or ratio is another cache entry.

    Args:
        model: As in `ZContextPostprocessor`.
        ratio: Tokens per symbol.
        max_symbols: Most symbols of all nodes of one call, instead of a ratio.
        min_tokens: Shorter nodes get no span.
        min_accuracy: Nodes that read back worse than this share of tokens are marked as raw.
        on_symbols: What to do with text that spells symbols: "refuse", "escape", "drop", "keep".
        compress: Further settings of the compressor.
        protect: What is kept as text between symbols, as in `ZContextPostprocessor`.

    Raises:
        ConfigError: if a setting is out of range or `model` is none of these.
        BundleError: if there is no such bundle.
    """

    def __init__(
        self,
        model: object,
        *,
        ratio: float | None = None,
        max_symbols: int | None = None,
        min_tokens: int = 32,
        min_accuracy: float | None = None,
        on_symbols: Policy = "refuse",
        compress: CompressSettings | None = None,
        protect: tuple[str, ...] = (),
    ) -> None:
        settings = ExchangeSettings(
            ratio=ratio,
            max_symbols=max_symbols,
            min_tokens=min_tokens,
            min_accuracy=min_accuracy,
            on_symbols=on_symbols,
            compress=compress,
            protect=protect,
        )
        super().__init__(model, settings)

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows it."""
        return "ZContextTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """Copies of the nodes, with spans.

        Args:
            nodes: Nodes of any kind; those without text pass.
            **kwargs: What LlamaIndex hands to all transforms; nothing of it is used.

        Returns:
            One per node, in order.

        Raises:
            ZContextError: if a node spells symbols or cannot be compressed.
        """
        exchange = open_exchange(self._engine, self.settings)
        changed = exchange.index(_chunks(nodes))
        return [_copy(node, new, exchange) for node, new in zip(nodes, changed, strict=True)]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        """The same, off the event loop."""
        return await in_thread(lambda: self(nodes, **kwargs))


def _chunks(
    nodes: Sequence[BaseNode], *, scores: Sequence[float | None] | None = None
) -> list[Chunk]:
    return [
        Chunk(
            text=node.get_content(MetadataMode.NONE),
            metadata=node.metadata,
            label=f"node {at} (id={node.node_id!r})",
            score=scores[at] if scores else None,
        )
        for at, node in enumerate(nodes)
    ]


def _copy(node: AnyNode, new: Exchanged, exchange: AnyExchange) -> AnyNode:
    """The node with new text and record. What it shares with the old one is never changed."""
    hidden = [*new.record, *_spelling_keys(node, exchange)]
    # Not a deep copy: an IndexNode holds whole indexes.
    copied = node.model_copy()
    copied.relationships = dict(node.relationships)
    copied.metadata = deepcopy(new.metadata(node.metadata))
    copied.excluded_llm_metadata_keys = _union(node.excluded_llm_metadata_keys, hidden)
    copied.excluded_embed_metadata_keys = _union(node.excluded_embed_metadata_keys, new.record)
    if new.text != node.get_content(MetadataMode.NONE):
        if isinstance(copied, Node) and copied.text_resource is not None:
            # set_content() would forget the resource's type and place.
            copied.text_resource = copied.text_resource.model_copy(update={"text": new.text})
        else:
            copied.set_content(new.text)
    return copied


def _union(keys: Sequence[str], more: Sequence[str] | dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*keys, *more]))


def _spelling_keys(node: BaseNode, exchange: AnyExchange) -> list[str]:
    """Metadata that spells symbols, which stands next to the text in the prompt.

    Raises:
        SymbolCollisionError: if there is some and the policy is to refuse it.
    """
    policy = exchange.settings.on_symbols
    if policy == "keep":
        return []
    shown = set(node.metadata) - set(node.excluded_llm_metadata_keys)
    guard = exchange.vocabulary.guard
    found = [
        key
        for key, value in node.metadata.items()
        if key in shown and guard(line := f"{key}: {value}", on_symbols="drop") != line
    ]
    if found and policy == "refuse":
        raise SymbolCollisionError(
            f"The metadata {found[0]!r} of node {node.node_id!r} spells symbols. Name it in "
            "excluded_llm_metadata_keys, or set on_symbols='escape', which keeps it from the LLM."
        )
    return found


def _check_query(query: str, vocabulary: ZVocabulary, policy: Policy) -> None:
    """Refuse a query that the reader would take for symbols; it cannot be changed from here.

    Raises:
        SymbolCollisionError: if the query spells symbols.
    """
    try:
        guarded(vocabulary, query, policy="keep" if policy == "keep" else "refuse")
    except SymbolCollisionError as error:
        raise SymbolCollisionError(
            "The query spells symbols: ask with vocabulary.guard(query, on_symbols='escape')."
        ) from error
