"""Windows of a corpus, written as a codec that stands writes them: nothing of it is trained here.

What this module does not know: losses, optimisers, documents, budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.needs import fact_tokens
from zcontext.segmentation import FACT_BITS
from zcontext.tokenization import spelled


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
    ids: Tensor,
    *,
    n_slots: int,
    depth: int,
    memory: Tensor | None = None,
    facts_first: bool = False,
) -> Transcript:
    """Write windows. Slots stand where the writer puts them, by its own estimate of surprisal.

    Args:
        z: The model; COMPRESS is left active.
        ids: The windows, int64 `[batch, n]`.
        n_slots: Symbols of each.
        depth: Codes per symbol.
        memory: Symbols written earlier, which the writer reads first, `[batch, m, hidden]`.
        facts_first: Name numbers, names and addresses before others, as
            `CompressSettings(facts=True)` does.

    Returns:
        The symbols.
    """
    z.adapters.activate("compress")
    state = z.read(ids, torch.ones_like(ids), memory=memory)
    bits = state.surprisal
    if facts_first:
        facts = [fact_tokens(*spelled(z.tokenizer, row)) for row in ids.tolist()]
        bits = bits + FACT_BITS * torch.stack(facts).to(bits)
    starts = z.codebook.cut(ids)
    ends = place_symbols(z.config, bits, n_slots, depth=depth, starts=starts).to(z.device)
    latents = z.write(state, ends, torch.ones_like(ends))
    written = z.quantise(latents, ids, ends, bits, depth=depth)
    return Transcript(ends, written.codes, z.embed_codes(written.codes))
