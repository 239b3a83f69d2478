"""One decoding loop: a batch of embedded prompts in, tokens out, over one key-value cache.

Both readers use it. Rows are padded on the left and leave the batch when they end, each for one
reason: the first that applies of end token, stop string, length. What it does not know: prompts,
symbols, what a role is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zcontext.caches import fork, rows_of
from zcontext.channel import Lanes
from zcontext.config import GenerationSettings, Role
from zcontext.errors import ConfigError, ModelError
from zcontext.hearing import Hearing, Track, Voices
from zcontext.model import ZLanguageModel
from zcontext.spans import StopReason
from zcontext.text_feed import TextFeed
from zcontext.tokenization import special_ids, text_mask


@dataclass(frozen=True, slots=True)
class Prefill:
    """An embedded prompt.

    Attributes:
        embeddings: `[seq, hidden]`, at least one position.
        positions: Rotary positions, int64 `[seq]`.
        next_position: Position of the first generated token.
        max_new_tokens: Tokens generated at most.
        forced: Generate exactly `max_new_tokens` tokens of text: nothing ends the row before.
        corrections: Tokens that stand at given places of the text whatever the model says.
        first_bias: Added to the scores of tokens where the text begins.
        voices: Which symbol speaks of which token of the text, for a channel.
    """

    embeddings: Tensor
    positions: Tensor
    next_position: int
    max_new_tokens: int
    forced: bool = False
    corrections: Mapping[int, int] = field(default_factory=dict)
    first_bias: Mapping[int, float] = field(default_factory=dict)
    voices: Voices | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """What a row became.

    Attributes:
        ids: Tokens generated, without the one that ended the row.
        text: Their text, without the stop string.
        stop_reason: Why the row ended.
        n_tokens: Tokens generated, the one that ended the row included.
    """

    ids: tuple[int, ...]
    text: str
    stop_reason: StopReason
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Emission:
    """What one step gave one row.

    Attributes:
        row: Which one.
        token: The token; None for an end token, which is no part of the text.
        text: Text that is final now; may be empty.
    """

    row: int
    token: int | None
    text: str


class _Row:
    """One answer while it is generated."""

    def __init__(
        self, prompt: Prefill, settings: GenerationSettings, tokenizer: Any, ends: frozenset[int]
    ) -> None:
        self.prompt = prompt
        self.ids: list[int] = []
        self.n_tokens = 0
        self.texts: list[str] = []
        self.reason: StopReason | None = None
        self._ends = ends
        self._settings = settings
        self._feed = TextFeed(tokenizer, stop=() if prompt.forced else settings.stop)
        # A generator of its own: a row draws the same numbers whoever shares its batch.
        self._noise = torch.Generator().manual_seed(settings.seed)
        self.track: Track | None = None

    def choose(self, scores: Tensor) -> int:
        """The next token from scores `[vocab]`."""
        if (known := self.prompt.corrections.get(len(self.ids))) is not None:
            return known
        if self.prompt.first_bias and not self.ids:
            scores = scores.clone()
            for token, bias in self.prompt.first_bias.items():
                scores[token] += bias
        temperature, top_p = self._settings.temperature, self._settings.top_p
        if temperature == 0:
            return int(scores.argmax())
        shares = torch.softmax(scores.double().cpu() / temperature, dim=-1)
        if top_p < 1:
            ordered, order = shares.sort(descending=True, stable=True)
            beyond = ordered.cumsum(0) - ordered >= top_p
            shares = shares.index_fill(0, order[beyond], 0.0)
        return int(torch.multinomial(shares, 1, generator=self._noise))

    def take(self, token: int) -> tuple[int | None, str]:
        """Take a token: one reason ends the row, the first that applies."""
        self.n_tokens += 1
        if token in self._ends and not self.prompt.forced:
            self.reason = "end"
            text = self._feed.finish()
        else:
            self.ids.append(token)
            if self.track is not None:
                self.track.take(token)
            text = self._feed.push(token)
            if self._feed.stopped:
                self.reason = "stop"
            elif self.n_tokens >= self.prompt.max_new_tokens:
                self.reason = "length"
                text += self._feed.finish()
        self.texts.append(text)
        return None if self.reason == "end" else token, text

    def result(self) -> Generated:
        """The finished row."""
        assert self.reason is not None
        return Generated(tuple(self.ids), "".join(self.texts), self.reason, self.n_tokens)


class Decoding:
    """A batch of prompts being continued, one token a step.

    The model is held during a step only, so several decodings can take turns.

    Args:
        model: The model.
        role: The adapter that reads; None is the plain base.
        prompts: One or more rows.
        settings: How to choose tokens.
        past: Keys and values of what stands before the prompt (a single row); it is not changed.

    Raises:
        ConfigError: No prompt, an empty one, no token to generate, or a past for several rows.
    """

    def __init__(
        self,
        model: ZLanguageModel,
        role: Role | None,
        prompts: Sequence[Prefill],
        *,
        settings: GenerationSettings,
        past: Any = None,
    ) -> None:
        fit = prompts and all(len(p.embeddings) and p.max_new_tokens >= 1 for p in prompts)
        if not fit or (past is not None and len(prompts) > 1):
            raise ConfigError(
                f"{len(prompts)} prompts cannot be decoded: give one or more, none of them empty, "
                "each with max_new_tokens of 1 or more, and a past only for a single one",
                field="prompts",
                value=len(prompts),
            )
        self._model, self._role = model, role
        ends = special_ids(model.tokenizer) | {model.end_token}
        self._rows = [_Row(p, settings, model.tokenizer, ends) for p in prompts]
        self._active = list(range(len(prompts)))
        self._hearing: Hearing | None = None
        for row in self._rows:
            if row.prompt.voices is not None:
                self._hearing = self._hearing or Hearing(model)
                row.track = Track(row.prompt.voices, self._hearing)
        # Ids beyond the tokenizer's have no text; structure is none either where text is forced.
        self._allowed = (torch.arange(model.base_vocab) < len(model.tokenizer)).to(model.device)
        self._text_only = text_mask(model.tokenizer, model.base_vocab).to(model.device)
        self._past = past
        self._cache: Any = None
        self._mask = torch.zeros(0)
        self._scores = torch.zeros(0)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return not self._active

    def step(self) -> list[Emission]:
        """Generate one token for every row that has not ended.

        Returns:
            What each of them got.

        Raises:
            ModelError: The base gives scores that are not numbers.
        """
        with self._model.using(self._role), torch.no_grad():
            hidden = self._prefill() if self._cache is None else self._extend()
            scores = self._model.logits(hidden[:, -1])
            forced = [self._rows[row].prompt.forced for row in self._active]
            allowed = torch.stack([self._text_only if f else self._allowed for f in forced])
            scores = self._heard(scores.masked_fill(~allowed, -torch.inf))
            if bool(scores.isnan().any()):
                raise ModelError(
                    "the base gives scores that are not numbers; load it with dtype='fp32' or "
                    "'bf16', and check that the bundle was trained on this base"
                )
            chosen = [
                self._rows[row].choose(line) for row, line in zip(self._active, scores, strict=True)
            ]
        emitted = [
            Emission(row, *self._rows[row].take(token))
            for row, token in zip(self._active, chosen, strict=True)
        ]
        self._drop_ended()
        return emitted

    def _heard(self, scores: Tensor) -> Tensor:
        """Scores `[active, vocab]`, those of rows with a channel weighed by it."""
        tracks = [self._rows[row].track for row in self._active]
        speaking = [at for at, t in enumerate(tracks) if t is not None and t.lanes is not None]
        if self._hearing is None or not speaking:
            return scores
        lanes = Lanes.joined([t.lanes for t in tracks if t is not None and t.lanes is not None])
        index = torch.tensor(speaking, device=scores.device)
        weighed = self._hearing.weigh(scores[index], lanes)
        return scores.float().index_copy(0, index, weighed)

    def results(self) -> list[Generated]:
        """What every row became, in order; only when `done`."""
        return [row.result() for row in self._rows]

    def _prefill(self) -> Tensor:
        prompts = [row.prompt for row in self._rows]
        length = max(len(p.embeddings) for p in prompts)
        width = prompts[0].embeddings.shape[-1]
        device, dtype = self._model.device, self._model.base.dtype
        n_past = 0 if self._past is None else self._past.get_seq_length()
        inputs = torch.zeros(len(prompts), length, width, device=device, dtype=dtype)
        positions = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
        mask = torch.zeros(len(prompts), n_past + length, dtype=torch.long, device=device)
        mask[:, :n_past] = 1
        for row, prompt in enumerate(prompts):
            n = len(prompt.embeddings)
            inputs[row, length - n :] = prompt.embeddings.to(device, dtype)
            positions[row, length - n :] = prompt.positions.to(device)
            mask[row, n_past + length - n :] = 1
        past = None if self._past is None else fork(self._past)
        return self._run(inputs, positions, mask, past)

    def _extend(self) -> Tensor:
        rows = [self._rows[row] for row in self._active]
        device = self._model.device
        tokens = torch.tensor([[row.ids[-1]] for row in rows], device=device)
        places = [[row.prompt.next_position + len(row.ids) - 1] for row in rows]
        mask = torch.cat([self._mask, self._mask.new_ones(len(rows), 1)], dim=1)
        inputs = self._model.embed_tokens(tokens)
        return self._run(inputs, torch.tensor(places, device=device), mask, self._cache)

    def _run(self, inputs: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        # A pass that is interrupted may have grown part of the cache: keep the one from before.
        held = None if cache is None else fork(cache)
        out = self._model.run(inputs, positions=positions, mask=mask, cache=held, use_cache=True)
        self._cache, self._mask = out.cache, mask
        return out.hidden

    def _drop_ended(self) -> None:
        kept = [at for at, row in enumerate(self._active) if self._rows[row].reason is None]
        if len(kept) == len(self._active):
            return
        self._active = [self._active[at] for at in kept]
        if kept:
            self._cache = rows_of(self._cache, kept)
            self._mask = self._mask[kept]


def generate(
    model: ZLanguageModel,
    role: Role | None,
    prompts: Sequence[Prefill],
    *,
    settings: GenerationSettings,
    past: Any = None,
) -> list[Generated]:
    """Continue some prompts to their ends.

    Args:
        model: The model.
        role: The adapter that reads; None is the plain base.
        prompts: One or more rows.
        settings: How to choose tokens.
        past: Keys and values of what stands before the prompt (a single row).

    Returns:
        One result per prompt, in order.

    Raises:
        ConfigError: As for `Decoding`.
        ModelError: The base gives scores that are not numbers.
    """  # noqa: DOC502 - raised by the steps
    decoding = Decoding(model, role, prompts, settings=settings, past=past)
    while not decoding.done:
        decoding.step()
    return decoding.results()


def stream(decoding: Decoding) -> Iterator[str]:
    """The text of a single row as it becomes final.

    Args:
        decoding: Of one prompt.

    Yields:
        Pieces of text, none empty; joined they are the result's text.
    """
    while not decoding.done:
        for emitted in decoding.step():
            if emitted.text:
                yield emitted.text
