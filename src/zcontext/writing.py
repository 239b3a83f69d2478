"""The window writer: token ids of some windows in, codes of their symbols out.

It runs the two steps of the model (read, write) on a batch of windows, and owns one promise: a
window gets the same codes whoever shares its batch. Rounding differs between passes of different
shapes, and a latent near the border of two codes would tip. So the shape of a pass follows from
the window itself: lengths are padded to steps, missing rows are filled, and only windows of one
shape run together. With `batch_size` 1 nothing is padded at all.

What it does not know: documents, text, where a budget comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import torch
from torch import Tensor

from zcontext.caches import rows_of
from zcontext.composing import Composition, Passage
from zcontext.errors import ConfigError, ModelError
from zcontext.model import ZLanguageModel
from zcontext.passes import ReadState
from zcontext.pointing import Request
from zcontext.segmentation import place_slots, weigh
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
        literals: Tokens of the target that are kept as text, from its start, in order.
        request: What the autoregressive writer is asked for, which decides itself; None has the
            window written in one pass.
    """

    ids: Sequence[int]
    start: int
    memory: Codes
    depth: int
    take: Callable[[Tensor], int]
    literals: tuple[Extent, ...] = ()
    request: Request | None = None


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
            bits = state.surprisal.detach().cpu()
            if not bool(torch.isfinite(bits).all()):
                raise ModelError(
                    "the base gives surprisals that are not finite; load it with dtype='fp32' or "
                    "'bf16', and check that the bundle was trained on this base"
                )
            if tasks[0].request is not None:
                return self._compose(state, tasks)
            placed = [
                _place(bits[row, start : len(task.ids)], task) for row, task in enumerate(tasks)
            ]
            codes = self._write(state, tasks, [slots.ends + start for slots in placed])
        return [slots.written(row) for row, slots in zip(codes, placed, strict=True)]

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
        rows = self._filled(range(len(tasks)))
        ids = torch.full((len(rows), length), self.model.end_token)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            n = len(tasks[row].ids)
            ids[at, :n] = torch.tensor(tasks[row].ids)
            mask[at, :n] = 1
        memory = None
        if tasks[0].memory:
            codes = torch.tensor([tasks[row].memory for row in rows])
            memory = self.model.embed_codes(codes)
        device = self.model.device
        return self.model.read(ids.to(device), mask.to(device), memory=memory)

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
                latents, chosen.tokens[:, start:], ends_there - start, depth=tasks[0].depth
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
    kept = {k for each in task.literals for k in range(each.start, each.end)}
    return [k for k in range(len(task.ids) - task.start) if k not in kept]


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


def _place(bits: Tensor, task: WindowTask) -> _Slots:
    """Slots of a target, under the surprisal of its tokens, `[n]`."""
    n = len(bits)
    if not task.literals:
        n_slots = task.take(bits)
        return _Slots(place_slots(bits, n_slots) if n_slots else torch.zeros(0).long(), n)
    edges = [0, *(edge for each in task.literals for edge in (each.start, each.end)), n]
    runs = [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
    free = torch.cat([torch.arange(a, b) for a, b in runs])
    n_slots = task.take(bits[free])
    if n_slots < len(runs):  # too few for every run to have its own: segments reach across
        places = free[place_slots(bits[free], n_slots)] if n_slots else torch.zeros(0).long()
        return _Slots(places, n)
    shares = share_slots([bits[a:b] for a, b in runs], n_slots)
    ends: list[int] = []
    dropped: list[int] = []
    for (a, b), share in zip(runs, shares, strict=True):
        if a > (ends[-1] + 1 if ends else 0):
            # The literal before the run has a slot of its own, so that no symbol has to carry it.
            dropped.append(len(ends))
            ends.append(a - 1)
        ends += (place_slots(bits[a:b], share) + a).tolist()
    return _Slots(torch.tensor(ends), n, frozenset(dropped))


def share_slots(runs: Sequence[Tensor], n_slots: int) -> list[int]:
    """Slots for runs of tokens, each in proportion to its surprisal (D'Hondt's method).

    Args:
        runs: Surprisal of each run's tokens, bits, `[n]`.
        n_slots: At least one for each run, at most one for each token.

    Returns:
        Slots of each run, 1 to the number of its tokens.
    """
    shares = [1] * len(runs)
    waiting = [(-float(weigh(run).sum()) / 2, at) for at, run in enumerate(runs) if len(run) > 1]
    heapify(waiting)
    for _ in range(n_slots - len(runs)):
        price, at = heappop(waiting)
        shares[at] += 1
        if shares[at] < len(runs[at]):
            heappush(waiting, (price * shares[at] / (shares[at] + 1), at))
    return shares


def _extended(ends: Tensor, n_slots: int) -> Tensor:
    """Slots padded with the last one, which then own no token."""
    return torch.cat([ends, ends[-1:].expand(n_slots - len(ends))])
