"""The Z-token language model: one base, one codebook, three adapters, and their passes.

`ZLanguageModel` offers the tensor-level steps of everything above: embed tokens or codes, run the
base under a role, read and write a window. What it does not know: text cut into windows, budgets
over a document, decoding loops, files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from zcontext.adapters import RoleAdapters, decoder_layers, first_layers
from zcontext.channel import Channel
from zcontext.codebook import Codebook, Quantised
from zcontext.composer import Composer
from zcontext.config import CodecConfig, Role
from zcontext.focus import Focus
from zcontext.holding import held
from zcontext.loading import LoadedBase
from zcontext.naming import Wording
from zcontext.passes import ReadState, RunOutput
from zcontext.relaxation import Quantiser
from zcontext.sealing import codec_digest, round_to_storage, seal_writer
from zcontext.vocabulary import ZVocabulary


class ZLanguageModel:
    """A base language model that writes and reads symbols.

    Args:
        base: The loaded base; adapters are injected into it in place.
        config: Shape of the codec.
        seed: Of every initial value.

    Raises:
        UnsupportedBaseError: Adapters cannot be injected into this base.
    """

    def __init__(self, base: LoadedBase, config: CodecConfig, *, seed: int = 0) -> None:
        self.base = base
        self.config = config
        self.tokenizer = base.tokenizer
        self.lock = threading.RLock()
        self.hidden_size = int(base.model.config.hidden_size)
        self.base_vocab = int(base.model.config.vocab_size)
        self.context_length = int(getattr(base.model.config, "max_position_embeddings", 2048))
        self.adapters = RoleAdapters(base.model, config, seed=seed)
        self._embedding = base.model.get_input_embeddings()
        sizes = {"hidden_size": self.hidden_size, "seed": seed}
        book = Codebook(config, token_embeddings=self._embedding.weight, **sizes)
        self.codebook = book.to(base.device)
        self.composer: Composer | None = None
        self.channel: Channel | None = None
        self.focus: Focus | None = None
        self.codec = ""
        self.seal()

    @classmethod
    def create(cls, base: LoadedBase, config: CodecConfig, *, seed: int = 0) -> ZLanguageModel:
        """A new, untrained codec on a base.

        Args:
            base: The loaded base.
            config: Shape of the codec.
            seed: Of every initial value.

        Returns:
            The model.
        """
        return cls(base, config, seed=seed)

    # -- facts ------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the base's weights are."""
        return torch.device(self.base.device)

    @property
    def n_layers(self) -> int:
        """Decoder layers of the base."""
        return len(decoder_layers(self.base.model.base_model)[1])

    @property
    def start_token(self) -> int:
        """The token that opens a decompressed text."""
        token = self.tokenizer.bos_token_id
        return int(self.end_token if token is None else token)

    @property
    def end_token(self) -> int:
        """The token that closes a decompressed text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes one position takes in the base's key-value cache at 16 bits a number."""
        config = self.base.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * self.n_layers * heads * head * 2)

    @property
    def vocabulary(self) -> ZVocabulary:
        """The written form of this codec's symbols."""
        return ZVocabulary(self.codec, depth=self.config.depth, size=self.config.size)

    # -- state ------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Round what is learned to the precision it is stored in, and name the result.

        Call after changing parameters by hand. The digest covers base, codebook, channel, COMPRESS
        and DECOMPRESS; other parts may be trained further, stored symbols stay valid.
        """
        book, adapters, channel = self.codebook, self.adapters, self.channel
        round_to_storage(book, adapters, channel)
        if self.composer is not None:
            seal_writer("compose", self.composer, adapters)
        if self.focus is not None:
            seal_writer("focus", self.focus, adapters)
        base = self.base.sha256
        self.codec = codec_digest(book, adapters, channel, config=self.config, base_sha256=base)

    def using(self, role: Role | None) -> AbstractContextManager[None]:
        """Hold the model with one adapter active, in evaluation mode.

        Args:
            role: The role, or None for the plain base.

        Returns:
            A context; role and modes are put back when it is left.
        """
        return held(self.base.model, self.adapters, self.lock, role)

    def add_composer(self) -> Composer:
        """The autoregressive writer's part, new: it begins as a copy of the one-pass writer."""
        if self.composer is None:
            self.composer = Composer(self.config, hidden_size=self.hidden_size).to(self.device)
            self.composer.begin_from(self.codebook)
            self.adapters.add("compose")
            self.adapters.load("compose", self.adapters.state("compress"))
        return self.composer

    def add_channel(self) -> Channel:
        """The decompressor's channel, new: it begins as one that changes nothing."""
        if self.channel is None:
            self.channel = Channel(hidden_size=self.hidden_size, vocab_size=self.base_vocab)
            self.channel.to(self.device).requires_grad_(False)
        return self.channel

    def add_focus(self) -> Focus:
        """What finds where a text answers a question, new: it reads as COMPRESS does."""
        if self.focus is None:
            focus = Focus(hidden_size=self.hidden_size, vocab_size=self.base_vocab)
            self.focus = focus.to(self.device).eval()
            self.adapters.add("focus")
            self.adapters.load("focus", self.adapters.state("compress"))
        return self.focus

    def parameters_of(self, roles: Iterable[Role]) -> dict[str, nn.Parameter]:
        """Adapter parameters of some roles, named `role/name`.

        Args:
            roles: Which adapters.

        Returns:
            Name to parameter.
        """
        return {
            f"{role}/{name}": parameter
            for role in roles
            for name, parameter in self.adapters.named_parameters(role).items()
        }

    # -- passes -----------------------------------------------------------------------------------

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Embeddings of base tokens.

        Args:
            ids: int64 `[batch, n]`.

        Returns:
            `[batch, n, hidden]`, in the base's type.
        """
        embedded: Tensor = self._embedding(ids.to(self.device))
        return embedded

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Embeddings of symbols.

        Args:
            codes: int64 `[batch, k, depth]`.

        Returns:
            `[batch, k, hidden]`, in the base's type.
        """
        return self.codebook.embed(codes.to(self.device)).to(self.base.dtype)

    def run(
        self,
        embeddings: Tensor,
        *,
        positions: Tensor,
        mask: Tensor,
        cache: Any = None,
        use_cache: bool = False,
        n_layers: int = 0,
    ) -> RunOutput:
        """One pass of the base under whatever adapter is active.

        Args:
            embeddings: `[batch, seq, hidden]`.
            positions: Rotary positions, `[batch, seq]`; any order.
            mask: 1 where a position may be looked at, `[batch, past + seq]`.
            cache: Keys and values of what came before.
            use_cache: Keep (or extend) a cache.
            n_layers: Run only the first layers; 0 runs all.

        Returns:
            States and cache.
        """
        core: Any = self.base.model.base_model
        with first_layers(core, n_layers):
            # The mask is always given: without one, transformers takes positions that jump back
            # for packed sequences and hides the symbols from the text.
            output = core(
                inputs_embeds=embeddings.to(self.base.dtype),
                position_ids=positions.to(self.device),
                attention_mask=mask.to(self.device),
                past_key_values=cache,
                use_cache=use_cache or cache is not None,
            )
        return RunOutput(output.last_hidden_state, output.past_key_values)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the base's tokens.

        Args:
            hidden: `[..., hidden]`.

        Returns:
            float32 `[..., base_vocab]`.
        """
        head = self.base.model.get_output_embeddings()
        return head(hidden.to(head.weight.dtype))[..., : self.base_vocab].float()  # type: ignore[no-any-return]

    # -- the writer -------------------------------------------------------------------------------

    def read(self, ids: Tensor, mask: Tensor, *, memory: Tensor | None = None) -> ReadState:
        """The writer's first step: prefill a window (COMPRESS must be active).

        Args:
            ids: Context and target, right-padded, int64 `[batch, n]`.
            mask: 1 on real tokens, `[batch, n]`.
            memory: Embeddings of symbols written earlier, `[batch, m, hidden]`.

        Returns:
            What the write step needs.
        """
        tokens = self.embed_tokens(ids)
        batch, n = ids.shape
        embeddings = tokens
        if memory is not None and memory.shape[1]:
            embeddings = torch.cat([memory.to(tokens.dtype), tokens], dim=1)
            mask = torch.cat([mask.new_ones(batch, memory.shape[1]), mask], dim=1)
        offset = embeddings.shape[1] - n
        positions = torch.arange(embeddings.shape[1], device=self.device).expand(batch, -1)
        out = self.run(
            embeddings,
            positions=positions,
            mask=mask,
            use_cache=True,
            n_layers=self.config.writer_layers,
        )
        surprisal = self.codebook.surprisal(out.hidden[:, offset:], tokens)
        return ReadState(ids, tokens, positions[:, offset:], mask, surprisal, out.cache)

    def write(self, state: ReadState, ends: Tensor, slot_mask: Tensor, *, start: int = 0) -> Tensor:
        """The writer's second step: one forward over the cache for all slots.

        Args:
            state: From `read`; its cache is extended.
            ends: Index in the window's ids of each slot's last token, `[batch, k]`.
            slot_mask: 1 on real slots, `[batch, k]`.
            start: Index where the target begins (tokens before it are context).

        Returns:
            Latents, `[batch, k, hidden]`.
        """
        pooled = self.codebook.pool(state.tokens[:, start:], ends - start)
        positions = state.positions.gather(1, ends)
        out = self.run(
            self.codebook.slot_inputs(pooled),
            positions=positions,
            mask=torch.cat([state.mask, slot_mask.to(state.mask)], dim=1),
            cache=state.cache,
            n_layers=self.config.writer_layers,
        )
        return self.codebook.latents(pooled, out.hidden)

    def write_in_one_pass(
        self, ids: Tensor, mask: Tensor, ends: Tensor, *, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both steps in one forward, for training, where the slots are known beforehand.

        Slots stand after the text under a causal mask, so the text cannot see them: the latents
        are those of `read` followed by `write`.

        Args:
            ids: Target tokens, int64 `[batch, n]`, right-padded.
            mask: 1 on real tokens, `[batch, n]`.
            ends: Index of each slot's last token, `[batch, k]`; no padding.
            memory: Embeddings of symbols written earlier, `[batch, m, hidden]`.

        Returns:
            Latents `[batch, k, hidden]` and estimated surprisal `[batch, n]`.
        """
        tokens = self.embed_tokens(ids)
        batch, n = ids.shape
        m = 0 if memory is None else memory.shape[1]
        pooled = self.codebook.pool(tokens, ends)
        slots = self.codebook.slot_inputs(pooled).to(tokens.dtype)
        parts = [tokens, slots] if memory is None else [memory.to(tokens.dtype), tokens, slots]
        ahead = torch.arange(m + n, device=self.device).expand(batch, -1)
        out = self.run(
            torch.cat(parts, dim=1),
            positions=torch.cat([ahead, ends + m], dim=1),
            mask=torch.cat([mask.new_ones(batch, m), mask, torch.ones_like(ends)], dim=1),
            n_layers=self.config.writer_layers,
        ).hidden
        surprisal = self.codebook.surprisal(out[:, m : m + n], tokens)
        return self.codebook.latents(pooled, out[:, m + n :]), surprisal

    def restore_states(
        self,
        symbols: Tensor,
        symbol_positions: Tensor,
        symbol_mask: Tensor,
        inputs: Tensor,
        input_mask: Tensor,
        *,
        offset: int = 0,
        hidden_inputs: Tensor | None = None,
    ) -> Tensor:
        """The decompressor's teacher-forced pass (DECOMPRESS must be active).

        Args:
            symbols: Embeddings of memory and span, `[batch, k, hidden]`.
            symbol_positions: Their positions, `[batch, k]`.
            symbol_mask: 1 on real symbols, `[batch, k]`.
            inputs: Start token and text, int64 `[batch, 1 + n]`.
            input_mask: 1 on real inputs, `[batch, 1 + n]`.
            offset: Position of the start token: the number of memory symbols in front.
            hidden_inputs: True on inputs to blank out (training only), `[batch, 1 + n]`.

        Returns:
            States over the inputs, `[batch, 1 + n, hidden]`; the state on input i predicts token i
            of the text, the last real one predicts the end token.
        """
        tokens = self.embed_tokens(inputs)
        if hidden_inputs is not None:
            tokens = tokens.masked_fill(hidden_inputs.unsqueeze(-1), 0.0)
        batch, n = inputs.shape
        k = symbols.shape[1]
        positions = torch.arange(offset, offset + n, device=self.device).expand(batch, -1)
        hidden = self.run(
            torch.cat([symbols.to(tokens.dtype), tokens], dim=1),
            positions=torch.cat([symbol_positions.to(self.device), positions], dim=1),
            mask=torch.cat([symbol_mask, input_mask], dim=1),
        ).hidden
        return hidden[:, k:]

    def quantise(
        self,
        latents: Tensor,
        ids: Tensor,
        ends: Tensor,
        surprisal: Tensor,
        *,
        depth: int | None = None,
        quantiser: Quantiser | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantised:
        """Latents to symbols: `Codebook.quantise` with the text and its segments told."""
        return self.codebook.quantise(
            latents,
            depth=depth,
            quantiser=quantiser,
            generator=generator,
            wording=Wording(ids, self.embed_tokens(ids), ends, surprisal),
        )
