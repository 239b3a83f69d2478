"""Every road from a retriever to the model: the symbols that arrive are those that were written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_classic.chains import (
    ConversationalRetrievalChain,
    MapReduceDocumentsChain,
    ReduceDocumentsChain,
    RefineDocumentsChain,
    RetrievalQA,
    StuffDocumentsChain,
    create_history_aware_retriever,
    create_retrieval_chain,
)
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.chains.llm import LLMChain
from langchain_classic.retrievers import ContextualCompressionRetriever, MultiVectorRetriever
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, get_buffer_string
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotPromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import (
    CharacterTextSplitter,
    Language,
    LatexTextSplitter,
    MarkdownHeaderTextSplitter,
    MarkdownTextSplitter,
    PythonCodeTextSplitter,
    RecursiveCharacterTextSplitter,
    RecursiveJsonSplitter,
)
from langchain_text_splitters.base import TextSplitter
from pieces import RIVER, TEXTS, arrived, written

from zcontext.errors import UnknownSymbolError
from zcontext.integrations.langchain import ChatZContext, ZContextCompressor, ZContextLLM
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

FORMATS = {
    "f-string": "Answer from this:\n{context}\nQuestion: {input}",
    "jinja2": "Answer from this:\n{{ context }}\nQuestion: {{ input }}",
    "mustache": "Answer from this:\n{{context}}\nQuestion: {{input}}",
}
QUESTION = "How many metres tall is it with its antennas?"


class Fixed(BaseRetriever):
    """Finds the test's documents."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document(page_content=text, metadata={"source": "a & <b>"}) for text in TEXTS]


def found(codec: ByteCodec) -> ContextualCompressionRetriever:
    return ContextualCompressionRetriever(
        base_compressor=ZContextCompressor(model=codec, ratio=8), base_retriever=Fixed()
    )


def expected(codec: ByteCodec) -> list[tuple[int, ...]]:
    return [code for text in TEXTS for code in codec.compress(text, ratio=8).symbols.codes]


def all_arrived(codec: ByteCodec, *, n_calls: int | None = None) -> list[tuple[int, ...]]:
    """Symbols of all prompts in order."""
    calls = [call for call in codec.calls if call.method in ("complete", "ask")]
    assert n_calls is None or len(calls) == n_calls
    parts = [part for call in calls for part in call.parts]
    return [code for part in parts if isinstance(part, Symbols) for code in part.codes]


@pytest.mark.parametrize("template_format", FORMATS)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_retrieval_chain_in_every_template_format(
    template_format: Any, chat: bool, streamed: bool
) -> None:
    codec = ByteCodec()
    template = FORMATS[template_format]
    prompt: Any = PromptTemplate.from_template(template, template_format=template_format)
    if chat:
        prompt = ChatPromptTemplate.from_messages(
            [("system", "Be brief."), ("human", template)], template_format=template_format
        )
    llm = ChatZContext(model=codec) if chat else ZContextLLM(model=codec)
    chain = create_retrieval_chain(found(codec), create_stuff_documents_chain(llm, prompt))
    if streamed:
        answer = "".join(chunk.get("answer", "") for chunk in chain.stream({"input": QUESTION}))
    else:
        answer = chain.invoke({"input": QUESTION})["answer"]
    assert answer.startswith("It is 330 metres tall")
    assert arrived(codec) == expected(codec)


async def test_a_retrieval_chain_called_asynchronously() -> None:
    codec = ByteCodec()
    prompt = ChatPromptTemplate.from_template(FORMATS["f-string"])
    chain = create_retrieval_chain(
        found(codec), create_stuff_documents_chain(ChatZContext(model=codec), prompt)
    )
    assert (await chain.ainvoke({"input": QUESTION}))["answer"].startswith("It is 330 metres tall")
    assert arrived(codec) == expected(codec)


@pytest.mark.parametrize("template_format", FORMATS)
def test_a_document_prompt_with_metadata(template_format: Any) -> None:
    codec = ByteCodec()
    shapes = {
        "f-string": "[{source}] {page_content}",
        "jinja2": "[{{ source }}] {{ page_content }}",
        "mustache": "[{{source}}] {{page_content}}",
    }
    each = PromptTemplate.from_template(shapes[template_format], template_format=template_format)
    chain = create_stuff_documents_chain(
        ZContextLLM(model=codec),
        PromptTemplate.from_template(FORMATS["f-string"]),
        document_prompt=each,
    )
    chain.invoke({"context": found(codec).invoke(QUESTION), "input": QUESTION})
    assert arrived(codec) == expected(codec)


def test_a_chain_of_runnables() -> None:
    codec = ByteCodec()
    chain = (
        {
            "context": found(codec) | (lambda docs: "\n\n".join(d.page_content for d in docs)),
            "input": RunnablePassthrough(),
        }
        | ChatPromptTemplate.from_template(FORMATS["f-string"])
        | ChatZContext(model=codec)
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION).startswith("It is 330 metres tall")
    assert arrived(codec) == expected(codec)


def test_a_history_aware_retriever_and_a_conversation() -> None:
    codec = ByteCodec()
    llm = ChatZContext(model=codec)
    rephrase = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("chat_history"), ("human", "{input}"), ("human", "Rephrase it.")]
    )
    answer = ChatPromptTemplate.from_messages(
        [("system", "{context}"), MessagesPlaceholder("chat_history"), ("human", "{input}")]
    )
    chain = create_retrieval_chain(
        create_history_aware_retriever(llm, found(codec), rephrase),
        create_stuff_documents_chain(llm, answer),
    )
    history = [HumanMessage("Where is Paris?"), AIMessage("On the Seine.")]
    chain.invoke({"input": QUESTION, "chat_history": history})
    assert arrived(codec) == expected(codec)


def few_shot(codec: ByteCodec) -> None:
    prompt = FewShotPromptTemplate(
        examples=[{"q": "a", "a": "b"}],
        example_prompt=PromptTemplate.from_template("{q} -> {a}"),
        prefix="{context}",
        suffix="{question}",
        input_variables=["context", "question"],
    )
    documents = found(codec).invoke(QUESTION)
    context = "\n".join(document.page_content for document in documents)
    (prompt | ZContextLLM(model=codec)).invoke({"context": context, "question": QUESTION})


def stuff(codec: ByteCodec) -> None:
    inner = LLMChain(
        llm=ZContextLLM(model=codec), prompt=PromptTemplate.from_template("{text} {question}")
    )
    chain = StuffDocumentsChain(llm_chain=inner, document_variable_name="text")
    chain.invoke({"input_documents": found(codec).invoke(QUESTION), "question": QUESTION})


def map_reduce(codec: ByteCodec) -> None:
    llm = ZContextLLM(model=codec)
    one = LLMChain(llm=llm, prompt=PromptTemplate.from_template("{text}\nQuestion: sum up"))
    combine = StuffDocumentsChain(
        llm_chain=LLMChain(llm=llm, prompt=PromptTemplate.from_template("Join: {text}")),
        document_variable_name="text",
    )
    chain = MapReduceDocumentsChain(
        llm_chain=one,
        reduce_documents_chain=ReduceDocumentsChain(combine_documents_chain=combine),
        document_variable_name="text",
    )
    chain.invoke({"input_documents": found(codec).invoke(QUESTION)})


def refine(codec: ByteCodec) -> None:
    llm = ZContextLLM(model=codec)
    chain = RefineDocumentsChain(
        initial_llm_chain=LLMChain(llm=llm, prompt=PromptTemplate.from_template("Sum up: {text}")),
        refine_llm_chain=LLMChain(
            llm=llm, prompt=PromptTemplate.from_template("So far: {so_far}\nNow add: {text}")
        ),
        document_variable_name="text",
        initial_response_name="so_far",
    )
    chain.invoke({"input_documents": found(codec).invoke(QUESTION)})


def retrieval_qa(codec: ByteCodec) -> None:
    chain = RetrievalQA.from_chain_type(ZContextLLM(model=codec), retriever=found(codec))
    chain.invoke({"query": QUESTION})


def conversational(codec: ByteCodec) -> None:
    chain = ConversationalRetrievalChain.from_llm(
        ChatZContext(model=codec), retriever=found(codec), max_tokens_limit=2000
    )
    chain.invoke({"question": QUESTION, "chat_history": []})


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
@pytest.mark.parametrize("run", [few_shot, stuff, map_reduce, refine, retrieval_qa, conversational])
def test_the_classic_chains(run: Callable[[ByteCodec], None]) -> None:
    codec = ByteCodec()
    run(codec)
    assert all_arrived(codec) == expected(codec)


def test_a_multi_vector_retriever_gives_back_whole_documents_that_are_compressed() -> None:
    codec = ByteCodec()
    from langchain_core.embeddings import DeterministicFakeEmbedding

    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    whole = InMemoryStore()
    retriever = MultiVectorRetriever(vectorstore=store, docstore=whole, id_key="whole")
    compressor = ZContextCompressor(model=codec, ratio=8)
    indexed = compressor.transform_documents([Document(page_content=RIVER)])
    whole.mset([("river", indexed[0])])
    store.add_documents(
        [Document(page_content=piece, metadata={"whole": "river"}) for piece in RIVER.split(". ")]
    )
    codec.calls.clear()
    (document,) = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=retriever
    ).invoke("river")
    assert not codec.calls
    assert written(codec, document.page_content) == list(
        codec.compress(RIVER, ratio=8).symbols.codes
    )


SPLITTERS: dict[str, TextSplitter] = {
    "character": CharacterTextSplitter(separator=" ", chunk_size=200, chunk_overlap=0),
    "recursive": RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=0),
    "markdown": MarkdownTextSplitter(chunk_size=200, chunk_overlap=0),
    "latex": LatexTextSplitter(chunk_size=200, chunk_overlap=0),
    "python": PythonCodeTextSplitter(chunk_size=200, chunk_overlap=0),
    **{
        f"language-{language.value}": RecursiveCharacterTextSplitter.from_language(
            language, chunk_size=200, chunk_overlap=0
        )
        for language in (Language.JS, Language.GO, Language.RST, Language.RUST, Language.SOL)
    },
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_a_text_splitter_cuts_between_symbols_never_in_one(name: str) -> None:
    codec = ByteCodec()
    rendered = codec.vocabulary.render(codec.compress(" ".join(TEXTS), ratio=4).symbols)
    pieces = SPLITTERS[name].split_text(rendered)
    assert len(pieces) > 9
    assert written(codec, *pieces) == written(codec, rendered)


def test_a_splitter_that_counts_with_the_model_cuts_at_so_many_symbols() -> None:
    codec = ByteCodec()
    rendered = codec.vocabulary.render(codec.compress(" ".join(TEXTS), ratio=4).symbols)
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=20,
        chunk_overlap=0,
        length_function=ChatZContext(model=codec).get_num_tokens,
        separators=[" "],
    )
    pieces = splitter.split_text(rendered)
    assert written(codec, *pieces) == written(codec, rendered)
    assert max(len(codec.vocabulary.parse(piece)) for piece in pieces) <= 20


def test_pieces_of_a_compressed_document_pass_the_compressor_again() -> None:
    codec = ByteCodec()
    compressor = ZContextCompressor(model=codec, ratio=8)
    documents = compressor.compress_documents([Document(page_content=" ".join(TEXTS))], "q")
    pieces = SPLITTERS["recursive"].split_documents(documents)
    assert len(pieces) > 2
    assert list(compressor.compress_documents(pieces, "q")) == pieces


def test_a_splitter_that_knows_no_spaces_cuts_symbols_and_that_is_noticed() -> None:
    codec = ByteCodec()
    rendered = codec.vocabulary.render(codec.compress(" ".join(TEXTS), ratio=4).symbols)
    html = RecursiveCharacterTextSplitter.from_language(
        Language.HTML, chunk_size=200, chunk_overlap=0
    )
    every = " ".join(map(str, written(codec, rendered)))
    n_noticed = 0
    pieces = html.split_text(rendered)
    for piece in pieces:
        try:
            ZContextLLM(model=codec).invoke(piece)
        except UnknownSymbolError as error:
            n_noticed += "split at spaces" in str(error)
        else:  # what is left of a cut symbol at the start is text; nothing is misread
            assert " ".join(map(str, arrived(codec))) in every
    assert n_noticed > len(pieces) / 2


def test_header_and_json_splitters_leave_symbols_whole() -> None:
    codec = ByteCodec()
    rendered = codec.vocabulary.render(codec.compress(RIVER, ratio=8).symbols)
    markdown = MarkdownHeaderTextSplitter([("#", "h")]).split_text(f"# Title\n{rendered}")
    assert written(codec, markdown[0].page_content) == written(codec, rendered)
    (piece,) = RecursiveJsonSplitter().split_text({"text": rendered})
    assert json.loads(piece)["text"] == rendered


@pytest.mark.parametrize("form", ["prefix", "xml"])
def test_chat_buffers_repr_and_json_leave_symbols_whole(form: Any) -> None:
    codec = ByteCodec()
    rendered = codec.vocabulary.render(codec.compress(RIVER, ratio=8).symbols)
    for text in (
        get_buffer_string([HumanMessage(rendered), AIMessage("ok")], format=form),
        repr(rendered),
        json.dumps({"context": rendered}),
        str([HumanMessage(rendered)]),
    ):
        codec.calls.clear()
        ZContextLLM(model=codec).invoke(text)
        assert arrived(codec) == written(codec, rendered)
