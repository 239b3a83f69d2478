"""`compress --output text`: texts cut down to readable text, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zcontext.cli.console import progress_bar, say
from zcontext.cli.losses import named

if TYPE_CHECKING:
    from zcontext.cli.files import Sink, Source
    from zcontext.config import CompressSettings
    from zcontext.spans import SupportsPrune


def write_pruned(
    texts: Sequence[Source],
    pruner: SupportsPrune,
    settings: CompressSettings,
    *,
    sink: Sink,
    as_json: bool,
) -> None:
    """Write every text cut down; what was lost goes into the rows, or to standard error.

    Args:
        texts: The sources.
        pruner: Cuts them down.
        settings: How far.
        sink: A single text is written as it is, several are each ended by a newline.
        as_json: One JSON line per text instead.
    """
    n_tokens = n_kept = 0
    bits = bits_kept = 0.0
    lost: dict[str, None] = {}
    with progress_bar("pruning") as report:
        for done, source in enumerate(texts, start=1):
            (pruned,) = pruner.prune_many([source.text], settings=settings)
            n_tokens, n_kept = n_tokens + pruned.n_tokens, n_kept + pruned.n_kept
            bits, bits_kept = bits + pruned.bits, bits_kept + pruned.bits_kept
            lost.update(dict.fromkeys(pruned.lost))
            if as_json:
                row = {
                    "source": source.name,
                    "n_tokens": pruned.n_tokens,
                    "n_kept": pruned.n_kept,
                    "ratio": round(pruned.ratio, 3) if pruned.n_kept else None,
                    "share_kept": round(pruned.share, 6),
                    "lost": list(pruned.lost),
                    "text": pruned.text,
                }
                sink.line(json.dumps(row, ensure_ascii=False))
            elif len(texts) == 1:
                sink.write(pruned.text)
            else:
                sink.line(pruned.text)
            report("pruning", done, len(texts))
    share = bits_kept / bits if bits else 1.0
    told = f"{n_kept:,} of {n_tokens:,} tokens left, {share:.0%} of the surprisal"
    say(f"{told}; {named(lost)}" if lost else told)
