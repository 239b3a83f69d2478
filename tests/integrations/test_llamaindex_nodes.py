"""One node in, one node out: what the postprocessor and the transform do to nodes, and do not."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llamaindex_parts import compressions, nodes, passage, written

from zcontext.errors import (
    BundleError,
    CodecMismatchError,
    ConfigError,
    SymbolCollisionError,
    VocabularyError,
)
from zcontext.integrations.exchange import KEYS, StaleSpanWarning, stored_span
from zcontext.integrations.llamaindex import ZContextPostprocessor, ZContextTransform
from zcontext.testing import ByteCodec

LONG = passage(3)


def frozen(scored: list[NodeWithScore]) -> list[str]:
    return [each.model_dump_json() for each in scored]


def one(text: str, **fields: Any) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, **fields), score=0.5)]


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200)),
    ratio=st.floats(1.0, 64.0),
    min_tokens=st.integers(1, 100),
)
def test_one_node_in_one_out_same_order_ids_scores_and_metadata_inputs_not_mutated(
    texts: list[str], ratio: float, min_tokens: int
) -> None:
    codec = ByteCodec()
    before = [
        NodeWithScore(
            node=TextNode(text=text, id_=f"n{at % 3}", metadata={"k": at}),  # ids repeat
            score=None if at % 2 else at / 10,
        )
        for at, text in enumerate(texts)
    ]
    as_it_was = frozen(before)
    after = ZContextPostprocessor(
        codec, ratio=ratio, min_tokens=min_tokens, on_symbols="escape"
    ).postprocess_nodes(before)
    assert frozen(before) == as_it_was
    assert [n.node.node_id for n in after] == [n.node.node_id for n in before]
    assert [n.score for n in after] == [n.score for n in before]
    assert [n.node.metadata["k"] for n in after] == list(range(len(texts)))
    for new, text in zip(after, texts, strict=True):
        record = {k: v for k, v in new.node.metadata.items() if k.startswith("zcontext_")}
        assert set(record) <= set(KEYS)
        assert all(isinstance(value, str | int | float) for value in record.values())
        document = stored_span(new.node.metadata)
        if document is None or record["zcontext_action"] == "raw":
            assert codec.vocabulary.guard(text, on_symbols="escape") == new.node.get_content()
        else:
            assert codec.vocabulary.parse(new.node.get_content()) == document.symbols


@pytest.mark.parametrize("share", [1, 2, 5, 20, 100])
def test_a_budget_of_positions_is_kept_and_the_best_nodes_stay_in_order(share: int) -> None:
    codec = ByteCodec()
    before = nodes(5)
    cap = sum(len(each.node.get_content()) for each in before) // share
    for ratio in (None, 6.0):
        after = ZContextPostprocessor(codec, ratio=ratio, max_tokens=cap).postprocess_nodes(before)
        texts = [each.node.get_content(MetadataMode.NONE) for each in after]
        assert sum(codec.count(codec.vocabulary.split(text)) for text in texts) <= cap
        kept = [each.node.node_id for each in after]
        assert kept == [each.node.node_id for each in before if each.node.node_id in kept]
    if share == 1:
        assert texts == [each.node.get_content(MetadataMode.NONE) for each in before]


def test_a_budget_of_positions_follows_the_scores() -> None:
    before = nodes(3)
    for each, score in zip(before, (0.001, 0.9, 0.001), strict=True):
        each.score = score
    cap = len(before[1].node.get_content(MetadataMode.NONE))
    after = ZContextPostprocessor(ByteCodec(), max_tokens=cap).postprocess_nodes(before)
    assert [each.node.node_id for each in after] == ["node-1"]
    assert after[0].node.metadata["zcontext_action"] == "raw"
    assert after[0].score == 0.9


def test_the_text_becomes_symbols_and_the_record_is_shown_to_nobody() -> None:
    codec = ByteCodec()
    [new] = ZContextPostprocessor(codec, ratio=8).postprocess_nodes(one(LONG, metadata={"a": "b"}))
    document = stored_span(new.node.metadata)
    assert document is not None
    symbols = codec.vocabulary.render(document.symbols)
    assert new.node.get_content(MetadataMode.NONE) == symbols
    assert new.node.get_content(MetadataMode.LLM) == f"a: b\n\n{symbols}"
    assert "zcontext" not in new.node.get_content(MetadataMode.EMBED)
    assert document.n_symbols == -(-len(LONG.encode()) // 8)
    assert new.node.metadata["zcontext_action"] == "compressed"
    assert codec.decompress(document) == LONG


def test_relationships_embedding_template_and_exclusions_survive() -> None:
    node = TextNode(
        text=LONG,
        embedding=[0.5, 0.25],
        metadata={"tags": ["x", "y"], "nothing": None, "file": "a.txt"},
        excluded_llm_metadata_keys=["tags"],
        excluded_embed_metadata_keys=["file"],
        text_template="<<{metadata_str}|{content}>>",
        start_char_idx=3,
        end_char_idx=9,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc")},
    )
    [new] = ZContextPostprocessor(ByteCodec()).postprocess_nodes([NodeWithScore(node=node)])
    kept = [
        "embedding",
        "text_template",
        "start_char_idx",
        "end_char_idx",
        "relationships",
        "node_id",
        "mimetype",
    ]
    assert [getattr(new.node, name) for name in kept] == [getattr(node, name) for name in kept]
    assert new.node.metadata["tags"] == ["x", "y"]
    assert new.node.metadata["tags"] is not node.metadata["tags"]
    assert new.node.excluded_llm_metadata_keys[0] == "tags"
    assert new.node.excluded_embed_metadata_keys[0] == "file"
    assert new.node.get_content(MetadataMode.LLM).startswith("<<nothing: None\nfile: a.txt|[|z")


def test_every_kind_of_node_that_has_text_is_compressed_and_stays_what_it_was() -> None:
    given: list[Any] = [
        TextNode(text=LONG),
        Document(text=LONG),
        IndexNode(text=LONG, index_id="i", obj=object()),
        ImageNode(text=LONG, image="aGk="),
        Node(text_resource=MediaResource(text=LONG, mimetype="text/markdown")),
    ]
    new = ZContextPostprocessor(ByteCodec()).postprocess_nodes(
        [NodeWithScore(node=n) for n in given]
    )
    assert [type(n.node) for n in new] == [type(n) for n in given]
    assert {n.node.metadata["zcontext_action"] for n in new} == {"compressed"}
    assert len({n.node.get_content() for n in new}) == 1
    assert new[2].node.obj is given[2].obj
    assert new[3].node.image == "aGk="
    assert new[4].node.text_resource.mimetype == "text/markdown"
    assert given[4].text_resource.text == LONG


def test_a_node_without_text_passes() -> None:
    given = [NodeWithScore(node=ImageNode(image="aGk=")), NodeWithScore(node=Node())]
    new = ZContextPostprocessor(ByteCodec()).postprocess_nodes(given)
    assert [n.node.metadata["zcontext_reason"] for n in new] == ["empty", "empty"]
    assert new[1].node.text_resource is None


def test_the_query_is_optional_and_an_empty_list_stays_empty() -> None:
    post = ZContextPostprocessor(ByteCodec())
    assert post.postprocess_nodes([]) == []
    assert post.postprocess_nodes([], query_bundle=None) == []
    by_query = post.postprocess_nodes(nodes(2), query_str="Where?")
    assert frozen(by_query) == frozen(post.postprocess_nodes(nodes(2)))


def test_async_gives_what_sync_gives() -> None:
    post = ZContextPostprocessor(ByteCodec(), ratio=6)
    new = asyncio.run(post.apostprocess_nodes(nodes(3), QueryBundle("Where?")))
    assert frozen(new) == frozen(post.postprocess_nodes(nodes(3)))


def test_short_and_empty_nodes_stay_text_and_say_so() -> None:
    new = ZContextPostprocessor(ByteCodec(), min_tokens=50).postprocess_nodes(
        [*one("short"), *one(""), *one(" \n"), *one(LONG)]
    )
    assert [n.node.get_content() for n in new[:3]] == ["short", "", " \n"]
    assert [n.node.metadata.get("zcontext_reason") for n in new] == [
        "short",
        "empty",
        "empty",
        None,
    ]


def test_max_symbols_holds_for_the_whole_list() -> None:
    new = ZContextPostprocessor(ByteCodec(), max_symbols=40).postprocess_nodes(nodes(5))
    assert len(written(new)) == 40
    with pytest.raises(ConfigError, match="too few for 5 chunks"):
        ZContextPostprocessor(ByteCodec(), max_symbols=4).postprocess_nodes(nodes(5))


def test_nodes_of_the_transform_are_swapped_without_the_model() -> None:
    writer, post = ByteCodec(), ByteCodec()
    indexed = ZContextTransform(writer, ratio=8)([n.node for n in nodes(4)])
    assert [n.get_content() for n in indexed] == [passage(at) for at in range(4)]
    assert {n.metadata["zcontext_action"] for n in indexed} == {"indexed"}
    assert all("zcontext" not in n.get_content(MetadataMode.EMBED) for n in indexed)
    swapped = ZContextPostprocessor(post, ratio=8).postprocess_nodes(
        [NodeWithScore(node=n) for n in indexed]
    )
    assert compressions(post) == 0
    assert {n.node.metadata["zcontext_action"] for n in swapped} == {"swapped"}
    assert written(swapped) == written(indexed)
    assert post.vocabulary.parse(" ".join(n.node.get_content() for n in swapped)).codes == tuple(
        written(indexed)
    )


def test_compressing_twice_changes_nothing() -> None:
    codec = ByteCodec()
    post = ZContextPostprocessor(codec)
    once = post.postprocess_nodes(nodes(2))
    assert [n.node.get_content() for n in post.postprocess_nodes(once)] == [
        n.node.get_content() for n in once
    ]
    assert compressions(codec) == 2


def test_a_text_that_changed_after_indexing_is_compressed_again_with_a_warning() -> None:
    indexed = ZContextTransform(ByteCodec())([n.node for n in nodes(1)])
    indexed[0].set_content(passage(9))
    with pytest.warns(StaleSpanWarning, match="outdated span"):
        [new] = ZContextPostprocessor(ByteCodec()).postprocess_nodes(
            [NodeWithScore(node=indexed[0])]
        )
    document = stored_span(new.node.metadata)
    assert document is not None
    assert ByteCodec().decompress(document) == passage(9)


def test_spans_of_another_codec_are_written_again_where_the_text_is_there() -> None:
    indexed = ZContextTransform(ByteCodec(name="old"))([n.node for n in nodes(2)])
    new_codec = ByteCodec(name="new")
    with pytest.warns(StaleSpanWarning, match="2 of 2 chunks"):
        new = ZContextPostprocessor(new_codec).postprocess_nodes(
            [NodeWithScore(node=n) for n in indexed]
        )
    assert {n.node.metadata["zcontext_codec"] for n in new} == {new_codec.codec}


def test_symbols_of_another_codec_in_place_of_the_text_are_refused() -> None:
    old = ZContextPostprocessor(ByteCodec(name="old")).postprocess_nodes(nodes(1))
    with pytest.raises(CodecMismatchError, match=r"node 0 \(id='node-0'\)"):
        ZContextPostprocessor(ByteCodec(name="new")).postprocess_nodes(old)


def test_a_users_text_that_spells_symbols_is_refused_with_the_remedies() -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("hello").symbols)
    for text in (spelled, f"{LONG} {spelled} {LONG}", f"{LONG} [|z12"):
        with pytest.raises(SymbolCollisionError, match="on_symbols='escape'"):
            ZContextPostprocessor(codec).postprocess_nodes(one(text))
        with pytest.raises(SymbolCollisionError, match="on_symbols='escape'"):
            ZContextTransform(codec)([TextNode(text=text)])


def test_escape_and_drop_make_a_users_text_harmless() -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("hello").symbols)
    [escaped] = ZContextPostprocessor(
        codec, on_symbols="escape", min_tokens=1000
    ).postprocess_nodes(one(spelled))
    text = escaped.node.get_content()
    assert codec.vocabulary.split(text) == [text]
    assert text.replace(" ", "") == spelled.replace(" ", "")
    [dropped] = ZContextPostprocessor(codec, on_symbols="drop").postprocess_nodes(one(spelled))
    assert dropped.node.get_content().strip() == ""
    [kept] = ZContextPostprocessor(codec, on_symbols="keep").postprocess_nodes(one(spelled))
    assert kept.node.get_content() == spelled


def test_metadata_that_spells_symbols_never_stands_next_to_a_node() -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("hello").symbols)
    given = one(LONG, metadata={"title": spelled, "page": 1})
    with pytest.raises(SymbolCollisionError, match="'title' of node"):
        ZContextPostprocessor(codec).postprocess_nodes(given)
    [new] = ZContextPostprocessor(codec, on_symbols="escape").postprocess_nodes(given)
    assert new.node.metadata["title"] == spelled
    assert new.node.get_content(MetadataMode.LLM).startswith("page: 1\n\n[|z")
    hidden = one(LONG, metadata={"title": spelled}, excluded_llm_metadata_keys=["title"])
    assert ZContextPostprocessor(codec).postprocess_nodes(hidden)


def test_a_query_that_spells_symbols_is_refused() -> None:
    codec = ByteCodec()
    spelled = codec.vocabulary.render(codec.compress("hello").symbols)
    with pytest.raises(SymbolCollisionError, match="The query spells symbols"):
        ZContextPostprocessor(codec).postprocess_nodes(nodes(1), query_str=spelled)


def test_text_that_is_not_unicode_is_refused_with_the_nodes_name() -> None:
    broken = TextNode.model_construct(text="abc\ud800" * 20, id_="n7", metadata={})
    with pytest.raises(VocabularyError, match="node 0"):
        ZContextTransform(ByteCodec())([broken])


def test_the_cache_key_knows_codec_and_settings_and_nothing_that_moves() -> None:
    def key(name: str = "a", **options: Any) -> str:
        return str(ZContextTransform(ByteCodec(name=name), **options).to_dict())

    assert key() == key()
    assert len({key(), key("b"), key(ratio=8), key(max_symbols=9), key(min_tokens=9)}) == 5
    assert " at 0x" not in key()


def test_components_survive_pickling_and_copying() -> None:
    for made in (ZContextTransform(ByteCodec(), ratio=8), ZContextPostprocessor(ByteCodec())):
        for copied in (pickle.loads(pickle.dumps(made)), made.model_copy(deep=True)):
            assert copied.to_dict() == made.to_dict()
    again = pickle.loads(pickle.dumps(ZContextTransform(ByteCodec(), ratio=8)))
    [node] = again([TextNode(text=LONG)])
    assert node.metadata["zcontext_n_symbols"] == -(-len(LONG.encode()) // 8)


def test_wrong_arguments_are_refused_when_the_component_is_made() -> None:
    for component in (ZContextPostprocessor, ZContextTransform):
        with pytest.raises(ConfigError, match="ratio"):
            component(ByteCodec(), ratio=0.5)
        with pytest.raises(ConfigError, match="one budget"):
            component(ByteCodec(), ratio=4, max_symbols=9)
        with pytest.raises(ConfigError, match="model is a int"):
            component(3)
        with pytest.raises(BundleError, match="no bundle"):
            component("nowhere/at-all")


def test_no_warning_on_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec = ByteCodec()
        indexed = ZContextTransform(codec)([n.node for n in nodes(2)])
        ZContextPostprocessor(codec).postprocess_nodes([NodeWithScore(node=n) for n in indexed])
