"""Thinking in Z: the INFER role goes on in symbols instead of tokens, read back at the end.

One symbol a step, fed back as the next input:

1. The state at the last position gives a distribution over what comes next, as for text.
2. That distribution is read as the bag of the next `ratio` tokens: their summed deviation from the
   mean embedding is `ratio` times its expected deviation. This is the vector that the writer pools
   from a segment of so many tokens, so symbols thought and symbols written live in one space.
3. The vector is quantised; the symbol's embedding stands at the next position.

The end is decided by the probability of the end tokens. What this module does not know: whether
INFER was trained to do this. The codec that ships was not: its thoughts are no answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zcontext.config import DEFAULT_RATIO, MAX_RATIO, MIN_RATIO, check
from zcontext.decompressor import ZDecompressor
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prompts import Piece, check_parts, encode_messages, n_positions
from zcontext.spans import ChatMessage, StopReason
from zcontext.symbols import MAX_DEPTH
from zcontext.tokenization import special_ids, text_mask
from zcontext.vocabulary import Symbols


@dataclass(frozen=True, slots=True)
class ThinkSettings:
    """How to think.

    Attributes:
        max_symbols: Symbols written at most.
        ratio: Tokens that one symbol is to stand for, 1 to 64.
        depth: Codes per symbol; None means the codec's own.
        end_probability: Thinking ends where the end tokens together are at least as likely, in
            (0, 1].

    Raises:
        ConfigError: A value is out of its range.
    """

    max_symbols: int = 64
    ratio: float = DEFAULT_RATIO
    depth: int | None = None
    end_probability: float = 0.5

    def __post_init__(self) -> None:
        depth_fits = self.depth is None or 1 <= self.depth <= MAX_DEPTH
        for field, fits, wanted in (
            ("max_symbols", self.max_symbols >= 1, "at least one symbol"),
            ("ratio", MIN_RATIO <= self.ratio <= MAX_RATIO, f"{MIN_RATIO:g} to {MAX_RATIO:g}"),
            ("depth", depth_fits, f"1 to {MAX_DEPTH} codes per symbol"),
            ("end_probability", 0 < self.end_probability <= 1, "in (0, 1]"),
        ):
            check(self, field, fits, wanted)


@dataclass(frozen=True, slots=True)
class Thought:
    """What was thought.

    Attributes:
        symbols: The thought itself; may be empty.
        text: What the decompressor makes of it.
        stop_reason: "end" or "length".
        n_prompt_positions: Positions of the prompt.
        seconds: For both, thinking and reading back.
    """

    symbols: Symbols
    text: str
    stop_reason: StopReason
    n_prompt_positions: int
    seconds: float


class Thinker:
    """Continues prompts in symbols.

    Args:
        model: The model that thinks.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self.model = model
        ends = special_ids(model.tokenizer) | {model.end_token}
        vocab = torch.arange(model.base_vocab)
        self._ends = torch.tensor(sorted(ends), device=model.device)
        allowed = vocab < len(model.tokenizer)
        self._allowed = allowed.to(model.device)
        self._text_only = text_mask(model.tokenizer, model.base_vocab).to(model.device)

    def think(
        self, messages: Sequence[ChatMessage], *, settings: ThinkSettings | None = None
    ) -> Thought:
        """The assistant's next turn as symbols, and as the text that they stand for.

        Args:
            messages: The turns so far, of text and symbols.
            settings: How to think.

        Returns:
            The thought.

        Raises:
            CodecMismatchError: Another codec wrote the symbols.
            UnknownSymbolError: The symbols are deeper than the codec.
            SymbolCollisionError: A text spells symbols.
            ConfigError: The depth asked for is more than the codec has.
            ContextOverflowError: The prompt leaves no position for a symbol.
        """  # noqa: DOC502 - some raised by the steps
        chosen, started = settings or ThinkSettings(), time.perf_counter()
        pieces = self._pieces(messages)
        n_prompt = n_positions(pieces)
        depth = self._depth(chosen)
        room = self.model.context_length - n_prompt
        if room < 1:
            raise ContextOverflowError(
                f"the prompt takes {n_prompt:,} of {self.model.context_length:,} positions and "
                "leaves none to think in; compress more, or give fewer documents"
            )
        codes, reason = self._codes(pieces, chosen, depth=depth, most=min(chosen.max_symbols, room))
        vocabulary = self.model.vocabulary
        symbols = Symbols(codes, vocabulary.size, vocabulary.tag)
        text = ""
        if len(symbols):
            n_tokens = max(1, round(chosen.ratio * len(symbols)))
            text = ZDecompressor(self.model).decompress(symbols, n_tokens=n_tokens)
        return Thought(symbols, text, reason, n_prompt, time.perf_counter() - started)

    def _pieces(self, messages: Sequence[ChatMessage]) -> list[Piece]:
        for message in messages:
            check_parts(message.parts, self.model.vocabulary)
        return encode_messages(self.model.tokenizer, messages)

    def _depth(self, settings: ThinkSettings) -> int:
        depth = settings.depth or self.model.config.depth
        if depth > self.model.config.depth:
            raise ConfigError(
                f"depth={depth}: this codec has {self.model.config.depth} codes per symbol at most",
                field="depth",
                value=depth,
            )
        return depth

    @torch.no_grad()
    def _codes(
        self, pieces: Sequence[Piece], settings: ThinkSettings, *, depth: int, most: int
    ) -> tuple[tuple[tuple[int, ...], ...], StopReason]:
        model = self.model
        inputs = embed_pieces(model, pieces).unsqueeze(0)
        codes: list[tuple[int, ...]] = []
        n_seen, cache = 0, None
        while len(codes) < most:
            # The model is held for one step at a time, as other readers hold it.
            with model.using("infer"):
                hidden, cache = self._run(inputs, n_seen, cache)
                n_seen += inputs.shape[1]
                scores = model.logits(hidden).masked_fill(~self._allowed, -torch.inf)
                if float(scores.softmax(-1)[self._ends].sum()) >= settings.end_probability:
                    return tuple(codes), "end"
                latent = self.latent(scores, ratio=settings.ratio)
                made = model.codebook.quantise(latent.view(1, 1, -1), depth=depth).codes
                inputs = model.embed_codes(made)
            codes.append(tuple(made[0, 0].tolist()))
        return tuple(codes), "length"

    def latent(self, scores: Tensor, *, ratio: float) -> Tensor:
        """The vector a symbol is made of, from the scores of what comes next.

        Args:
            scores: Logits, `[vocab]`; structure is left out of them here.
            ratio: Tokens that the symbol is to stand for.

        Returns:
            float32 `[hidden]`: the mean embedding plus `ratio` times the expected deviation.
        """
        share = scores.masked_fill(~self._text_only, -torch.inf).softmax(-1)
        mean: Tensor = self.model.codebook.mean_embedding
        table = self.model.embed_tokens(torch.arange(len(share)).unsqueeze(0))[0]
        return mean + ratio * (share @ table.float() - mean)

    def _run(self, inputs: Tensor, n_seen: int, cache: Any) -> tuple[Tensor, Any]:
        n = inputs.shape[1]
        out = self.model.run(
            inputs,
            positions=torch.arange(n_seen, n_seen + n).unsqueeze(0),
            mask=torch.ones(1, n_seen + n, dtype=torch.long),
            cache=cache,
            use_cache=True,
        )
        return out.hidden[0, -1], out.cache
