"""A codebook's start and its upkeep: rows from tokens or from latents, and dead codes restarted.

What it does not know: how symbols are written or read, the loop that trains them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zcontext.codebook import Codebook
from zcontext.lexicon import SILENT
from zcontext.phrases import Phrase
from zcontext.relaxation import squared_distances


@torch.no_grad()
def centre(codebook: Codebook, token_embeddings: Tensor, counts: Tensor) -> None:
    """Measure deviations from the mean embedding of text instead of that of the vocabulary.

    Common tokens share a large component (70 % of their deviation's norm in SmolLM2), which
    otherwise makes half of a latent's variance and says only how long its segment is.

    Args:
        codebook: Changed in place.
        token_embeddings: Table of the base, `[vocab, hidden]`.
        counts: How often each token occurs in text, `[at most vocab]`.
    """
    share = (counts / counts.sum()).to(codebook.mean_embedding)
    table = token_embeddings.detach()[: len(share)].to(codebook.mean_embedding)
    codebook.mean_embedding.copy_(share @ table)


@torch.no_grad()
def record_usage(codebook: Codebook, codes: Tensor, *, decay: float = 0.98) -> None:
    """Update the running count of how often each code is chosen.

    Args:
        codebook: Changed in place.
        codes: int64 `[..., depth]`, any depth.
        decay: Weight of the past.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    chosen = [flat.flatten()] if codebook.config.shared else list(flat.unbind(-1))
    for table, code in enumerate(chosen):
        count = torch.bincount(code, minlength=codebook.config.size)
        codebook.usage[table].mul_(decay).add_(count.to(codebook.usage), alpha=1 - decay)


@torch.no_grad()
def restart_dead(
    codebook: Codebook, latents: Tensor, *, generator: torch.Generator, threshold: float = 0.03
) -> int:
    """Put codes that are hardly used onto residuals of latents seen now.

    Args:
        codebook: Changed in place.
        latents: Recent latents, `[m, hidden]`.
        generator: CPU generator that picks the residuals.
        threshold: Share of the mean usage under which a code counts as dead.

    Returns:
        How many codes were restarted.
    """
    residual = latents.float() - codebook.mean_embedding
    restarted = 0
    if codebook.config.shared:  # one table: its dead codes take over what all stages leave
        codes = codebook.nearest(latents, depth=codebook.config.depth)
        residual = residual - codebook.rows_of(codes).sum(-2)
    for table in range(len(codebook.rows)):
        mean = codebook.usage[table].mean()
        unused = codebook.usage[table] < threshold * mean
        if codebook.config.shared:
            unused[SILENT] = False
        dead = unused.nonzero().squeeze(-1)
        pick = torch.randint(len(residual), (len(dead),), generator=generator).to(dead.device)
        codebook.rows[table, dead] = residual[pick]
        codebook.usage[table, dead] = mean
        restarted += len(dead)
        nearest = squared_distances(residual, codebook.rows[table]).argmin(-1)
        residual = residual - codebook.rows[table][nearest]
    return restarted


@torch.no_grad()
def start_from_tokens(
    codebook: Codebook,
    token_embeddings: Tensor,
    counts: Tensor,
    phrases: Sequence[Phrase] = (),
) -> float:
    """Start a shared table from the commonest tokens: symbols are then sums of tokens.

    A reader understands such sums before it has learned anything, and six of them leave half
    of the variance that eight stages of k-means leave at about as many bits.

    Args:
        codebook: Changed in place.
        token_embeddings: Table of the base, `[vocab, hidden]`.
        counts: How often each token occurs in text, `[at most vocab]`.
        phrases: Runs of tokens that get the codes left over by the tokens, where codes are names.

    Returns:
        Share of the text whose tokens have a code of their own.
    """
    centre(codebook, token_embeddings, counts)
    n_codes = codebook.config.size - 1
    whole = torch.zeros(len(token_embeddings)).index_copy(0, torch.arange(len(counts)), counts)
    common = whole.argsort(descending=True, stable=True)[:n_codes]
    if codebook.lexicon is not None:
        found = [*((token,) for token in common.tolist()), *phrases]
        codebook.lexicon.name(found[:n_codes])
    else:
        rows = token_embeddings.detach()[common.to(token_embeddings.device)].to(codebook.rows)
        codebook.rows.zero_()
        codebook.rows[0, 1 : len(common) + 1] = rows - codebook.mean_embedding
    codebook.offset.copy_(codebook.mean_embedding)
    codebook.usage.fill_(1.0)
    return float(whole[common].sum() / whole.sum())


@torch.no_grad()
def start_from_latents(
    codebook: Codebook, latents: Tensor, *, generator: torch.Generator, n_rounds: int = 8
) -> list[float]:
    """Start the stages from latents: residual k-means (Lloyd 1982), one stage after another.

    Args:
        codebook: Changed in place.
        latents: `[m, hidden]`; a few thousand at least.
        generator: CPU generator of the starting points.
        n_rounds: Lloyd rounds a stage.

    Returns:
        Share of the variance left after each stage.
    """
    points = latents.float()
    residual = points - codebook.mean_embedding
    variance = (points - points.mean(0)).square().mean()
    left = []
    for stage in range(codebook.config.depth):
        pick = torch.randperm(len(residual), generator=generator)[: codebook.config.size]
        pick = pick.repeat(-(-codebook.config.size // len(pick)))[: codebook.config.size]
        table = residual[pick.to(residual.device)].clone()
        for _ in range(n_rounds):
            nearest = squared_distances(residual, table).argmin(-1)
            count = torch.bincount(nearest, minlength=len(table)).unsqueeze(-1)
            summed = torch.zeros_like(table).index_add_(0, nearest, residual)
            table = torch.where(count > 0, summed / count.clamp_min(1), table)
        codebook.rows[stage] = table
        residual = residual - table[squared_distances(residual, table).argmin(-1)]
        left.append(float(residual.square().mean() / variance))
    codebook.usage.fill_(1.0)
    return left
