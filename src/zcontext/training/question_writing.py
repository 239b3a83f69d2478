"""Questions that a reader writes for answers it is given, kept if a teacher gives them back.

What the reader makes up, or asks so that several answers would do, the teacher does not answer with
the same words from the text (round-trip consistency: Alberti et al. 2019, arXiv 1906.05416). What
this module does not know: where answers come from, symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from zcontext.config import GenerationSettings
from zcontext.evaluation.metrics import exact_match
from zcontext.fragile import whole_words
from zcontext.inferencer import Inferencer
from zcontext.spans import ChatMessage, Part
from zcontext.training.questions import Question

REQUEST: Final = "\n\nAsk a question about the context that is answered with: {answer}"
FEWEST_WORDS: Final = 3
AT_A_TIME: Final = 64
"""Questions that are written, then answered, together."""

_QUESTION = GenerationSettings(max_new_tokens=40, stop=("\n",))
_ANSWER = GenerationSettings(max_new_tokens=32, stop=("\n",))


def writing_parts(answer: str, context: Sequence[Part]) -> list[ChatMessage]:
    """The prompt that asks for a question.

    Args:
        answer: What the question is to be answered with.
        context: Text and symbols that say it.

    Returns:
        The messages; the question is the assistant's next turn.
    """
    return [ChatMessage("user", ("Context:\n", *context, REQUEST.replace("{answer}", answer)))]


@dataclass(frozen=True, slots=True)
class QuestionWriter:
    """Writes questions, and keeps those that a teacher answers right.

    Attributes:
        writer: Writes them: INFER of a bundle that learned it (`[read] ask_share`).
        teacher: Answers them from the text.
        batch_size: Prompts in one pass.
    """

    writer: Inferencer
    teacher: Inferencer
    batch_size: int = 16

    def rewrite(self, rows: Iterable[Question]) -> Iterator[Question]:
        """Other questions to the same answers about the same texts.

        Args:
            rows: Texts and answers; their questions are not looked at.

        Yields:
            The questions that the teacher answered right, in the order of the rows.
        """
        left = iter(rows)
        while some := list(islice(left, AT_A_TIME)):
            chats = [writing_parts(row.answer, [row.context]) for row in some]
            told = self.writer.chat_many(chats, settings=_QUESTION, batch_size=self.batch_size)
            written = [
                Question(row.context, text, row.answer)
                for row, answer in zip(some, told, strict=True)
                if _is_question(text := answer.text.strip(), row.answer)
            ]
            answers = self.teacher.ask_many(
                [row.question for row in written],
                [[row.context] for row in written],
                settings=_ANSWER,
                batch_size=self.batch_size,
            )
            for row, answer in zip(written, answers, strict=True):
                if exact_match(answer.text, [row.answer]):
                    yield row


def _is_question(text: str, answer: str) -> bool:
    """Whether a text asks something, and does not tell the answer."""
    asks = text.endswith("?") and len(text.split()) >= FEWEST_WORDS
    return asks and not whole_words(answer).search(text)
