"""The channel: what the codes of a segment say of its next token, beside the reader's foresight.

A symbol is a sum of codes, and its latent was pooled from the tokens of its segment. Whoever knows
how that was done can ask of every token how well it would explain what the codes say and the
segment's tokens so far do not. The decompressor is then one half of a noisy channel (Shannon 1948;
Brown et al. 1993): a language model that foresees the text, and a likelihood of the codes given the
text. A few features of both are weighed against each other by a small network that is trained once
the codec stands.

What this module does not know: the base model's passes, spans, how text is generated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad

N_CANDIDATES = 32
"""Tokens that each half of the channel may nominate; all others keep the language model's odds."""

N_FEATURES = 17
WIDTH = 32
USUAL_LEFT = 3.0
"""Tokens still to come in a usual segment: the metric is the inverse of their covariance."""

TAKEN = 0.25
"""Share of a token that a further code must explain to count as said with it."""

TRUST = 0.99
"""Odds of what codes spell out: that they name as many tokens as a segment has may be chance."""

LEAST = -40.0
"""Log-odds below this are all alike."""


@dataclass(slots=True)
class Lanes:
    """Segments being spelled, one a lane.

    Attributes:
        rows: Rows of what the segment's codes name, in the order of the text, or of the codes
            themselves, `[lanes, depth, hidden]`.
        energy: Their squared lengths, `[lanes, depth]`; 0 for silence.
        used: Share of each code that the tokens so far explain, `[lanes, depth]`.
        left: What the codes say and the tokens so far do not, `[lanes, hidden]`.
        said: Tokens so far, int64 `[lanes, longest]`, -1 behind them.
        weights: What pooling gave each place, `[lanes, longest]`.
        place: Tokens so far, int64 `[lanes]`.
        length: Tokens of the segment, int64 `[lanes]`.
        noise: Logarithm of how much of a token's variance the codes are off, `[lanes]`.
        spelled: The tokens where codes name as many as the segment has, int64 `[lanes, longest]`;
            -1 where they do not.
    """

    rows: Tensor
    energy: Tensor
    used: Tensor
    left: Tensor
    said: Tensor
    weights: Tensor
    place: Tensor
    length: Tensor
    noise: Tensor
    spelled: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def of(self, index: Tensor) -> Lanes:
        """Some of the lanes, in the order given; changing these leaves the others as they are."""
        return Lanes(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def put(self, index: Tensor, lanes: Lanes) -> None:
        """Replace some lanes."""
        for each in dataclasses.fields(self):
            getattr(self, each.name)[index] = getattr(lanes, each.name)

    @classmethod
    def joined(cls, parts: Sequence[Lanes]) -> Lanes:
        """Lanes of several spans beside each other."""
        depth = max(part.rows.shape[1] for part in parts)
        longest = max(part.said.shape[1] for part in parts)
        fill = {"energy": (depth, 0.0), "used": (depth, 0.0), "said": (longest, -1)}
        fill |= {"weights": (longest, 0.0), "spelled": (longest, -1)}
        columns = {}
        for each in dataclasses.fields(cls):
            tensors = [getattr(part, each.name) for part in parts]
            if each.name == "rows":
                tensors = [pad(t, (0, 0, 0, depth - t.shape[1])) for t in tensors]
            elif each.name in fill:
                width, value = fill[each.name]
                tensors = [pad(t, (0, width - t.shape[1]), value=value) for t in tensors]
            columns[each.name] = torch.cat(tensors)
        return cls(**columns)


@dataclass(frozen=True, slots=True)
class Nominees:
    """Candidates for the next token of some lanes.

    Attributes:
        odds: Of the language model, log-probabilities `[lanes, vocab]`.
        places: The candidates, int64 `[lanes, c]`; the vocabulary's size instead of one that is
            there already.
        features: What speaks for each, `[lanes, c, N_FEATURES]`.
    """

    odds: Tensor
    places: Tensor
    features: Tensor


class Channel(nn.Module):
    """Weighs the language model's next token against what the codes still have to say.

    Fresh, it leaves the language model's odds as they are.

    Args:
        hidden_size: Width of the base model.
        vocab_size: Tokens of the base model.
    """

    metric: Tensor
    strength: Tensor
    commonness: Tensor
    noise: Tensor

    def __init__(self, *, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        # Inverse covariance of what is left beside the next token; each token's length under it.
        self.register_buffer("metric", torch.eye(hidden_size))
        self.register_buffer("strength", torch.zeros(vocab_size))
        self.register_buffer("commonness", torch.zeros(vocab_size))
        self.register_buffer("noise", torch.zeros(5))
        self.direct = nn.Linear(N_FEATURES, 1, bias=False)
        last = nn.Linear(WIDTH, 1)
        self.deep = nn.Sequential(
            nn.Linear(N_FEATURES, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), last
        )
        self.outside = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.direct.weight)
        nn.init.constant_(self.direct.weight[:, :1], 4.0)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    # -- segments ---------------------------------------------------------------------------------

    def listen(
        self, rows: Tensor, lengths: Tensor, weights: Tensor, *, named: Tensor | None = None
    ) -> Lanes:
        """Segments of which nothing is spelled yet.

        Args:
            rows: Rows of what their codes name, or of the codes, `[lanes, depth, hidden]`.
            lengths: Their tokens, int64 `[lanes]`, at least 1.
            weights: What pooling gives each place, `[lanes, longest]`.
            named: Tokens that their codes name, -1 behind the last, int64 `[lanes, any]`.

        Returns:
            The lanes.
        """
        rows = rows.float()
        energy = rows.square().sum(-1)
        return Lanes(
            rows=rows,
            energy=energy,
            used=torch.zeros_like(energy),
            left=rows.sum(1),
            said=torch.full(weights.shape, -1, device=rows.device),
            weights=weights.float(),
            place=torch.zeros_like(lengths),
            length=lengths,
            noise=self.noise_features(energy, lengths) @ self.noise,
            spelled=_spelled(named, lengths, weights.shape[1]),
        )

    @staticmethod
    def noise_features(energy: Tensor, lengths: Tensor) -> Tensor:
        """What tells how far a segment's codes are off, `[lanes, 5]`."""
        log_length = lengths.float().log()
        share = (energy > 0).sum(-1) / lengths
        spent = (share < 1).float()
        one = torch.ones_like(spent)
        return torch.stack([one, log_length, spent, spent * log_length, share], dim=-1)

    def take(self, lanes: Lanes, tokens: Tensor, deviations: Tensor) -> None:
        """Spell one more token in every lane.

        Args:
            lanes: Changed in place; none is at its end.
            tokens: int64 `[lanes]`.
            deviations: Their embeddings less the mean of text, `[lanes, hidden]`.
        """
        at = lanes.place.unsqueeze(-1)
        due = _weight(lanes) * deviations
        # A token that no code speaks of would only be noise in what the others still have to say.
        spoken = (2 * lanes.left - due).mul(due).sum(-1, keepdim=True) > 0
        lanes.left = lanes.left - due * spoken
        lanes.said = lanes.said.scatter(1, at, tokens.unsqueeze(-1))
        lanes.place = lanes.place + 1
        lanes.used = _explained(lanes, deviations)

    # -- the next token ---------------------------------------------------------------------------

    def forward(self, scores: Tensor, lanes: Lanes, table: Tensor, mean: Tensor) -> Tensor:
        """Odds of the next token of every lane.

        Args:
            scores: The language model's, `[lanes, vocab]`; -inf on what must not come.
            lanes: Where each segment stands.
            table: Token embeddings of the base, `[vocab, hidden]`.
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            Scores `[lanes, vocab]` (logits), -inf where they were; what is spelled out has `TRUST`.
        """
        found = self.nominate(scores, lanes, table, mean)
        judged = pad(found.odds + self.outside, (0, 1))
        judged = judged.scatter(-1, found.places, self.judge(found.features))[:, :-1]
        judged = _trusting(judged, next_spelled(lanes))
        return judged.masked_fill(found.odds == -torch.inf, -torch.inf)

    def judge(self, features: Tensor) -> Tensor:
        """Scores of candidates, from `[..., N_FEATURES]`."""
        found: Tensor = (self.direct(features) + self.deep(features)).squeeze(-1)
        return found

    def nominate(self, scores: Tensor, lanes: Lanes, table: Tensor, mean: Tensor) -> Nominees:
        """Candidates for the next token of every lane, and what speaks for each.

        Args:
            scores: As for `forward`.
            lanes: Where each segment stands.
            table: Token embeddings of the base, `[vocab, hidden]`.
            mean: Mean embedding of text, `[hidden]`.

        Returns:
            The candidates.
        """
        odds = scores.float().log_softmax(-1)
        wanted, weight = lanes.left @ self.metric, _weight(lanes)
        fits = (wanted.to(table.dtype) @ table.T).float() - (wanted @ mean).unsqueeze(-1)
        fits = weight * fits - 0.5 * weight.square() * self.strength
        k = min(N_CANDIDATES, odds.shape[-1])
        foreseen = odds.topk(k).indices
        fitting = fits.masked_fill_(odds == -torch.inf, -torch.inf).topk(k).indices
        candidates = torch.cat([foreseen, fitting], dim=-1)
        deviations = table[candidates].float() - mean
        along = (deviations @ wanted.unsqueeze(-1)).squeeze(-1)  # again, in full precision
        fit = weight * along - 0.5 * weight.square() * self.strength[candidates]
        features = self._features(odds, candidates, fit, lanes, deviations)
        twice = (fitting.unsqueeze(-1) == foreseen.unsqueeze(1)).any(-1)
        places = torch.cat([foreseen, fitting.masked_fill(twice, odds.shape[-1])], dim=-1)
        return Nominees(odds, places, features)

    def _features(
        self, odds: Tensor, candidates: Tensor, fit: Tensor, lanes: Lanes, deviations: Tensor
    ) -> Tensor:
        likely = odds.gather(-1, candidates).clamp_min(LEAST)
        common = self.commonness[candidates]
        n_left = (lanes.length - lanes.place).float().unsqueeze(-1)
        fit = fit * USUAL_LEFT / (lanes.noise.exp().unsqueeze(-1) + n_left - 1)
        rows = _row_features(lanes, deviations)
        said = (candidates.unsqueeze(-1) == lanes.said.unsqueeze(1)).sum(-1).float()
        columns = [
            likely / 4,
            (likely - likely.amax(-1, keepdim=True)) / 4,
            common / 8,
            (fit / 20).clamp(-3, 3),
            ((fit - fit.amax(-1, keepdim=True)) / 20).clamp_min(-3),
            logsigmoid(fit + n_left.log() + common).clamp_min(LEAST) / 4,
            said,
            *rows,
            *(
                column.expand_as(likely)
                for column in (
                    1 / n_left,
                    lanes.length.unsqueeze(-1) / 8,
                    lanes.noise.unsqueeze(-1) / 2,
                    (_unused(lanes).sum(-1, keepdim=True) / n_left).clamp_max(3) / 2,
                )
            ),
        ]
        return torch.stack(columns, dim=-1)


def next_spelled(lanes: Lanes) -> Tensor:
    """The next token of every lane where it is spelled out, int64 `[lanes]`; -1 where not."""
    return lanes.spelled.gather(1, lanes.place.unsqueeze(-1)).squeeze(-1)


def _spelled(named: Tensor | None, lengths: Tensor, longest: int) -> Tensor:
    nothing = torch.full((len(lengths), longest), -1, device=lengths.device)
    if named is None:
        return nothing
    complete = (named >= 0).sum(-1) == lengths
    named = pad(named, (0, max(0, longest - named.shape[1])), value=-1)[:, :longest]
    return torch.where(complete.unsqueeze(-1), named, nothing)


def _trusting(judged: Tensor, spelled: Tensor) -> Tensor:
    """Scores with what is spelled out, `[lanes]`, far above all others."""
    there = (spelled >= 0).nonzero().squeeze(-1)
    if not len(there):
        return judged
    odds = judged[there].log_softmax(-1) + math.log(1 - TRUST)
    token = spelled[there].unsqueeze(-1)
    sure = torch.full_like(token, math.log(TRUST), dtype=odds.dtype)
    odds = odds.scatter(-1, token, torch.logaddexp(odds.gather(-1, token), sure))
    return judged.index_copy(0, there, odds)


def _weight(lanes: Lanes) -> Tensor:
    """What pooling gives the next token of every lane, `[lanes, 1]`."""
    return lanes.weights.gather(1, lanes.place.unsqueeze(-1))


def _unused(lanes: Lanes) -> Tensor:
    return (1 - lanes.used) * (lanes.energy > 0)


def _row_features(lanes: Lanes, deviations: Tensor) -> list[Tensor]:
    """How well a code not yet said fits each candidate, and how many it would pass over."""
    energy = lanes.energy.clamp_min(1e-6).unsqueeze(1)
    own = deviations.square().sum(-1, keepdim=True)
    along = 2 * deviations @ lanes.rows.transpose(1, 2)
    heard = (lanes.energy > 0).unsqueeze(1)
    match = ((along - own) / energy).masked_fill(~heard, -1.0).clamp(-1.0, 1.5)
    free = _unused(lanes)
    best, row = torch.where(match > 0, match * free.unsqueeze(1), match).max(-1)
    before = torch.cat([torch.zeros_like(free[:, :1]), free.cumsum(-1)], dim=-1).gather(1, row)
    n_rows = heard.sum(-1).clamp_min(1)
    place = (lanes.place / lanes.length).unsqueeze(-1)
    rival = match.amax(1).gather(1, row)
    gain = ((along - energy) / own.clamp_min(1e-6)).gather(-1, row.unsqueeze(-1)).squeeze(-1)
    return [
        best,
        before / 4,
        (-before).exp(),
        row / n_rows - place,
        match.gather(-1, row.unsqueeze(-1)).squeeze(-1) - rival,
        gain.clamp(-1, 1),
    ]


def _explained(lanes: Lanes, deviations: Tensor, *, n_rounds: int = 3) -> Tensor:
    """Share of each code that has been said, one token further: matching pursuit of the token."""
    rest, used = deviations, lanes.used
    whole = deviations.square().sum(-1, keepdim=True).clamp_min(1e-6)
    for turn in range(n_rounds):
        along = (lanes.rows @ rest.unsqueeze(-1)).squeeze(-1)
        gain = (2 * along - lanes.energy) / whole
        if turn == 0:  # a code may say more than this token: it is used as far as it is said
            own = rest.square().sum(-1, keepdim=True)
            gain = (2 * along - own) / lanes.energy.clamp_min(1e-6)
        gain = (gain * (1 - used)).masked_fill(lanes.energy == 0, -1.0)
        best, row = gain.max(-1, keepdim=True)
        share = best.clamp(0, 1) if turn == 0 else (best > TAKEN).float()
        used = used.scatter(1, row, torch.maximum(used.gather(1, row), share))
        row_of = lanes.rows.gather(1, row.unsqueeze(-1).expand(-1, -1, rest.shape[-1])).squeeze(1)
        rest = rest - row_of * (best > 0)
    return used
