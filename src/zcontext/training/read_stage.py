"""The read stage as the trainer sees it: prompts drawn from questions and corpus, INFER, health.

Prompts are laid out by `zcontext.prompts`, the module that answering uses, so INFER is trained on
the very prompts it will meet. What this module does not know: the loop, the optimiser.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from zcontext.errors import TrainingError
from zcontext.model import ZLanguageModel
from zcontext.prompts import encode_messages, question_parts
from zcontext.spans import ChatMessage
from zcontext.symbols import Symbols
from zcontext.tokenization import text_tokenizer
from zcontext.training.config import TrainConfig
from zcontext.training.data import Corpus
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.questions import UNKNOWN, Question, read_questions
from zcontext.training.reading import (
    Chunk,
    Piece,
    Prompt,
    Read,
    answer_states,
    compress_chunks,
)

logger = logging.getLogger(__name__)

RESTATE = "\n\nRepeat the context word for word."
CONTINUE = "\n\nContinue the text."
LOOKUP = ('\n\nWhat follows these words in the context: "', '"?')
PLACE = Symbols(((0,),), 2, "0000")
"""Stands for a chunk while a prompt is laid out."""


class ReadStage:
    """Trains INFER on symbols written by a codec that no longer changes.

    Args:
        model: The model that learns; its codec is trained.
        config: The run's settings.

    Raises:
        TrainingError: There are no questions.
    """

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        if not config.read.questions:
            raise TrainingError("the read stage needs [read] questions: JSON lines files")
        self.model, self.config = model, config
        self.module: nn.Module = Read(model, config.read)
        rows = read_questions(config.read.questions)
        self._answerable = [r for r in rows if r.answer != UNKNOWN]
        self._unanswerable = [r for r in rows if r.answer == UNKNOWN]
        if not self._answerable:
            raise TrainingError("the question files hold no answerable question")
        self._corpus = Corpus.load(config.data.shards) if config.data.shards else None
        dev = read_questions([config.data.dev]) if config.data.dev else []
        self._dev = [r for r in dev if r.answer != UNKNOWN][: config.data.dev_windows]
        self._ids: dict[str, list[int]] = {}
        untouched = all(
            not parameter.any()
            for name, parameter in model.adapters.named_parameters("infer").items()
            if "lora_B" in name
        )
        if config.read.start_from_decompress and untouched:
            model.adapters.load("infer", model.adapters.state("decompress"))
            logger.info("INFER starts from a copy of DECOMPRESS")

    def parameters(self) -> dict[str, nn.Parameter]:
        """The INFER adapter."""
        return self.model.parameters_of(("infer",))

    def buffers(self) -> dict[str, Tensor]:
        """None: the codec does not change."""
        return {}

    def before_step(self, step: int) -> None:
        """Nothing to prepare."""

    def after_step(self, step: int, output: StepOutput) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """Nothing to settle: the codec is not this stage's."""

    # -- prompts ----------------------------------------------------------------------------------

    def batch(self, index: int) -> list[Prompt]:
        """The prompts of an index: of about equal length, drawn from four times as many."""
        rng = np.random.default_rng([self.config.run.seed, index])
        size = self.config.read.batch_rows
        drawn = sorted((self._prompt(rng) for _ in range(4 * size)), key=_length)
        start = int(rng.integers(0, 3 * size + 1))
        return drawn[start : start + size]

    def _prompt(self, rng: np.random.Generator) -> Prompt:
        read = self.config.read
        draw = rng.random()
        shares = np.cumsum([read.restate_share, read.continue_share, read.lookup_share])
        if self._corpus is not None and draw < shares[-1]:
            kinds = ("restate", "continue", "look up")
            return self._corpus_prompt(kinds[int(np.searchsorted(shares, draw, "right"))], rng)
        if self._unanswerable and rng.random() < read.unanswerable_share:
            row = self._unanswerable[int(rng.integers(len(self._unanswerable)))]
        else:
            row = self._answerable[int(rng.integers(len(self._answerable)))]
        context = self._context_ids(row, rng)
        answer = row.answer
        if rng.random() < read.swap_share:
            context, answer = self._context_ids(self._other(row, rng), rng), UNKNOWN
        chunks = [self._chunk(context, rng)]
        if rng.random() < read.distractor_share and len(context) < read.max_context // 2:
            other = self._context_ids(self._other(row, rng), rng)
            room = read.max_context - len(context)
            chunks.insert(int(rng.integers(0, 2)), self._chunk(other[:room], rng))
        pieces = self.lay_out(question_parts(row.question, [PLACE] * len(chunks)), chunks)
        return Prompt(pieces, self._answer_ids(answer), "question")

    def _other(self, row: Question, rng: np.random.Generator) -> Question:
        """A question about another passage."""
        while True:
            other = self._answerable[int(rng.integers(len(self._answerable)))]
            if other.context != row.context:
                return other

    def _corpus_prompt(self, task: str, rng: np.random.Generator) -> Prompt:
        """A passage to be said again, to be continued, or to find a quotation in."""
        n = int(rng.integers(24, 97))
        ids = self._passage(2 * n, rng)
        context, rest = ids[:n], ids[n:]
        if task == "look up" and len(context) >= 24:
            at = int(rng.integers(0, len(context) - 12))
            quoted, target = context[at : at + 6], context[at + 6 : at + 12]
            words = self.model.tokenizer.decode(quoted).strip()
            request = words.join(LOOKUP)
        elif task == "continue" and rest:
            request, target = CONTINUE, rest
        else:
            task, request, target = "restate", RESTATE, [*context, self.model.end_token]
        message = ChatMessage("user", ("Context:\n", PLACE, request))
        return Prompt(self.lay_out([message], [self._chunk(context, rng)]), target, task)

    def _passage(self, length: int, rng: np.random.Generator) -> list[int]:
        """Tokens of the corpus, fewer where a document ends."""
        corpus = self._corpus
        assert corpus is not None
        document = int(rng.integers(len(corpus.offsets) - 1))
        start, end = corpus.offsets[document], corpus.offsets[document + 1]
        at = int(rng.integers(start, max(start + 1, end - length)))
        return [int(t) for t in corpus.tokens[at : min(at + length, end)]]

    def _chunk(self, ids: list[int], rng: np.random.Generator) -> Chunk:
        read, full = self.config.read, self.model.config.depth
        ratio = float(np.exp(rng.uniform(np.log(read.min_ratio), np.log(read.max_ratio))))
        depth = full if rng.random() < 0.7 else int(rng.integers(1, full + 1))
        return Chunk(ids, None if rng.random() < read.raw_share else ratio, depth)

    def _context_ids(self, row: Question, rng: np.random.Generator) -> list[int]:
        """Tokens of a context, cut around its answer when it is too long."""
        if row.context not in self._ids:
            self._ids[row.context] = self._encode(row.context)
        ids, room = self._ids[row.context], self.config.read.max_context
        if len(ids) <= room:
            return ids
        place = row.context.find(row.answer) if row.answer != UNKNOWN else -1
        share = max(0, place) / max(1, len(row.context))
        start = int(share * len(ids)) - int(rng.integers(room // 4, 3 * room // 4))
        start = max(0, min(start, len(ids) - room))
        return ids[start : start + room]

    def _encode(self, text: str) -> list[int]:
        return list(text_tokenizer(self.model.tokenizer).ids(text))

    def _answer_ids(self, answer: str) -> list[int]:
        return [*self._encode(answer), self.model.end_token]

    def lay_out(
        self, messages: Sequence[ChatMessage], chunks: Sequence[Chunk]
    ) -> tuple[list[int] | Chunk, ...]:
        """Token runs and chunks of a chat in which a `PLACE` stands for each chunk.

        Args:
            messages: Turns.
            chunks: In order.

        Returns:
            What `Prompt.pieces` holds.
        """
        coming = iter(chunks)
        pieces = encode_messages(self.model.tokenizer, messages)
        return tuple(p if isinstance(p, list) else next(coming) for p in pieces)

    # -- health -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Bits per answer token on dev questions, with four contexts.

        Returns:
            `answer@4` and `answer@8` (symbols), `answer@raw`, `answer@shuffled` (symbols of
            another passage, ratio 4) and `answer@none`.
        """
        if not self._dev:
            return {}
        figures = {}
        with self.model.lock:
            for name, ratio in (("4", 4.0), ("8", 8.0), ("raw", None)):
                figures[f"answer@{name}"] = self._answer_bits(self._dev, ratio)
            others = [*self._dev[5:], *self._dev[:5]]
            figures["answer@shuffled"] = self._answer_bits(self._dev, 4.0, contexts=others)
            nothing = [Question("", r.question, r.answer) for r in self._dev]
            figures["answer@none"] = self._answer_bits(nothing, None)
        return figures

    def _answer_bits(
        self,
        rows: Sequence[Question],
        ratio: float | None,
        *,
        contexts: Sequence[Question] | None = None,
    ) -> float:
        z, rng = self.model, np.random.default_rng(0)
        total, count = 0.0, 0
        for start in range(0, len(rows), 8):
            prompts, answers = [], []
            for at in range(start, min(start + 8, len(rows))):
                ids = self._context_ids((contexts or rows)[at], rng)
                chunk = Chunk(ids, ratio, z.config.depth)
                pieces = self.lay_out(question_parts(rows[at].question, [PLACE]), [chunk])
                prompts.append(pieces)
                answers.append(self._answer_ids(rows[at].answer))
            chunks = [p for pieces in prompts for p in pieces if isinstance(p, Chunk)]
            written: Iterator[Piece] = iter(
                compress_chunks(z, chunks) if ratio else [c.ids for c in chunks]
            )
            inputs: list[list[Piece]] = [
                [next(written) if isinstance(p, Chunk) else p for p in pieces] for pieces in prompts
            ]
            z.adapters.activate("infer")
            scores = z.logits(answer_states(z, inputs, answers))
            target = torch.tensor([t for a in answers for t in a], device=z.device)
            total += float(nn.functional.cross_entropy(scores, target, reduction="sum")) * BITS
            count += len(target)
        return total / count


def _length(prompt: Prompt) -> int:
    """Positions of a prompt, about."""
    spent = len(prompt.answer)
    for piece in prompt.pieces:
        if isinstance(piece, list):
            spent += len(piece)
        else:
            spent += int(len(piece.ids) / (piece.ratio or 1.0))
    return spent
