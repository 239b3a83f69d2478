from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from zcontext.errors import CorruptSpanError
from zcontext.inspection import html_page, pieces_of, terminal_view
from zcontext.spans import ZDocument
from zcontext.testing import ByteCodec

SOURCE = "Prices rose by 4.2 % in May.\n<script>alert('x')</script> & so on, \x1b[31mred.\n" * 3


@pytest.fixture
def document() -> ZDocument:
    from zcontext.config import CompressSettings

    return ByteCodec().compress(SOURCE, settings=CompressSettings(ratio=4.0, window=16))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._in_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_text = self._in_text or ("class", "text") in attrs

    def handle_data(self, data: str) -> None:
        if self._in_text:
            self.text += data


def test_the_pieces_are_the_source(document: ZDocument) -> None:
    pieces = pieces_of(document, SOURCE)
    assert "".join(piece.text for piece in pieces) == SOURCE.replace("\x1b", "\u241b")
    assert sum(piece.n_tokens for piece in pieces) == document.n_tokens
    assert sum(piece.n_symbols for piece in pieces) == document.n_symbols


def test_every_symbol_has_its_own_piece_where_segments_are_known() -> None:
    import dataclasses

    source = "a\u00e9\u4e2d\u4e2d b"  # tokens are bytes: segments end inside characters
    starts = [at for at, char in enumerate(source) for _ in char.encode()]
    document = ByteCodec().compress(source, ratio=2.0)
    (span,) = document.spans
    ends = (*range(2, len(span.tokens), 2), len(span.tokens))
    ends = ends[-len(span.symbols) :]
    placed = dataclasses.replace(document, spans=(dataclasses.replace(span, ends=ends),))
    pieces = pieces_of(placed, source, starts=starts)
    assert "".join(piece.text for piece in pieces) == source
    assert all(piece.text for piece in pieces)
    assert sum(piece.n_tokens for piece in pieces) == document.n_tokens
    assert sum(piece.n_symbols for piece in pieces) == document.n_symbols
    assert len(pieces) > 2
    assert len(pieces_of(placed, source)) == 1


def test_another_text_than_the_source_is_refused(document: ZDocument) -> None:
    with pytest.raises(CorruptSpanError, match="SHA-256"):
        pieces_of(document, SOURCE + " ")


def test_the_page_shows_the_text_and_runs_none_of_it(document: ZDocument) -> None:
    page = html_page(pieces_of(document, SOURCE), document=document, title="<b>title</b>")
    parsed = _Page()
    parsed.feed(page)
    assert parsed.text.strip() == SOURCE.replace("\x1b", "\u241b").strip()
    assert not {"script", "b", "img", "link", "iframe"} & set(parsed.tags)


def test_the_page_needs_nothing_else(document: ZDocument) -> None:
    page = html_page(pieces_of(document, SOURCE), document=document)
    assert not re.search(r"""(?:src|href)\s*=|url\(|https?:|@import""", page)


def test_the_terminal_shows_the_text_and_is_not_steered_by_it(document: ZDocument) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=100)
    console.print(terminal_view(pieces_of(document, SOURCE), document=document))
    assert "\x1b" not in out.getvalue()
    assert "Prices rose by 4.2 % in May." in out.getvalue()
    assert f"symbols: {document.n_symbols}" in out.getvalue()


def test_denser_pieces_are_stronger() -> None:
    from zcontext.inspection import Piece, _levels

    pieces = [Piece("a", 16, n) for n in (1, 3, 5, 7, 9)]
    assert _levels(pieces) == sorted(_levels(pieces))
    assert (_levels(pieces)[0], _levels(pieces)[-1]) == (0, 4)


def test_the_legend_has_the_steps_that_there_are(document: ZDocument) -> None:
    from zcontext.inspection import Piece, _names

    assert len(_names([Piece("a", 16, n) for n in (1, 3, 9)])) == 5
    assert _names([Piece("a", 16, 4), Piece("b", 8, 2)]) == ["4.0"]
    assert _names([]) == ["none"]


@pytest.mark.parametrize("text", ["", "x"])
def test_empty_and_even_texts_are_shown_too(text: str) -> None:
    document = ByteCodec().compress(text)
    pieces = pieces_of(document, text)
    assert html_page(pieces, document=document)
    Console(file=io.StringIO()).print(terminal_view(pieces, document=document))
