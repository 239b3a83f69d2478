"""What overlapping windows agree on: the same tokens, written twice in different company.

Windows of W tokens that start every S tokens are each written whole, by themselves. Two neighbours
share W - S tokens; for these it is measured whether segments end at the same places, and where
whole segments coincide, whether their symbols hold the same codes. Each figure stands beside the
same one by chance. What it does not know: files, documents, what codes mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from zcontext.config import DEFAULT_RATIO, CompressSettings, PlacementName
from zcontext.errors import ConfigError
from zcontext.lexicon import SILENT
from zcontext.model import ZLanguageModel
from zcontext.needs import fact_tokens
from zcontext.tokenization import spelled
from zcontext.windows import Extent, WindowPlan
from zcontext.writing import WindowTask, WindowWriter, Written

N_SHIFTS: Final = 16
"""How often one side of a comparison is moved along the other to see what chance gives."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far neighbouring windows agree on the tokens they share.

    Attributes:
        window: Tokens of a window.
        stride: Tokens by which neighbours are apart.
        ratio: Tokens per symbol of every window.
        placement: What decides where segments end.
        n_windows: Windows written.
        n_tokens: Tokens in overlaps, each overlap counted.
        ends: Share of these whose segments end at the same place.
        ends_by_chance: The same with one side's segments moved along the text.
        segments: Share of these whose segments coincide: same beginning, same end.
        n_symbols: Pairs of symbols whose segments coincide.
        codes: Mean Jaccard overlap of the codes of such a pair.
        codes_by_chance: The same, each with symbols of other such pairs.
        identical: Share of such pairs with the same codes at every stage.
    """

    window: int
    stride: int
    ratio: float
    placement: PlacementName
    n_windows: int
    n_tokens: int
    ends: float
    ends_by_chance: float
    segments: float
    n_symbols: int
    codes: float
    codes_by_chance: float
    identical: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class _Side:
    """One window's reading of an overlap.

    Attributes:
        ends: Per token, where its segment ends, in tokens of the document.
        starts: Per token, where it starts.
        symbols: Codes of the segment that starts at a token of the document.
    """

    ends: tuple[int, ...]
    starts: tuple[int, ...]
    symbols: dict[int, tuple[int, ...]]


def measure_overlaps(
    ids: Sequence[int],
    *,
    model: ZLanguageModel,
    plan: WindowPlan | None = None,
    ratio: float = DEFAULT_RATIO,
    depth: int | None = None,
    placement: PlacementName = "surprisal",
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Agreement:
    """Write overlapping windows of a text and compare neighbours on what they share.

    Args:
        ids: Tokens of the text.
        model: The model that writes.
        plan: Length and stride of windows; None is that of arXiv 2603.25340.
        ratio: Tokens per symbol of every window.
        depth: Codes per symbol; None means the codec's own.
        placement: What decides where segments end, as in `CompressSettings`.
        progress: Told how far it is, in windows.

    Returns:
        The agreement.

    Raises:
        ConfigError: The ratio or the placement is none, the text is too short for two windows that
            overlap, or a window does not fit the model.
    """
    plan = plan or WindowPlan.paper()
    asked = CompressSettings(ratio=ratio, placement=placement)
    _check(len(ids), model, plan)
    windows = plan.overlapping(len(ids))
    writer = WindowWriter(model)
    facts = fact_tokens(*spelled(model.tokenizer, ids)) if asked.facts else None
    written = []
    for at, window in enumerate(windows):
        task = WindowTask(
            ids=ids[window.start : window.end],
            start=0,
            memory=(),
            depth=depth or model.config.depth,
            take=lambda surprisal: max(1, int(len(surprisal) / ratio)),
            facts=None if facts is None else facts[window.start : window.end],
            anchored=asked.placement == "anchored",
            surprisal=asked.surprisal,
        )
        written += writer.write([task])
        progress("writing windows", at + 1, len(windows))
    pairs = []
    for (a, wrote_a), (b, wrote_b) in pairwise(zip(windows, written, strict=True)):
        shared = Extent(b.start, a.end)
        pairs.append((_side(a, wrote_a, shared), _side(b, wrote_b, shared)))
    return _agreement(pairs, asked, model=model, plan=plan, n_windows=len(windows))


def _check(n_tokens: int, model: ZLanguageModel, plan: WindowPlan) -> None:
    if not plan.context:
        raise ConfigError(
            f"windows of {plan.window} tokens at a stride of {plan.stride} do not overlap; give a "
            "smaller stride",
            field="stride",
            value=plan.stride,
        )
    if plan.window > model.context_length:
        raise ConfigError(
            f"window={plan.window} tokens need more than the {model.context_length} positions of "
            "the base; lower it",
            field="window",
            value=plan.window,
        )
    if n_tokens <= plan.window:
        raise ConfigError(
            f"the text has {n_tokens} tokens, and two windows of {plan.window} need more; give a "
            "longer text or a smaller window",
            field="window",
            value=plan.window,
        )


def _side(window: Extent, written: Written, shared: Extent) -> _Side:
    bounds = [window.start, *(window.start + end for end in written.ends)]
    starts: list[int] = []
    ends: list[int] = []
    for a, b in pairwise(bounds):
        n = min(b, shared.end) - max(a, shared.start)
        starts += [a] * n
        ends += [b] * n
    return _Side(tuple(ends), tuple(starts), dict(zip(bounds, written.codes, strict=False)))


def _agreement(
    pairs: Sequence[tuple[_Side, _Side]],
    asked: CompressSettings,
    *,
    model: ZLanguageModel,
    plan: WindowPlan,
    n_windows: int,
) -> Agreement:
    n_tokens = n_ends = n_segments = 0
    chance: list[float] = []
    left: list[frozenset[tuple[int, int]]] = []
    right: list[frozenset[tuple[int, int]]] = []
    n_identical = 0
    for a, b in pairs:
        n_tokens += len(a.ends)
        n_ends += sum(x == y for x, y in zip(a.ends, b.ends, strict=True))
        chance += _moved(a, b)
        places = list(zip(a.starts, a.ends, strict=True))
        same = [
            x for x, y in zip(places, zip(b.starts, b.ends, strict=True), strict=True) if x == y
        ]
        n_segments += len(same)
        for start in sorted({start for start, _ in same}):
            codes = a.symbols[start], b.symbols[start]
            n_identical += codes[0] == codes[1]
            left.append(_code_set(codes[0], shared=model.config.shared))
            right.append(_code_set(codes[1], shared=model.config.shared))
    n = len(left)
    shifts = range(1, min(n - 1, N_SHIFTS) + 1)
    others = [_jaccard(left[at], right[(at + shift) % n]) for shift in shifts for at in range(n)]
    return Agreement(
        window=plan.window,
        stride=plan.stride,
        ratio=asked.ratio or DEFAULT_RATIO,
        placement=asked.placement,
        n_windows=n_windows,
        n_tokens=n_tokens,
        ends=n_ends / n_tokens,
        ends_by_chance=_mean(chance),
        segments=n_segments / n_tokens,
        n_symbols=n,
        codes=_mean([_jaccard(x, y) for x, y in zip(left, right, strict=True)]),
        codes_by_chance=_mean(others),
        identical=n_identical / n if n else 0.0,
    )


def _moved(a: _Side, b: _Side) -> Iterator[float]:
    """Agreement of ends when the second side's segments stand where they do not belong."""
    n = len(a.ends)
    # How far each token is from its segment's end says the same wherever a segment stands.
    first = [end - at for at, end in enumerate(a.ends)]
    second = [end - at for at, end in enumerate(b.ends)]
    for k in range(1, min(n - 1, N_SHIFTS) + 1):
        shift = k * n // (N_SHIFTS + 1) or k
        moved = [*second[shift:], *second[:shift]]
        yield sum(x == y for x, y in zip(first, moved, strict=True)) / n


def _code_set(codes: Sequence[int], *, shared: bool) -> frozenset[tuple[int, int]]:
    if shared:
        return frozenset((0, code) for code in codes if code != SILENT)
    return frozenset(enumerate(codes))


def _jaccard(a: frozenset[tuple[int, int]], b: frozenset[tuple[int, int]]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
