"""Do literals beat a finer ratio at equal positions?

    python benchmarks/literals.py texts.txt --bundle bundles/smollm2-135m --ratio 4 --window 256

Every text is written twice at one number of positions: all symbols at a finer ratio, and with some
kind of literal kept as text. For both: the share of tokens that read back right, bits still missing
per token, and how many of the text's numbers, names and addresses would survive. The literals win
where they lose fewer of these without missing more bits. One JSON line per condition.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings
from zcontext.fidelity import overall_fidelity
from zcontext.fragile import fragile_places
from zcontext.training.data import read_texts


def measure(
    compressor: ZCompressor, texts: Sequence[str], chosen: CompressSettings
) -> dict[str, float]:
    """Figures of one condition over all texts."""
    n_tokens = n_positions = n_literal = n_fragile = n_lost = 0
    right = bits = 0.0
    for text in texts:
        document = compressor.compress(text, settings=chosen)
        fidelity = overall_fidelity(document)
        n_tokens += document.n_tokens
        n_positions += document.n_positions
        n_literal += document.n_positions - document.n_symbols
        right += fidelity.token_accuracy * document.n_tokens
        bits += fidelity.bits_missing
        n_fragile += len({text[begin:end] for begin, end in fragile_places(text)})
        n_lost += len(fidelity.lost)
    return {
        "tokens": n_tokens,
        "positions": n_positions,
        "ratio": round(n_tokens / n_positions, 3),
        "literal_share": round(n_literal / n_positions, 4),
        "token_accuracy": round(right / n_tokens, 4),
        "bits_missing_per_token": round(bits / n_tokens, 4),
        "fragile": n_fragile,
        "fragile_kept": round(1 - n_lost / max(1, n_fragile), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpus", help="texts: a .txt, .md or .jsonl file, or a folder")
    parser.add_argument("--field", default="text")
    parser.add_argument("--bundle", default="smollm2-135m")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--characters", type=int, default=1200, help="taken from each text")
    parser.add_argument("--protect", action="append", help="kinds together, as numbers+names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = []
    for text in read_texts(options.corpus, field=options.field):
        texts.append(text[: options.characters])
        if len(texts) == options.texts:
            break
    compressor = ZCompressor.from_bundle(options.bundle)
    rows = []
    for ratio in options.ratio or [2.0, 4.0, 8.0]:
        for kinds in ["", *(options.protect or ["numbers", "names", "numbers+names"])]:
            protect = tuple(kind for kind in kinds.split("+") if kind)
            chosen = CompressSettings(
                ratio=ratio,
                protect=protect,
                window=options.window,
                min_fidelity=0.0,
                on_symbols="escape",
            )
            row = {"asked": ratio, "protect": kinds or "none", **measure(compressor, texts, chosen)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
