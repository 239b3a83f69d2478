"""The autoregress stage: what a batch of windows costs that is written symbol by symbol.

It begins by distillation: along the symbols of the one-pass writer, the composer is to say the same
codes, at the same pace, and END where they end. Then it goes ways of its own, each twice (see
`retracing.py`), and the frozen decompressor judges them. What this module does not know:
optimisers, files, what the codec was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from zcontext.caches import fork
from zcontext.composer import MAX_PACE
from zcontext.composing import NEVER, Composition, Passage, Path, composer_of
from zcontext.config import check
from zcontext.model import ZLanguageModel
from zcontext.pointing import Request, price_of
from zcontext.relaxation import TemperatureSchedule
from zcontext.segmentation import segment_of
from zcontext.spelling import Relaxed, crowding, hearing_order, speller_of
from zcontext.training.data import WindowBatch
from zcontext.training.judging import Judge
from zcontext.training.limits import slopes_of_ends
from zcontext.training.objective import BITS, StepOutput
from zcontext.training.restore_loss import alone, spoil, states_behind
from zcontext.training.retracing import Retraced, retrace
from zcontext.training.transcribing import remember


@dataclass(frozen=True, slots=True)
class AutoregressConfig:
    """Settings of the stage.

    Attributes:
        distil_steps: Steps of distillation alone, at its beginning.
        distil_weight: Weight of distillation afterwards.
        length_weight: Weight of (K / N - 1 / r)^2, K the expected number of symbols. At 16x a tenth
            too few is an error of 0.00004: with a weight of 20 the writer took a third fewer.
        usage_weight: Weight of the divergence of the codes' use from even use.
        consistency_weight: Weight of the difference between drawn and expected rows.
        temperature_start: Of the Gumbel-Softmax, when distillation alone is over.
        temperature_end: What it falls to.
        temperature_steps: Length of its descent.
        max_token_drop: Upper end of the share of the reader's input tokens that is spoilt.

    Raises:
        ConfigError: A value is out of its range.
    """

    distil_steps: int = 200
    distil_weight: float = 1.0
    length_weight: float = 3000.0
    usage_weight: float = 0.002
    consistency_weight: float = 0.02
    temperature_start: float = 0.8
    temperature_end: float = 0.2
    temperature_steps: int = 1000
    max_token_drop: float = 0.25

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0.01 if field.name in ("temperature_start", "temperature_end") else 0
            check(self, field.name, value >= least, f"{least} or more")


class Autoregress(nn.Module):
    """Write a window symbol by symbol, have it said again.

    Args:
        model: With a composer, which learns; nothing else does.
        config: Settings of the stage.
    """

    def __init__(self, model: ZLanguageModel, config: AutoregressConfig) -> None:
        super().__init__()
        self.z = model
        self.config = config
        # Registered so that data-parallel wrappers see what is trained.
        self.base = model.base.model
        self.composer = composer_of(model)
        self._judge = None if model.channel is None else Judge(model)
        self._schedule = TemperatureSchedule(
            config.temperature_start, config.temperature_end, config.temperature_steps
        )

    def forward(self, batch: WindowBatch, step: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch.

        Args:
            batch: Windows.
            step: Optimiser step.
            generator: CPU generator of everything drawn here.

        Returns:
            Loss and figures.
        """
        z = self.z
        passage, memory = self.read(batch)
        teacher = one_pass_path(z, passage, depth=batch.depth)
        z.adapters.activate("compose")
        told, metrics = self._distil(passage, teacher, depth=batch.depth)
        if step < self.config.distil_steps:
            return StepOutput(told, metrics, told.detach().view(1, 1), None)
        found = Composition(z, passage, depth=batch.depth, seeds=generator).run()
        assert found.path is not None
        assert found.noise is not None
        path, drawn = found.path, retrace(z, passage, found.path)
        relaxed = speller_of(self.composer, z.codebook, batch.depth).relax(
            drawn.latents,
            drawn.odds,
            path.codes,
            noise=found.noise,
            temperature=self._schedule.at(step - self.config.distil_steps),
        )
        survival = torch.cumsum(nn.functional.logsigmoid(-drawn.odds), dim=1).exp()
        inputs, blank = spoil(passage.ids, z.start_token, self.config.max_token_drop, generator)
        states = states_behind(
            z,
            self._heard(passage, path, relaxed, survival),
            passage.ids,
            ends=closed_ends(path, passage.ids.shape[1]),
            inputs=inputs,
            blank=blank,
            memory=memory,
            real=path.written,
        )
        nll, hits = self._judged(passage, path, drawn, survival, states=states)
        length = self._length_error(passage, path, drawn, survival)
        usage = crowding(relaxed.shares, path.written, shared=z.config.shared)
        written = path.written.to(nll)
        unlike = (relaxed.unlike * written).sum() / written.sum()
        unlike = unlike / passage.tokens.float().var().clamp_min(1e-8)
        loss = nll.mean() + self.config.distil_weight * told + self.config.length_weight * length
        loss = loss + self.config.usage_weight * usage + self.config.consistency_weight * unlike
        metrics |= {
            "bits_per_token": nll.detach().mean() * BITS,
            "accuracy": hits.float().mean(),
            "length_error": length.detach(),
            "crowding": usage.detach(),
            "unlike": unlike.detach(),
            "ratio_asked": torch.tensor(batch.ids.shape[1] / batch.n_slots),
            "ratio_drawn": batch.ids.numel() / written.sum(),
            "early_ends": path.ended.any(-1).float().mean(),
        }
        return StepOutput(loss, metrics, drawn.latents.detach().flatten(0, 1), None)

    @torch.no_grad()
    def read(self, batch: WindowBatch) -> tuple[Passage, Tensor | None]:
        """The read step of a batch, which is the one-pass writer's and does not learn.

        Args:
            batch: Windows.

        Returns:
            The windows, to be written, and the symbols in front of them, `[batch, m, hidden]`.
        """
        z = self.z
        z.adapters.activate("compress")
        memory = remember(z, batch)
        ids = batch.ids.to(z.device)
        state = z.read(ids, torch.ones_like(ids), memory=memory)
        n = ids.shape[1]
        price = price_of(n / batch.n_slots, mean_surprisal=z.config.mean_surprisal)
        rows = [range(n)] * len(ids)
        requests = [Request(price, n)] * len(ids)
        passage = Passage.of(state, rows, requests, codebook=z.codebook, start=0, width=n)
        return passage, memory

    def _distil(
        self, passage: Passage, path: Path, *, depth: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Nats a stage, of END and its absence, and the error of the pace, along a path."""
        traced = retrace(self.z, passage, path)
        speller = speller_of(self.composer, self.z.codebook, depth)
        codes, ending = speller.nats(traced.latents, traced.odds, path.codes)
        written = path.written.to(codes)
        n = written.sum()
        said = (codes.mean(-1) * written).sum() / n
        right = torch.where(path.ended, ending[..., 0], ending[..., 1])
        ended = (right * path.real).sum() / path.real.sum()
        first = torch.zeros_like(path.places[:, :1])
        taken = torch.diff(torch.cat([first, path.places], dim=1)) / path.prices.unsqueeze(1)
        wanted = taken.clamp(1 / MAX_PACE, MAX_PACE).log().to(traced.paces)
        astray = nn.functional.smooth_l1_loss(traced.paces.log(), wanted, reduction="none")
        pace = (astray * written).sum() / n
        metrics = {
            "distil": said.detach(),
            "end_nats": ended.detach(),
            "pace_error": pace.detach(),
        }
        return said + ended + pace, metrics

    def _heard(self, passage: Passage, path: Path, relaxed: Relaxed, survival: Tensor) -> Tensor:
        """Symbols as a reader hears them, `[batch, k, hidden]`.

        END before a symbol would have taken it away: each is worth what its survival is, so that
        what a reader loses without it bears on the odds of END.
        """
        codebook = self.z.codebook
        order = hearing_order(codebook, path.codes, passage.tokens, path.ends)
        rows = relaxed.rows.gather(-2, order.unsqueeze(-1).expand_as(relaxed.rows))
        alive = torch.where(path.written, _alive(survival), 1.0)
        return codebook.heard(rows) * alive.unsqueeze(-1)

    def _judged(
        self, passage: Passage, path: Path, drawn: Retraced, survival: Tensor, *, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Nats of each token and whether it is right, each `[batch, n]`, to the reader that ships.

        Where codes are names it takes their word for it, and does without what DECOMPRESS makes of
        their rows: what a token would cost without its name bears on the odds of END, what names
        leave unsaid on the paces.
        """
        z, ids = self.z, passage.ids
        n, ends = ids.shape[1], closed_ends(path, ids.shape[1])
        nll, hits = self.costs(states, ids, ends, path.codes, path.written)
        if z.codebook.lexicon is None:
            return nll, hits
        if self._judge is not None:
            lost = (1 - _alive(survival)).gather(1, segment_of(ends, n)) * passage.bits / BITS
            nll = nll + lost * named_tokens(z, path.codes, ends, ids)
        slopes = slopes_of_ends(passage, path, nll, depth=path.codes.shape[-1])
        moved = slopes * (drawn.reached - drawn.reached.detach())
        return nll + moved.sum(1, keepdim=True) / n, hits

    def costs(
        self, states: Tensor, ids: Tensor, ends: Tensor, codes: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What texts cost the reader: with its channel, if it has one.

        Args:
            states: As `states_behind` gives them.
            ids: The texts, int64 `[batch, n]`.
            ends: Last token of each segment, `[batch, k]`.
            codes: Of their symbols, int64 `[batch, k, depth]`.
            real: True on symbols that are there, `[batch, k]`.

        Returns:
            Nats, and whether the likeliest token was the right one, each `[batch, n]`.
        """
        n = ids.shape[1]
        if self._judge is None:
            nll, hits = alone(self.z, states, ids)
            return nll[:, :n], hits
        counts = real.sum(1).tolist()
        return self._judge.nats(states[:, :n], ids, ends, codes, counts=counts)

    def _length_error(
        self, passage: Passage, path: Path, drawn: Retraced, survival: Tensor
    ) -> Tensor:
        """(K / N - 1 / r)^2 of the batch, K the number of symbols expected.

        A slot counts as far as it survives, and for as much as it was led on over the pace that
        led it: going faster needs fewer, unless a symbol holds no more. What a path left out at END
        counts as it would go on.
        """
        first = torch.zeros_like(path.places[:, :1])
        steps = torch.diff(torch.cat([first, path.places], dim=1)).to(survival)
        shares = drawn.paces * path.prices.unsqueeze(1).to(survival)
        counts = torch.where(path.held, 1.0, steps / shares)
        expected = (survival * counts * path.real).sum(1)
        pointers = passage.pointers(depth=path.codes.shape[-1])
        totals = torch.tensor([pointer.total for pointer in pointers], device=survival.device)
        rest = (totals - path.places[:, -1]).to(survival).clamp_min(0)
        last = path.real.sum(1, keepdim=True) - 1
        expected = expected + rest * (survival / shares).gather(1, last).squeeze(1)
        n_tokens = sum(map(len, passage.surprisal))
        one = price_of(1.0, mean_surprisal=self.z.config.mean_surprisal)
        asked = passage.requests[0].bits_per_symbol / one
        return (expected.sum() / n_tokens - 1 / asked).square()


def _alive(survival: Tensor) -> Tensor:
    """Ones with the relative gradient of survival."""
    return survival / survival.detach().clamp_min(1e-6)


def closed_ends(path: Path, n: int) -> Tensor:
    """Where a reader finds the symbols of a path: the last one closes the window.

    Args:
        path: Of windows of one length.
        n: Their tokens.

    Returns:
        Last token of each segment, `[batch, k]`.
    """
    index = torch.arange(path.ends.shape[1], device=path.ends.device)
    last = path.written.sum(1, keepdim=True) - 1
    return torch.where(index >= last, n - 1, path.ends)


def named_tokens(z: ZLanguageModel, codes: Tensor, ends: Tensor, ids: Tensor) -> Tensor:
    """Which tokens the codes of their segments name.

    Args:
        z: The model, whose codes are names.
        codes: Of symbols, int64 `[batch, k, depth]`.
        ends: Last token of each segment, `[batch, k]`; the last one's is n - 1.
        ids: The texts, int64 `[batch, n]`.

    Returns:
        bool `[batch, n]`.
    """
    _, named = z.codebook.words_of(codes.flatten(0, 1))
    named = named.view(*codes.shape[:2], -1)
    owner = segment_of(ends, ids.shape[1]).unsqueeze(-1)
    own = named.gather(1, owner.expand(-1, -1, named.shape[-1]))
    return (own == ids.unsqueeze(-1)).any(-1)


@torch.no_grad()
def one_pass_path(z: ZLanguageModel, passage: Passage, *, depth: int) -> Path:
    """The way that the one-pass writer goes, and END behind it.

    Args:
        z: The model; COMPRESS is made active.
        passage: Windows whose tokens are all to be written.
        depth: Codes per symbol.

    Returns:
        The path.
    """
    pointers = passage.pointers(depth=depth)
    counts = [
        max(1, min(pointer.n_steps, round(pointer.total / pointer.price))) for pointer in pointers
    ]
    k, device = max(counts) + 1, passage.tokens.device
    placed = passage.one_pass_ends(z.config, counts, depth=depth)
    ends = torch.stack(
        [nn.functional.pad(row, (0, k - len(row)), value=int(row[-1])) for row in placed]
    ).to(device)
    number = torch.tensor(counts, device=device).unsqueeze(1)
    slot = torch.arange(1, k + 1, device=device)
    written = slot <= number
    z.adapters.activate("compress")
    state = replace(passage.state, cache=fork(passage.state.cache))
    latents = z.write(state, ends[:, :-1], written[:, :-1].long())
    speller = speller_of(composer_of(z), z.codebook, depth)
    never = torch.full(latents.shape[:-1], NEVER, device=device)
    codes, _ = speller.greedy(latents, never, wording=passage.wording(ends[:, :-1]))
    totals = torch.tensor([pointer.total for pointer in pointers], device=device).unsqueeze(1)
    prices = torch.tensor([pointer.price for pointer in pointers], device=device)
    places = totals * (slot / number).clamp_max(1.0)
    behind = totals * ((slot - 1) / number).clamp_max(1.0)
    return Path(
        codes=torch.cat([codes, codes[:, -1:]], dim=1),
        ends=ends,
        places=places,
        n_left=(totals - behind) / prices.unsqueeze(1),
        prices=prices,
        held=torch.zeros_like(written),
        real=slot <= number + 1,
        ended=slot == number + 1,
    )
