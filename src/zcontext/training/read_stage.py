"""The read stage as the trainer sees it: batches of prompts, INFER, health.

What this module does not know: how prompts are drawn and laid out, the loop, the optimiser.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from zcontext.errors import TrainingError
from zcontext.model import ZLanguageModel
from zcontext.spans import UNKNOWN
from zcontext.training.config import TrainConfig
from zcontext.training.data import Corpus
from zcontext.training.instructions import read_instructions
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.prompt_source import PromptSource
from zcontext.training.questions import Question, read_questions
from zcontext.training.reading import (
    Chunk,
    Prompt,
    Read,
    ReadConfig,
    Reply,
    given,
    reply_states,
)

logger = logging.getLogger(__name__)


class ReadStage:
    """Trains INFER on symbols written by a codec that no longer changes.

    Args:
        model: The model that learns; its codec is trained.
        config: The run's settings.

    Raises:
        TrainingError: There are no questions, no instructions where a share is to be drawn, or a
            teacher that is not used or cannot be read.
        UnsupportedBaseError: The teacher was made for another base.
    """

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        if not config.read.questions:
            raise TrainingError("the read stage needs [read] questions: JSON lines files")
        if config.read.instruct_share > 0 and not config.read.instructions:
            raise TrainingError(
                "[read] instruct_share needs instructions: files of `zcontext instructions`"
            )
        self.model, self.config = model, config
        self.module: nn.Module = Read(model, config.read)
        self._source = PromptSource(
            model.tokenizer,
            end_token=model.end_token,
            codec=model.config,
            settings=config.read,
            files=[read_questions([file]) for file in config.read.questions],
            corpus=Corpus.load(config.data.shards) if config.data.shards else None,
            instructions=read_instructions(config.read.instructions),
        )
        dev = read_questions([config.data.dev]) if config.data.dev else []
        self._dev = [r for r in dev if r.answer != UNKNOWN][: config.data.dev_windows]
        untouched = all(
            not parameter.any()
            for name, parameter in model.adapters.named_parameters("infer").items()
            if "lora_B" in name
        )
        if config.read.start_from_decompress and untouched:
            model.adapters.load("infer", model.adapters.state("decompress"))
            logger.info("INFER starts from a copy of DECOMPRESS")
        if config.read.teacher:
            add_teacher(model, config.read)

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
        drawn = sorted((self._source.draw(rng) for _ in range(4 * size)), key=_length)
        start = int(rng.integers(0, 3 * size + 1))
        return drawn[start : start + size]

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
            prompts = []
            for at in range(start, min(start + 8, len(rows))):
                ids = self._source.context_ids((contexts or rows)[at], rng)
                chunks = self._source.chunks(ids, ratio, z.config.depth)
                prompts.append(self._source.question(rows[at], chunks))
            inputs = given(z, prompts)
            z.adapters.activate("infer")
            scores = z.logits(reply_states(z, inputs))
            target = torch.tensor([t for p in prompts for r in p.replies for t in r])
            target = target.to(z.device)
            total += float(nn.functional.cross_entropy(scores, target, reduction="sum")) * BITS
            count += len(target)
        return total / count


def add_teacher(model: ZLanguageModel, config: ReadConfig) -> None:
    """Give a model the adapter that it is to learn from; it does not learn itself.

    Args:
        model: The model.
        config: `teacher`, a safetensors file, and the weight that it needs.

    Raises:
        TrainingError: Nothing is asked of the teacher, or its file cannot be read.
        UnsupportedBaseError: It was made for another base.
    """
    if config.distil_weight <= 0:
        raise TrainingError("[read] teacher needs a distil_weight above 0")
    try:
        state = load_file(config.teacher)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"[read] teacher: {config.teacher} cannot be read ({error}); name the "
            "infer.safetensors of a bundle, or a file made like it"
        ) from error
    model.adapters.add("teach")
    model.adapters.load("teach", state)


def _length(prompt: Prompt) -> int:
    """Positions of a prompt, about."""
    spent = 0
    for piece in prompt.pieces:
        if isinstance(piece, Chunk):
            spent += len(piece.ids) if piece.ratio is None else piece.n_symbols
        else:
            spent += len(piece.ids if isinstance(piece, Reply) else piece)
    return spent
