from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, StoreError
from zcontext.evaluation import report
from zcontext.evaluation.conditions import Condition
from zcontext.evaluation.contexts import cut_to
from zcontext.evaluation.excerpts import TextWindow, cut_windows, other_window
from zcontext.evaluation.judge import Forced, ModelJudge, Shown
from zcontext.evaluation.metrics import f1_score
from zcontext.evaluation.predictions import PredictionLog
from zcontext.evaluation.qa import QAReport, QASettings, answer_rows
from zcontext.evaluation.questions import QARow, read_rows
from zcontext.evaluation.reconstruct import (
    ReconstructReport,
    ReconstructSettings,
    reconstruct,
)
from zcontext.evaluation.restoration import shown_of, without_errata
from zcontext.model import ZLanguageModel
from zcontext.spans import Answer, Part
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

WORDS = ("harbour", "lantern", "seven", "quiet", "Anna", "1912", "winter", "paper", "copper")


def texts(n: int) -> list[str]:
    return [
        " ".join(WORDS[(i * k + k) % len(WORDS)] + str(i) for k in range(1, 20)) for i in range(n)
    ]


class ByteJudge:
    """Knows ByteCodec's tokens; the plain base finds every byte 6 bits hard."""

    def __init__(self, *, gain: float = 2.0) -> None:
        self.gain = gain

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        starts = [at for at, char in enumerate(text) for _ in char.encode()]
        return list(text.encode()), starts

    def plain_bits(self, windows: Sequence[Sequence[int]]) -> list[float]:
        return [6.0 for _ in windows]

    def restored(self, windows: Sequence[Sequence[int]], shown: Sequence[Shown]) -> list[Forced]:
        found = []
        for ids, item in zip(windows, shown, strict=True):
            run = item.symbols
            right = bytes(ids).startswith(bytes(run.codes[0][:1]))
            found.append(Forced(6.0 - self.gain if right else 12.0, float(right)))
        return found


def measured(judge: ByteJudge, **changes: object) -> ReconstructReport:
    settings = ReconstructSettings(
        **{"ratios": (2.0, 16.0), "window_tokens": 24, "limit": 10, "batch": 4} | changes  # type: ignore[arg-type]
    )
    codec = ByteCodec()
    windows = cut_windows(texts(12), judge=judge, n_tokens=24, limit=settings.limit)
    return reconstruct(
        windows, compressor=codec, decompressor=codec, judge=judge, settings=settings
    )


def test_windows_are_as_long_as_asked_when_they_stand_alone() -> None:
    judge = ByteJudge()
    windows = cut_windows(["a\u00e9\u4e2d" * 40, "tiny"], judge=judge, n_tokens=16, limit=50)
    for window in windows:
        assert len(window.text.encode()) == 16
        assert list(window.ids) == judge.encode(window.text)[0]


def test_windows_are_drawn_by_the_seed() -> None:
    def drawn(seed: int) -> list[TextWindow]:
        return cut_windows(texts(9), judge=ByteJudge(), n_tokens=20, limit=6, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        cut_windows(["short"], judge=ByteJudge(), n_tokens=64, limit=5)


def test_wrong_symbols_come_from_another_text_where_there_is_one() -> None:
    windows = [TextWindow(str(k), (k,), source) for k, source in enumerate([0, 0, 0, 1])]
    assert other_window(windows) == [3, 3, 3, 0]
    alike = [TextWindow("x", (1,), 0), TextWindow("y", (2,), 0)]
    assert other_window(alike) == [1, 0]


def test_errata_do_not_flatter_free_running_figures() -> None:
    codec = ByteCodec()
    document = codec.compress("The harbour lantern burned until 1912.", ratio=16.0)
    assert any(span.errata for span in document.spans)
    assert not any(span.errata for span in without_errata(document).spans)
    low, high = measured(ByteJudge()).rows[1], measured(ByteJudge()).rows[0]
    assert low.free_accuracy.value < high.free_accuracy.value == 1.0
    assert low.bleu.value < high.bleu.value == pytest.approx(100.0)
    assert high.facts_kept is not None
    assert high.facts_kept.value == 1.0


def test_bits_stand_in_the_relation_the_bound_is_made_of() -> None:
    for row in measured(ByteJudge()).rows:
        assert row.bound == pytest.approx(row.depth * math.log2(256) / row.effective_ratio)
        assert row.bound_share.value == pytest.approx((row.h.value - row.c.value) / row.bound)
        assert row.effective_ratio == pytest.approx(row.ratio, rel=0.25)
        assert row.shuffled_gap.value > 0
        assert not row.beats_bound


def test_a_figure_that_beats_the_bound_is_called_a_bug() -> None:
    found = measured(ByteJudge(gain=5.9), depth=1)
    assert [row.beats_bound for row in found.rows] == [
        False or row.bound < 5.9 for row in found.rows
    ]
    assert any(row.beats_bound for row in found.rows)
    assert any("bug" in line for line in report.bugs(found))
    assert report.bugs(measured(ByteJudge())) == []


def test_a_report_prints_and_is_written_whole(tmp_path: Path) -> None:
    found = measured(ByteJudge())
    out = io.StringIO()
    Console(file=out, width=160).print(report.reconstruct_table(found))
    assert "share of the bound" in out.getvalue()
    path = tmp_path / "deep" / "report.json"
    report.write_json(found.to_dict(), path)
    data = json.loads(path.read_text())
    assert data["task"] == "reconstruct"
    assert len(data["rows"]) == 2
    assert [child.name for child in path.parent.iterdir()] == ["report.json"]


def test_figures_that_are_not_numbers_become_null(tmp_path: Path) -> None:
    report.write_json({"a": [math.inf, 1.0], "b": {"c": math.nan}}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        report.write_json({}, tmp_path / "file" / "report.json")


@pytest.mark.parametrize(
    "changes",
    [{"window_tokens": 3}, {"limit": 1}, {"ratios": ()}, {"ratios": (0.5,)}, {"batch": 0}],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ReconstructSettings(**changes)  # type: ignore[arg-type]


# -- the judge ----------------------------------------------------------------------------------


def coded(model: ZLanguageModel, n: int, seed: int) -> Symbols:
    depth, size = model.config.depth, model.config.size
    codes = tuple(tuple((seed + i * 7 + j) % size for j in range(depth)) for i in range(n))
    return Symbols(codes, size, model.vocabulary.tag)


def test_the_judge_gives_each_window_what_it_has_alone(tiny_model: ZLanguageModel) -> None:
    judge = ModelJudge(tiny_model, batch_tokens=40)
    windows = [judge.encode(text)[0] for text in ("alpha beta", "gamma rays", "a longer one", "x")]
    ends: list[tuple[int, ...] | None] = [(2, 5, 10), (4, 9, 10), None, (1,)]
    symbols = [
        Shown(coded(tiny_model, n, seed), places)
        for seed, (n, places) in enumerate(zip((3, 3, 4, 1), ends, strict=True))
    ]
    together = judge.restored(windows, symbols)
    alone = [judge.restored([w], [s])[0] for w, s in zip(windows, symbols, strict=True)]
    assert [f.bits for f in together] == pytest.approx([f.bits for f in alone], rel=1e-4)
    plain = judge.plain_bits(windows)
    assert plain == pytest.approx([judge.plain_bits([w])[0] for w in windows], rel=1e-4)


def test_the_judge_hears_the_symbols_but_not_for_the_plain_base(
    tiny_model: ZLanguageModel,
) -> None:
    judge = ModelJudge(tiny_model)
    window = judge.encode("the very same text")[0]
    (one,) = judge.restored([window], [Shown(coded(tiny_model, 4, 1), None)])
    (two,) = judge.restored([window], [Shown(coded(tiny_model, 4, 20), None)])
    assert one.bits != two.bits
    assert tiny_model.adapters.role is None or tiny_model.adapters.role == "compress"


def test_the_judge_knows_where_tokens_start(tiny_model: ZLanguageModel) -> None:
    ids, starts = ModelJudge(tiny_model).encode("h\u00e9llo")
    assert len(ids) == 6
    assert starts == [0, 1, 1, 2, 3, 4]


def test_a_real_model_is_measured_from_end_to_end(tiny_model: ZLanguageModel) -> None:
    from zcontext.compressor import ZCompressor
    from zcontext.readers import Inferencer, ZDecompressor

    judge, settings = (
        ModelJudge(tiny_model),
        ReconstructSettings(ratios=(2.0, 8.0), window_tokens=24, limit=4, depth=2),
    )
    windows = cut_windows(texts(6), judge=judge, n_tokens=24, limit=4)
    compressor = ZCompressor(tiny_model)
    found = reconstruct(
        windows,
        compressor=compressor,
        decompressor=ZDecompressor(tiny_model),
        judge=judge,
        settings=settings,
    )
    for row in found.rows:
        assert row.effective_ratio == pytest.approx(row.ratio)
        codes = 2 * math.log2(tiny_model.config.size) / row.ratio
        assert row.bound == pytest.approx(codes + row.placement)
        assert 0 < row.placement < 1
        assert 0 <= row.free_accuracy.value <= 1
        assert not row.beats_bound
    reader = Inferencer(tiny_model)
    asked = answer_rows(
        ROWS[:2],
        compressor=compressor,
        reader=reader,
        settings=QASettings(limit=2, generation=GenerationSettings(max_new_tokens=3)),
    )
    assert [row.condition for row in asked.figures][2] == "symbols@4"
    positions = {row.condition: row.n_positions for row in asked.figures}
    assert positions["symbols@4"] == positions["shuffled@4"] < positions["raw"]


def test_the_figures_are_those_of_the_health_evaluation(tiny_model: ZLanguageModel) -> None:
    """One window measured here and by the training objective itself."""
    import torch

    from zcontext.compressor import ZCompressor
    from zcontext.fidelity import read_spans
    from zcontext.tokenization import text_tokenizer

    text = "sixteen letters."
    document = ZCompressor(tiny_model).compress(text, ratio=4.0)
    judge = ModelJudge(tiny_model)
    (forced,) = judge.restored([judge.encode(text)[0]], [shown_of(document)[0].shown])
    tokens = text_tokenizer(tiny_model.tokenizer).locate(text, max_tokens=99)
    (reading,) = read_spans(tiny_model, document, tokens)
    # The reading leaves the special tokens out of the choice; 3 of 259 here.
    assert forced.bits == pytest.approx(float(torch.tensor(reading.bits).mean()), abs=0.1)


# -- questions ----------------------------------------------------------------------------------

ROWS = [
    QARow(
        f"Harbour {k} opened in 19{k:02d}. The keeper was Anna{k}.",
        f"When did harbour {k} open?",
        (f"Harbour {k} opened in 19{k:02d}.",),
    )
    for k in range(12)
]


def asked(**changes: object) -> QAReport:
    codec = ByteCodec()
    settings = QASettings(**{"ratios": (4.0,), "limit": 12} | changes)  # type: ignore[arg-type]
    return answer_rows(ROWS, compressor=codec, reader=codec, settings=settings)


def test_every_condition_is_asked_and_scored() -> None:
    found = {row.condition: row for row in asked().figures}
    ours = ["symbols@4", "refocused@4", "asked@4"]
    assert list(found) == ["raw", "none", *ours, "truncated@4", "shuffled@4"]
    assert found["raw"].f1.value == pytest.approx(1.0)
    assert found["symbols@4"].f1.value == pytest.approx(1.0)
    assert found["symbols@4"].f1.value > found["shuffled@4"].f1.value
    assert found["asked@4"].f1.value == pytest.approx(1.0)
    assert found["asked@4"].n_positions == found["symbols@4"].n_positions
    # ByteCodec cannot write for a question: what is stored stays as it is.
    assert found["refocused@4"].f1 == found["symbols@4"].f1
    assert found["none"].n_positions == 0
    assert found["truncated@4"].n_positions <= found["symbols@4"].n_positions
    assert found["symbols@4"].n_positions < found["raw"].n_positions / 3
    assert found["symbols@4"].gain is not None
    assert found["symbols@4"].gain.value > 1.5
    assert found["symbols@4"].retention is not None
    assert found["symbols@4"].retention.value == pytest.approx(1.0)


def test_a_context_is_compressed_once_per_ratio() -> None:
    codec = ByteCodec()
    rows = [QARow("One passage about Anna.", f"Question {k}?", ("Anna",)) for k in range(5)]
    settings = QASettings(limit=5)
    answer_rows(rows, compressor=codec, reader=codec, settings=settings)
    for call in codec.calls:
        if call.method == "compress_many":
            assert call.texts == ("One passage about Anna.",)


def test_the_readers_answers_are_asked_together_where_it_can() -> None:
    class Many(ByteCodec):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def ask_many(
            self, questions: Sequence[str], contexts: Sequence[Sequence[Part]], **keywords: object
        ) -> list[Answer]:
            self.sizes.append(len(questions))
            return [self.ask(q, c) for q, c in zip(questions, contexts, strict=True)]

    codec = Many()
    answer_rows(ROWS, compressor=codec, reader=codec, settings=QASettings(), batch=5)
    # Every batch of questions under all conditions, before the next batch.
    assert codec.sizes == [5] * 14 + [2] * 7


def test_an_interrupted_run_goes_on_and_gives_the_same_figures(tmp_path: Path) -> None:
    whole = asked()
    path = tmp_path / "predictions.jsonl"

    class Stops(ByteCodec):
        left = 17

        def ask(self, *arguments: object, **keywords: object) -> Answer:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().ask(*arguments, **keywords)  # type: ignore[arg-type]

    codec = Stops()
    settings = QASettings(limit=12)
    with pytest.raises(KeyboardInterrupt):
        answer_rows(
            ROWS,
            compressor=codec,
            reader=codec,
            settings=settings,
            log=PredictionLog(path),
            batch=1,
        )
    assert len(path.read_text().splitlines()) == 17
    with path.open("a") as file:
        file.write('{"key": "cut in the mid')
    fresh = ByteCodec()
    found = answer_rows(
        ROWS, compressor=fresh, reader=fresh, settings=settings, log=PredictionLog(path)
    )
    assert found == whole
    assert sum(call.method == "ask" for call in fresh.calls) == 7 * 12 - 17
    again = ByteCodec()
    answer_rows(ROWS, compressor=again, reader=again, settings=settings, log=PredictionLog(path))
    assert again.calls == []


def test_predictions_of_another_setting_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    for depth in (8, 4):
        codec = ByteCodec()
        settings = QASettings(limit=12, depth=depth)
        answer_rows(
            ROWS[:3], compressor=codec, reader=codec, settings=settings, log=PredictionLog(path)
        )
        assert any(call.method == "ask" for call in codec.calls)


def test_a_file_that_holds_no_predictions_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(StoreError, match="not a file of predictions"):
        PredictionLog(path)
    assert path.read_text() == "my notes\n"


def test_questions_are_read_from_plain_and_packed_lines(tmp_path: Path) -> None:
    rows = [
        {"context": "c", "question": "q", "answers": ["a", "b"]},
        {"context": "c", "question": "q2", "answers": {"text": ["x"], "answer_start": [1]}},
        {"context": "c", "question": "q3", "answers": []},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    plain, packed = tmp_path / "qa.jsonl", tmp_path / "qa.jsonl.gz"
    plain.write_text(lines)
    with gzip.open(packed, "wt") as file:
        file.write(lines)
    wanted = [QARow("c", "q", ("a", "b")), QARow("c", "q2", ("x",))]
    assert read_rows(plain, limit=10) == read_rows(packed, limit=10) == wanted


def test_rows_are_drawn_by_the_seed_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(
        "".join(
            json.dumps({"context": "c", "question": f"{k:03d}", "answers": ["a"]}) + "\n"
            for k in range(100)
        )
    )
    drawn = [row.question for row in read_rows(path, limit=10, seed=1)]
    assert drawn == sorted(drawn) == [row.question for row in read_rows(path, limit=10, seed=1)]
    assert drawn != [row.question for row in read_rows(path, limit=10, seed=2)]


@pytest.mark.parametrize(
    "content",
    ["", '{"context": "c"}\n', "not json\n", '{"context":"c","question":"q","answers":[]}'],
)
def test_a_file_without_questions_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"qa\.jsonl"):
        read_rows(path, limit=10)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_rows(tmp_path / "none.jsonl", limit=10)


@pytest.mark.parametrize("n", [0, 1, 5, 13, 1000])
def test_a_text_is_cut_to_the_longest_beginning_that_fits(n: int) -> None:
    text, codec = "d\u00e9j\u00e0 vu, twice over", ByteCodec()
    cut = cut_to(text, n, codec)
    assert text.startswith(cut)
    assert codec.count_tokens(cut) <= n
    assert cut == text or codec.count_tokens(text[: len(cut) + 1]) > n


def test_conditions_are_named_by_their_ratio() -> None:
    assert [c.name for c in QASettings(ratios=(4.0, 8.5)).conditions][2:] == [
        "symbols@4",
        "refocused@4",
        "asked@4",
        "truncated@4",
        "shuffled@4",
        "symbols@8.5",
        "refocused@8.5",
        "asked@8.5",
        "truncated@8.5",
        "shuffled@8.5",
    ]
    assert Condition("raw").name == "raw"


def test_the_table_of_answers_prints() -> None:
    out = io.StringIO()
    Console(file=out, width=140).print(report.qa_table(asked()))
    assert "shuffled@4" in out.getvalue()


@pytest.fixture(autouse=True)
def _f1_is_ours() -> Iterator[None]:
    yield
    assert f1_score("a b", ["b"]) == 1.0
