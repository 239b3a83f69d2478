"""Law V: what is rendered parses back, what users write never does, wherever it has been."""

from __future__ import annotations

import ast
import html
import json
import string
import textwrap
import time
from xml.sax import saxutils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    SymbolCollisionError,
    UnknownSymbolError,
    VocabularyError,
)
from zcontext.vocabulary import CollisionPolicy, Symbols, ZVocabulary, has_symbols, join, utf8_bytes

DIGEST = "3f9a" + "0" * 60
V = ZVocabulary(codec=DIGEST, depth=8, size=1024)
FOREIGN = ZVocabulary(codec="beef" + "0" * 60, depth=8, size=1024)


@st.composite
def runs(draw: st.DrawFn, max_symbols: int = 12) -> Symbols:
    size = draw(st.sampled_from([2, 3, 256, 1000, 1024, 1025, 32_768, 65_536]))
    depth = draw(st.integers(1, 8))
    code = st.tuples(*[st.integers(0, size - 1)] * depth)
    return Symbols(tuple(draw(st.lists(code, max_size=max_symbols))), size, "3f9a")


def vocabulary_of(symbols: Symbols) -> ZVocabulary:
    return ZVocabulary(codec=DIGEST, depth=8, size=symbols.size)


# Text that is likely to come near the written form.
NEAR = st.lists(
    st.sampled_from(
        [
            *"[|z3f9a:0CW|] \n",
            *("[|z", "|]", "3f9a", "[|z3f9a:", "0C7V|]", "[|z3f9a:0C|]", "[|zbeef:0C7V|]"),
            *("[|Z3F9A:0c|]", "[|1; 2|]", "[|x:xs|]", ":0C|]", "Ж", "\0"),
        ]
    ),
    max_size=12,
).map("".join)
TEXT = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), NEAR)


@given(runs())
def test_parse_inverts_render(symbols: Symbols) -> None:
    vocabulary = vocabulary_of(symbols)
    assert vocabulary.parse(vocabulary.render(symbols)) == symbols


@given(runs())
def test_the_written_form_is_plain_ascii_that_no_template_language_uses(symbols: Symbols) -> None:
    text = vocabulary_of(symbols).render(symbols)
    assert text.isascii()
    assert not set(text) & set("<>&{}\"'\\")
    assert has_symbols(text) == bool(len(symbols))


def test_the_written_form_is_the_one_in_the_docs() -> None:
    assert V.render(Symbols(((12,),), 1024, "3f9a")) == "[|z3f9a:0C|]"
    assert V.render(Symbols(((12, 251),), 1024, "3f9a")) == "[|z3f9a:0C7V|]"
    wide = ZVocabulary(codec=DIGEST, depth=1, size=32_768)
    assert wide.render(Symbols(((412,), (0,)), 32_768, "3f9a")) == "[|z3f9a:0CW|] [|z3f9a:000|]"
    widest = ZVocabulary(codec=DIGEST, depth=1, size=65_536)
    assert widest.render(Symbols(((65_535,),), 65_536, "3f9a")) == "[|z3f9a:1ZZZ|]"


@given(st.lists(st.one_of(TEXT, runs()), max_size=6))
def test_split_returns_what_was_put_together_and_no_empty_part(items: list[str | Symbols]) -> None:
    cut = [
        V.guard(item, on_symbols="escape")
        if isinstance(item, str)
        else Symbols(tuple(tuple(c % 1024 for c in code) for code in item.codes), 1024, "3f9a")
        for item in items
    ]
    words = [part if isinstance(part, str) else V.render(part) for part in cut]
    parts = V.split("\n-\n".join(words))
    texts = "".join(part for part in parts if isinstance(part, str))
    symbols = [part for part in parts if isinstance(part, Symbols)]
    assert all(len(part) for part in parts)
    assert [len(s) for s in symbols] == [len(p) for p in cut if isinstance(p, Symbols) and len(p)]
    assert [s.codes for s in symbols] == [p.codes for p in cut if isinstance(p, Symbols) and len(p)]
    assert texts == "\n-\n".join(part if isinstance(part, str) else "" for part in cut)


def test_split_joins_adjacent_symbols_of_one_depth_and_swallows_space_between_them() -> None:
    text = "Context: [|z3f9a:0C|] \n[|z3f9a:0D|]\n\n[|z3f9a:0C7V|]\nWhat?"
    parts = V.split(text)
    assert [p if isinstance(p, str) else (p.depth, p.codes) for p in parts] == [
        "Context: ",
        (1, ((12,), (13,))),
        (2, ((12, 251),)),
        "\nWhat?",
    ]


@pytest.mark.parametrize(
    "text", ["", "plain", "[|1; 2|]", "[|zip xs|]", "[|x:xs|]", "a [| b:c |] d", "日本"]
)
def test_text_without_symbols_is_one_part_as_it_is(text: str) -> None:
    assert V.split(text) == ([text] if text else [])
    assert V.guard(text) == text
    assert not has_symbols(text)


def test_symbols_of_another_codec_are_refused_when_only_text_arrived() -> None:
    text = FOREIGN.render(Symbols(((1, 2),), 1024, "beef"))
    for read in (V.parse, V.split):
        with pytest.raises(CodecMismatchError, match="written by codec beef, this one is 3f9a"):
            read(f"{text}")
    with pytest.raises(CodecMismatchError):
        V.render(Symbols(((1, 2),), 1024, "beef"))


@pytest.mark.parametrize(
    "text",
    [
        "[|z3f9a:0CW|]",  # half a code
        "[|z3f9a:0C0C0C0C0C0C0C0C0C|]",  # nine codes
        "[|z3f9a:0c|]",  # lower case
        "[|Z3F9A:0C|]",
        "[|z3f9a:0C",  # cut
        "9a:0C|]",
        "[|z3f",
        "[|z3f9a:\n0C|]",
        "[|z3f9a:|]",
        "[|z3f9a:0U|]",  # U is not in the alphabet
    ],
)
def test_a_cut_or_altered_symbol_is_refused_not_read_as_text(text: str) -> None:
    for mixed in (text, f"before [|z3f9a:0D|] {text}", f"see:\n{text}"):
        with pytest.raises(UnknownSymbolError):
            V.split(mixed)
    with pytest.raises(SymbolCollisionError):
        V.guard(text)


def test_a_code_beyond_the_codecs_size_is_unknown() -> None:
    small = ZVocabulary(codec=DIGEST, depth=8, size=500)
    with pytest.raises(UnknownSymbolError, match="below size 500"):
        small.split("[|z3f9a:ZZ|]")


def test_symbols_deeper_than_the_codec_are_unknown() -> None:
    shallow = ZVocabulary(codec=DIGEST, depth=1, size=1024)
    with pytest.raises(UnknownSymbolError):
        shallow.split("[|z3f9a:0C7V|]")
    with pytest.raises(UnknownSymbolError, match="coarser"):
        shallow.render(Symbols(((1, 2),), 1024, "3f9a"))


def test_parse_refuses_text_and_mixed_depths() -> None:
    with pytest.raises(UnknownSymbolError, match="use split"):
        V.parse("hello [|z3f9a:0C|]")
    with pytest.raises(VocabularyError, match="depths"):
        V.parse("[|z3f9a:0C|] [|z3f9a:0C7V|]")
    assert V.parse(" \n") == Symbols((), 1024, "3f9a")


@given(TEXT, st.sampled_from(["escape", "drop"]))
def test_guarded_text_is_ordinary_text(text: str, policy: CollisionPolicy) -> None:
    guarded = V.guard(text, on_symbols=policy)
    assert V.split(guarded) == ([guarded] if guarded else [])
    assert V.guard(guarded) == guarded
    assert not has_symbols(guarded)


@given(TEXT)
def test_escaping_only_adds_spaces(text: str) -> None:
    escaped = V.guard(text, on_symbols="escape")
    assert escaped.replace("[ |", "[|").replace("| ]", "|]") == text.replace("[ |", "[|").replace(
        "| ]", "|]"
    )


@given(TEXT, TEXT)
def test_two_texts_that_pass_the_guard_cannot_join_into_a_symbol(left: str, right: str) -> None:
    left = V.guard(left, on_symbols="escape")
    right = V.guard(right, on_symbols="escape")
    assert not has_symbols(left + right)


def test_text_that_spells_symbols_is_refused_with_the_remedies() -> None:
    with pytest.raises(SymbolCollisionError) as refused:
        V.guard("ignore this: [|z3f9a:0C|]")
    message = str(refused.value)
    assert all(word in message for word in ("character 13", "escape", "drop", "Symbols"))
    assert V.guard("a [|z3f9a:0C|] b", on_symbols="escape") == "a [ |z3f9a:0C| ] b"
    assert V.guard("a [|zbeef:0C|] b", on_symbols="drop") == "a   b"
    with pytest.raises(ConfigError, match="on_symbols"):
        V.guard("x", on_symbols="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\0", "🙂👩‍👩‍👧", "שלום עולם", "مرحبا", "漢字かな", "e\u0301", "\ufeff"]
)
def test_any_unicode_passes_the_guard_unchanged(text: str) -> None:
    assert V.guard(text) == text
    assert utf8_bytes(text).decode() == text


@pytest.mark.parametrize("text", ["\ud800", "a\udc80b", "\ud83d!"])
def test_a_lone_surrogate_is_refused_with_its_place_and_a_remedy(text: str) -> None:
    with pytest.raises(VocabularyError, match=r"lone surrogate U\+D.* at character \d.*errors="):
        utf8_bytes(text)


def test_bytes_are_refused_with_a_remedy() -> None:
    with pytest.raises(VocabularyError, match="decode bytes first"):
        utf8_bytes(b"x")  # type: ignore[arg-type]


# Symbols as values


@given(runs())
def test_packing_keeps_every_code_in_the_bits_it_says(symbols: Symbols) -> None:
    data = symbols.to_bytes()
    same = Symbols.from_bytes(
        data, n_symbols=len(symbols), depth=symbols.depth, size=symbols.size, codec="3f9a"
    )
    assert same == symbols
    if symbols.size & (symbols.size - 1) == 0:
        assert len(data) == (symbols.bits + 7) // 8
    else:
        assert len(data) * 8 >= symbols.bits


def test_bits_are_what_the_symbols_can_carry() -> None:
    assert Symbols(((1, 2, 3, 4),), 1024, "3f9a").bits == 40
    assert len(Symbols(((1, 2, 3, 4),), 1024, "3f9a").to_bytes()) == 5
    assert Symbols(((1,), (2,)), 3, "3f9a").bits == 4  # 2 * 1.585 rounded up
    assert Symbols((), 1024, "3f9a").bits == 0


@given(runs(), st.integers(0, 20), st.binary(min_size=1, max_size=40))
def test_bytes_that_are_not_those_symbols_are_refused_or_differ(
    symbols: Symbols, n_symbols: int, data: bytes
) -> None:
    try:
        read = Symbols.from_bytes(
            data, n_symbols=n_symbols, depth=3, size=symbols.size, codec="3f9a"
        )
    except VocabularyError:
        return
    assert read.to_bytes() == data


@given(runs(), st.data())
def test_slices_and_sums_are_symbols(symbols: Symbols, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(symbols)))
    assert symbols[:at] + symbols[at:] == symbols
    assert join([symbols]) == symbols
    assert list(symbols) == list(symbols.codes)


@given(runs(), st.data())
def test_a_coarser_symbol_is_a_prefix_of_its_codes(symbols: Symbols, data: st.DataObject) -> None:
    depth = data.draw(st.integers(1, max(1, symbols.depth)))
    coarse = symbols.coarser(depth)
    assert [code[:depth] for code in symbols.codes] == list(coarse.codes)


def test_symbols_that_do_not_belong_together_do_not_add() -> None:
    one = Symbols(((1,),), 1024, "3f9a")
    with pytest.raises(CodecMismatchError):
        one + Symbols(((1,),), 1024, "beef")
    with pytest.raises(CodecMismatchError):
        one + Symbols(((1,),), 512, "3f9a")
    with pytest.raises(VocabularyError, match="coarser"):
        one + Symbols(((1, 2),), 1024, "3f9a")
    assert Symbols((), 1024, "3f9a") + one == one


@pytest.mark.parametrize(
    ("codes", "size", "codec", "match"),
    [
        (((5,),), 5, "3f9a", "outside 0..4"),
        (((-1,),), 5, "3f9a", "outside 0..4"),
        (((1,), (1, 2)), 5, "3f9a", "one depth"),
        (((),), 5, "3f9a", "one depth"),
        (((1,) * 9,), 5, "3f9a", "one depth"),
        ([[1]], 5, "3f9a", "tuple of tuples"),
        (([1],), 5, "3f9a", "tuple of tuples"),
        (((True,),), 5, "3f9a", "plain int"),
        (((1.0,),), 5, "3f9a", "plain int"),
        ((), 1, "3f9a", "size=1"),
        ((), 65_537, "3f9a", "size=65537"),
        ((), 5, "3F9A", "lower-case hex"),
        ((), 5, "3f9a0", "lower-case hex"),
    ],
)
def test_symbols_that_cannot_exist_are_refused(
    codes: tuple[tuple[int, ...], ...], size: int, codec: str, match: str
) -> None:
    with pytest.raises(VocabularyError, match=match):
        Symbols(codes, size, codec)


@pytest.mark.parametrize(
    ("codec", "depth", "size"), [("3f9a", 1, 2), (DIGEST, 0, 2), (DIGEST, 9, 2), (DIGEST, 1, 1)]
)
def test_a_vocabulary_that_cannot_exist_is_refused(codec: str, depth: int, size: int) -> None:
    with pytest.raises(VocabularyError):
        ZVocabulary(codec=codec, depth=depth, size=size)


def test_operations_outside_the_values_are_refused() -> None:
    symbols = Symbols(((1, 2),) * 5, 1024, "3f9a")
    with pytest.raises(VocabularyError, match="only slices"):
        symbols[0]  # type: ignore[index]
    for depth in (0, 3):
        with pytest.raises(VocabularyError, match="depth"):
            symbols.coarser(depth)
    with pytest.raises(VocabularyError, match="no runs"):
        join([])
    with pytest.raises(TypeError):
        symbols + "x"  # type: ignore[operator]
    assert "n_symbols=5" in repr(symbols)
    assert "..." in repr(symbols)


# Where the written form has to pass (design section 9)

RUN = Symbols(tuple((k % 1024, k * 7 % 1024, 1023, 0) for k in range(120)), 1024, "3f9a")
WRITTEN = V.render(RUN)


def mustache(text: str) -> str:
    from langchain_core.utils.mustache import render

    return render("{{z}}", {"z": text})


def jinja(text: str) -> str:
    import jinja2

    return jinja2.Environment(autoescape=True).from_string("{{ z }}").render(z=text)


def inside_jinja(text: str) -> str:
    import jinja2

    return jinja2.Environment().from_string(text).render()


def chat_xml(text: str) -> str:
    from langchain_core.messages import HumanMessage, get_buffer_string

    return (
        get_buffer_string([HumanMessage(text)], format="xml")
        .split("\n")[0]
        .split(">")[1]
        .split("<")[0]
    )


@pytest.mark.parametrize(
    "through",
    [
        mustache,
        jinja,
        inside_jinja,
        chat_xml,
        lambda text: "{z}".format(z=text),  # noqa: UP032 (the thing under test)
        lambda text: text.format(),
        lambda text: text % (),
        lambda text: f"{text}",
        lambda text: string.Template("$z").substitute(z=text),
        lambda text: string.Template(text).substitute(),
        lambda text: str(json.loads(json.dumps({"z": text}))["z"]),
        lambda text: json.dumps(text)[1:-1],
        lambda text: json.dumps(json.dumps(text)).strip('\\"'),
        lambda text: repr(text)[1:-1],
        lambda text: str([text])[2:-2],
        lambda text: str(ast.literal_eval(repr(text))),
        html.escape,
        html.unescape,
        saxutils.escape,
        lambda text: text.encode("ascii").decode("cp1252"),
        lambda text: "\n".join(textwrap.wrap(text, 60)),
        lambda text: text.replace("\n", "\r\n") + "\r\n",
    ],
)
def test_the_written_form_survives_templates_and_encodings(through: object) -> None:
    assert callable(through)
    assert V.parse(through(WRITTEN)) == RUN


def langchain_recursive(text: str) -> list[str]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    return RecursiveCharacterTextSplitter(chunk_size=200, chunk_overlap=0).split_text(text)


def langchain_character(text: str) -> list[str]:
    from langchain_text_splitters import CharacterTextSplitter

    return CharacterTextSplitter(separator=" ", chunk_size=200, chunk_overlap=0).split_text(text)


def llama_sentence(text: str) -> list[str]:
    from llama_index.core.node_parser import SentenceSplitter

    return SentenceSplitter(chunk_size=300, chunk_overlap=0).split_text(text)


def llama_token(text: str) -> list[str]:
    from llama_index.core.node_parser import TokenTextSplitter

    return TokenTextSplitter(chunk_size=300, chunk_overlap=0).split_text(text)


@pytest.mark.parametrize(
    "splitter", [langchain_recursive, langchain_character, llama_sentence, llama_token]
)
@pytest.mark.filterwarnings("ignore")
def test_the_written_form_survives_text_splitters(splitter: object) -> None:
    assert callable(splitter)
    chunks = splitter(WRITTEN)
    assert len(chunks) > 1
    assert join([V.parse(chunk) for chunk in chunks]) == RUN


@pytest.mark.parametrize("through", [mustache, jinja, html.escape])
def test_the_survival_test_sees_a_form_that_would_not_survive(through: object) -> None:
    assert callable(through)
    assert through("<|z_0412|>") != "<|z_0412|>"


# Speed


def test_fifty_thousand_deep_symbols_render_and_parse_in_about_a_second() -> None:
    codes = tuple(
        tuple((k * p) % 1024 for p in (1, 3, 5, 7, 11, 13, 17, 19)) for k in range(50_000)
    )
    started = time.perf_counter()
    symbols = Symbols(codes, 1024, "3f9a")
    assert V.parse(V.render(symbols)) == symbols
    data = symbols.to_bytes()
    assert Symbols.from_bytes(data, n_symbols=50_000, depth=8, size=1024, codec="3f9a") == symbols
    assert time.perf_counter() - started < 15.0  # 0.5 s alone on one core


@pytest.mark.parametrize(
    "unit", ["plain words. ", "[| ", ":0C", "[|z3f ", "3f9a:", "|] ", "[|z3f9a:0C|] "]
)
def test_ten_megabytes_are_guarded_and_split_in_linear_time(unit: str) -> None:
    text = unit * (10_000_000 // len(unit))
    started = time.perf_counter()
    guarded = V.guard(text, on_symbols="escape")
    V.split(guarded)
    assert time.perf_counter() - started < 40.0
