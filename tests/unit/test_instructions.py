"""Instructions made of a corpus: what is to be said is what the texts say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import tiny_z
from zcontext.config import CodecConfig
from zcontext.errors import ConfigError, TrainingError
from zcontext.fragile import whole_words
from zcontext.spans import ChatMessage
from zcontext.training.instructions import (
    NONE,
    Instruction,
    corpus_instructions,
    instruction_parts,
    line_of,
    read_instructions,
)
from zcontext.training.prompt_source import PromptSource
from zcontext.training.questions import Question
from zcontext.training.reading import Chunk, ReadConfig, Reply

HARBOUR = (
    "The harbour of Ljosvik opened on 4 May 1912 after six years. Its keeper, Anna Lindqvist, "
    "counted 317 ships and 12 boats before the end of that summer. In 1923 a storm sank most "
    "of the fleet near Grimsey, and the council had the pier raised by two metres."
)
ORCHARD = (
    "The orchard of Bergby was planted in 1890 by the brothers Falk on a slope above the river. "
    "Its pears went to Oslo by train, and 40 workers lived in the long house until autumn "
    "1931. Today the Falk Museum shows their ladders and presses to visitors in summer."
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(n: int = 150) -> list[Instruction]:
    return [row for seed in range(n) for row in corpus_instructions([HARBOUR, ORCHARD], rng(seed))]


def test_lists_hold_what_the_text_tells_of_a_kind_in_order() -> None:
    listed = {
        (row.request.split(" in the ")[0], row.contexts): row.answer
        for row in drawn()
        if row.request.startswith("List")
    }
    assert listed == {
        ("List the names", (HARBOUR,)): "Ljosvik; Anna Lindqvist; Grimsey",
        ("List the numbers", (HARBOUR,)): "317; 12",
        ("List the dates and years", (HARBOUR,)): "4 May 1912; 1923",
        ("List the names", (ORCHARD,)): "Bergby; Falk; Oslo; Falk Museum",
        ("List the numbers", (ORCHARD,)): "40",
        ("List the dates and years", (ORCHARD,)): "1890; 1931",
    }


def test_a_text_that_tells_none_is_asked_for_some_all_the_same_now_and_then() -> None:
    plain = HARBOUR.replace("317", "some").replace("12 boats", "boats")
    rows = [row for seed in range(300) for row in corpus_instructions([plain], rng(seed))]
    numbers = [row.answer for row in rows if "numbers" in row.request]
    assert set(numbers) == {NONE}
    assert 10 < len(numbers) < 60


def test_mentions_and_comparisons_are_right() -> None:
    answers = set()
    for row in drawn():
        if row.request.startswith("List"):
            continue
        answers.add(row.answer)
        if row.answer in {"yes", "no"}:
            [text] = row.contexts
            name = named(row)
            assert bool(whole_words(name).search(text)) is (row.answer == "yes")
        else:
            number = int(row.answer.removeprefix("text "))
            told, other = row.contexts[number - 1], row.contexts[2 - number]
            if "earliest" in row.request:
                assert told == ORCHARD
                assert other == HARBOUR
            else:
                assert named(row) in told
                assert named(row) not in other
    assert answers == {"yes", "no", "text 1", "text 2"}


def named(row: Instruction) -> str:
    names = ("Ljosvik", "Anna Lindqvist", "Grimsey", "Bergby", "Falk Museum", "Falk", "Oslo")
    return next(name for name in names if name in row.request)


def test_summaries_tell_no_name_or_number_that_the_passage_does_not() -> None:
    said = [
        "A harbour that Anna Lindqvist kept was opened.\nThen more.",
        "A harbour opened in 1913 and was kept by a man.",
        "A harbour.",
        "A harbour that was kept by somebody",
        HARBOUR,
    ]
    asked: list[Sequence[ChatMessage]] = []

    def summarise(chats: Sequence[Sequence[ChatMessage]]) -> list[str]:
        asked.extend(chats)
        return said

    rows = list(corpus_instructions([HARBOUR] * 5, rng(), summarise=summarise))
    [row] = [row for row in rows if "sentence" in row.request]
    assert row.answer == "A harbour that Anna Lindqvist kept was opened."
    assert row.contexts == (HARBOUR,)
    [message] = asked[0]
    assert message.parts == ("Context:\n", HARBOUR, "\n\n", row.request)


def test_only_a_share_of_the_passages_is_summarised() -> None:
    asked: list[int] = []

    def summarise(chats: Sequence[Sequence[ChatMessage]]) -> list[str]:
        asked.append(len(chats))
        return [""] * len(chats)

    list(corpus_instructions([HARBOUR] * 200, rng(), summarise=summarise, summary_share=0.2))
    assert 20 < sum(asked) < 60


@given(st.text(alphabet=st.sampled_from("aB 1.,\n'\"%?é\u2019-("), max_size=900))
def test_any_text_may_be_instructed_about(text: str) -> None:
    for row in corpus_instructions([text, HARBOUR], rng()):
        assert row.request
        assert row.answer


def test_a_seed_decides_everything_and_files_bring_it_back(tmp_path: Path) -> None:
    first, again, other = (list(corpus_instructions([HARBOUR, ORCHARD], rng(s))) for s in (1, 1, 2))
    assert first == again != other
    path = tmp_path / "i.jsonl"
    path.write_text("\n".join(map(line_of, first)))
    assert read_instructions([path]) == first


def test_what_is_no_file_of_instructions_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zcontext instructions"):
        read_instructions([tmp_path / "nowhere.jsonl"])
    (tmp_path / "q.jsonl").write_text('{"context": "a", "question": "b", "answers": ["c"]}')
    with pytest.raises(ConfigError, match="line 1 is no instruction"):
        read_instructions([tmp_path / "q.jsonl"])


def source(rows: Sequence[Instruction], **settings: float) -> PromptSource:
    model = tiny_z()
    return PromptSource(
        model.tokenizer,
        end_token=model.end_token,
        codec=CodecConfig(depth=2, size=16),
        settings=dataclasses.replace(ReadConfig(instruct_share=1.0, max_context=80), **settings),
        files=[[Question("Anna keeps the light.", "Who keeps it?", "Anna")]],
        corpus=None,
        instructions=rows,
    )


def test_infer_learns_them_in_the_prompt_that_asks_for_them() -> None:
    tokenizer = tiny_z().tokenizer
    row = Instruction(("Anna left.", "Tom came."), "Which text mentions Tom?", "text 2")
    long = Instruction(("Anna left." * 20,), "List the names.", "Anna")
    prompts = [source([row, long], raw_share=1.0).draw(rng(seed)) for seed in range(20)]
    assert {prompt.task for prompt in prompts} == {"instruction"}
    shown = [
        token
        for piece in prompts[0].pieces
        for token in (piece.ids if isinstance(piece, Chunk | Reply) else piece)
    ]
    [message] = instruction_parts(row.request, [["Anna left."], ["Tom came."]])
    text = tokenizer.decode(shown)
    assert "".join(map(str, message.parts)) in text
    assert "Text 1:\nAnna left.\n\nText 2:\nTom came.\n\nWhich text" in text
    assert text.endswith("text 2<|im_end|>")
    assert {tokenizer.decode(prompt.replies[0]) for prompt in prompts} == {"text 2<|im_end|>"}


def test_each_text_is_written_by_itself() -> None:
    row = Instruction(("Anna left.", "Tom came."), "Which text mentions Tom?", "text 2")
    prompt = source([row], raw_share=0.0).draw(rng())
    chunks = [piece for piece in prompt.pieces if isinstance(piece, Chunk)]
    decode = tiny_z().tokenizer.decode
    assert [decode(chunk.ids) for chunk in chunks] == ["Anna left.", "Tom came."]
    assert all(chunk.ratio is not None for chunk in chunks)


def test_what_is_too_long_for_every_prompt_is_refused() -> None:
    with pytest.raises(TrainingError, match="no instruction fit"):
        source([Instruction(("Anna left." * 20,), "List the names.", "Anna")])
