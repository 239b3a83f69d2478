"""Replies that are kept as symbols while they are made, beside replies kept as text.

    python benchmarks/thinking.py --text dev.jsonl.gz --questions qa.jsonl.gz --out thinking.json

Four tables:

- `going_on`: bits per token of 64 tokens of a text, given the 256 tokens that the prompt asks to go
  on with and the 128 between them as the beginning of the reply: as text, as symbols behind which
  some of the newest tokens are left as text, or with nothing in the place of the symbols. Bits of
  the very text, so nothing is drawn.
- `replies`: replies of up to 128 tokens to the same prompts, sampled: positions, how surprising the
  plain base finds them behind the prompt, and the share of their runs of four tokens that do not
  repeat an earlier one.
- `summaries`: summaries of up to 64 tokens of a text of 448, greedy: the bits per token of the text
  that the plain base saves by reading the summary first (as in BLANC, Vasilyev et al. 2020).
- `answers`: F1 of answers to questions, the passage given as text, where every few tokens of the
  answer become symbols.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zcontext import ZCompressor
from zcontext.bundle import load_bundle
from zcontext.bundles import find_bundle
from zcontext.config import CompressSettings, GenerationSettings
from zcontext.evaluation.continuation import Passage, cut_passages
from zcontext.evaluation.foretellers import PlainForeteller, following_bits
from zcontext.evaluation.judge import ModelJudge
from zcontext.evaluation.metrics import bootstrap, f1_score
from zcontext.evaluation.questions import read_rows
from zcontext.prompts import Piece, encode_content, encode_messages, n_positions, question_parts
from zcontext.spans import ChatMessage
from zcontext.thinking import Thinker, ThinkSettings, Thought
from zcontext.tokenization import decoded, text_tokenizer
from zcontext.training.data import read_texts
from zcontext.training.prompt_source import CONTINUE

N_CONTEXT, N_HELD, N_SCORED, N_REPLY, N_SUMMARY = 256, 128, 64, 128, 64
SUMMARISE = "\n\nSummarise the text in two sentences."
AS_TEXT = ThinkSettings(block=1_000_000, recent=0)
"""A draft that never becomes symbols before the reply has ended."""

WAYS = (
    ThinkSettings(block=16, recent=0),
    ThinkSettings(block=32, recent=16),
    ThinkSettings(block=32, recent=48),
)


def prompt_of(text: str, request: str = CONTINUE) -> list[ChatMessage]:
    """The prompt that asks to go on with a text, or for something else to be done with it."""
    return [ChatMessage("user", ("Context:\n", text, request))]


def told(values: Sequence[float]) -> dict[str, float]:
    """Mean and interval."""
    return bootstrap(values).to_dict()


def going_on(compressor: ZCompressor, passages: Sequence[Passage], ratio: float) -> Iterator[Any]:
    """Rows of the first table."""
    model = compressor.model
    writing = CompressSettings(ratio=ratio, on_symbols="escape")
    as_text: list[float] = []
    for kind, recent in [
        ("text", N_HELD),
        *((kind, way.recent) for way in WAYS for kind in ("symbols", "nothing")),
    ]:
        n, bits, positions = N_HELD - recent, [], []
        for passage in passages:
            held, scored = passage.following[:N_HELD], passage.following[N_HELD:]
            pieces: list[Piece] = encode_messages(model.tokenizer, prompt_of(passage.context))
            n_prompt = n_positions(pieces)
            if kind == "symbols":
                text = decoded(model.tokenizer, held[:n])
                parts = compressor.compress(text, settings=writing).parts
                pieces += encode_content(model.tokenizer, parts)
            pieces += [list(held[n:])] if recent else []
            bits.append(following_bits(model, "infer", pieces, scored))
            positions.append(n_positions(pieces) - n_prompt)
        as_text = as_text or bits
        yield {
            "held_as": kind,
            "recent": recent,
            "positions": sum(positions) / len(positions),
            "bits": told(bits),
            "over_text": told([a - b for a, b in zip(bits, as_text, strict=True)]),
        }


def replies(compressor: ZCompressor, passages: Sequence[Passage], ratio: float) -> Iterator[Any]:
    """Rows of the second table."""
    judge = PlainForeteller(compressor.model)
    ids = text_tokenizer(compressor.model.tokenizer).ids
    drawn = GenerationSettings(max_new_tokens=N_REPLY, temperature=0.8, top_p=0.95)
    for way in (AS_TEXT, *WAYS):
        thinker = Thinker(compressor, settings=way, writing=CompressSettings(ratio=ratio))
        made = [thinker.think(prompt_of(p.context), settings=drawn) for p in passages]
        pairs = [(p, ids(t.text)) for p, t in zip(passages, made, strict=True)]
        yield {
            **told_of(way, made),
            "bits": told([judge.bits([p.context], tokens) for p, tokens in pairs if tokens]),
            "new_runs": told([new_runs(tokens) for _, tokens in pairs if len(tokens) > 3]),
        }


def summaries(compressor: ZCompressor, passages: Sequence[Passage], ratio: float) -> Iterator[Any]:
    """Rows of the third table."""
    tokenizer, judge = compressor.model.tokenizer, PlainForeteller(compressor.model)
    short = GenerationSettings(max_new_tokens=N_SUMMARY)
    texts = [p.context + decoded(tokenizer, p.following) for p in passages]
    wanted = [text_tokenizer(tokenizer).ids(text) for text in texts]
    unread = [judge.bits([], tokens) for tokens in wanted]
    for way in (AS_TEXT, *WAYS):
        thinker = Thinker(compressor, settings=way, writing=CompressSettings(ratio=ratio))
        made = [thinker.think(prompt_of(text, SUMMARISE), settings=short) for text in texts]
        read = [
            judge.bits([f"{thought.text}\n\n"], tokens)
            for thought, tokens in zip(made, wanted, strict=True)
        ]
        saved = [before - after for before, after in zip(unread, read, strict=True)]
        yield {**told_of(way, made), "saved": told(saved)}


def answers(compressor: ZCompressor, rows: Sequence[Any], ratio: float) -> Iterator[Any]:
    """Rows of the fourth table."""
    short = GenerationSettings(max_new_tokens=32, stop=("\n",))
    for way in (AS_TEXT, ThinkSettings(block=8, recent=0), ThinkSettings(block=4, recent=0)):
        thinker = Thinker(compressor, settings=way, writing=CompressSettings(ratio=ratio))
        made = [
            thinker.think(question_parts(r.question, [r.context]), settings=short) for r in rows
        ]
        scores = [f1_score(t.text, row.answers) for t, row in zip(made, rows, strict=True)]
        yield {**told_of(way, made), "f1": told(scores)}


def told_of(way: ThinkSettings, made: Sequence[Thought]) -> dict[str, Any]:
    """How thoughts were made, and what they took."""
    n = len(made)
    return {
        "held_as": "text" if way == AS_TEXT else "symbols",
        "block": way.block,
        "recent": way.recent,
        "tokens": sum(t.n_tokens for t in made) / n,
        "symbols": sum(t.n_symbols for t in made) / n,
        "peak_positions": sum(t.n_peak_positions for t in made) / n,
    }


def new_runs(tokens: Sequence[int], length: int = 4) -> float:
    """Share of the runs of some tokens that do not repeat an earlier one."""
    runs = [tuple(tokens[at : at + length]) for at in range(len(tokens) - length + 1)]
    return len(set(runs)) / len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", required=True, help="running text: .txt, .md or .jsonl(.gz)")
    parser.add_argument("--questions", required=True, help="questions with passages, .jsonl(.gz)")
    parser.add_argument("--bundle", default="smollm2-135m")
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--passages", type=int, default=24)
    parser.add_argument("--limit", type=int, default=48, help="questions")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    how = {"quantization": options.quantization, "dtype": options.dtype}
    compressor = ZCompressor(load_bundle(find_bundle(options.bundle), **how))
    passages = cut_passages(
        list(read_texts(options.text)),
        judge=ModelJudge(compressor.model),
        n_context=N_CONTEXT,
        n_following=N_HELD + N_SCORED,
        limit=options.passages,
    )
    questions = read_rows(options.questions, limit=options.limit)
    found: dict[str, Any] = {"codec": compressor.codec, "rows": []}
    for ratio in options.ratio or [4.0, 8.0]:
        for table, rows in (
            ("going_on", going_on(compressor, passages, ratio)),
            ("replies", replies(compressor, passages, ratio)),
            ("summaries", summaries(compressor, passages, ratio)),
            ("answers", answers(compressor, questions, ratio)),
        ):
            for row in rows:
                found["rows"].append({"table": table, "ratio": ratio, **row})
                print(json.dumps(found["rows"][-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
