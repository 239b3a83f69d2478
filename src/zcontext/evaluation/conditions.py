"""Conditions: in which form a context reaches a reader, and at how many positions.

Everything that shares a ratio takes the same positions of the prompt: the symbols, the text cut to
that length, and what other methods make of it. It knows names and numbers; no engine, no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from zcontext.config import CompressSettings, to_json

Written = Literal["symbols", "refocused", "asked", "recent", "shuffled"]
Kind = Written | Literal["raw", "none", "truncated", "peer", "evictor"]
OURS: tuple[Kind, ...] = ("symbols", "refocused", "asked", "recent")
"""Kinds that stand for the symbols of the very context."""
FOR_QUESTIONS: tuple[Kind, ...] = ("refocused", "asked")
"""Of these, what depends on the question."""
TO_GO_ON: Kind = "recent"
"""Of these, what is written for who goes on with the text."""
Reader = Literal["infer", "control"]


@dataclass(frozen=True, slots=True)
class Condition:
    """What the reader is given beside the question, and who reads.

    Attributes:
        kind: "symbols" of the context, these "refocused": written again for what is asked of it,
            symbols written of the text for what is "asked" of it, or with emphasis on what is most
            "recent" in it, "shuffled": the symbols of another one, the context "raw", "none",
            "truncated" to as many positions as its symbols take, shortened to as many by a "peer",
            or read whole by an "evictor" that then keeps as many.
        ratio: Source tokens per symbol; 0 where no symbols are counted.
        depth: Codes per symbol; None means the codec's own depth.
        method: Name of the peer or evictor.
        reader: "infer" is the bundle's INFER adapter, "control" the reader of raw text that
            symbols are measured against.
    """

    kind: Kind
    ratio: float = 0.0
    depth: int | None = None
    method: str = ""
    reader: Reader = "infer"

    @property
    def label(self) -> str:
        """Such as `symbols@4`, or `symbols@4d2` for two codes per symbol."""
        name = self.method or self.kind
        if self.ratio:
            name += f"@{self.ratio:g}"
        return name if self.depth is None else f"{name}d{self.depth}"

    @property
    def name(self) -> str:
        """The label, and who reads where it is not INFER: `raw/control`."""
        return self.label if self.reader == "infer" else f"{self.label}/{self.reader}"

    @property
    def is_ours(self) -> bool:
        """Whether it is what this project makes of the context."""
        return self.kind in OURS

    @property
    def is_written(self) -> bool:
        """Whether symbols are read.

        All else at a ratio shares no more with them than their number, which the ratio gives: it
        is the same for every codec.
        """
        return self.kind in get_args(Written)

    @property
    def terms(self) -> tuple[str, ...]:
        """What shapes its symbols and is not in its name: how text is compressed by default."""
        return (to_json(CompressSettings()),) if self.is_written else ()

    @property
    def is_rival(self) -> bool:
        """Whether it is something else that could be done with the same positions."""
        return self.kind in ("truncated", "peer", "evictor")


RAW_CONTROL = Condition("raw", reader="control")
NO_CONTEXT = Condition("none", reader="control")


def all_conditions(
    ratios: Sequence[float],
    *,
    depths: Sequence[int | None] = (None,),
    peers: Sequence[str] = (),
    evictors: Sequence[str] = (),
    readers: Sequence[Reader] = ("infer", "control"),
    evictor_reader: Reader = "infer",
) -> tuple[Condition, ...]:
    """Every condition of a full comparison, those without symbols first.

    Args:
        ratios: Source tokens per symbol.
        depths: Codes per symbol; rivals and shuffled symbols stand beside the first of them.
        peers: Names of methods that shorten text.
        evictors: Names of methods that drop keys and values.
        readers: Who reads cut and shortened text: a rival is as good as the better of them.
        evictor_reader: On whose weights keys and values are dropped.

    Returns:
        The conditions.
    """
    found = [RAW_CONTROL, NO_CONTEXT, Condition("raw"), Condition("none")]
    for ratio in ratios:
        found += [Condition("symbols", ratio, depth) for depth in depths]
        kinds: tuple[Kind, ...] = (*FOR_QUESTIONS, TO_GO_ON, "shuffled")
        found += [Condition(kind, ratio, depths[0]) for kind in kinds]
        for who in readers:
            found.append(Condition("truncated", ratio, reader=who))
            found += [Condition("peer", ratio, method=name, reader=who) for name in peers]
        found += [
            Condition("evictor", ratio, method=name, reader=evictor_reader) for name in evictors
        ]
    return tuple(found)
