from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tiny import tiny_base, tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CodecConfig, CompressSettings
from zcontext.decompressor import span_layouts
from zcontext.errors import ConfigError
from zcontext.fidelity import read_span
from zcontext.lexicon import SILENT
from zcontext.model import ZLanguageModel
from zcontext.polysemy.charts import bars, histograms, log_curve
from zcontext.polysemy.codes import LookSettings, spaced_ranks
from zcontext.polysemy.firings import (
    Firings,
    Listener,
    Passage,
    fired,
    gather,
    segment_states,
    write_passages,
)
from zcontext.polysemy.likeness import (
    Spread,
    consistency_of,
    pairwise_cosine,
    paraphrase_overlap,
)
from zcontext.polysemy.page import code_page
from zcontext.polysemy.study import CodeReport, PolysemySettings, study_codes
from zcontext.polysemy.usage import usage_of
from zcontext.upkeep import start_from_tokens

TEXTS = [
    "A river rises in the hills & <b>runs</b> down to the sea.\x1b[31m",
    " ",
    "It is long. " * 4,
]
PAIRS = [("a cat sat", "the cat was sitting"), ("hello you", "hi there"), ("one, two", "1 and 2")]
SETTINGS = PolysemySettings(max_tokens=80, look=LookSettings(n_codes=3, n_contexts=2, around=5))


def shared_z() -> ZLanguageModel:
    """A codec with one table for all stages, that starts from the tokens of the texts."""
    config = CodecConfig(depth=3, size=32, writer_layers=2, lora_rank=4, lora_alpha=4, shared=True)
    model = ZLanguageModel.create(tiny_base(), config)
    ids = model.tokenizer(" ".join(TEXTS), add_special_tokens=False).input_ids
    counts = torch.tensor(ids).bincount(minlength=model.base_vocab).float()
    start_from_tokens(model.codebook, model.base.model.get_input_embeddings().weight, counts)
    assert not model.codebook.rows[0, SILENT].any()
    model.seal()
    return model


@pytest.fixture(scope="module", params=["separate", "shared"])
def model(request: pytest.FixtureRequest) -> ZLanguageModel:
    return shared_z() if request.param == "shared" else tiny_z()


def study(model: ZLanguageModel, *, pairs: list[tuple[str, str]] = PAIRS) -> CodeReport:
    return study_codes(
        TEXTS, compressor=ZCompressor(model), model=model, pairs=pairs, settings=SETTINGS
    )


@pytest.fixture(scope="module")
def report(model: ZLanguageModel) -> CodeReport:
    return study(model)


@pytest.fixture(scope="module")
def passages(model: ZLanguageModel) -> tuple[Passage, ...]:
    return write_passages(
        TEXTS,
        compressor=ZCompressor(model),
        model=model,
        settings=CompressSettings(window=32),
        max_tokens=80,
    )


# -- firings --------------------------------------------------------------------------------------


def test_a_code_fires_once_on_a_symbol_and_silence_never() -> None:
    codes = torch.tensor([[3, 3, 0], [0, 0, 0], [1, 0, 2]])
    owner, key = fired(codes, size=8, shared=True)
    assert list(zip(owner.tolist(), key.tolist(), strict=True)) == [(0, 3), (2, 1), (2, 2)]


def test_with_separate_tables_equal_numbers_of_two_stages_are_two_codes() -> None:
    owner, key = fired(torch.tensor([[3, 3, 0]]), size=8, shared=False)
    assert owner.tolist() == [0, 0, 0]
    assert key.tolist() == [3, 8 + 3, 16]


def test_nothing_fires_where_all_is_silent() -> None:
    owner, key = fired(torch.zeros(2, 3, dtype=torch.long), size=8, shared=True)
    assert (len(owner), len(key)) == (0, 0)


def test_segments_are_the_texts_and_each_has_a_state(
    model: ZLanguageModel, passages: tuple[Passage, ...]
) -> None:
    found = gather(model, passages)
    for at, passage in enumerate(passages):
        mine = [segment.tokens for segment in found.segments if segment.passage == at]
        assert [t for extent in mine for t in range(extent.start, extent.end)] == list(
            range(len(passage.tokens))
        )
        assert "".join(passage.cut(extent.start, extent.end) for extent in mine) == passage.text
    assert len(found.states) == len(found.codes) == len(found.segments)
    assert sum(len(passage.tokens) for passage in passages) == 80
    assert " " not in [passage.text for passage in passages]


def test_a_state_is_the_mean_of_the_bases_states_on_the_segment(model: ZLanguageModel) -> None:
    ids, ends = [10, 20, 30, 40, 50], [2, 5]
    with torch.no_grad(), model.using(None):
        inputs = torch.tensor([[model.start_token, *ids]])
        plain = model.base.model(inputs, output_hidden_states=True).hidden_states[-1][0, 1:]
    twin = torch.stack([plain[:2].mean(0), plain[2:].mean(0)])
    torch.testing.assert_close(segment_states(model, ids, ends), twin, atol=1e-4, rtol=1e-4)


def test_listening_costs_the_bits_that_fidelity_reads(
    model: ZLanguageModel, passages: tuple[Passage, ...]
) -> None:
    passage = passages[0]
    layout = next(iter(span_layouts(model, passage.document)))
    ids = passage.tokens.ids[: layout.n_tokens].tolist()
    likeliest, bits = Listener(model).listen(layout, ids)
    reading = read_span(model, layout, ids)
    assert bits.tolist() == pytest.approx(list(reading.bits), abs=1e-4)
    assert [a == b for a, b in zip(likeliest, ids, strict=True)] == list(reading.right)
    _, without = Listener(model).listen(layout, ids, without=(0, layout.symbols[0]))
    assert not torch.allclose(bits, without)


def test_no_text_is_an_error(model: ZLanguageModel) -> None:
    with pytest.raises(ConfigError, match="nothing to look at"):
        write_passages(
            ["", "\n"],
            compressor=ZCompressor(model),
            model=model,
            settings=CompressSettings(),
            max_tokens=10,
        )


# -- likeness and usage ---------------------------------------------------------------------------


def planted(codes: list[list[int]], states: Tensor, *, shared: bool = True) -> Firings:
    table = torch.tensor(codes)
    owner, key = fired(table, size=32, shared=shared)
    segments = (None,) * len(codes)
    return Firings((), segments, table, states, owner, key)  # type: ignore[arg-type]


def test_the_mean_pairwise_cosine_is_that_of_all_pairs() -> None:
    rows = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.manual_seed(0)), dim=-1)
    twin = [float(rows[i] @ rows[j]) for i, j in combinations(range(7), 2)]
    assert pairwise_cosine(rows) == pytest.approx(sum(twin) / len(twin), abs=1e-6)


def test_codes_that_mean_something_are_more_consistent_than_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    meanings = torch.randn(8, 16, generator=generator)
    codes = [[1 + at % 8, 0] for at in range(80)]
    noise = 0.1 * torch.randn(80, 16, generator=generator)
    states = torch.stack([meanings[row[0] - 1] for row in codes]) + noise
    found = consistency_of(planted(codes, states))
    assert found.codes.n == 8
    assert found.codes.mean > 0.95 > found.shuffled.mean + 0.5
    assert abs(found.centred_shuffled.mean) < 0.2


def test_codes_that_fire_anywhere_are_as_consistent_as_chance() -> None:
    draw = random.Random(0)
    codes = [[draw.randrange(1, 9), 0] for _ in range(200)]
    states = 3 + torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    found = consistency_of(planted(codes, states))
    assert found.codes.mean == pytest.approx(found.shuffled.mean, abs=0.02)
    assert found.codes.mean > 0.8  # which is why the figure alone says nothing
    assert found.centred.mean == pytest.approx(0.0, abs=0.05)


def test_chance_is_the_same_for_the_same_seed() -> None:
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    found = planted([[1, 2]] * 4 + [[3, 0]] * 5, states)
    assert consistency_of(found, seed=3) == consistency_of(found, seed=3)


def test_equal_use_has_the_entropy_of_its_codes_and_one_code_has_none() -> None:
    equal = usage_of(planted([[1], [2], [3], [4]] * 3, torch.zeros(12, 2)), size=32, shared=True)
    assert (equal.n_used, equal.entropy_bits, equal.effective_codes) == (4, 2.0, 4.0)
    assert equal.zipf_slope == pytest.approx(0.0)
    alone = usage_of(planted([[5, 0]] * 3, torch.zeros(3, 2)), size=32, shared=True)
    assert (alone.n_codes, alone.n_used, alone.entropy_bits) == (31, 1, 0.0)
    assert [stage.silent_share for stage in alone.stages] == [0.0, 1.0]
    assert [stage.n_codes for stage in alone.stages] == [1, 0]


def test_zipfs_law_has_a_slope_of_minus_one() -> None:
    codes = [[rank] for rank in range(1, 31) for _ in range(6000 // rank)]
    usage = usage_of(planted(codes, torch.zeros(len(codes), 1)), size=32, shared=True)
    assert usage.zipf_slope == pytest.approx(-1.0, abs=0.01)
    assert usage.curve[0] == (1, 6000)
    assert usage.curve[-1] == (30, 200)


def test_a_text_overlaps_with_itself_entirely(model: ZLanguageModel) -> None:
    same = [("a quiet river", "a quiet river"), ("57 boats", "57 boats")]
    found = paraphrase_overlap(
        same, compressor=ZCompressor(model), model=model, settings=CompressSettings()
    )
    assert found.codes == found.tokens == Spread(1.0, 0.0, 2)
    assert found.tokens_random.mean < 1
    assert found.codes_random.n == 2


def test_one_pair_has_nothing_to_be_compared_with(model: ZLanguageModel) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        study(model, pairs=PAIRS[:1])


# -- the report -----------------------------------------------------------------------------------


def test_a_report_survives_json_and_is_the_same_again(
    model: ZLanguageModel, report: CodeReport
) -> None:
    assert json.loads(json.dumps(report.to_dict()))["codec"] == model.codec
    assert report == study(model)


def test_the_closer_look_shows_segments_where_the_code_fires(report: CodeReport) -> None:
    assert report.codes
    assert [entry.rank for entry in report.codes] == sorted({e.rank for e in report.codes})
    text = TEXTS[0] + TEXTS[2]
    for entry in report.codes:
        assert entry.n_firings >= 2
        assert 1 <= len(entry.contexts) <= 2
        assert -1.001 <= entry.consistency <= 1.001
        assert entry.name not in [near.name for near in entry.nearest_codes]
        for seen in entry.contexts:
            assert seen.before + seen.segment + seen.after in text
            assert 0 <= seen.n_right <= seen.n_tokens
            assert seen.bits_without != seen.bits


def test_the_codes_row_taken_out_is_all_that_it_adds_to_the_symbol(model: ZLanguageModel) -> None:
    book = model.codebook
    codes = torch.tensor([5, 7, 5])
    whole = book.embed(codes) - book.embed(codes[:0])
    parts = [book.embed(codes[: k + 1]) - book.embed(codes[:k]) for k in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)


@pytest.mark.parametrize("n", [0, 1, 3, 40, 41, 1000, 12000])
def test_ranks_rise_from_first_to_last(n: int) -> None:
    ranks = spaced_ranks(n, 40)
    assert len(ranks) == min(n, 40)
    assert ranks == sorted(set(ranks))
    assert n == 0 or (ranks[0], ranks[-1]) == (1, n)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (LookSettings, "n_codes", -1),
        (LookSettings, "n_contexts", 0),
        (LookSettings, "n_nearest", 1.5),
        (PolysemySettings, "max_tokens", 1),
    ],
)
def test_settings_out_of_range_are_refused(kind: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value)


# -- the page -------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_needs_nothing_else_and_runs_no_text(report: CodeReport) -> None:
    page = code_page(report, title="<b>title</b>")
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    assert parsed.links == []
    assert not {"script", "img", "link", "iframe"} & set(parsed.tags)
    assert parsed.tags.count("svg") == 4
    assert parsed.tags.count("details") == len(report.codes)
    assert "\x1b" not in page
    assert "0.75 +- 0.11" in page


def test_a_report_without_pairs_or_codes_is_a_page_too(report: CodeReport) -> None:
    import dataclasses

    bare = dataclasses.replace(report, paraphrases=None, codes=())
    parsed = _Page()
    parsed.feed(code_page(bare))
    assert parsed.tags.count("svg") == 3
    assert "details" not in parsed.tags


def test_plots_of_nothing_are_plots() -> None:
    for svg in (
        log_curve([], label="l", x="x", y="y"),
        histograms([("a", [])], label="l", x="x", low=0, high=1),
        bars([], label="l", y="y", high=0),
    ):
        assert svg.startswith("<svg")
        assert svg.endswith("</svg>")
        assert "nan" not in svg


def test_values_beyond_the_axis_count_into_the_outermost_bin() -> None:
    svg = histograms([("a", [-5.0, 5.0])], label="l", x="x", low=0, high=1)
    assert svg.count("50.0%") == 2


def test_the_paraphrases_that_come_with_the_program_are_pairs() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "paraphrases.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 40
    assert all(set(row) == {"a", "b"} and row["a"] != row["b"] for row in rows)
    assert len({text for row in rows for text in row.values()}) == 80
