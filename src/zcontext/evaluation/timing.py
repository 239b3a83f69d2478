"""Times and peaks of compressing, reading and answering: one model, in the process it is in.

Answers are forced to the same number of tokens, whatever the reader would say. It knows neither
files nor reports.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

QUESTION = "What is the main subject of the text, and which figures does it give?"


# For times: without them torch spends most of a pass in page faults under glibc's malloc.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "1073741824",
}


def machine(model: Any = None) -> dict[str, Any]:
    """What figures were measured on, in general terms; the device is that of a model."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    on_gpu = model is not None and model.device.type == "cuda"
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(model.device) if on_gpu else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "malloc_tuned": all(os.environ.get(name) == value for name, value in MALLOC.items()),
    }


def text_of(model: Any, source: str, n_tokens: int) -> str:
    """The source, repeated where it is short, cut to a number of tokens."""
    from zcontext.tokenization import text_tokenizer

    tokens = text_tokenizer(model.tokenizer)
    # No more of it than a token can be long: sources may be whole libraries.
    source = source[: 64 * n_tokens]
    text = source * (n_tokens // max(1, tokens.count(source)) + 1)
    return text[: tokens.locate(text, max_tokens=sys.maxsize).char_at(n_tokens)]


class Reading:
    """One prompt, read in two passes: up to the question, then the rest.

    The Inferencer reads symbols so, to keep the first part; text is read so too, for both to pay
    the same overhead.
    """

    def __init__(self, model: Any, context: Sequence[Any]) -> None:
        from zcontext.prompts import encode_messages, question_parts

        self.model = model
        self.pieces = encode_messages(model.tokenizer, question_parts(QUESTION, context))
        ids = _flat(self.pieces)
        bare = _flat(encode_messages(model.tokenizer, question_parts(QUESTION, ())))
        n_tail = 0  # the question and what follows it: what every prompt ends with
        while n_tail < len(bare) - 1 and ids[-1 - n_tail] == bare[-1 - n_tail]:
            n_tail += 1
        self.n, self.n_prefix = len(ids), len(ids) - max(1, n_tail)

    def embedded(self) -> Any:
        """Embeddings of the prompt, `[seq, hidden]`."""
        import torch

        from zcontext.decompressor import embed_symbols
        from zcontext.vocabulary import Symbols

        rows = [
            embed_symbols(self.model, piece)
            if isinstance(piece, Symbols)
            else self.model.embed_tokens(torch.tensor([piece]))[0]
            for piece in self.pieces
        ]
        return torch.cat(rows).detach()

    def answer(self, n_output: int, *, past: Any = None) -> tuple[dict[str, Any], Any]:
        """Times from prompt to answer, and the prefix's keys and values for the next question."""
        import torch

        from zcontext.caches import fork
        from zcontext.config import GenerationSettings
        from zcontext.generation import Decoding, Prefill

        started = clock(self.model)
        rows = self.embedded()
        if past is None:
            past = prefill(self.model, rows[: self.n_prefix], role="infer")
        prompt = Prefill(
            rows[self.n_prefix :],
            torch.arange(self.n_prefix, self.n),
            self.n,
            n_output,
            forced=True,
        )
        settings = GenerationSettings(max_new_tokens=n_output)
        decoding = Decoding(self.model, "infer", [prompt], settings=settings, past=fork(past))
        decoding.step()
        first = clock(self.model) - started
        while not decoding.done:
            decoding.step()
        total = clock(self.model) - started
        per_position = kv_bytes(past) // self.n_prefix
        figures = {
            "n_positions": self.n,
            "first_token_seconds": first,
            "total_seconds": total,
            "kv_bytes": per_position * self.n,
        }
        return figures, past


def _flat(pieces: Sequence[Any]) -> list[int]:
    """Token ids, and -1 for every symbol."""
    return [
        t for piece in pieces for t in (piece if isinstance(piece, list) else [-1] * len(piece))
    ]


def kv_bytes(cache: Any) -> int:
    """Bytes of a cache's tensors."""
    from zcontext.caches import n_bytes

    return n_bytes(cache)


def prefill(model: Any, embeddings: Any, *, role: str | None) -> Any:
    """Keys and values of a text, without any scores."""
    import torch

    n = len(embeddings)
    with model.using(role), torch.no_grad():
        return model.run(
            embeddings.unsqueeze(0),
            positions=torch.arange(n).unsqueeze(0),
            mask=torch.ones(1, n, dtype=torch.long),
            use_cache=True,
        ).cache


def clock(model: Any) -> float:
    """Now, once the device has done what it was told."""
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize(model.device)
    return time.perf_counter()


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over some runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def break_even(cost: float, saving: float) -> int | None:
    """Questions after which a cost paid once is earned back; None: never."""
    if cost <= 0:
        return 1
    return max(1, math.ceil(cost / saving)) if saving > 0 else None


def break_even_cached(
    compress: float, stored: float, cached: float, raw: float, raw_cached: float
) -> int | None:
    """The same where both sides read their prompt once and keep its keys and values."""
    further = break_even(compress + stored - raw, raw_cached - cached)
    if compress + stored <= raw:
        return 1
    return None if further is None else 1 + further


def time_length(
    model: Any,
    text: str,
    *,
    ratios: Sequence[float],
    repeats: int,
    n_output: int,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """All times of one length: every repeat goes through every condition once."""
    import torch

    from zcontext import SQLiteStore, ZCompressor
    from zcontext.tokenization import text_tokenizer

    ids = torch.tensor([text_tokenizer(model.tokenizer).ids(text)])
    runs: dict[str, list[Any]] = {"prefill": [], "raw": [], "raw_cached": []}
    spans: list[dict[str, list[Any]]] = [
        {"compress": [], "cold": [], "stored": [], "cached": []} for _ in ratios
    ]
    documents: list[Any] = [None] * len(ratios)
    writer = ZCompressor(model)
    with tempfile.TemporaryDirectory() as folder:
        kept = ZCompressor(model, store=SQLiteStore(Path(folder) / "spans.sqlite"))
        for repeat in range(repeats):
            tell(f"repeat {repeat + 1} of {repeats}")
            started = clock(model)
            prefill(model, model.embed_tokens(ids)[0], role=None)
            runs["prefill"].append(clock(model) - started)
            reading = Reading(model, (text,))
            figures, past = reading.answer(n_output)
            runs["raw"].append(figures)
            runs["raw_cached"].append(reading.answer(n_output, past=past)[0])
            del past
            for at, ratio in enumerate(ratios):
                started = clock(model)
                documents[at] = writer.compress(text, ratio=ratio)
                seconds = clock(model) - started
                spans[at]["compress"].append(seconds)
                if not repeat:
                    kept.compress(text, ratio=ratio)
                started = clock(model)
                found = kept.compress(text, ratio=ratio)
                looked_up = clock(model) - started
                reading = Reading(model, (found.symbols,))
                figures, past = reading.answer(n_output)
                spans[at]["cold"].append(_later(figures, seconds))
                spans[at]["stored"].append(_later(figures, looked_up))
                spans[at]["cached"].append(reading.answer(n_output, past=past)[0])
    return _row(ids.shape[1], runs, zip(ratios, documents, spans, strict=True))


def _later(figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Times of a reading that something else had to come before."""
    return {
        **figures,
        "first_token_seconds": figures["first_token_seconds"] + seconds,
        "total_seconds": figures["total_seconds"] + seconds,
    }


def _row(n_tokens: int, runs: dict[str, list[Any]], measured: Any) -> dict[str, Any]:
    prefilled = statistics.median(runs["prefill"])
    raw, raw_cached = median(runs["raw"]), median(runs["raw_cached"])
    row: dict[str, Any] = {
        "n_tokens": n_tokens,
        "prefill_seconds": prefilled,
        "prefill_tokens_per_second": n_tokens / prefilled,
        "raw": raw,
        "raw_cached": raw_cached,
        "peak_bytes": {"raw": None},
        "spans": [],
    }
    for ratio, document, of in measured:
        compress = statistics.median(of["compress"])
        cold, stored, cached = (median(of[name]) for name in ("cold", "stored", "cached"))
        total = stored["total_seconds"]
        row["spans"].append(
            {
                "ratio": ratio,
                "n_symbols": document.n_symbols,
                "effective_ratio": document.ratio,
                "document_bytes": math.ceil(document.bits / 8),
                "compress_seconds": compress,
                "compress_tokens_per_second": n_tokens / compress,
                "compress_over_prefill": prefilled / compress,
                "cold": cold,
                "stored": stored,
                "cached": cached,
                "first_token_speedup": raw["first_token_seconds"] / stored["first_token_seconds"],
                "total_speedup": raw["total_seconds"] / total,
                "cached_total_speedup": raw_cached["total_seconds"] / cached["total_seconds"],
                "break_even_questions": break_even(compress, raw["total_seconds"] - total),
                "break_even_questions_cached": break_even_cached(
                    compress,
                    total,
                    cached["total_seconds"],
                    raw["total_seconds"],
                    raw_cached["total_seconds"],
                ),
                "peak_bytes": {"compress": None, "stored": None},
            }
        )
    return row


def peak_of(model: Any, text: str, what: str, ratio: float) -> int | None:
    """Most bytes held above the loaded model while one thing is done once."""
    from zcontext import ZCompressor

    compressor = ZCompressor(model)
    compressor.compress("A first pass allocates what stays.", ratio=ratio)
    context: Any = text
    if what == "stored":
        context = compressor.compress(text, ratio=ratio).symbols
    Reading(model, ("One more.",)).answer(2)
    before = _held(model, reset=True)
    if what == "compress":
        compressor.compress(text, ratio=ratio)
    else:
        Reading(model, (context,)).answer(2)
    after = _held(model, reset=False)
    return None if before is None or after is None else max(0, after - before)


def _held(model: Any, *, reset: bool) -> int | None:
    """Bytes held now (and forget the peak), or the most since then; None where nobody counts."""
    if model.device.type == "cuda":
        import torch

        if reset:
            torch.cuda.reset_peak_memory_stats(model.device)
            return torch.cuda.memory_allocated(model.device)
        return torch.cuda.max_memory_allocated(model.device)
    status = Path("/proc/self/status")
    if not status.exists():  # elsewhere the peak of loading cannot be forgotten
        return None
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return None
    name = "VmRSS:" if reset else "VmHWM:"
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
