"""The symbols that reach the model are those written, id by id, in every mode and template."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import PromptHelper, Settings
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import (
    BasePromptTemplate,
    ChatPromptTemplate,
    PromptTemplate,
    RichPromptTemplate,
)
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, TextNode
from llamaindex_parts import arrived, nodes, passage, reads, written

from zcontext.errors import ConfigError
from zcontext.integrations.llamaindex import (
    TruncationWarning,
    ZContextLLM,
    ZContextPostprocessor,
    ZContextPromptHelper,
    zcontext_synthesizer,
)
from zcontext.integrations.llamaindex.synthesis import QA_TEMPLATE
from zcontext.symbols import Symbols
from zcontext.testing import ByteCodec

QUERY = "When did the bridge of Bern open?"
MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"]
MODES += ["compact_accumulate"]


def by_call(codec: ByteCodec) -> list[list[tuple[int, ...]]]:
    parts = [call.parts for call in codec.calls if call.method == "complete"]
    return [[c for p in each if isinstance(p, Symbols) for c in p.codes] for each in parts]


def compressed(codec: ByteCodec, n: int, **options: Any) -> list[NodeWithScore]:
    return ZContextPostprocessor(codec, **options).postprocess_nodes(nodes(n, file="a b.txt"))


@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reads_the_symbols_that_were_written(
    mode: str, asynchronous: bool, is_chat_model: bool
) -> None:
    codec = ByteCodec(context_length=16_384)
    new = compressed(codec, 12, ratio=4)
    llm = ZContextLLM(codec, is_chat_model=is_chat_model)
    synthesizer = zcontext_synthesizer(llm, response_mode=mode)
    if asynchronous:
        response = asyncio.run(synthesizer.asynthesize(QUERY, new))
    else:
        response = synthesizer.synthesize(QUERY, new)
    if mode == "accumulate" and asynchronous:  # its calls run at once, one for each node
        assert sorted(by_call(codec)) == sorted(written([node]) for node in new)
    else:
        assert arrived(codec) == written(new) != []
    if mode != "refine":  # where ByteCodec takes the last question for the one to answer
        assert "bridge of Bern" in str(response)
    if mode in ("compact", "tree_summarize", "simple_summarize", "compact_accumulate"):
        assert reads(codec) == 1


@pytest.mark.parametrize("is_chat_model", [True, False], ids=["chat", "completion"])
@pytest.mark.parametrize("mode", sorted(set(MODES) - {"simple_summarize"}))
def test_nothing_is_lost_when_the_context_takes_many_calls(mode: str, is_chat_model: bool) -> None:
    # 12 nodes of some 250 symbols and a context that holds a few of them per call.
    codec = ByteCodec(context_length=1800)
    new = compressed(codec, 12, ratio=2)
    llm = ZContextLLM(codec, max_new_tokens=100, is_chat_model=is_chat_model)
    zcontext_synthesizer(llm, response_mode=mode).synthesize(QUERY, new)
    assert arrived(codec) == written(new)
    assert 1 < reads(codec) <= 20
    assert all(codec.count(call.parts) + 100 <= 1800 for call in codec.calls if call.parts)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    ratio=st.sampled_from([1.0, 2.0, 8.0, 64.0]),
    mode=st.sampled_from(sorted(set(MODES) - {"simple_summarize"})),
    context=st.integers(1500, 6000),
    depth=st.integers(1, 8),
)
def test_no_budget_depth_or_context_loses_a_symbol(
    n: int, ratio: float, mode: str, context: int, depth: int
) -> None:
    codec = ByteCodec(context_length=context, depth=depth)
    new = compressed(codec, n, ratio=ratio)
    llm = ZContextLLM(codec, max_new_tokens=60)
    zcontext_synthesizer(llm, response_mode=mode).synthesize(QUERY, new)
    assert arrived(codec) == written(new)


TEMPLATES: dict[str, Callable[[], BasePromptTemplate]] = {
    "f-string": lambda: PromptTemplate("{context_str}\nQuestion: {query_str}"),
    "f-string in xml": lambda: PromptTemplate("<doc>{context_str}</doc>\nQuestion: {query_str}"),
    "f-string in json": lambda: PromptTemplate('{{"context": "{context_str}"}}\n{query_str}'),
    "mapped names": lambda: PromptTemplate(
        "{ctx}\nQuestion: {q}", template_var_mappings={"context_str": "ctx", "query_str": "q"}
    ),
    "a function": lambda: PromptTemplate(
        "{context_str}\nQuestion: {query_str}",
        function_mappings={"context_str": lambda **kw: f"- {kw['context_str']}"},
    ),
    "chat": lambda: ChatPromptTemplate(
        message_templates=[
            ChatMessage(role="system", content="From {context_str} alone."),
            ChatMessage(role="user", content="Question: {query_str}"),
        ]
    ),
    "jinja": lambda: RichPromptTemplate("{{ context_str }}\nQuestion: {{ query_str }}"),
    "jinja chat": lambda: RichPromptTemplate(
        "{% chat role='system' %}Use {{ context_str }}.{% endchat %}"
        "{% chat role='user' %}Question: {{ query_str }}{% endchat %}"
    ),
}


@pytest.mark.parametrize("mode", ["compact", "refine", "simple_summarize", "accumulate"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_format_carries_the_symbols(name: str, mode: str) -> None:
    codec = ByteCodec(context_length=8192)
    new = compressed(codec, 3)
    synthesizer = zcontext_synthesizer(
        ZContextLLM(codec), response_mode=mode, text_qa_template=TEMPLATES[name]()
    )
    synthesizer.synthesize(QUERY, new)
    assert arrived(codec) == written(new)


@pytest.mark.parametrize("mode", ["compact", "tree_summarize", "simple_summarize", "refine"])
def test_streaming_reads_the_same_symbols(mode: str) -> None:
    codec = ByteCodec()
    new = compressed(codec, 3)
    synthesizer = zcontext_synthesizer(ZContextLLM(codec), response_mode=mode, streaming=True)
    response: Any = synthesizer.synthesize(QUERY, new)
    assert "opened in 18" in "".join(response.response_gen)
    assert arrived(codec) == written(new)


def test_tree_summarize_with_async_calls_reads_every_symbol_once() -> None:
    codec = ByteCodec(context_length=1800)
    new = compressed(codec, 12)
    llm = ZContextLLM(codec, max_new_tokens=100)
    asyncio.run(zcontext_synthesizer(llm, response_mode="tree_summarize").asynthesize(QUERY, new))
    assert sorted(arrived(codec)) == sorted(written(new))


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "accumulate"])
def test_a_real_model_is_given_the_symbols_it_wrote(
    mode: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zcontext.readers import Inferencer

    given: list[tuple[int, ...]] = []
    inner = Inferencer.chat

    def chat(self: Any, messages: Any, **options: Any) -> Any:
        parts = [part for message in messages for part in message.parts]
        given.extend(code for part in parts if isinstance(part, Symbols) for code in part.codes)
        return inner(self, messages, **options)

    monkeypatch.setattr(Inferencer, "chat", chat)
    new = ZContextPostprocessor(tiny_model, ratio=8).postprocess_nodes(nodes(4))
    llm = ZContextLLM(tiny_model, max_new_tokens=2)
    zcontext_synthesizer(llm, response_mode=mode).synthesize(QUERY, new)
    assert given == written(new) != []


def test_raw_and_compressed_nodes_mix() -> None:
    codec = ByteCodec()
    mixed = [*nodes(2), NodeWithScore(node=TextNode(text="Short, and stays text.", id_="s"))]
    new = ZContextPostprocessor(codec).postprocess_nodes(mixed)
    zcontext_synthesizer(ZContextLLM(codec)).synthesize(QUERY, new)
    assert arrived(codec) == written(new)
    texts = "".join(part for part in codec.calls[-1].parts if isinstance(part, str))
    assert "Short, and stays text." in texts


def test_the_default_question_is_put_as_the_reader_was_trained() -> None:
    from zcontext.prompts import question_parts

    [message] = question_parts("{query_str}", ["{context_str}"])
    assert [m.content for m in QA_TEMPLATE.message_templates] == ["".join(map(str, message.parts))]
    assert message.role == "user"


# Why the helper is there: the trap it avoids, and what it does where nothing can be done.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_llama_indexs_own_count_would_lose_symbols() -> None:
    codec = ByteCodec()
    new = compressed(codec, 12, ratio=4)
    llm = ZContextLLM(codec, max_new_tokens=100)
    plain = get_response_synthesizer(llm=llm, response_mode=ResponseMode.SIMPLE_SUMMARIZE)
    plain.synthesize(QUERY, new)
    n_plain = len(arrived(codec))
    codec.calls.clear()
    zcontext_synthesizer(llm, response_mode="simple_summarize").synthesize(QUERY, new)
    assert n_plain < len(arrived(codec)) == len(written(new))


def test_what_simple_summarize_must_leave_out_it_leaves_out_loudly() -> None:
    codec = ByteCodec(context_length=1500)
    new = compressed(codec, 12, ratio=4)
    synthesizer = zcontext_synthesizer(ZContextLLM(codec), response_mode="simple_summarize")
    with pytest.warns(TruncationWarning, match="response_mode='compact'"):
        synthesizer.synthesize(QUERY, new)
    n = len(arrived(codec))
    assert 0 < n < len(written(new))
    assert arrived(codec) == written(new)[:n]


def test_a_context_of_700_is_enough_for_compact() -> None:
    # LlamaIndex's own padding of 500 raises here.
    codec = ByteCodec(context_length=700)
    new = compressed(codec, 3, ratio=8)
    llm = ZContextLLM(codec, max_new_tokens=30)
    template = PromptTemplate("{context_str}\n{query_str}")
    short = PromptTemplate("{existing_answer}\n{context_msg}\n{query_str}")
    zcontext_synthesizer(llm, text_qa_template=template, refine_template=short).synthesize(
        QUERY, new
    )
    assert arrived(codec) == written(new)


def test_a_symbol_counts_as_one_token_alone_in_a_row_and_piece_by_piece() -> None:
    codec = ByteCodec()
    ids = ZContextLLM(codec).tokenizer
    document = codec.compress(passage(0))
    spelled = codec.vocabulary.render(document.symbols)
    assert len(ids(spelled)) == document.n_symbols
    assert ids(spelled) == codec.token_ids([document.symbols])
    assert sum(len(ids(f" {piece}")) for piece in spelled.split()) == document.n_symbols
    assert len(ids(f"ab {spelled}\n\n{spelled} cd")) == 2 * document.n_symbols + 6
    assert ids.encode("abc") == ids("abc") == [97, 98, 99]
    assert ids("") == []
    other = ByteCodec(name="other")
    foreign = other.vocabulary.render(other.compress(passage(0)).symbols)
    for odd in (spelled[:-2], "[|z12", spelled.replace("[|z", "[|z0"), foreign):
        assert len(ids(odd)) >= len(odd)  # counted as text, not refused


def test_what_a_base_wants_in_front_of_a_text_is_not_counted_with_every_piece() -> None:
    class Opened(ByteCodec):
        def token_ids(self, parts: Any) -> list[int]:
            return [1, *super().token_ids(parts)]

    codec = Opened()
    ids = ZContextLLM(codec).tokenizer
    symbols = codec.compress(passage(0)).symbols
    pieces = codec.vocabulary.render(symbols).split()
    assert sum(len(ids(f" {piece}")) for piece in pieces) == len(symbols)
    assert ids("abc") == [97, 98, 99]


def test_chat_engines_count_right_through_settings() -> None:
    codec = ByteCodec()
    before = Settings._prompt_helper
    try:
        Settings.prompt_helper = ZContextPromptHelper(ZContextLLM(codec))
        new = compressed(codec, 12, ratio=4)
        get_response_synthesizer(
            llm=ZContextLLM(codec), response_mode=ResponseMode.SIMPLE_SUMMARIZE
        ).synthesize(QUERY, new)
    finally:
        Settings._prompt_helper = before
    assert arrived(codec) == written(new)


def test_modes_without_an_llm_and_empty_results_work() -> None:
    codec = ByteCodec()
    llm = ZContextLLM(codec)
    new = compressed(codec, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in set(ResponseMode) - {ResponseMode.GENERATION}:
            synthesizer = zcontext_synthesizer(llm, response_mode=mode)
            assert str(synthesizer.synthesize(QUERY, [])) == "Empty Response"
        only = zcontext_synthesizer(llm, response_mode="context_only").synthesize(QUERY, new)
        assert new[0].node.get_content() in str(only)
        none = zcontext_synthesizer(llm, response_mode="no_text").synthesize(QUERY, new)
        assert [n.node.node_id for n in none.source_nodes] == ["node-0"]


def test_wrong_arguments_are_refused() -> None:
    llm = ZContextLLM(ByteCodec())
    with pytest.raises(ConfigError, match="cannot read symbols"):
        zcontext_synthesizer(MockLLM())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give one of refine, compact"):
        zcontext_synthesizer(llm, response_mode="nonsense")
    with pytest.raises(ConfigError, match="multimodal"):
        zcontext_synthesizer(llm, multimodal=True)
    assert isinstance(zcontext_synthesizer(llm)._prompt_helper, PromptHelper)
