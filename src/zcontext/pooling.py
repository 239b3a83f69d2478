"""What pooling multiplies each token of a segment by: learned, from its first place to its last.

What this module does not know: tokens, latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zcontext.segmentation import segment_of

N_PLACES = 16
"""Places inside a segment that pooling can weigh apart (first to last, evenly)."""


def weights_in_text(place_logits: Tensor, ends: Tensor, n: int) -> Tensor:
    """Weights of all tokens of a text in all its segments.

    Args:
        place_logits: Learned logarithms, `[N_PLACES]`.
        ends: Last token of every segment, `[batch, k]`; tokens behind the last belong to none.
        n: Tokens of the text.

    Returns:
        `[batch, k, n]`, 0 on the tokens of other segments; a segment's sum is its length.
    """
    k = ends.shape[1]
    owner = segment_of(ends, n)
    starts = torch.cat([ends.new_zeros(len(ends), 1), ends[:, :-1] + 1], dim=1)
    length = (ends - starts + 1).clamp_min(0)
    inside = owner.clamp_max(k - 1)
    place = torch.arange(n, device=ends.device) - starts.gather(1, inside)
    bucket = place * N_PLACES // length.gather(1, inside).clamp_min(1)
    weight = place_logits.exp()[bucket.clamp(0, N_PLACES - 1)]
    # A product and not a scattered sum: on a GPU that adds in another order each time, and a
    # latent near the border of two codes would tip.
    segments = torch.arange(k, device=ends.device).unsqueeze(-1)
    share = weight.unsqueeze(1) * (owner.unsqueeze(1) == segments)
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
    return share * length.unsqueeze(-1)


def weights_of_places(place_logits: Tensor, lengths: Tensor) -> Tensor:
    """Weights of the places of segments, whatever text they are in.

    Args:
        place_logits: Learned logarithms, `[N_PLACES]`.
        lengths: Tokens of each segment, int64 `[k]`, at least 1.

    Returns:
        `[k, longest]`, 0 behind a segment's end; a segment's sum is its length.
    """
    place = torch.arange(int(lengths.max()), device=lengths.device)
    bucket = (place * N_PLACES // lengths.unsqueeze(-1)).clamp_max(N_PLACES - 1)
    weight = place_logits.exp()[bucket] * (place < lengths.unsqueeze(-1))
    return weight / weight.sum(-1, keepdim=True) * lengths.unsqueeze(-1)
