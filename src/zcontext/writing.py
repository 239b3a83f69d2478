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

import torch
from torch import Tensor

from zcontext.caches import rows_of
from zcontext.errors import ConfigError, ModelError
from zcontext.model import ZLanguageModel
from zcontext.passes import ReadState
from zcontext.segmentation import place_slots

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
        take: From the target's surprisal (bits, `[n]`) to the number of symbols to write.
    """

    ids: Sequence[int]
    start: int
    memory: Codes
    depth: int
    take: Callable[[Tensor], int]


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

    def shape(self, task: WindowTask) -> tuple[int, int, int, int]:
        """What two windows must share to run together: padded length, start, memory, depth.

        Args:
            task: A window.

        Returns:
            The shape of its pass.
        """
        return self._padded(len(task.ids), TOKEN_STEP), task.start, len(task.memory), task.depth

    def write(self, tasks: Sequence[WindowTask]) -> list[Written]:
        """Symbols of some windows of one shape.

        Args:
            tasks: 1 to `batch_size` windows.

        Returns:
            Per window its symbols, in order.

        Raises:
            ModelError: The base gives surprisals that are not numbers.
        """
        length, start, _, _ = self.shape(tasks[0])
        with self.model.using("compress"), torch.no_grad():
            state = self._read(tasks, length)
            bits = state.surprisal.detach().cpu()
            if not bool(torch.isfinite(bits).all()):
                raise ModelError(
                    "the base gives surprisals that are not finite; load it with dtype='fp32' or "
                    "'bf16', and check that the bundle was trained on this base"
                )
            ends = []
            for row, task in enumerate(tasks):
                target = bits[row, start : len(task.ids)]
                n_slots = task.take(target)
                places = place_slots(target, n_slots) if n_slots else target.new_zeros(0).long()
                ends.append(places + start)
            codes = self._write(state, tasks, ends)
        return [
            Written(row, tuple((places - start + 1).tolist()))
            for row, places in zip(codes, ends, strict=True)
        ]

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
            latents = self.model.write(
                self._state_of(state, rows),
                places.to(self.model.device),
                real.to(self.model.device),
                start=tasks[0].start,
            )
            codes = self.model.quantise(latents, depth=tasks[0].depth).codes.tolist()
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


def _extended(ends: Tensor, n_slots: int) -> Tensor:
    """Slots padded with the last one, which then own no token."""
    return torch.cat([ends, ends[-1:].expand(n_slots - len(ends))])
