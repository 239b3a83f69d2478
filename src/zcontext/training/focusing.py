"""The focus stage's objective: say where a text answers a question.

What this module does not know: where questions come from, optimisers, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from zcontext.attending import relevance
from zcontext.config import check
from zcontext.model import ZLanguageModel
from zcontext.training.objective import BITS, StepOutput
from zcontext.windows import Extent


@dataclass(frozen=True, slots=True)
class FocusConfig:
    """Settings of the stage.

    Attributes:
        questions: Question files, see `questions.read_questions`; those without an answer in the
            text are left out.
        question_shares: Share of the questions that comes from each file that has answers; empty
            draws every question alike.
        layers: First layers of the base that the question and the text are read with; 0 for the
            writer's, or for what the bundle that is gone on from has.
        batch_questions: Questions per micro-batch.
        max_windows: Windows of one context that a question is asked of; the one with the answer
            and those next to it.
        other_share: Share of questions that are also asked of a window of another context.
        enough: Symbols, beside one for each window, that are spent on one question at most,
            whatever the ratio; the reader's, not learned here. 0 spends all.

    Raises:
        ConfigError: A value is out of its range.
    """  # noqa: DOC502 - raised by the check

    questions: tuple[str, ...] = ()
    question_shares: tuple[float, ...] = ()
    layers: int = 0
    batch_questions: int = 16
    max_windows: int = 3
    other_share: float = 0.4
    enough: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_questions", "max_windows"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        check(self, "layers", self.layers >= 0, "0 or more")
        check(self, "other_share", 0 <= self.other_share <= 1, "a share in 0 to 1")
        check(self, "enough", 0 <= self.enough <= 1024, "0 for no limit, to 1,024 symbols")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of some windows.

    Attributes:
        question: Its tokens.
        windows: Tokens of the windows that it is asked of.
        answers: Where each window says the answer, once or several times; empty where it does not.
    """

    question: list[int]
    windows: tuple[list[int], ...]
    answers: tuple[tuple[Extent, ...], ...]

    @property
    def places(self) -> list[Extent]:
        """Where the answer stands in all windows, one behind the other."""
        firsts = accumulate((len(window) for window in self.windows), initial=0)
        return [
            Extent(first + each.start, first + each.end)
            for first, found in zip(firsts, self.answers, strict=False)
            for each in found
        ]


class Find(nn.Module):
    """Say where windows answer questions.

    Args:
        model: The model; its part "focus" learns.
        layers: First layers that it reads with, see `FocusConfig`.
    """

    def __init__(self, model: ZLanguageModel, *, layers: int = 0) -> None:
        super().__init__()
        self.z = model
        self.base = model.base.model
        self.focus = model.add_focus()
        model.adapters.add("focus", depth=layers)

    def forward(self, batch: Sequence[Asked], step: int, generator: torch.Generator) -> StepOutput:
        """Loss of some questions: how unlikely the answers' tokens are among all.

        Half of it asks for any token of an answer, half for all tokens of one alike: what gets
        symbols must hold the answer whole. Of an answer that the text says several times, the
        place that is found easiest counts most.

        Args:
            batch: The questions.
            step: Not used.
            generator: Its seed is that of the dropout.

        Returns:
            Loss and figures.
        """
        del step
        losses, bits, hits = [], [], []
        devices = [self.z.device] if self.z.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # a resumed run drops what it would have
            torch.manual_seed(generator.initial_seed())
            found_odds = self.odds(batch)
        for odds, asked in zip(found_odds, batch, strict=True):
            found = torch.cat(odds).log_softmax(-1)
            spoken = [found[place.start : place.end] for place in asked.places]
            anywhere = torch.cat(spoken).logsumexp(-1)
            whole = torch.stack([each.mean() for each in spoken]).logsumexp(-1)
            losses.append(-(anywhere + whole) / 2)
            bits.append(-anywhere.detach() * BITS)
            best = int(found.argmax())
            is_hit = any(place.start <= best < place.end for place in asked.places)
            hits.append(bits[-1].new_tensor(is_hit))
        loss = torch.stack(losses).mean()
        figures = {"bits": torch.stack(bits).mean(), "hits": torch.stack(hits).mean()}
        return StepOutput(loss, figures, loss.detach().view(1, 1), None)

    def odds(self, batch: Sequence[Asked]) -> list[list[Tensor]]:
        """Log-odds of the tokens of every window, question by question.

        Args:
            batch: The questions.

        Returns:
            `[n]` for each window of each question.
        """
        z = self.z
        rows = [(asked.question, window) for asked in batch for window in asked.windows]
        longest = max(len(question) + len(window) for question, window in rows)
        ids = torch.full((len(rows), longest), z.end_token)
        mask = torch.zeros_like(ids)
        for row, (question, window) in enumerate(rows):
            n = len(question) + len(window)
            ids[row, :n] = torch.tensor([*question, *window])
            mask[row, :n] = 1
        z.adapters.activate("focus")
        found = iter(
            relevance(z, ids.to(z.device), mask.to(z.device), [len(asked) for asked, _ in rows])
        )
        return [[next(found) for _ in asked.windows] for asked in batch]
