"""The focus stage as the trainer sees it: questions with their windows, FOCUS, health.

What this module does not know: the loop, the optimiser, what a batch costs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from zcontext.emphasis import emphasise
from zcontext.errors import TrainingError
from zcontext.model import ZLanguageModel
from zcontext.spans import UNKNOWN
from zcontext.tokenization import text_tokenizer, token_seams
from zcontext.training.config import TrainConfig
from zcontext.training.data import Corpus
from zcontext.training.focusing import Asked, Find
from zcontext.training.objective import BITS
from zcontext.training.questions import Question, drawn_from, find_answer, read_questions
from zcontext.training.stages import CENTRE_TOKENS
from zcontext.windows import Extent, WindowPlan

UNSEEN = 0.3
"""What a token counts that the corpus does not have."""

DEV_RATIOS = (4, 8, 16)


class FocusStage:
    """Trains what finds where a text answers a question; symbols go on meaning what they mean.

    Args:
        model: The model that learns; its codec is trained.
        config: The run's settings.

    Raises:
        TrainingError: There are no questions whose answers their contexts hold, or no shards.
    """

    def __init__(self, model: ZLanguageModel, config: TrainConfig) -> None:
        if not config.focus.questions or not config.data.shards:
            raise TrainingError("the focus stage needs [focus] questions and [data] shards")
        self.model, self.config = model, config
        self._find = Find(model, layers=config.focus.layers)
        model.codebook.requires_grad_(False)
        self._find.focus.requires_grad_(True)
        self._find.focus.enough.fill_(config.focus.enough)
        self.module: nn.Module = self._find
        self._tokens = text_tokenizer(model.tokenizer)
        self._contexts: dict[str, tuple[list[int], list[int]]] = {}
        located = [self._locate(read_questions([path])) for path in config.focus.questions]
        self._files = [rows for rows in located if rows]
        self._located = [each for rows in self._files for each in rows]
        if not self._located:
            raise TrainingError("no question's answer stands in its context")
        self._shares = drawn_from(self._files, config.focus.question_shares)
        self._dev: list[tuple[Question, list[Extent]]] | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """The FOCUS adapter and the head."""
        own = {f"focus_head/{n}": p for n, p in self._find.focus.named_parameters()}
        return {**self.model.parameters_of(("focus",)), **own}

    def buffers(self) -> dict[str, Tensor]:
        """How common tokens are."""
        return {"commonness": self._find.focus.commonness}

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Count tokens before the first step."""
        if step == 0:
            seen = Corpus.load(self.config.data.shards).tokens[:CENTRE_TOKENS]
            counts = np.bincount(seen, minlength=self.model.base_vocab) + UNSEEN
            self._find.focus.commonness.copy_(torch.from_numpy(counts / counts.sum()).log())
        self._find.focus.train()

    def after_step(self, step: int, output: object) -> None:
        """Nothing to keep."""

    def finish(self) -> None:
        """It is trained no further."""
        self._find.focus.requires_grad_(False).eval()

    # -- questions --------------------------------------------------------------------------------

    def batch(self, index: int) -> list[Asked]:
        """The questions of an index."""
        rng = np.random.default_rng([self.config.run.seed, index])
        files = np.searchsorted(
            self._shares, rng.random(self.config.focus.batch_questions), "right"
        )
        picked = [self._files[file][int(rng.integers(len(self._files[file])))] for file in files]
        return [self._asked(row, places, rng) for row, places in picked]

    def _locate(self, rows: Sequence[Question]) -> list[tuple[Question, list[Extent]]]:
        """Questions whose answers stand in their contexts, and at which tokens, every time."""
        found = []
        for row in rows:
            places = [] if row.answer == UNKNOWN else find_answer(row.context, row.answer)
            if not places:
                continue
            _, starts = self._read(row.context)
            spoken = [(bisect_right(starts, a) - 1, bisect_left(starts, b)) for a, b in places]
            found.append((row, [Extent(*place) for place in spoken]))
        return found

    def _read(self, context: str) -> tuple[list[int], list[int]]:
        """Tokens of a context, and where each starts."""
        if context not in self._contexts:
            tokens = self._tokens.locate(context, max_tokens=len(context) + 1)
            self._contexts[context] = ([int(t) for t in tokens.ids], [*tokens.starts])
        return self._contexts[context]

    def _asked(self, row: Question, places: Sequence[Extent], rng: np.random.Generator) -> Asked:
        """A question of the windows around its answer, and perhaps of another context's."""
        most, windows = self.config.focus.max_windows, self._windows(row.context)
        first_said = places[0].start
        own = next(at for at, (start, ids) in enumerate(windows) if first_said < start + len(ids))
        first = max(0, min(own - int(rng.integers(most)), len(windows) - most))
        chosen = windows[first : first + most]
        answers = [_within(places, start, len(ids)) for start, ids in chosen]
        texts = [ids for _, ids in chosen]
        if rng.random() < self.config.focus.other_share:
            other = self._located[int(rng.integers(len(self._located)))][0]
            if other.context != row.context:
                elsewhere = self._windows(other.context)
                texts.append(elsewhere[int(rng.integers(len(elsewhere)))][1])
                answers.append(())
        return Asked(self._question(row), tuple(texts), tuple(answers))

    def _question(self, row: Question) -> list[int]:
        # As the compressor puts a question in front of a window.
        return list(self._tokens.ids(row.question.strip() + "\n\n"))

    def _windows(self, context: str) -> list[tuple[int, list[int]]]:
        """First token and tokens of every window of a context."""
        ids, _ = self._read(context)
        targets = [w.target for w in WindowPlan(self.model.config.window).cover(len(ids))]
        return [(target.start, ids[target.start : target.end]) for target in targets]

    # -- health -----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Figures on dev questions, each asked of its whole context.

        Returns:
            `bits` (of the answer's tokens among all) and for each ratio r `kept@r`: share of
            answers of which every token gets a symbol of its own.
        """
        if self.config.data.dev is None:
            return {}
        if self._dev is None:
            rows = read_questions([self.config.data.dev])
            self._dev = self._locate(rows)[: self.config.data.dev_windows]
        figures: dict[str, list[float]] = {"bits": [], **{f"kept@{r}": [] for r in DEV_RATIOS}}
        self._find.focus.eval()
        seams = token_seams(self.model.tokenizer, self.model.base_vocab)
        with self.model.lock:
            for row, places in self._dev:
                windows = self._windows(row.context)
                asked = Asked(
                    self._question(row),
                    tuple(ids for _, ids in windows),
                    tuple(_within(places, start, len(ids)) for start, ids in windows),
                )
                odds = [found.cpu() for found in self._find.odds([asked])[0]]
                whole = torch.cat(odds).log_softmax(-1)
                answered = torch.cat([whole[each.start : each.end] for each in places])
                figures["bits"].append(-float(answered.logsumexp(-1)) * BITS)
                opens = [seams.openings(ids) for _, ids in windows]
                for ratio in DEV_RATIOS:
                    n_symbols = max(1, len(whole) // ratio)
                    fine = torch.zeros(len(whole), dtype=torch.bool)
                    if (emphases := emphasise(odds, n_symbols, opens=opens)) is not None:
                        fine = torch.cat([each.fine for each in emphases])
                    kept = any(bool(fine[each.start : each.end].all()) for each in places)
                    figures[f"kept@{ratio}"].append(float(kept))
        return {name: sum(values) / len(values) for name, values in figures.items()}


def _within(places: Sequence[Extent], start: int, n: int) -> tuple[Extent, ...]:
    """The parts of some places that stand in a window, from its start."""
    cut = ((max(0, each.start - start), min(n, each.end - start)) for each in places)
    return tuple(Extent(first, end) for first, end in cut if first < end)
