"""Questions made of a corpus: what is asked for, how, and of which passages."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcontext.fragile import whole_words
from zcontext.training.cloze import (
    LONGEST_PASSAGE,
    SHORTEST_PASSAGE,
    about_passage,
    cloze_questions,
    passages,
)

PASSAGE = (
    "The harbour of Ljosvik opened on 4 May 1912 after six years of work. Its first keeper, "
    "Anna Lindqvist, counted 317 ships before the end of that summer.\nIn the winter of 1923 a "
    "storm sank 12% of the fishing fleet near Grimsey. The council's engineer Mr. Falk had the "
    "pier then raised by two metres. Lindqvist left in 1930 for a post at Aalborg Harbour Office."
)
ANSWERS = {
    "Ljosvik",
    "4 May 1912",
    "Anna Lindqvist",
    "317",
    "1923",
    "12%",
    "Grimsey",
    "Mr",
    "Falk",
    "Mr. Falk",
    "1930",
    "Aalborg Harbour Office",
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_what_is_asked_for_is_a_name_a_number_or_a_date_that_the_passage_says_once() -> None:
    rows = [row for seed in range(40) for row in about_passage(PASSAGE, rng(seed), most=9)]
    assert {row.answer for row in rows} <= ANSWERS
    assert {"4 May 1912", "317", "Aalborg Harbour Office"} <= {row.answer for row in rows}
    for row in rows:
        assert row.context == PASSAGE
        assert len(whole_words(row.answer).findall(PASSAGE)) == 1
        assert not whole_words(row.answer).search(row.question)


def test_a_question_asks_as_its_answer_wants_to_be_asked() -> None:
    asked: dict[str, set[str]] = {}
    for seed in range(200):
        for row in about_passage(PASSAGE, rng(seed), most=9):
            asked.setdefault(row.answer, set()).add(row.question)
    openings = ("When ", "On what date ", "Fill in the blank: ")
    assert all(q.startswith(openings) or "what date" in q for q in asked["4 May 1912"]), asked[
        "4 May 1912"
    ]
    assert any("how many ships" in q for q in asked["317"])
    assert any(q.startswith("Where ") for q in asked["Grimsey"])
    assert any("____" in q for q in asked["1923"])
    assert not any(q.endswith('."') for found in asked.values() for q in found)
    assert all(q[0].isupper() and q[-1] in '?"' for found in asked.values() for q in found)


def test_each_question_is_about_a_sentence_of_its_own() -> None:
    rows = about_passage(PASSAGE, rng(), most=9)
    assert len(rows) == len({row.question for row in rows}) <= 5
    assert len(about_passage(PASSAGE, rng(), most=2)) == 2


def test_a_seed_decides_everything() -> None:
    first, again, other = (list(cloze_questions([PASSAGE], rng(s))) for s in (1, 1, 2))
    assert first == again != other


def test_a_long_text_is_cut_behind_sentences() -> None:
    text = " ".join(f"Sentence number {i} is about lamp {i} of J. R. Falk." for i in range(200))
    found = passages(text)
    assert len(found) > 5
    assert " ".join(found) == text
    assert all(passage.endswith("Falk.") for passage in found)
    assert all(len(passage) <= LONGEST_PASSAGE for passage in found)


def test_wrapped_lines_are_one_sentence_and_a_list_stays_a_list() -> None:
    wrapped = "\n".join(textwrap.wrap(PASSAGE, 70))
    assert passages(wrapped) == [PASSAGE.replace("\n", " ")]
    long = "a line that is long enough to have been wrapped by an editor " * 3
    listed = f"Title\n{long.strip()}\n- Anna\n- Tom\n\n{long.strip()}"
    assert passages(listed) == [listed]


@pytest.mark.parametrize("text", ["", "Short.", "\n\n", "no names in it " * 40, "A" * 5000])
def test_what_names_nothing_is_not_asked_about(text: str) -> None:
    assert list(cloze_questions([text], rng())) == []


@given(st.text(alphabet=st.sampled_from("aB 1.,\n'\"%?é\u2019-("), max_size=900))
def test_any_text_may_be_asked_about(text: str) -> None:
    for row in cloze_questions([text], rng()):
        assert SHORTEST_PASSAGE <= len(row.context) <= 2 * LONGEST_PASSAGE
        assert len(whole_words(row.answer).findall(row.context)) == 1
        assert row.question


def test_reading_takes_time_in_proportion_to_the_text() -> None:
    endless = [sign * 50_000 for sign in (". ", " .", ".", "A. B. ", "e.g. ", "\n ")]
    assert list(cloze_questions(endless, rng())) == []
