"""The window writer: token ids of some windows in, codes of their symbols out.

It runs the two steps of the model (read, write) on a batch of windows, and owns one promise: a
window gets the same codes whoever shares its batch. Rounding differs between passes of different
shapes, and a latent near the border of two codes would tip. So the shape of a pass follows from
the window itself: lengths are padded to steps, missing rows are filled, and only windows of one
shape run together. With `batch_size` 1 nothing is padded at all.

What it does not know: documents, text, where a budget comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.anchoring import Seams, end_costs
from zcontext.attending import relevance
from zcontext.caches import rows_of
from zcontext.composing import Composition, Passage
from zcontext.config import SurprisalName
from zcontext.emphasis import fewest_slots, place_runs, runs_of
from zcontext.errors import ConfigError
from zcontext.literals import beside
from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.passes import ReadState
from zcontext.pointing import Request
from zcontext.segmentation import FACT_BITS
from zcontext.surprisal import base_surprisal, finite, scarce
from zcontext.tokenization import token_seams
from zcontext.windows import Extent

Codes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """The symbols of one window.

    Attributes:
        codes: Codes of each symbol.
        ends: Where each symbol's segment ends, in tokens from the target's start (exclusive).
    """

    codes: Codes
    ends: tuple[int, ...]


TOKEN_STEP = 64
SLOT_STEP = 16


@dataclass(frozen=True, slots=True)
class WindowTask:
    """One window to be written.

    Attributes:
        ids: Tokens of context and target.
        start: Where the target begins.
        memory: Codes of symbols written earlier, read first.
        depth: Codes per symbol.
        take: From the target's surprisal (bits, `[n]`) to the number of symbols to write; tokens
            of literals are left out.
        facts: Which tokens of the target belong to a number, a name or an address and are said
            before others, bool `[n]`; None has all of them follow the surprisal.
        literals: Tokens of the target that are kept as text, from its start, in order.
        fine: Per token of the target whether it is emphasised, bool `[n]`; None has all of them
            follow the surprisal.
        grain: Tokens for each symbol of what is emphasised.
        request: What the autoregressive writer is asked for, which decides itself; None has the
            window written in one pass.
        n_question: Tokens in front of context and target that ask something of them.
        anchored: Whether the tokens around a place decide that a segment ends there, rather than
            surprisal counted out from the target's start.
        surprisal: Who says how hard tokens are to guess, as in `CompressSettings`.
    """

    ids: Sequence[int]
    start: int
    memory: Codes
    depth: int
    take: Callable[[Tensor], int]
    facts: Tensor | None = None
    literals: tuple[Extent, ...] = ()
    fine: Tensor | None = None
    grain: int = 1
    request: Request | None = None
    n_question: int = 0
    anchored: bool = False
    surprisal: SurprisalName = "writer"


class WindowWriter:
    """Writes windows on one model.

    Args:
        model: The model; it is held for one batch at a time.
        batch_size: Rows of every pass.

    Raises:
        ConfigError: `batch_size` is below 1.
    """

    def __init__(self, model: ZLanguageModel, *, batch_size: int = 1) -> None:
        if batch_size < 1:
            raise ConfigError(
                f"batch_size must be 1 or more windows, got {batch_size}",
                field="batch_size",
                value=batch_size,
            )
        self.model = model
        self.batch_size = batch_size

    def shape(self, task: WindowTask) -> tuple[int, ...]:
        """What two windows must share to run together: padded length, start, memory, depth, writer.

        Args:
            task: A window.

        Returns:
            The shape of its pass.
        """
        length, by_steps = self._padded(len(task.ids), TOKEN_STEP), task.request is not None
        return length, task.start, len(task.memory), task.depth, by_steps

    def write(self, tasks: Sequence[WindowTask]) -> list[Written]:
        """Symbols of some windows of one shape.

        Args:
            tasks: 1 to `batch_size` windows.

        Returns:
            Per window its symbols, in order.

        Raises:
            ModelError: The base gives surprisals that are not numbers, or the codec has no
                autoregressive writer and is asked for it.
        """
        length, start, *_ = self.shape(tasks[0])
        with self.model.using("compress"), torch.no_grad():
            state = self._read(tasks, length)
            finite(state.surprisal)
            if tasks[0].request is not None:
                return self._compose(state, tasks)
            bits = _with_facts(state.surprisal, tasks)
            counts = [
                task.take(row[start : len(task.ids)][free_places(task)])
                for task, row in zip(tasks, bits.cpu(), strict=False)
            ]
            bits = self._guessed_better(bits, state.ids, tasks, counts)
            placed = [
                self._place(row[start : len(task.ids)], task, n_slots)
                for row, task, n_slots in zip(bits.cpu(), tasks, counts, strict=False)
            ]
            state = dataclasses.replace(state, surprisal=bits)
            codes = self._write(state, tasks, [slots.ends + start for slots in placed])
        return [slots.written(row) for row, slots in zip(codes, placed, strict=True)]

    @property
    def enough(self) -> int:
        """Symbols for one question beside one for each window, 0 for no limit: see `Focus`."""
        return 0 if self.model.focus is None else int(self.model.focus.enough)

    @property
    def pairs(self) -> float:
        """What two tokens a symbol are worth where a question is asked: see `Focus`."""
        return 0.0 if self.model.focus is None else float(self.model.focus.pairs)

    def opens(self, task: WindowTask) -> Tensor:
        """Which of the tokens that a window writes begin a word.

        Args:
            task: The window.

        Returns:
            bool `[n]`, of the tokens that `free_places` names.
        """
        found = self._seams.openings(task.ids[task.start :])
        # What is kept as text parts the words on its sides.
        found[[each.end for each in task.literals if each.end < len(found)]] = True
        return found[free_places(task)]

    def attend(self, tasks: Sequence[WindowTask]) -> list[Tensor]:
        """Where some windows answer the question in front of them.

        Args:
            tasks: Windows of any shapes.

        Returns:
            Per window the log-odds of each token of its target, float32 `[n]`.
        """
        found: dict[int, Tensor] = {}
        waiting = list(range(len(tasks)))
        with self.model.using("focus"), torch.no_grad():
            while waiting:
                shape = self.shape(tasks[waiting[0]])
                together = [at for at in waiting if self.shape(tasks[at]) == shape]
                together = together[: self.batch_size]
                rows = [tasks[at] for at in self._filled(together)]
                ids, mask = self._stacked(rows, shape[0])
                odds = relevance(self.model, ids, mask, [task.n_question for task in rows])
                for at, row in zip(together, odds, strict=False):
                    found[at] = row[tasks[at].start - tasks[at].n_question :].cpu()
                waiting = [at for at in waiting if at not in found]
        return [found[at] for at in range(len(tasks))]

    def _compose(self, state: ReadState, tasks: Sequence[WindowTask]) -> list[Written]:
        start, depth = tasks[0].start, tasks[0].depth
        free = [[start + k for k in free_places(task)] for task in tasks]
        asked = [task.request or Request(1.0, 0) for task in tasks]
        rows = self._filled(range(len(tasks)))
        passage = Passage.of(
            state,
            [free[row] for row in rows],
            # What fills the batch up is not written: it would only make all others wait.
            [*asked, *[Request(1.0, 0)] * (len(rows) - len(tasks))],
            codebook=self.model.codebook,
            start=start,
            width=state.tokens.shape[1] - start,
        )
        with self.model.using("compose"):
            found = Composition(self.model, passage, depth=depth).run()
        written = []
        for task, places, codes, ends in zip(tasks, free, found.codes, found.ends, strict=False):
            placed = [places[end - 1] - start + 1 for end in ends[:-1]]
            n_tokens = len(task.ids) - start
            written.append(Written(codes, (*placed, n_tokens) if ends else ()))
        return written

    def _padded(self, n: int, step: int) -> int:
        return n if self.batch_size == 1 else -(-n // step) * step

    def _filled(self, rows: Sequence[int]) -> list[int]:
        """Rows, repeated until the pass is full: its shape must not tell how many there were."""
        return [*rows, *[rows[0]] * (self.batch_size - len(rows))]

    def _read(self, tasks: Sequence[WindowTask], length: int) -> ReadState:
        rows = [tasks[row] for row in self._filled(range(len(tasks)))]
        ids, mask = self._stacked(rows, length)
        memory = None
        if tasks[0].memory:
            memory = self.model.embed_codes(torch.tensor([task.memory for task in rows]))
        return self.model.read(ids, mask, memory=memory)

    def _stacked(self, tasks: Sequence[WindowTask], length: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask `[batch, length]` of windows, right-padded."""
        ids = torch.full((len(tasks), length), self.model.end_token)
        mask = torch.zeros_like(ids)
        for row, task in enumerate(tasks):
            ids[row, : len(task.ids)] = torch.tensor(task.ids)
            mask[row, : len(task.ids)] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    def _guessed_better(
        self, bits: Tensor, ids: Tensor, tasks: Sequence[WindowTask], counts: Sequence[int]
    ) -> Tensor:
        """Surprisal `[batch, n]`, by the base for windows that ask it, by the writer for others."""
        asking = [
            task.surprisal == "base"
            or (task.surprisal == "auto" and scarce(len(free_places(task)), n, depth=task.depth))
            for task, n in zip(tasks, counts, strict=True)
        ]
        if not any(asking):
            return bits
        found = _with_facts(base_surprisal(self.model, ids).to(bits), tasks)
        rows = torch.tensor(self._filled(asking), device=bits.device)
        return torch.where(rows.unsqueeze(1), found, bits)

    def _place(self, bits: Tensor, task: WindowTask, n_slots: int) -> _Slots:
        """Slots of a target, under the surprisal of its tokens, `[n]`."""
        n = len(bits)
        target = torch.tensor([task.ids[task.start :]])
        cut = self.model.codebook.cut
        costs = self._costs(target) if task.anchored else None
        if not task.literals and task.fine is None:
            return _Slots(self._placed(bits, n_slots, task, starts=cut(target), costs=costs), n)
        free = torch.tensor(free_places(task))
        fine = torch.zeros(n, dtype=torch.bool) if task.fine is None else task.fine
        edges = [edge for each in task.literals for edge in (each.start, each.end)]
        kept = {each.start for each in task.literals}
        runs = [run for run in runs_of(fine, edges) if run[0] not in kept]
        if n_slots < fewest_slots(runs, task.grain):
            # Too few for every run to have its own: segments reach across.
            costs = None if costs is None else costs[:, free]
            places = free[self._placed(bits[free], n_slots, task, costs=costs)]
            return _Slots(places, n)
        starts = cut(target, [{start for start, *_ in runs} | set(edges)])
        config, told = self.model.config, {"starts": starts, "costs": costs}
        placed = place_runs(config, bits, runs, n_slots, grain=task.grain, depth=task.depth, **told)
        ends: list[int] = []
        dropped: list[int] = []
        for (a, *_), found in zip(runs, placed, strict=True):
            if a > (ends[-1] + 1 if ends else 0):
                # The literal before the run has a slot of its own: no symbol has to carry it.
                dropped.append(len(ends))
                ends.append(a - 1)
            ends += found.tolist()
        return _Slots(torch.tensor(ends), n, frozenset(dropped))

    def _costs(self, ids: Tensor) -> Tensor:
        """What ending a segment behind each token of a target costs, `[1, n]`."""
        return end_costs(ids[0].long(), self._seams).unsqueeze(0)

    @property
    def _seams(self) -> Seams:
        return token_seams(self.model.tokenizer, self.model.base_vocab)

    def _placed(
        self, bits: Tensor, n_slots: int, task: WindowTask, **told: Tensor | None
    ) -> Tensor:
        if not n_slots:
            return torch.zeros(0).long()
        config, rows = self.model.config, bits.unsqueeze(0)
        return place_symbols(config, rows, n_slots, depth=task.depth, **told)[0]

    def _write(
        self, state: ReadState, tasks: Sequence[WindowTask], ends: Sequence[Tensor]
    ) -> list[Codes]:
        groups: dict[int, list[int]] = {}
        for row, places in enumerate(ends):
            if len(places):
                groups.setdefault(self._padded(len(places), SLOT_STEP), []).append(row)
        written: list[Codes] = [()] * len(tasks)
        for n_slots, members in groups.items():
            rows = self._filled(members)
            places = torch.stack([_extended(ends[row], n_slots) for row in rows])
            real = torch.stack([torch.arange(n_slots) < len(ends[row]) for row in rows]).long()
            start, ends_there = tasks[0].start, places.to(self.model.device)
            chosen = self._state_of(state, rows)
            latents = self.model.write(chosen, ends_there, real.to(self.model.device), start=start)
            symbols = self.model.quantise(
                latents,
                chosen.ids[:, start:],
                ends_there - start,
                chosen.surprisal[:, start:],
                depth=tasks[0].depth,
            )
            codes = symbols.codes.tolist()
            for at, row in enumerate(members):
                written[row] = tuple(map(tuple, codes[at][: len(ends[row])]))
        return written

    def _state_of(self, state: ReadState, rows: Sequence[int]) -> ReadState:
        if self.batch_size == 1:
            return state
        index = torch.tensor(list(rows), device=state.tokens.device)
        return ReadState(
            state.ids[index],
            state.tokens[index],
            state.positions[index],
            state.mask[index],
            state.surprisal[index],
            rows_of(state.cache, rows),
        )


def free_places(task: WindowTask) -> list[int]:
    """Tokens of a target that are not kept as text.

    Args:
        task: The window.

    Returns:
        Their places, from the target's start.
    """
    return beside(len(task.ids) - task.start, task.literals)


def _with_facts(surprisal: Tensor, tasks: Sequence[WindowTask]) -> Tensor:
    """Surprisal of windows `[batch, n]`, higher where their targets say facts."""
    raised = surprisal.clone()
    for row, task in enumerate(tasks):
        if task.facts is not None:
            raised[row, task.start : len(task.ids)] += FACT_BITS * task.facts.to(raised.device)
    return raised


@dataclass(frozen=True, slots=True)
class _Slots:
    """Where the slots of a target stand, and which of them own literals and are not kept."""

    ends: Tensor
    n_tokens: int
    owns_literal: frozenset[int] = frozenset()

    def written(self, codes: Codes) -> Written:
        """The symbols that are kept; the last one reaches to the end of the target."""
        kept = [k for k in range(len(codes)) if k not in self.owns_literal]
        ends = [int(self.ends[k]) + 1 for k in kept]
        return Written(tuple(codes[k] for k in kept), (*ends[:-1], self.n_tokens) if ends else ())


def _extended(ends: Tensor, n_slots: int) -> Tensor:
    """Slots padded with the last one, which then own no token."""
    return torch.cat([ends, ends[-1:].expand(n_slots - len(ends))])
