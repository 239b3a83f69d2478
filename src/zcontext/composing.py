"""Writing symbol by symbol: a window that has been read in, codes and ends out.

One step of the loop, over the cache of the read step:

1. the pace of the state before says where the next segment ends;
2. two positions are read: the symbol before, as a reader hears it, and a slot with the tokens of
   the segment;
3. the state at the slot says which codes, or END; names are looked up, and it says END or not.

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
from zcontext.codebook import Codebook
from zcontext.composer import Composer
from zcontext.config import CodecConfig
from zcontext.errors import ModelError
from zcontext.model import ZLanguageModel
from zcontext.naming import Wording, place_symbols
from zcontext.passes import ReadState
from zcontext.pointing import Phrasing, Pointer, Request, price_of
from zcontext.spelling import Noise, hearing_order, speller_of

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
        ids: The tokens to be written, right-padded, int64 `[batch, n]`.
        tokens: Their embeddings, `[batch, n, hidden]`.
        positions: Their positions, `[batch, n]`.
        before: Position in front of the first, `[batch]`.
        bits: Their surprisal, `[batch, n]`.
        surprisal: The same of each row without its padding, `[n of the row]`, on the CPU.
        requests: What each row is to be written in.
        stops: Of each row, tokens that no segment reaches across.
        starts: Where phrases start, bool `[batch, n]`, on the CPU; None where codes are no names.
    """

    state: ReadState
    ids: Tensor
    tokens: Tensor
    positions: Tensor
    before: Tensor
    bits: Tensor
    surprisal: tuple[Tensor, ...]
    requests: tuple[Request, ...]
    stops: tuple[tuple[int, ...], ...]
    starts: Tensor | None

    @classmethod
    def of(
        cls,
        state: ReadState,
        places: Sequence[Sequence[int]],
        requests: Sequence[Request],
        *,
        codebook: Codebook,
        start: int,
        width: int,
    ) -> Passage:
        """Rows of a batch of windows.

        Args:
            state: What the read step left.
            places: Of each row, the tokens to be written, as indices in the window.
            requests: What each row is to be written in.
            codebook: Of the codec.
            start: Where targets begin.
            width: Tokens that rows are padded to.

        Returns:
            The passage.
        """
        index = torch.full((len(places), width), max(0, width - 1))
        for row, chosen in enumerate(places):
            index[row, : len(chosen)] = torch.tensor(chosen)
        there = index.to(state.tokens.device)
        ids, bits = state.ids.gather(1, there), state.surprisal.detach().gather(1, there)
        tokens = state.tokens.gather(1, there.unsqueeze(-1).expand(-1, -1, state.tokens.shape[-1]))
        stops = [
            tuple(k + 1 for k in range(len(row) - 1) if row[k + 1] > row[k] + 1) for row in places
        ]
        # No phrase reaches from a row's last token into what pads it.
        breaks = [{*own, len(row)} for own, row in zip(stops, places, strict=True)]
        return cls(
            state,
            ids,
            tokens,
            state.positions.gather(1, there),
            (state.positions[:, start] - 1).clamp_min(0),
            bits,
            tuple(row[: len(own)] for row, own in zip(bits.cpu(), places, strict=True)),
            tuple(requests),
            tuple(stops),
            codebook.cut(ids, breaks),
        )

    def pointers(self, *, depth: int) -> list[Pointer]:
        """A pointer of each row, at its beginning."""
        return [
            Pointer(bits, request, stops=stops, phrasing=self._phrasing(row, depth))
            for row, (bits, request, stops) in enumerate(
                zip(self.surprisal, self.requests, self.stops, strict=True)
            )
        ]

    def _phrasing(self, row: int, depth: int) -> Phrasing | None:
        if self.starts is None:
            return None
        return Phrasing(self.starts[row, : len(self.surprisal[row])], depth)

    def one_pass_ends(
        self, config: CodecConfig, counts: Sequence[int], *, depth: int
    ) -> list[Tensor]:
        """Where the one-pass writer's segments end, given how many there are.

        Args:
            config: Of the codec.
            counts: Symbols of each row.
            depth: Codes per symbol.

        Returns:
            Of each row the last token of every segment, int64, on the CPU.
        """
        return [
            place_symbols(
                config,
                bits.unsqueeze(0),
                count,
                depth=depth,
                starts=None if self.starts is None else self.starts[row : row + 1, : len(bits)],
            )[0]
            for row, (bits, count) in enumerate(zip(self.surprisal, counts, strict=True))
        ]

    def wording(self, ends: Tensor) -> Wording:
        """The text as segments that end at some tokens `[batch, k]`."""
        return Wording(self.ids, self.tokens, ends, self.bits)

    def segments(self, begins: Tensor, ends: Tensor) -> Wording:
        """One segment of each row by itself, in front.

        As wide as the windows whatever the segment's length: the shape of what follows must not
        tell who else is in the batch.

        Args:
            begins: Its first token, `[batch]`.
            ends: Behind its last one, `[batch]`.

        Returns:
            The text from there on, the segment being its only one.
        """
        n = self.ids.shape[1]
        index = (begins.unsqueeze(1) + torch.arange(n)).clamp_max(n - 1).to(self.ids.device)
        tokens = self.tokens.gather(1, index.unsqueeze(-1).expand_as(self.tokens))
        last = (ends - begins - 1).unsqueeze(1).to(self.ids.device)
        return Wording(self.ids.gather(1, index), tokens, last, self.bits.gather(1, index))

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
        held: True on slots whose segment ends before where their pace led, `[batch, k]`.
        real: True on slots that were gone through, `[batch, k]`.
        ended: True where END was chosen, `[batch, k]`.
    """

    codes: Tensor
    ends: Tensor
    places: Tensor
    n_left: Tensor
    prices: Tensor
    held: Tensor
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
        noise: Of each stage that draws, `[batch, k, ...]`; None without noise.
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
        self.pointers = passage.pointers(depth=depth)
        self._speller = speller_of(self.composer, model.codebook, depth)
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
            own = passage.segments(begins, ends)
            pooled = model.codebook.pool(own.tokens, own.ends)
            left = torch.tensor(n_left, device=pooled.device).unsqueeze(1)
            slot = self.composer.slot_inputs(pooled, left)
            there = passage.positions.gather(1, (ends - 1).clamp_min(0).to(pooled.device)[:, None])
            inputs = slot if symbol is None else torch.cat([symbol, slot.to(symbol.dtype)], dim=1)
            spots = there if symbol is None else torch.cat([behind, there], dim=1)
            state = self._pass(inputs, spots)
            codes, ended, noise = self._choose(state, pooled, own)
            heard = codes.gather(-1, hearing_order(model.codebook, codes, own.tokens, own.ends))
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

    def _choose(
        self, state: Tensor, pooled: Tensor, own: Wording
    ) -> tuple[Tensor, Tensor, Noise | None]:
        """Codes `[batch, 1, depth]` and END `[batch, 1]`; the first slot cannot be END's."""
        scale = self.model.codebook.correction_scale
        latents = self.composer.latents(state, pooled, scale=scale)
        odds = self.composer.end_odds(state)
        if not self._steps:
            odds = torch.full_like(odds, NEVER)
        if self._seeds is None:
            return *self._speller.greedy(latents, odds, wording=own), None
        noise = self._speller.noise(odds.shape, self._seeds)
        return *self._speller.draw(latents, odds, noise, wording=own), noise

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
            held = torch.tensor([pointer.held for pointer in self.pointers])
            self._steps.append(
                {
                    "codes": codes,
                    "ends": (ends - 1).unsqueeze(1),
                    "places": places.unsqueeze(1),
                    "n_left": torch.tensor(n_left).unsqueeze(1),
                    "held": held.unsqueeze(1),
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
            for name in ("codes", "ends", "places", "n_left", "held", "real", "ended")
        }
        prices = torch.tensor([pointer.price for pointer in self.pointers], device=device)
        stages = zip(*(step["noise"] for step in self._steps), strict=True)
        noise = [torch.cat(steps, dim=1) for steps in stages]
        return Composed(codes, ends, Path(prices=prices, **whole), noise)
