"""A closer look at some codes: where each fires, what is read back there, what its row is near to.

Which codes: those at ranks evenly spaced in the logarithm, from the commonest to the rarest that
fired twice. What a code does in a context is seen by taking its row out of the symbol and reading
the span again: the bits its segment then costs more, and the token that misses it most. What this
module does not know: statistics over all codes (`likeness`, `usage`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.config import check
from zcontext.decompressor import SpanLayout, span_layouts
from zcontext.lexicon import SILENT
from zcontext.model import ZLanguageModel
from zcontext.polysemy.firings import Firings, Listener, Progress
from zcontext.polysemy.likeness import pairwise_cosine
from zcontext.tokenization import decoded, special_ids


@dataclass(frozen=True, slots=True)
class LookSettings:
    """How closely codes are looked at.

    Attributes:
        n_codes: Codes looked at; 0 leaves this out.
        n_contexts: Contexts of each, drawn at random.
        around: Tokens shown on each side of a segment.
        n_nearest: Nearest codes and tokens shown.
        seed: Of the draw.

    Raises:
        ConfigError: A value is out of its range.
    """

    n_codes: int = 40
    n_contexts: int = 4
    around: int = 12
    n_nearest: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("n_codes", 0), ("n_contexts", 1), ("around", 0), ("n_nearest", 1)):
            value = getattr(self, field)
            fits = type(value) is int and value >= least
            check(self, field, fits, f"an integer of {least} or more")


@dataclass(frozen=True, slots=True)
class CodeContext:
    """A place where a code fires.

    Attributes:
        before: Text in front of the segment.
        segment: Text of the segment.
        after: Text behind it.
        said: What the decompressor finds likeliest on the segment, each token behind the right
            ones before it.
        n_right: Tokens of the segment it gets right so.
        n_tokens: Tokens of the segment.
        bits: What the segment costs with its symbol.
        bits_without: What it costs when the code's row is taken out of the symbol.
        needs: The token of the segment that then loses most.
    """

    before: str
    segment: str
    after: str
    said: str
    n_right: int
    n_tokens: int
    bits: float
    bits_without: float
    needs: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Something whose vector points the same way.

    Attributes:
        name: A code's name, or a base token as text.
        cosine: Of the two vectors.
    """

    name: str
    cosine: float


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One code.

    Attributes:
        name: Its number; with separate tables `stage.number`, stages from 0.
        rank: Its place in the order of use, from 1.
        n_firings: Symbols that hold it.
        consistency: Mean pairwise cosine of the contextual states where it fires.
        segments: The commonest texts it fires on, with their counts.
        contexts: Places where it fires.
        nearest_codes: Of the same table.
        nearest_tokens: Base tokens, as deviations from the mean embedding.
    """

    name: str
    rank: int
    n_firings: int
    consistency: float
    segments: tuple[tuple[str, int], ...]
    contexts: tuple[CodeContext, ...]
    nearest_codes: tuple[Neighbour, ...]
    nearest_tokens: tuple[Neighbour, ...]


def look_at(
    model: ZLanguageModel,
    found: Firings,
    *,
    settings: LookSettings,
    progress: Progress = lambda label, done, total: None,
) -> tuple[CodeEntry, ...]:
    """A closer look at codes from all over the order of use.

    Args:
        model: The model that wrote the symbols.
        found: Where codes fire.
        settings: How many, how closely.
        progress: Told how far it is, in codes.

    Returns:
        Codes, the commonest first.
    """
    counts = found.key.bincount()
    order = counts.argsort(descending=True, stable=True)
    n = int((counts > 1).sum())
    ranks = spaced_ranks(n, settings.n_codes)
    look = _Look(model, found, settings)
    entries = []
    for at, rank in enumerate(ranks):
        entries.append(look.entry(int(order[rank - 1]), rank))
        progress("looking at codes", at + 1, len(ranks))
    return tuple(entries)


def spaced_ranks(n: int, wanted: int) -> list[int]:
    """Ranks from 1 to n, close together at first, as many as wanted where there are so many.

    Args:
        n: Last rank.
        wanted: How many.

    Returns:
        Rising, each once.
    """
    if n <= wanted:
        return list(range(1, n + 1))
    ranks: list[int] = []
    for k in range(wanted):
        spaced = round(n ** (k / max(1, wanted - 1)))
        ranks.append(max(spaced, ranks[-1] + 1 if ranks else 1))
    return ranks


class _Look:
    """Looks at codes one by one; passes over the same span are made once."""

    def __init__(self, model: ZLanguageModel, found: Firings, settings: LookSettings) -> None:
        self._model = model
        self._found = found
        self._settings = settings
        self._listener = Listener(model)
        self._unit = nn.functional.normalize(found.states, dim=-1)
        self._layouts: dict[int, list[SpanLayout]] = {}
        self._heard: dict[tuple[int, int], tuple[list[int], Tensor]] = {}
        self._draw = random.Random(settings.seed)
        table = model.embed_tokens(torch.arange(model.base_vocab).unsqueeze(0))[0].detach().float()
        self._tokens = nn.functional.normalize(table - model.codebook.mean_embedding, dim=-1)
        self._tokens[sorted(special_ids(model.tokenizer))] = 0.0

    def entry(self, key: int, rank: int) -> CodeEntry:
        found, size = self._found, self._model.config.size
        table, code = divmod(key, size)
        owners = found.owner[found.key == key].tolist()
        texts = Counter(self._text(owner) for owner in owners)
        drawn = self._draw.sample(owners, min(len(owners), self._settings.n_contexts))
        return CodeEntry(
            name=self._name(table, code),
            rank=rank,
            n_firings=len(owners),
            consistency=pairwise_cosine(self._unit[owners]),
            segments=tuple(texts.most_common(self._settings.n_nearest)),
            contexts=tuple(self._context(owner, table, code) for owner in sorted(drawn)),
            nearest_codes=self._near_codes(table, code),
            nearest_tokens=self._near_tokens(table, code),
        )

    def _name(self, table: int, code: int) -> str:
        return str(code) if self._model.config.shared else f"{table}.{code}"

    def _text(self, owner: int) -> str:
        segment = self._found.segments[owner]
        passage = self._found.passages[segment.passage]
        return passage.cut(segment.tokens.start, segment.tokens.end)

    def _context(self, owner: int, table: int, code: int) -> CodeContext:
        segment = self._found.segments[owner]
        passage = self._found.passages[segment.passage]
        span = passage.document.spans[segment.span]
        ids = passage.tokens.ids[span.tokens.start : span.tokens.end].tolist()
        start, end = segment.tokens.start, segment.tokens.end
        here = slice(start - span.tokens.start, end - span.tokens.start)
        layout = self._layout(segment.passage, segment.span)
        place = segment.passage, segment.span
        if place not in self._heard:
            self._heard[place] = self._listener.listen(layout, ids)
        said, bits = self._heard[place]
        part = self._said_by(owner, table, code)
        _, without = self._listener.listen(layout, ids, without=(segment.symbol, part))
        loss = (without - bits)[here]
        around = self._settings.around
        worst = here.start + int(loss.argmax())
        return CodeContext(
            before=passage.cut(max(0, start - around), start),
            segment=passage.cut(start, end),
            after=passage.cut(end, min(len(passage.tokens), end + around)),
            said=decoded(self._model.tokenizer, said[here]),
            n_right=sum(a == b for a, b in zip(said[here], ids[here], strict=True)),
            n_tokens=end - start,
            bits=float(bits[here].sum()),
            bits_without=float(without[here].sum()),
            needs=decoded(self._model.tokenizer, [ids[worst]]),
        )

    @torch.no_grad()
    def _said_by(self, owner: int, table: int, code: int) -> Tensor:
        """What a code adds to the symbol of a segment, at whatever stages it stands."""
        codes, codebook = self._found.codes[owner].to(self._model.device), self._model.codebook
        stages = range(len(codes)) if self._model.config.shared else [table]
        part = torch.zeros_like(codebook.offset)
        for stage in stages:
            if int(codes[stage]) == code:
                part = part + codebook.embed(codes[: stage + 1]) - codebook.embed(codes[:stage])
        return part

    def _layout(self, passage: int, span: int) -> SpanLayout:
        if passage not in self._layouts:
            document = self._found.passages[passage].document
            self._layouts[passage] = list(span_layouts(self._model, document))
        return self._layouts[passage][span]

    @torch.no_grad()
    def _near_codes(self, table: int, code: int) -> tuple[Neighbour, ...]:
        rows = self._model.codebook.table(table).float()
        cosines = nn.functional.cosine_similarity(rows, rows[code].unsqueeze(0), dim=-1)
        cosines[code] = -torch.inf
        if self._model.config.shared:
            cosines[SILENT] = -torch.inf
        return self._nearest(cosines, lambda at: self._name(table, at))

    @torch.no_grad()
    def _near_tokens(self, table: int, code: int) -> tuple[Neighbour, ...]:
        row = nn.functional.normalize(self._model.codebook.table(table)[code].float(), dim=-1)
        return self._nearest(self._tokens @ row, lambda at: decoded(self._model.tokenizer, [at]))

    def _nearest(self, cosines: Tensor, name: Callable[[int], str]) -> tuple[Neighbour, ...]:
        best = cosines.topk(min(self._settings.n_nearest, len(cosines)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return tuple(Neighbour(name(at), value) for at, value in pairs if value > -torch.inf)
