"""Laws of the tasks: what is asked, under which conditions, and how it goes on."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_evaluation import ByteJudge

from zcontext.config import GenerationSettings, Role
from zcontext.errors import ConfigError, StoreError
from zcontext.evaluation.asking import Panel, QuestionTask, contains, is_refusal
from zcontext.evaluation.conditions import NO_CONTEXT, RAW_CONTROL, Condition, all_conditions
from zcontext.evaluation.contexts import Contexts, cut_to
from zcontext.evaluation.continuation import ContinuationTask, cut_passages
from zcontext.evaluation.distractors import unanswerable, with_distractors
from zcontext.evaluation.identities import infer_identity
from zcontext.evaluation.needles import NEEDLE_KINDS, PLACES, NeedleKind, make_needles
from zcontext.evaluation.predictions import Prediction, PredictionLog
from zcontext.evaluation.questions import QARow, all_rows
from zcontext.evaluation.rereading import Rereader
from zcontext.evaluation.respondents import PlainBase, ReaderRespondent
from zcontext.evaluation.runner import Share, run_tasks, spoken
from zcontext.evaluation.scoring import measured, score_conditions
from zcontext.model import ZLanguageModel
from zcontext.prompts import Piece
from zcontext.spans import Part
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

KEEPERS = ("Anna", "Boris", "Clara", "David", "Edith", "Felix", "Greta", "Henry")
ROWS = [
    QARow(
        f"The lighthouse of {name} was built in 18{k}0. It burned for {k + 3} winters.",
        f"When was the lighthouse of {name} built?",
        (f"18{k}0",),
    )
    for k, name in enumerate(KEEPERS)
]
PASSAGES = [row.context for row in ROWS]
BOOK = "Title\n\n" + " ".join(
    f"The {k}th traveller came along the road and said nothing to anybody." for k in range(400)
)


class Halves:
    """A peer that keeps the end of a text."""

    name = "halves"
    sees_question = False
    uses_base = True

    def shorten(self, text: str, *, n_tokens: int, question: str | None = None) -> str:
        return text[max(0, len(text) - n_tokens) :]


class Echo:
    """An evictor that answers with what it was given."""

    name = "echo"

    def answer(self, question: str, context: str, *, n_positions: int, max_new_tokens: int) -> str:
        return context[:n_positions] + "\nand more"


class ByteForeteller:
    """Finds the next bytes the easier, the more positions it has seen."""

    def __init__(self, name: str) -> None:
        self.identity = name
        self.codec = ByteCodec()

    def bits(self, context: Sequence[Part], following: Sequence[int]) -> float:
        return 8.0 / (1.0 + math.log1p(self.count(context)))

    def count(self, parts: Sequence[Part]) -> int:
        return self.codec.count(parts)


def panel(codec: ByteCodec, **changes: Any) -> Panel:
    contexts = Contexts(codec, peers={"halves": Halves()})
    readers = {
        "infer": ReaderRespondent(codec),
        "control": ReaderRespondent(codec, name="control"),
    }
    settings = GenerationSettings(max_new_tokens=100, stop=("\n",))
    return Panel(contexts, readers, {"echo": Echo()}, settings)  # type: ignore[arg-type]


def conditions() -> tuple[Condition, ...]:
    return all_conditions((4.0,), depths=(None, 2), peers=("halves",), evictors=("echo",))


def asked(codec: ByteCodec, rows: Sequence[QARow] = ROWS, **changes: Any) -> QuestionTask:
    keywords: dict[str, Any] = {"conditions": conditions(), "panel": panel(codec), "batch": 3}
    return QuestionTask("qa", rows, **(keywords | changes))


# -- conditions ---------------------------------------------------------------------------------


def test_every_condition_has_a_name_of_its_own() -> None:
    names = [c.name for c in all_conditions((4.0, 8.0), depths=(None, 2), peers=("p",))]
    assert len(set(names)) == len(names)
    assert RAW_CONTROL.name in names
    assert NO_CONTEXT.name in names
    assert {"symbols@4", "symbols@4d2", "p@8/control", "truncated@8/control", "raw"} <= set(names)


def test_whatever_shares_a_ratio_takes_no_more_positions_than_the_symbols() -> None:
    codec = ByteCodec()
    task, log = asked(codec), PredictionLog()
    run_tasks([task], log=log)
    for item in range(len(task)):
        n = {c.name: log[task.key(item, c)].n_positions for c in task.conditions}
        for name, positions in n.items():
            if "@" in name and "shuffled" not in name:
                assert positions <= n["symbols@4"], name
        assert n["none"] == 0
        assert n["symbols@4"] == n["symbols@4d2"] < n["raw"] / 3


def test_an_evictor_reads_the_whole_text_and_answers_up_to_the_line() -> None:
    task, log = asked(ByteCodec()), PredictionLog()
    run_tasks([task], log=log)
    condition = next(c for c in task.conditions if c.kind == "evictor")
    found = log[task.key(0, condition)]
    assert found.text == ROWS[0].context[: found.n_positions]


def test_passages_are_compressed_each_by_itself_and_joined_as_text() -> None:
    codec = ByteCodec()
    (row,) = with_distractors(ROWS[:1], passages=PASSAGES, k=2)
    contexts = Contexts(codec)
    parts = contexts.parts(row.pieces, Condition("symbols", 4.0), text=row.context)
    assert [codec.decompress(part) for part in parts if isinstance(part, Symbols)] == [
        codec.decompress(codec.compress(piece, ratio=4.0).symbols) for piece in row.pieces
    ]
    assert contexts.parts(row.pieces, Condition("raw"), text=row.context) == [row.context]


def test_what_does_not_fit_is_cut_to_what_fits_in_every_form() -> None:
    contexts = Contexts(ByteCodec())
    for condition in (Condition("raw"), Condition("symbols", 4.0), Condition("truncated", 4.0)):
        parts = contexts.parts(PASSAGES[:3], condition, room=10)
        assert ByteCodec().count(parts) == 10


def test_what_was_cut_off_is_counted_and_reported_as_an_overflow() -> None:
    # Wording, an answer and a question take 236; the passages, of some 70 bytes, do not fit.
    codec = ByteCodec(context_length=236 + 30)
    task, log = asked(codec, ROWS[:4]), PredictionLog()
    run_tasks([task], log=log)
    rows = {row["condition"]: row for row in task.report(log, seed=0)["rows"]}
    for name in ("raw", "raw/control", "echo@4"):
        assert rows[name]["n_over"] == 4, name
    for name in ("none", "symbols@4", "truncated@4"):
        assert rows[name]["n_over"] == 0, name
    found = log[task.key(0, Condition("raw"))]
    assert found.n_positions + found.n_over == codec.count_tokens(ROWS[0].context)


def test_cut_text_can_keep_its_end() -> None:
    codec = ByteCodec()
    assert cut_to("abcdef", 2, codec) == "ab"
    assert cut_to("abcdef", 2, codec, keep_end=True) == "ef"
    assert cut_to("xy" * 400, 500, codec, keep_end=True) == ("xy" * 400)[-500:]


def test_a_peer_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="ghost"):
        Contexts(ByteCodec()).parts(["a text"], Condition("peer", 4.0, method="ghost"))


# -- rows ---------------------------------------------------------------------------------------


def test_the_right_passage_stands_equally_often_at_every_place() -> None:
    rows = with_distractors(ROWS, passages=PASSAGES, k=3, seed=5)
    places = [row.pieces.index(old.context) for row, old in zip(rows, ROWS, strict=True)]
    assert [places.count(place) for place in range(4)] == [2, 2, 2, 2]
    assert [row.place for row in rows] == [place / 3 for place in places]
    assert rows == with_distractors(ROWS, passages=PASSAGES, k=3, seed=5)
    assert rows != with_distractors(ROWS, passages=PASSAGES, k=3, seed=6)


def test_no_distractor_holds_an_answer() -> None:
    spoilt = [*PASSAGES, "Another text that says 1800, the answer to the first."]
    for seed in range(20):
        for row in with_distractors(ROWS, passages=spoilt, k=3, seed=seed):
            assert sum(row.answers[0] in piece for piece in row.pieces) == 1
    with pytest.raises(ConfigError, match="fewer distractors"):
        with_distractors(ROWS, passages=PASSAGES[:2], k=3)


def test_questions_without_an_answer_are_those_of_the_file_or_get_a_wrong_passage() -> None:
    marked = QARow("A passage.", "Who?", ())
    assert unanswerable([*ROWS, marked], passages=PASSAGES, limit=4) == [marked]
    made = unanswerable(ROWS, passages=PASSAGES, limit=4, seed=1)
    assert len(made) == 4
    for row in made:
        name = next(name for name in KEEPERS if name in row.question)
        assert name not in row.context
        assert row.answers == ()


def test_rows_with_several_questions_and_marked_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lines = [
        {"context": "c", "qas": [{"question": "a?", "answers": [{"text": "x"}]}]},
        {"context": "c", "question": "b?", "answers": ["guess"], "answerable": False},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert all_rows(path) == [QARow("c", "a?", ("x",)), QARow("c", "b?", ())]


@pytest.mark.parametrize("kind", NEEDLE_KINDS)
def test_a_needle_stands_where_it_is_said_to_in_a_text_of_the_length_asked(
    kind: NeedleKind,
) -> None:
    def make(seed: int) -> list[QARow]:
        return make_needles(
            [BOOK, "short"],
            kind=kind,
            n_tokens=2000,
            limit=7,
            count_tokens=ByteCodec().count_tokens,
            seed=seed,
        )

    rows = make(3)
    assert rows == make(3) != make(4)
    assert [row.place for row in rows] == [PLACES[k % 5] for k in range(7)]
    for row in rows:
        assert 1800 <= len(row.context) <= 2400
        assert row.context.count(row.answers[0]) == 1
        assert row.place == pytest.approx(
            row.context.index(row.answers[0]) / len(row.context), abs=0.15
        )
    assert len({row.answers for row in rows}) > 1


def test_both_kinds_of_needles_are_hidden_in_the_same_texts() -> None:
    def make(kind: NeedleKind, limit: int) -> list[QARow]:
        count = ByteCodec().count_tokens
        return make_needles([BOOK], kind=kind, n_tokens=2000, limit=limit, count_tokens=count)

    sentences, entries = make("sentence", 3), make("key-value", 10)
    assert list(dict.fromkeys(row.context for row in entries)) == [r.context for r in sentences]
    for n, text in zip((4, 4, 2), (row.context for row in sentences), strict=True):
        own = [row for row in entries if row.context == text]
        assert len({row.question for row in own}) == len({row.answers for row in own}) == n


def test_books_that_are_too_short_for_needles_are_refused() -> None:
    with pytest.raises(ConfigError, match="longer books"):
        make_needles(["short"], kind="sentence", n_tokens=500, limit=1, count_tokens=len)


# -- scores -------------------------------------------------------------------------------------


def test_containment_and_refusal_follow_the_official_normalisation() -> None:
    assert contains("It was the Saffron, I think.", ["saffron"]) == 1
    assert contains("1234", ["123"]) == 0
    assert is_refusal(" Unknown. ")
    assert is_refusal("")
    assert not is_refusal("unknown to history: 1912")


def test_retention_is_one_for_raw_text_and_nothing_for_wrong_symbols() -> None:
    task, log = asked(ByteCodec()), PredictionLog()
    run_tasks([task], log=log)
    rows = {row["condition"]: row for row in task.report(log, seed=0)["rows"]}
    assert rows["raw/control"]["retention"] is None
    assert rows["none"]["retention"] is None
    assert rows["raw"]["retention"]["value"] == pytest.approx(1.0)
    assert rows["symbols@4"]["retention"]["value"] == pytest.approx(1.0)
    assert rows["shuffled@4"]["retention"]["value"] < 0.2
    against = {entry["rival"]: entry for entry in rows["symbols@4"]["against"]}
    assert set(against) == {
        *("truncated@4", "truncated@4/control", "halves@4", "halves@4/control", "echo@4"),
        "shuffled@4",
    }
    assert not any(entry["lost"] for entry in against.values())


def test_none_is_the_better_reader_without_a_context() -> None:
    own = (RAW_CONTROL, NO_CONTEXT, Condition("none"), Condition("symbols", 4.0))
    values = [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [0.75, 0.75]]
    columns = {c.name: {"f1": v} for c, v in zip(own, values, strict=True)}
    rows = score_conditions(own, columns, n_positions={c.name: [1, 1] for c in own})
    assert rows[3].retention is not None
    assert rows[3].retention.value == pytest.approx(0.5)


def test_without_a_gain_from_raw_text_there_is_no_retention() -> None:
    own = (RAW_CONTROL, NO_CONTEXT, Condition("symbols", 4.0))
    columns = {c.name: {"f1": [0.5, 0.5]} for c in own}
    rows = score_conditions(own, columns, n_positions={c.name: [1, 1] for c in own})
    assert all(row.retention is None for row in rows)


def test_a_rival_that_is_better_and_symbols_that_are_not_read_are_both_lost() -> None:
    own = all_conditions((4.0,))
    good = {"truncated@4", "raw/control", "raw"}
    columns = {c.name: {"f1": [float(c.name in good)] * 9} for c in own}
    rows = score_conditions(own, columns, n_positions={c.name: [1] * 9 for c in own})
    symbols = next(row for row in rows if row.kind == "symbols")
    assert {r.rival for r in symbols.against if r.is_lost} == {"truncated@4", "shuffled@4"}


# -- continuation -------------------------------------------------------------------------------


def passages(n: int = 4) -> list[Any]:
    texts = [f"Paragraph {k} tells of a lighthouse and of its keeper." for k in range(90)]
    return cut_passages(texts, judge=ByteJudge(), n_context=60, n_following=20, limit=n, seed=2)


def test_a_passage_is_followed_by_what_follows_it() -> None:
    for passage in passages():
        assert len(passage.context.encode()) == 60
        assert len(passage.following) == 20
    assert passages() == passages()
    with pytest.raises(ConfigError, match="at least 2"):
        cut_passages(["short"], judge=ByteJudge(), n_context=60, n_following=20, limit=3)


def test_continuation_is_told_in_bits_perplexity_and_share_of_the_gap() -> None:
    task = ContinuationTask(
        passages(),
        conditions=conditions(),
        contexts=Contexts(ByteCodec(), peers={"halves": Halves()}, keep_end=True),
        foretellers={"infer": ByteForeteller("a"), "control": ByteForeteller("b")},
    )
    log = PredictionLog()
    run_tasks([task], log=log)
    kinds = {c.kind for c in task.conditions}
    assert "evictor" not in kinds
    assert "recent" in kinds
    rows = {row["condition"]: row for row in task.report(log, seed=0)["rows"]}
    bits = {name: row["figures"]["bits"]["value"] for name, row in rows.items()}
    assert bits["none"] == pytest.approx(8.0)
    assert rows["none"]["figures"]["perplexity"]["value"] == pytest.approx(256.0)
    share = (bits["none"] - bits["symbols@4"]) / (bits["none"] - bits["raw/control"])
    assert rows["symbols@4"]["retention"]["value"] == pytest.approx(share)
    figure = rows["symbols@4"]["figures"]["bits"]
    assert 0 < figure["low"] <= figure["value"] <= figure["high"]


# -- the run ------------------------------------------------------------------------------------


class Slow:
    """A task whose items take a second each."""

    def __init__(self, n: int, now: list[float], name: str = "slow") -> None:
        self.name, self.batch, self.n, self.now = name, 2, n, now
        self.conditions = (Condition("raw"), Condition("none"))
        self.ran: list[int] = []

    def __len__(self) -> int:
        return self.n

    def key(self, item: int, condition: Condition) -> str:
        return f"{self.name}/{condition.name}/{item}"

    def detail(self, item: int) -> dict[str, Any]:
        return {"item": item}

    def run(self, items: Sequence[int], condition: Condition) -> list[Prediction]:
        self.now[0] += len(items)
        self.ran += items
        return [Prediction(self.key(item, condition), "x", 1) for item in items]

    def report(self, log: PredictionLog, *, seed: int) -> dict[str, Any]:
        return {}


def test_a_run_says_in_advance_how_long_it_will_take() -> None:
    now = [0.0]
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    seconds = run_tasks(
        [Slow(50, now)],
        log=PredictionLog(),
        announce=said.append,
        progress=lambda what, done, total: steps.append((done, total)),
        clock=lambda: now[0],
    )
    assert seconds == 100
    assert said[0] == "the first 1 chunks took 4 seconds; about 2 minutes to go for 96 predictions"
    assert steps[-1] == (100, 100)
    assert [spoken(s) for s in (3, 600, 9000)] == ["3 seconds", "10 minutes", "2.5 hours"]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, now = tmp_path / "p.jsonl", [0.0]
    first = Slow(10, now)
    run_tasks([first], log=PredictionLog(path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:20])
    again = Slow(10, now)
    said: list[str] = []
    run_tasks([again], log=PredictionLog(path), announce=said.append)
    assert len(again.ran) == 13
    assert said[0] == "7 of 20 predictions are here from before"
    assert sorted(path.read_text().splitlines()) == sorted(line.strip() for line in lines)


def test_parts_do_all_of_the_work_once_and_a_run_without_a_part_finds_it(tmp_path: Path) -> None:
    now = [0.0]
    tasks = [Slow(9, now), Slow(9, now, "other")]
    paths = [tmp_path / f"predictions-{k}-of-2.jsonl" for k in (1, 2)]
    for k, path in enumerate(paths, start=1):
        run_tasks(tasks, log=PredictionLog(path), share=Share(k, 2))
    keys = [[json.loads(line)["key"] for line in path.read_text().splitlines()] for path in paths]
    assert not set(keys[0]) & set(keys[1])
    assert len(keys[0]) + len(keys[1]) == 2 * 9 * 2
    # Neither has all of what is left over: the parts take turns from task to task.
    assert abs(len(keys[0]) - len(keys[1])) <= 4
    before = now[0]
    packed = tmp_path / "predictions-2-of-2.jsonl.gz"
    packed.write_bytes(gzip.compress(paths.pop().read_bytes()))
    log = PredictionLog(tmp_path / "predictions.jsonl", also=[*paths, packed])
    run_tasks(tasks, log=log)
    assert now[0] == before
    assert all(measured(task, log) == list(range(9)) for task in tasks)
    for damaged in (b"no archive", packed.read_bytes()[:-20]):
        packed.write_bytes(damaged)
        with pytest.raises(StoreError, match="not a file of predictions"):
            PredictionLog(also=[packed])
    for number, of in ((0, 2), (3, 2), (1, 0)):
        with pytest.raises(ConfigError, match="counted from 1"):
            Share(number, of)


def test_a_run_whose_time_is_over_has_whole_items_of_every_task() -> None:
    now = [0.0]
    said: list[str] = []
    tasks = [Slow(40, now), Slow(8, now, "other")]
    log = PredictionLog()
    run_tasks(tasks, log=log, clock=lambda: now[0], seconds=50, announce=said.append)
    assert now[0] <= 50
    assert "the time is over" in said[-1]
    for task in tasks:  # about half of each
        assert 0.4 <= len(measured(task, log)) / len(task) <= 0.6
        assert len({*task.ran}) == len(measured(task, log))
    run_tasks(tasks, log=log, clock=lambda: now[0])
    assert now[0] == 2 * 48


def test_figures_of_a_stopped_run_are_those_of_its_whole_items() -> None:
    codec = ByteCodec()
    task, log = asked(codec), PredictionLog()
    for condition in task.conditions:
        log.add(task.run(range(3), condition), [{}] * 3)
    log.add(task.run([5], task.conditions[0]), [{}])
    found = task.report(log, seed=0)
    assert (found["n_items"], found["n_planned"]) == (3, len(ROWS))
    alone, other = asked(codec, ROWS[:3]), PredictionLog()
    run_tasks([alone], log=other)
    names = {"raw", "symbols@4", "truncated@4"}
    expected = [r for r in alone.report(other, seed=0)["rows"] if r["condition"] in names]
    assert [r["figures"] for r in found["rows"] if r["condition"] in names] == [
        r["figures"] for r in expected
    ]


# -- real models --------------------------------------------------------------------------------


def test_the_plain_base_answers_as_if_no_adapter_were_there(tiny_model: ZLanguageModel) -> None:
    """Against transformers' own generation on the same prompt."""
    import torch

    from zcontext.prompts import encode_messages, question_parts

    reader = PlainBase(tiny_model)
    settings = GenerationSettings(max_new_tokens=6)
    contexts = ["A short one.", "One that is rather longer than the other."]
    texts = reader.answer([("Who?", [c]) for c in contexts], settings=settings)
    tokenizer = tiny_model.tokenizer
    for context, text in zip(contexts, texts, strict=True):
        (ids,) = encode_messages(tokenizer, question_parts("Who?", [context]))
        with tiny_model.using(None), torch.no_grad():
            said: list[int] = []
            while len(said) < 6:
                logits = tiny_model.base.model(torch.tensor([[*ids, *said]])).logits[0, -1]
                said.append(int(logits.argmax()))
        said = [t for t in said if t > 2]
        assert text == tokenizer.decode(said) or tokenizer.decode(said).startswith(text)


def test_what_prompts_have_in_common_is_read_once_and_answers_stay_the_same(
    tiny_model: ZLanguageModel,
) -> None:
    from zcontext.compressor import ZCompressor
    from zcontext.readers import Inferencer

    text = "The river rises in the north, and was first mapped in 1832. " * 3
    symbols = ZCompressor(tiny_model).compress(text, ratio=4.0).symbols
    settings = GenerationSettings(max_new_tokens=6)
    contexts: list[list[Part]] = [[text], [symbols], ["A chunk.", symbols]]
    for context in contexts:
        for reader in (ReaderRespondent(Inferencer(tiny_model)), PlainBase(tiny_model)):
            if isinstance(reader, PlainBase) and symbols in context:
                continue
            asked = [(question, context) for question in ("Who?", "When was it?", "Who?")]
            one = [reader.answer([row], settings=settings)[0] for row in asked]
            assert reader.answer(asked, settings=settings, alike=True) == one
    rereader = Rereader(tiny_model, None)
    pieces: list[Piece] = [[5, 6, 7, 8, 9], symbols, [4, 3]]
    first = rereader.generate(pieces, settings=settings)
    n = rereader.n_read
    assert n == 5 + len(symbols) + 1
    assert rereader.generate(pieces, settings=settings) == first
    assert rereader.n_read == n
    rereader.generate([[5, 6, 7], [9, 9]], settings=settings)
    assert rereader.n_read == n + 1


def test_infer_is_named_with_its_adapter(tiny_model: ZLanguageModel) -> None:
    import torch

    before = infer_identity(tiny_model)
    parameter = next(iter(tiny_model.parameters_of(("infer",)).values()))
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
        changed = infer_identity(tiny_model)
        parameter.copy_(kept)
    assert before != changed
    assert infer_identity(tiny_model) == before


@pytest.mark.parametrize("part", ["compress", "decompress"])
def test_a_part_of_the_codec_has_only_what_it_shapes_measured_anew(
    tiny_model: ZLanguageModel, part: Role
) -> None:
    import torch

    from zcontext.compressor import ZCompressor
    from zcontext.readers import Inferencer

    def keys() -> dict[Condition, str]:
        contexts = Contexts(ZCompressor(tiny_model))
        readers = {who: ReaderRespondent(Inferencer(tiny_model)) for who in ("infer", "control")}
        asks = Panel(contexts, readers, {}, GenerationSettings())  # type: ignore[arg-type]
        task = QuestionTask("qa", ROWS, conditions=conditions(), panel=asks, batch=3)
        return {condition: task.key(0, condition) for condition in task.conditions}

    before, codec = keys(), tiny_model.codec
    parameter = next(iter(tiny_model.parameters_of((part,)).values()))
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.add_(1.0)
        tiny_model.seal()
        assert tiny_model.codec != codec
        after = keys()
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
        tiny_model.seal()
    written = {"symbols", "refocused", "asked", "recent", "shuffled"}
    for condition, key in before.items():
        assert (after[condition] != key) == (part == "compress" and condition.kind in written)


def test_a_biased_reader_answers_alike_one_by_one_and_together(tiny_model: ZLanguageModel) -> None:
    from zcontext.readers import Inferencer

    plain = ReaderRespondent(Inferencer(tiny_model))
    careful = ReaderRespondent(Inferencer(tiny_model, unknown_bias=1e4))
    assert careful.identity != plain.identity
    settings = GenerationSettings(max_new_tokens=1)
    context: list[Part] = ["Tom keeps the light."]
    asked = [("Who?", context), ("Where?", context)]
    for alike in (False, True):
        assert careful.answer(asked, settings=settings, alike=alike) == ["u", "u"]
