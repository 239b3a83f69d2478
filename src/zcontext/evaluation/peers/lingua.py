"""LLMLingua and LongLLMLingua: the package's own code, with our base as its small model.

`llmlingua` loads a model of its own and hands key-value caches around as lists of pairs, which
transformers no longer takes. Here its compressor is given the base that is loaded already, behind a
bridge that turns such lists into a cache and back; its algorithm runs unchanged (Jiang et al.,
EMNLP 2023 and ACL 2024). What it does not know: symbols.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zcontext.evaluation.peers.trimming import largest_fit
from zcontext.model import ZLanguageModel
from zcontext.tokenization import text_tokenizer

MAX_POSITIONS = 2048
"""Of one pass of its small model: beyond, it drops the oldest from its cache. The scores of 2,048
positions over 49,152 tokens take 400 MB already, and it makes copies of them."""

STEP = 200
"""Tokens it prunes at a time by default."""

_PARAGRAPHS = re.compile(r"\n\s*\n")
_Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a pass gives to LLMLingua.

    Attributes:
        logits: float32 `[batch, seq, vocab]`.
        past_key_values: Keys and values of every layer, `[batch, heads, seq, size]` each.
    """

    logits: Tensor
    past_key_values: _Pairs


class PairCacheModel:
    """A base that is called with caches as lists of pairs, as transformers 4 took them.

    Args:
        model: Its plain base is run.
    """

    def __init__(self, model: ZLanguageModel) -> None:
        self._model = model

    def __call__(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor,
        past_key_values: Sequence[tuple[Tensor, Tensor]] | None = None,
        use_cache: bool = True,
    ) -> Scored:
        """One pass.

        Args:
            input_ids: int64 `[batch, seq]`.
            attention_mask: 1 where a position may be looked at, `[batch, past + seq]`.
            past_key_values: Of what came before.
            use_cache: Always so; LLMLingua says it.

        Returns:
            Scores and the grown pairs.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past_key_values or ()):
            cache.update(keys, values, layer)
        n_past = cache.get_seq_length()
        n = input_ids.shape[1]
        with self._model.using(None), torch.no_grad():
            out = self._model.run(
                self._model.embed_tokens(input_ids),
                positions=torch.arange(n_past, n_past + n).expand(len(input_ids), -1),
                mask=attention_mask,
                cache=cache,
                use_cache=True,
            )
            logits = self._model.logits(out.hidden)
        return Scored(logits, [(layer.keys, layer.values) for layer in out.cache.layers])


class LLMLingua:
    """Drops the tokens the base can guess: prompt compression by the package `llmlingua`.

    Args:
        model: Its plain base is the small model.
        question_aware: LongLLMLingua: paragraphs are ranked by, and tokens contrasted with, the
            question. Without a question it is LLMLingua.
    """

    def __init__(self, model: ZLanguageModel, *, question_aware: bool = False) -> None:
        self.name = "longllmlingua" if question_aware else "llmlingua"
        self.sees_question = question_aware
        self.uses_base = True
        self._tokens = text_tokenizer(model.tokenizer)
        self._compressor = _compressor(model)

    def shorten(self, text: str, *, n_tokens: int, question: str | None = None) -> str:
        """What LLMLingua keeps; asked again with another target where it misses the budget.

        Args:
            text: Any text.
            n_tokens: Base tokens the result may take.
            question: What will be asked; LongLLMLingua alone looks at it.

        Returns:
            The text itself where it fits.
        """
        if self._tokens.count(text) <= n_tokens:
            return text
        if n_tokens < 1:
            return ""
        paragraphs = [text]
        given: dict[str, Any] = {}
        if self.sees_question and question and question.strip():
            paragraphs = [part for part in _PARAGRAPHS.split(text) if part.strip()] or [text]
            # The settings that its authors recommend for questions over documents.
            given = {
                "question": question,
                "rank_method": "longllmlingua",
                "condition_in_question": "after_condition",
                "condition_compare": True,
                "dynamic_context_compression_ratio": 0.4 if len(paragraphs) > 1 else 0.0,
                "reorder_context": "sort" if len(paragraphs) > 1 else "original",
            }

        # It leaves whole what its last step does not fill, so that short texts would hardly be
        # shortened: steps of about its own 200 tokens that the text fills evenly.
        n = self._tokens.count(text)
        step = -(-n // max(1, round(n / STEP)))

        def shorten(target: int) -> str:
            kept = self._compressor.compress_prompt(
                list(paragraphs),
                target_token=target,
                concate_question=False,
                iterative_size=step,
                **given,
            )
            return str(kept["compressed_prompt"])

        return largest_fit(shorten, n_tokens=n_tokens, tokens=self._tokens)


def _compressor(model: ZLanguageModel) -> Any:
    """LLMLingua's compressor around a base that is loaded already."""
    from llmlingua import PromptCompressor

    class OnLoadedBase(PromptCompressor):
        """Takes what `PromptCompressor` would load, and reads nothing from disk or network."""

        def __init__(self) -> None:
            self.model_name = model.base.name
            self.model = PairCacheModel(model)
            self.tokenizer = model.tokenizer
            self.device = model.device
            self.max_position_embeddings = min(model.context_length, MAX_POSITIONS)
            self.use_llmlingua2 = False
            self.retrieval_model = self.retrieval_model_name = None
            self.open_api_config: dict[str, Any] = {}
            self.cache_bos_num, self.prefix_bos_num = 10, 100
            self.context_idxs: list[list[int]] = []
            # Only counts for the price it prints, which nobody reads here.
            self.oai_tokenizer = _Words()

    return OnLoadedBase()


class _Words:
    """Stands in for a tokenizer that would be downloaded."""

    def encode(self, text: str) -> list[str]:
        return text.split()
