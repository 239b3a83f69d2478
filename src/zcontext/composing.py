"""Writing symbol by symbol: a window that has been read in, codes and ends out.

One step of the loop, over the cache of the read step:

1. the pace of the state before says where the next segment ends;
2. two positions are read: the symbol before, as a reader hears it, and a slot with the tokens of
   the segment;
3. the state at the slot says which codes, or END.

While training, every path is gone twice: here, with noise, one step at a time, and then all at
once with a gradient (`training/retracing.py`). What this module does not know: documents, budgets,
losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zcontext.caches import fork
from zcontext.composer import Composer
from zcontext.errors import ModelError
from zcontext.model import ZLanguageModel
from zcontext.passes import ReadState
from zcontext.pointing import Pointer, Request, price_of
from zcontext.spelling import Noise, Speller, draw_noise

NEVER = -30.0
"""Log-odds of END where it is not allowed."""


def composer_of(model: ZLanguageModel) -> Composer:
    """The composer of a model.

    Args:
        model: The model.

    Returns:
        Its composer.

    Raises:
        ModelError: It has none.
    """
    if model.composer is None:
        raise ModelError(
            "this codec has no autoregressive writer: its bundle lacks the part 'compose'. Load a "
            "bundle that has it, or train one: zcontext train benchmarks/train/autoregress.toml"
        )
    return model.composer


@dataclass(frozen=True, slots=True)
class Passage:
    """Windows that have been read and are to be written, as rows of one batch.

    Attributes:
        state: What the read step left.
        tokens: Embeddings of the tokens to be written, right-padded, `[batch, n, hidden]`.
        positions: Their positions, `[batch, n]`.
        before: Position in front of the first, `[batch]`.
        surprisal: Bits of the tokens of each row, `[n of the row]`, on the CPU.
        requests: What each row is to be written in.
        stops: Of each row, tokens that no segment reaches across.
    """

    state: ReadState
    tokens: Tensor
    positions: Tensor
    before: Tensor
    surprisal: tuple[Tensor, ...]
    requests: tuple[Request, ...]
    stops: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        state: ReadState,
        places: Sequence[Sequence[int]],
        requests: Sequence[Request],
        *,
        start: int,
        width: int,
    ) -> Passage:
        """Rows of a batch of windows.

        Args:
            state: What the read step left.
            places: Of each row, the tokens to be written, as indices in the window.
            requests: What each row is to be written in.
            start: Where targets begin.
            width: Tokens that rows are padded to.

        Returns:
            The passage.
        """
        index = torch.full((len(places), width), max(0, width - 1))
        for row, chosen in enumerate(places):
            index[row, : len(chosen)] = torch.tensor(chosen)
        there = index.to(state.tokens.device)
        tokens = state.tokens.gather(1, there.unsqueeze(-1).expand(-1, -1, state.tokens.shape[-1]))
        bits = state.surprisal.detach().cpu()
        before = (state.positions[:, start] - 1).clamp_min(0)
        stops = [
            tuple(k + 1 for k in range(len(row) - 1) if row[k + 1] > row[k] + 1) for row in places
        ]
        return cls(
            state,
            tokens,
            state.positions.gather(1, there),
            before,
            tuple(bits[row, torch.tensor(list(p)).long()] for row, p in enumerate(places)),
            tuple(requests),
            tuple(stops),
        )

    def pointers(self) -> list[Pointer]:
        """A pointer of each row, at its beginning."""
        rows = zip(self.surprisal, self.requests, self.stops, strict=True)
        return [Pointer(bits, request, stops=stops) for bits, request, stops in rows]

    def ratios(self, pointers: Sequence[Pointer], *, mean_surprisal: float) -> Tensor:
        """What is asked for, in tokens of ordinary text a symbol, `[batch]`."""
        one = price_of(1.0, mean_surprisal=mean_surprisal)
        asked = torch.tensor([pointer.price / one for pointer in pointers])
        return asked.clamp_min(1.0).to(self.tokens.device)


@dataclass(frozen=True, slots=True)
class Path:
    """Slots that have been gone through, END's among them.

    Attributes:
        codes: In the order of choice, int64 `[batch, k, depth]`.
        ends: Last token of each slot's segment, `[batch, k]`; behind the last slot its own again.
        places: Where the pointer stood behind each slot, in bits, `[batch, k]`.
        n_left: Symbols expected to be left at each slot, `[batch, k]`.
        prices: Bits a symbol that were asked for, `[batch]`.
        real: True on slots that were gone through, `[batch, k]`.
        ended: True where END was chosen, `[batch, k]`.
    """

    codes: Tensor
    ends: Tensor
    places: Tensor
    n_left: Tensor
    prices: Tensor
    real: Tensor
    ended: Tensor

    @property
    def written(self) -> Tensor:
        """True on slots that wrote a symbol."""
        return self.real & ~self.ended


@dataclass(frozen=True, slots=True)
class Composed:
    """What composing gives.

    Attributes:
        codes: Of each row, its symbols' codes in the order in which a reader hears them.
        ends: Of each row, where its segments end among the tokens to be written (exclusive).
        path: The way there; None unless noise was kept.
        noise: Of each stage, `[batch, k, ...]`; None without noise.
    """

    codes: tuple[tuple[tuple[int, ...], ...], ...]
    ends: tuple[tuple[int, ...], ...]
    path: Path | None = None
    noise: Noise | None = None


class Composition:
    """One batch of windows while it is composed.

    Args:
        model: With a composer.
        passage: The windows.
        depth: Codes per symbol.
        seeds: Source of Gumbel noise while training; None writes the likeliest.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        passage: Passage,
        *,
        depth: int,
        seeds: torch.Generator | None = None,
    ) -> None:
        self.model, self.passage, self.depth = model, passage, depth
        self.composer = composer_of(model)
        self.pointers = passage.pointers()
        self._speller = Speller(self.composer, model.codebook, depth)
        self._seeds = seeds
        self._cache: Any = fork(passage.state.cache)
        self._mask = passage.state.mask
        self._steps: list[dict[str, Any]] = []
        self._heard: list[list[tuple[int, ...]]] = [[] for _ in self.pointers]

    @torch.no_grad()
    def run(self) -> Composed:
        """Write all rows to their ends; COMPOSE must be active.

        Returns:
            Codes and ends, and the path if there is noise.
        """
        passage, model = self.passage, self.model
        ratios = passage.ratios(self.pointers, mean_surprisal=model.config.mean_surprisal)
        state = self._pass(self.composer.start_inputs(ratios), passage.before.unsqueeze(1))
        symbol: Tensor | None = None
        behind = passage.before.unsqueeze(1)
        while not all(pointer.stopped for pointer in self.pointers):
            running = [not pointer.stopped for pointer in self.pointers]
            n_left = [pointer.n_left for pointer in self.pointers]
            begins = torch.tensor([pointer.begin for pointer in self.pointers])
            for pointer, pace in zip(self.pointers, self._paces(state), strict=True):
                if not pointer.stopped:
                    pointer.advance(pace)
            ends = torch.tensor([pointer.begin for pointer in self.pointers])
            own, last = self._segments(begins, ends)
            pooled = model.codebook.pool(own, last)
            left = torch.tensor(n_left, device=own.device).unsqueeze(1)
            slot = self.composer.slot_inputs(pooled, left)
            there = passage.positions.gather(1, (ends - 1).clamp_min(0).to(own.device)[:, None])
            inputs = slot if symbol is None else torch.cat([symbol, slot.to(symbol.dtype)], dim=1)
            spots = there if symbol is None else torch.cat([behind, there], dim=1)
            state = self._pass(inputs, spots)
            codes, ended, noise = self._choose(state, pooled)
            heard = codes.gather(-1, self._order(codes, own, last))
            symbol, behind = model.embed_codes(heard), there
            self._note(running, codes, heard, ended, noise, ends, n_left)
        return self._composed()

    def _pass(self, inputs: Tensor, positions: Tensor) -> Tensor:
        """States at the last position, `[batch, 1, hidden]`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(positions.shape)], dim=1)
        out = self.model.run(
            inputs,
            positions=positions,
            mask=self._mask,
            cache=self._cache,
            use_cache=True,
            n_layers=self.model.config.writer_layers,
        )
        self._cache = out.cache
        return out.hidden[:, -1:]

    def _paces(self, state: Tensor) -> list[float]:
        paces: list[float] = self.composer.pace(state)[:, 0].tolist()
        return paces

    def _segments(self, begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of one segment of each row, in front, and the last of them.

        As wide as the windows whatever the segment's length: the shape of what follows must not
        tell who else is in the batch.
        """
        n = self.passage.tokens.shape[1]
        index = (begins.unsqueeze(1) + torch.arange(n)).clamp_max(n - 1)
        index = index.to(self.passage.tokens.device).unsqueeze(-1)
        own = self.passage.tokens.gather(1, index.expand_as(self.passage.tokens))
        return own, (ends - begins - 1).unsqueeze(1).to(own.device)

    def _order(self, codes: Tensor, own: Tensor, last: Tensor) -> Tensor:
        if not self.model.config.shared:
            return torch.arange(self.depth, device=codes.device).expand_as(codes)
        return self.model.codebook.order(codes, own, last)

    def _choose(self, state: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Noise | None]:
        """Codes `[batch, 1, depth]` and END `[batch, 1]`; the first slot cannot be END's."""
        scale = self.model.codebook.correction_scale
        latents = self.composer.latents(state, pooled, scale=scale)
        odds = self.composer.end_odds(state)
        if not self._steps:
            odds = torch.full_like(odds, NEVER)
        if self._seeds is None:
            return *self._speller.greedy(latents, odds), None
        size = self.model.config.size
        noise = draw_noise(odds.shape, depth=self.depth, size=size, seeds=self._seeds)
        return *self._speller.draw(latents, odds, noise), noise

    def _note(
        self,
        running: list[bool],
        codes: Tensor,
        heard: Tensor,
        ended: Tensor,
        noise: Noise | None,
        ends: Tensor,
        n_left: list[float],
    ) -> None:
        over = [run and end for run, end in zip(running, ended[:, 0].tolist(), strict=True)]
        if self._seeds is not None:
            places = torch.tensor([pointer.place for pointer in self.pointers])
            self._steps.append(
                {
                    "codes": codes,
                    "ends": (ends - 1).unsqueeze(1),
                    "places": places.unsqueeze(1),
                    "n_left": torch.tensor(n_left).unsqueeze(1),
                    "real": torch.tensor(running).unsqueeze(1),
                    "ended": torch.tensor(over).unsqueeze(1),
                    "noise": noise,
                }
            )
        else:
            self._steps.append({})
        chosen = heard[:, 0].tolist()
        for row, pointer in enumerate(self.pointers):
            if over[row]:
                pointer.close()
            elif running[row]:
                self._heard[row].append(tuple(chosen[row]))

    def _composed(self) -> Composed:
        codes = tuple(map(tuple, self._heard))
        ends = tuple(tuple(pointer.ends) for pointer in self.pointers)
        if self._seeds is None:
            return Composed(codes, ends)
        device = self.passage.tokens.device
        whole = {
            name: torch.cat([step[name].to(device) for step in self._steps], dim=1)
            for name in ("codes", "ends", "places", "n_left", "real", "ended")
        }
        prices = torch.tensor([pointer.price for pointer in self.pointers], device=device)
        noise = [
            torch.cat([step["noise"][stage] for step in self._steps], dim=1)
            for stage in range(self.depth)
        ]
        return Composed(codes, ends, Path(prices=prices, **whole), noise)
