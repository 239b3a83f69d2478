"""A study of codes as one HTML page that needs nothing else.

Figures, plots, and a fold for each code that was looked at. Text is shown, never run: HTML is
escaped, control characters become pictures. What it does not know: models, how anything was
measured.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from zcontext.inspection import standalone_page, visible
from zcontext.polysemy.charts import bars, histograms, log_curve
from zcontext.polysemy.codes import CodeContext, CodeEntry, Neighbour
from zcontext.polysemy.likeness import Spread
from zcontext.polysemy.study import CodeReport

PUBLISHED: Final = "0.75 +- 0.11 (arXiv 2603.25340)"

_STYLES: Final = """\
body { font: 15px/1.55 system-ui, sans-serif; max-width: 64rem; }
h1 { font-size: 1.35rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
p { max-width: 46rem; }
table { margin: .6rem 0; }
th, td { padding: .2rem 1rem .2rem 0; vertical-align: top; border-bottom: 1px solid #e6ebf1; }
thead th { font-weight: 600; } .n { font-variant-numeric: tabular-nums; text-align: right; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #44525f; } svg { width: 100%; }
details { border: 1px solid #cfd8e3; border-radius: 4px; padding: .4rem .8rem; margin: .4rem 0; }
summary { cursor: pointer; } summary b { margin-right: .8rem; }
.text { font-family: Georgia, serif; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: #ffe08a; color: inherit; padding: .05em 0; }
.chip { background: #edf2f8; border-radius: 3px; padding: 0 .4em; margin-right: .4em;
  white-space: pre; font-family: ui-monospace, monospace; font-size: .85em; }
.dim { color: #5c6b79; }
"""


def code_page(report: CodeReport, *, title: str = "What the codes mean") -> str:
    """The page of a study.

    Args:
        report: What was found.
        title: Shown on top.

    Returns:
        HTML.
    """
    sections = [_facts(report), _usage(report), _consistency(report)]
    if report.paraphrases is not None:
        sections.append(_paraphrases(report))
    if report.codes:
        sections.append(_codes(report.codes))
    return standalone_page(title, styles=_STYLES, body="\n".join(sections))


def _facts(report: CodeReport) -> str:
    usage = report.usage
    tables = "one table for all stages" if report.shared else "a table for each stage"
    return _table(
        ["", ""],
        [
            ["codec", report.codec[:12]],
            ["codes", f"{usage.n_codes:,} ({tables}), up to {report.depth} a symbol"],
            ["texts", f"{report.n_texts:,}"],
            ["tokens", f"{report.n_tokens:,}"],
            ["symbols", f"{usage.n_symbols:,} (ratio {report.ratio:.2f})"],
            ["codes that fired", f"{usage.n_used:,} ({usage.n_used / usage.n_codes:.1%})"],
            ["codes per symbol", f"{usage.n_firings / usage.n_symbols:.2f}"],
        ],
    )


def _usage(report: CodeReport) -> str:
    usage = report.usage
    told = (
        f"<p>Entropy {usage.entropy_bits:.2f} bits: as many as {usage.effective_codes:,.0f} "
        f"equally likely codes would have. Slope of the curve: {usage.zipf_slope:.2f} (words of a "
        "natural language: about -1).</p>"
    )
    curve = log_curve(
        usage.curve, label="Symbols that hold a code, by rank", x="rank", y="symbols that hold it"
    )
    heard = [(str(at), [("heard", 1 - s.silent_share, 0.0)]) for at, s in enumerate(usage.stages)]
    stages = bars(
        heard,
        label="Share of symbols to which a stage adds something, by stage",
        x="stage",
        y="share of symbols",
        high=1,
    )
    rows = [
        [str(at), f"{s.n_codes:,}", f"{s.entropy_bits:.2f}", f"{s.silent_share:.1%}"]
        for at, s in enumerate(usage.stages)
    ]
    return (
        "<h2>Usage</h2>"
        + told
        + _plots([(curve, "Zipf curve: how often the code of each rank fires."), (stages, _STAGES)])
        + _table(["stage", "codes used", "entropy, bits", "silent"], rows, numbers=True)
    )


_STAGES: Final = (
    "Share of symbols to which a stage adds something (silence: one shared table only)."
)


def _consistency(report: CodeReport) -> str:
    found = report.consistency
    values = [*found.values, *found.shuffled_values]
    low = min(0.0, *values) if values else 0.0
    plot = histograms(
        [("codes", found.values), ("random segments", found.shuffled_values)],
        label="Contextual consistency of codes against random segments",
        x="mean pairwise cosine",
        low=max(-1.0, low),
        high=1.0,
    )
    rows = [
        ["as they are", _spread(found.codes), _spread(found.shuffled), PUBLISHED],
        ["mean state taken away", _spread(found.centred), _spread(found.centred_shuffled), ""],
    ]
    told = (
        "<p>Of each code with two firings or more: the mean cosine between the base's contextual "
        "states of the segments it fires on, over all pairs. Beside it the same for as many "
        "segments drawn at random. The states of a language model all point somewhat the same way, "
        "so only the distance to the random figure tells anything; with the mean state taken away, "
        f"random is about 0. {found.codes.n:,} codes.</p>"
    )
    return (
        "<h2>Contextual consistency</h2>"
        + told
        + _table(["states", "codes", "random segments", "published"], rows)
        + _plots([(plot, "Each code counted once.")])
    )


def _paraphrases(report: CodeReport) -> str:
    found = report.paraphrases
    assert found is not None
    groups = [
        ("codes", _pair(found.codes, found.codes_random)),
        ("base tokens", _pair(found.tokens, found.tokens_random)),
    ]
    high = max((value + deviation for _, rows in groups for _, value, deviation in rows), default=1)
    plot = bars(groups, label="Overlap of paraphrases", y="Jaccard overlap", high=min(1.0, high))
    rows = [
        ["codes", _spread(found.codes), _spread(found.codes_random)],
        ["base tokens", _spread(found.tokens), _spread(found.tokens_random)],
    ]
    told = (
        f"<p>{found.codes.n} pairs of texts that say the same in other words, against texts put "
        "together at random: the share of codes that both hold, of all that either holds. Base "
        "tokens show what the wording alone explains.</p>"
    )
    return (
        "<h2>Paraphrases</h2>"
        + told
        + _table(["overlap of", "paraphrases", "random pairs"], rows)
        + _plots([(plot, "Mean and standard deviation.")])
    )


def _codes(entries: Sequence[CodeEntry]) -> str:
    told = (
        "<p>Codes at ranks evenly spaced in the logarithm. The segment a symbol was written for is "
        "<mark>marked</mark>. <i>Read back</i>: the likeliest token at each place, behind the "
        "right ones. <i>Without</i>: bits the segment costs when this code is taken out of its "
        "symbol, and the token that misses it most.</p>"
    )
    return "<h2>Codes</h2>" + told + "".join(map(_entry, entries))


def _entry(entry: CodeEntry) -> str:
    chips = "".join(_chip(text, f"{n}") for text, n in entry.segments)
    head = (
        f"<summary><b>{html.escape(entry.name)}</b>rank {entry.rank:,}, in {entry.n_firings:,} "
        f'symbols, consistency {entry.consistency:.2f} <span class="dim">on</span> {chips}'
        "</summary>"
    )
    rows = "".join(map(_context, entry.contexts))
    titles = "".join(f"<th>{name}</th>" for name in ("in context", "read back", "bits", "without"))
    return (
        f"<details>{head}<table><thead><tr>{titles}</tr></thead>{rows}</table>"
        f"<p>Nearest codes: {_near(entry.nearest_codes)}<br>"
        f"Nearest tokens: {_near(entry.nearest_tokens)}</p></details>"
    )


def _context(seen: CodeContext) -> str:
    text = f"{_safe(seen.before)}<mark>{_safe(seen.segment)}</mark>{_safe(seen.after)}"
    return (
        f'<tr><td class="text">{text}</td><td>{_chip(seen.said)}<span class="dim">'
        f'{seen.n_right} of {seen.n_tokens}</span></td><td class="n">{seen.bits:.1f}</td>'
        f'<td><span class="n">{seen.bits_without:.1f}</span> {_chip(seen.needs)}</td></tr>'
    )


# -- pieces -------------------------------------------------------------------------------------


def _near(items: Sequence[Neighbour]) -> str:
    return "".join(_chip(item.name, f"{item.cosine:.2f}") for item in items)


def _chip(text: str, note: str = "") -> str:
    told = f' <span class="dim">{html.escape(note)}</span>' if note else ""
    return f'<span class="chip">{_safe(text)}</span>{told} '


def _safe(text: str) -> str:
    return html.escape(visible(text))


def _pair(said: Spread, chance: Spread) -> list[tuple[str, float, float]]:
    return [("paraphrases", said.mean, said.std), ("random pairs", chance.mean, chance.std)]


def _spread(spread: Spread) -> str:
    return f"{spread.mean:.3f} +- {spread.std:.3f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    kind = ' class="n"' if numbers else ""
    head = "".join(f"<th{kind}>{html.escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    above = f"<thead><tr>{head}</tr></thead>" if any(titles) else ""
    return f"<table>{above}{body}</table>"


def _plots(items: Sequence[tuple[str, str]]) -> str:
    figures = "".join(
        f"<figure>{svg}<figcaption>{html.escape(told)}</figcaption></figure>" for svg, told in items
    )
    return f'<div class="plots">{figures}</div>'
