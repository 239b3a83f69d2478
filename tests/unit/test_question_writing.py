"""Questions that a reader writes, and a teacher gives back."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tiny import tiny_z
from zcontext.config import CodecConfig
from zcontext.inferencer import Inferencer
from zcontext.spans import ChatMessage
from zcontext.training.prompt_source import PromptSource
from zcontext.training.question_writing import QuestionWriter, writing_parts
from zcontext.training.questions import Question
from zcontext.training.reading import Chunk, ReadConfig, Reply

ROWS = [
    Question("Anna keeps the light.", "", "Anna"),
    Question("The bridge is of 1912.", "", "1912"),
    Question("Tom sleeps in Oslo.", "", "Oslo"),
    Question("Nine ships came.", "", "Nine"),
]


class Told:
    """A reader that has learned some answers by heart."""

    def __init__(self, **said: str) -> None:
        self.said = said
        self.seen: list[str] = []

    def chat_many(self, chats: Sequence[Sequence[ChatMessage]], **how: Any) -> list[Any]:
        prompts = ["".join(map(str, chat[0].parts)) for chat in chats]
        self.seen += prompts
        return [SimpleNamespace(text=self.said[p.rpartition(" ")[2]]) for p in prompts]

    def ask_many(self, questions: Sequence[str], contexts: Sequence[Any], **how: Any) -> list[Any]:
        assert len(questions) == len(contexts)
        return [SimpleNamespace(text=self.said[q.split()[0]]) for q in questions]


def test_questions_are_kept_if_the_teacher_gives_the_answer_back() -> None:
    writer = Told(
        **{
            "Anna": " Who keeps the light?",
            "1912": "Of when is the bridge?",
            "Oslo": "Where does he sleep, in Oslo?",
            "Nine": "Ships came.",
        }
    )
    teacher = Told(Who="anna.", Of="1921")
    kept = list(QuestionWriter(cast(Inferencer, writer), cast(Inferencer, teacher)).rewrite(ROWS))
    assert kept == [Question("Anna keeps the light.", "Who keeps the light?", "Anna")]
    assert writer.seen[0].startswith("Context:\nAnna keeps the light.\n\nAsk a question")


def test_a_reader_on_a_model_can_write() -> None:
    reader = Inferencer(tiny_z())
    assert list(QuestionWriter(reader, reader, batch_size=3).rewrite(ROWS * 20)) == []


def test_infer_learns_to_write_questions_in_the_prompt_that_asks_for_them() -> None:
    model = tiny_z()
    source = PromptSource(
        model.tokenizer,
        end_token=model.end_token,
        codec=CodecConfig(depth=2, size=16),
        settings=ReadConfig(ask_share=1.0, raw_share=1.0),
        files=[[Question("Anna keeps the light.", "Who keeps it?", "Anna")]],
        corpus=None,
    )
    prompt = source.draw(np.random.default_rng(0))
    assert prompt.task == "write a question"
    assert model.tokenizer.decode(prompt.replies[0]) == "Who keeps it?<|im_end|>"
    trained = [
        token
        for piece in prompt.pieces
        if not isinstance(piece, Reply)
        for token in (piece.ids if isinstance(piece, Chunk) else piece)
    ]
    said = model.tokenizer.decode(trained)
    assert "".join(map(str, writing_parts("Anna", ["Anna keeps the light."])[0].parts)) in said
