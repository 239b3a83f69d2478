"""Where the symbols went: a text coloured by how many symbols each piece of it got.

For a terminal (rich) and as one HTML file that needs nothing else. It knows documents and their
sources; no model. Text is shown, never run: HTML is escaped, control characters become pictures.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Final

from rich.console import Group
from rich.text import Text

from zcontext.errors import CorruptSpanError
from zcontext.spans import ZDocument, ZSpan
from zcontext.vocabulary import utf8_bytes

# Five steps from pale to strong (background, foreground), legible on both with a contrast over 7.
_SCALE: Final = (
    ("#f3f6fa", "#14202e"),
    ("#cfe0f2", "#14202e"),
    ("#8fbde6", "#0b1622"),
    ("#2b66a3", "#ffffff"),
    ("#0d3157", "#ffffff"),
)

_SHELL: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ margin: 2rem auto; padding: 0 1rem; color: #14202e; background: #fff; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; font-weight: normal; }}
{styles}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""

_STYLES: Final = """\
body { font: 16px/1.7 Georgia, serif; max-width: 46rem; }
h1, table, .legend { font-family: system-ui, sans-serif; }
h1 { font-size: 1.25rem; }
table { margin: 1rem 0; }
th, td { padding: .15rem 1.5rem .15rem 0; }
td { font-variant-numeric: tabular-nums; font-weight: 600; }
.legend { font-size: .8rem; margin: 1rem 0; }
.legend span { padding: .2rem .6rem; border: 1px solid #cfd8e3; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { padding: .1em 0; }
.text span:hover { outline: 2px solid #d9480f; }
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of the source and the symbols it got.

    Attributes:
        text: The run, control characters made visible.
        n_tokens: Its base tokens.
        n_symbols: Its symbols.
        lost: Numbers and names that would not survive, where that was measured.
    """

    text: str
    n_tokens: int
    n_symbols: int
    lost: tuple[str, ...] = ()

    @property
    def density(self) -> float:
        """Symbols per token, 0 to 1."""
        return self.n_symbols / self.n_tokens if self.n_tokens else 0.0

    @property
    def note(self) -> str:
        """One line on it, as `12 tokens, 3 symbols (4.0 tokens per symbol)`."""
        told = f"{_counted(self.n_tokens, 'token')}, {_counted(self.n_symbols, 'symbol')}"
        if self.n_symbols:
            told += f" ({self.n_tokens / self.n_symbols:.1f} tokens per symbol)"
        return told + (f"; lost: {', '.join(self.lost)}" if self.lost else "")


def pieces_of(
    document: ZDocument, source: str, *, starts: Sequence[int] | None = None
) -> tuple[Piece, ...]:
    """The source cut where each symbol's segment ends, or at the spans where that is not known.

    Args:
        document: What was written.
        source: The text it was written from.
        starts: Character at which each base token starts; without it pieces are whole spans.

    Returns:
        Pieces in order; together they are the source.

    Raises:
        CorruptSpanError: The source is not the text the document was written from.
    """
    if sha256(utf8_bytes(source)).hexdigest() != document.text_sha256:
        raise CorruptSpanError(
            "The source is not the text that this document was written from (its SHA-256 differs): "
            "give the very file, or compress it again."
        )
    pieces: list[Piece] = []
    for span in document.spans:
        lost = span.fidelity.lost if span.fidelity else ()
        if span.ends is None or starts is None:
            text = source[span.chars.start : span.chars.end]
            pieces.append(Piece(visible(text), len(span.tokens), len(span.symbols), lost))
        else:
            pieces += _segments(span, source, starts)
    return tuple(pieces)


def _segments(span: ZSpan, source: str, starts: Sequence[int]) -> list[Piece]:
    """One piece per symbol; symbols that share a character share a piece."""
    pieces: list[Piece] = []
    begin, n_tokens, n_symbols, before = span.chars.start, 0, 0, 0
    for end in span.ends or ():
        n_tokens, n_symbols, before = n_tokens + end - before, n_symbols + 1, end
        last = end == len(span.tokens)
        to = span.chars.end if last else starts[span.tokens.start + end]
        if to > begin or last:
            pieces.append(Piece(visible(source[begin:to]), n_tokens, n_symbols))
            begin, n_tokens, n_symbols = to, 0, 0
    return pieces


def terminal_view(pieces: Sequence[Piece], *, document: ZDocument) -> Group:
    """The text coloured by symbol density, under a legend and a line of totals.

    Args:
        pieces: The text.
        document: What was written.

    Returns:
        Something rich can print.
    """
    levels = _levels(pieces)
    legend = Text("tokens per symbol  ")
    for (background, colour), name in zip(_SCALE, _names(pieces), strict=False):
        legend.append(f" {name} ", style=f"{colour} on {background}")
    body = Text(no_wrap=False, overflow="fold")
    for piece, level in zip(pieces, levels, strict=True):
        background, colour = _SCALE[level]
        body.append(piece.text, style=f"{colour} on {background}")
    totals = "  ".join(f"{name}: {value}" for name, value in _facts(document))
    return Group(Text(totals, style="bold"), legend, Text(""), body)


def html_page(pieces: Sequence[Piece], *, document: ZDocument, title: str = "zcontext") -> str:
    """The text as a heat map: one HTML file without scripts or anything from elsewhere.

    Args:
        pieces: The text.
        document: What was written.
        title: Shown on top.

    Returns:
        The page.
    """
    levels = _levels(pieces)
    body = "".join(
        f'<span class="z{level}" title="{html.escape(piece.note)}">{html.escape(piece.text)}</span>'
        for piece, level in zip(pieces, levels, strict=True)
    )
    facts = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in _facts(document)
    )
    legend = "".join(
        f'<span class="z{level}">{html.escape(name)}</span>'
        for level, name in enumerate(_names(pieces))
    )
    styles = "\n".join(
        f".z{level} {{ background: {background}; color: {colour}; }}"
        for level, (background, colour) in enumerate(_SCALE)
    )
    shown = (
        f'<table>{facts}</table>\n<p class="legend">tokens per symbol: {legend}</p>\n'
        f'<div class="text">{body}</div>'
    )
    return standalone_page(title, styles=_STYLES + styles, body=shown)


def standalone_page(title: str, *, styles: str, body: str) -> str:
    """One HTML file that loads nothing and runs nothing.

    Args:
        title: Plain text, shown on top too.
        styles: CSS of its own.
        body: HTML; whoever made it has escaped what it shows.

    Returns:
        The page.
    """
    return _SHELL.format(title=html.escape(title), styles=styles, body=body)


def _facts(document: ZDocument) -> list[tuple[str, str]]:
    measured = [span.fidelity for span in document.spans if span.fidelity is not None]
    facts = [
        ("tokens", f"{document.n_tokens:,}"),
        ("symbols", f"{document.n_symbols:,}"),
        ("ratio", f"{document.ratio:.2f}"),
        ("depth", str(document.depth)),
        ("bits", f"{document.bits:,}"),
        ("UTF-8 bytes", f"{document.n_bytes:,}"),
    ]
    if document.n_errata_bytes:
        facts.insert(5, ("errata bits", f"{document.errata_bits:,}"))
        facts.insert(6, ("bits in all", f"{document.total_bits:,}"))
    if len(measured) == len(document.spans) > 0:
        right = sum(
            span.fidelity.token_accuracy * len(span.tokens)
            for span in document.spans
            if span.fidelity is not None
        )
        facts.append(("tokens right", f"{right / document.n_tokens:.3f}"))
    return facts


def _edges(pieces: Sequence[Piece]) -> list[float]:
    """Densities between the steps: equal factors between the lowest and the highest seen."""
    densities = [piece.density for piece in pieces if piece.density] or [1.0]
    low, high = min(densities), max(densities)
    return [low * (high / low) ** (k / len(_SCALE)) for k in range(1, len(_SCALE))]


def _levels(pieces: Sequence[Piece]) -> list[int]:
    edges = _edges(pieces)
    return [sum(piece.density > edge for edge in edges) for piece in pieces]


def _names(pieces: Sequence[Piece]) -> list[str]:
    """What each step means, in tokens per symbol; the highest density comes last.

    Where all pieces are equally dense there is one step only.
    """
    if len({piece.density for piece in pieces}) < 2:
        return [f"{1 / pieces[0].density:.1f}" if pieces and pieces[0].density else "none"]
    tokens = [f"{1 / edge:.1f}" for edge in _edges(pieces)]
    between = [f"{a} to {b}" for a, b in pairwise(tokens)]
    return [f"over {tokens[0]}", *between, f"under {tokens[-1]}"]


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def visible(text: str) -> str:
    """Control characters as their pictures, so that shown text cannot steer a terminal.

    Args:
        text: Any text.

    Returns:
        As many characters, none of which moves what follows it.
    """
    return text.translate(_PICTURES)


_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # Bidirectional overrides would show text in an order it does not have.
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}
