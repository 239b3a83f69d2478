"""Windows of a corpus, written as a codec that stands writes them: nothing of it is trained here.

What this module does not know: losses, optimisers, documents, budgets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.needs import fact_tokens
from zcontext.segmentation import FACT_BITS
from zcontext.surprisal import base_surprisal, scarce
from zcontext.tokenization import spelled
from zcontext.training.data import WindowBatch


@dataclass(frozen=True, slots=True)
class Transcript:
    """Symbols of windows of one length.

    Attributes:
        ends: Last token of each symbol's segment, `[batch, k]`.
        codes: int64 `[batch, k, depth]`.
        embeddings: What a reader is given, `[batch, k, hidden]`.
    """

    ends: Tensor
    codes: Tensor
    embeddings: Tensor


@torch.no_grad()
def transcribe(
    z: ZLanguageModel,
    batch: WindowBatch,
    *,
    memory: Tensor | None = None,
    facts_first: bool = False,
) -> Transcript:
    """Write windows. Slots stand where the writer puts them, as `CompressSettings` has it.

    Args:
        z: The model; COMPRESS is left active.
        batch: The windows; what is in front of them is left out.
        memory: Symbols written earlier, which the writer reads first, `[batch, m, hidden]`.
        facts_first: Name numbers, names and addresses before others, as
            `CompressSettings(facts=True)` does.

    Returns:
        The symbols.
    """
    z.adapters.activate("compress")
    ids = batch.ids.to(z.device)
    state = z.read(ids, torch.ones_like(ids), memory=memory)
    few = scarce(ids.shape[1], batch.n_slots, depth=batch.depth)
    bits = base_surprisal(z, ids).to(state.surprisal) if few else state.surprisal
    if facts_first:
        facts = [fact_tokens(*spelled(z.tokenizer, row)) for row in ids.tolist()]
        bits = bits + FACT_BITS * torch.stack(facts).to(bits)
    starts = z.codebook.cut(ids)
    ends = place_symbols(z.config, bits, batch.n_slots, depth=batch.depth, starts=starts)
    ends = ends.to(z.device)
    latents = z.write(state, ends, torch.ones_like(ends))
    written = z.quantise(latents, ids, ends, bits, depth=batch.depth)
    return Transcript(ends, written.codes, written.embeddings)


def remember(z: ZLanguageModel, batch: WindowBatch, *, facts_first: bool = False) -> Tensor | None:
    """Symbols of the windows in front of others, each written for itself.

    Args:
        z: The model; COMPRESS is left active where there are any.
        batch: The windows, and what is in front of them.
        facts_first: As for `transcribe`.

    Returns:
        What the writer and the reader of each window are given, `[batch, m, hidden]`, or None.
    """
    if batch.prior is None:
        return None
    in_front = dataclasses.replace(batch, ids=batch.prior, prior=None)
    written = transcribe(z, in_front, facts_first=facts_first)
    return written.embeddings.reshape(len(batch.ids), -1, z.hidden_size)
