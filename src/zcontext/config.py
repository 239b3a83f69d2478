"""Settings: frozen values, checked when they are made; TOML in, JSON out.

What it is: the dataclasses a user sets (how to compress, how to generate, what a codec looks like)
and one loader that fills them from a TOML table. What it does not know: models, tensors, files
other than the TOML file it reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from zcontext.errors import ConfigError
from zcontext.fragile import check_protect
from zcontext.symbols import MAX_DEPTH, MAX_SIZE, MIN_SIZE

MIN_RATIO = 1.0
MAX_RATIO = 64.0
DEFAULT_RATIO = 4.0
DEFAULT_WINDOW = 512
MAX_WINDOW = 8192
WINDOW_RANGE = "8 to 8,192 tokens"
BUDGETS = ("ratio", "max_symbols", "bits_per_symbol")

Role = Literal["compress", "decompress", "infer", "compose", "focus", "teach"]
ROLES: tuple[Role, ...] = ("compress", "decompress", "infer")
"""Roles that every codec has; the autoregressive writer's is an optional part of it."""
EmphasisName = Literal["end"]
WriterName = Literal["one-pass", "autoregressive"]
PlacementName = Literal["surprisal", "anchored"]
SurprisalName = Literal["auto", "writer", "base"]
QuantiserName = Literal["vq", "gumbel"]
OnSymbols = Literal["refuse", "escape", "drop"]
OnLowFidelity = Literal["keep", "raw", "finer"]
CHOICES: dict[str, Any] = {
    "on_symbols": OnSymbols,
    "on_low_fidelity": OnLowFidelity,
    "writer": WriterName,
    "placement": PlacementName,
    "surprisal": SurprisalName,
}
"""Fields of `CompressSettings` that are one of some names."""


def check(settings: object, field: str, fits: bool, wanted: str) -> None:
    """Raise ConfigError unless a field of some settings fits what is wanted."""
    if not fits:
        value = getattr(settings, field)
        raise ConfigError(f"{field} must be {wanted}, got {value!r}", field=field, value=value)


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The shape of a codec: what a symbol is and how big the learned parts are.

    Attributes:
        depth: Residual stages, codes per symbol (1 to 8).
        size: Codes per stage (2 to 65,536).
        writer_layers: How many of the base's first layers the writer runs. 0 means all of them.
        lora_rank: Rank of every adapter.
        lora_alpha: Scale numerator of every adapter.
        quantiser: "vq" or "gumbel". Nothing reads it: a run is told by `[autoencode] quantiser`. It
            stays because the codec's digest covers it.
        mean_surprisal: Calibrated mean surprisal of ordinary text, in bits per token.
        window: Longest window the codec was trained on, in tokens; what compression uses unless
            told otherwise.
        shared: All stages choose from one table, started from the commonest tokens, and code 0
            says nothing; otherwise every stage has a table of its own, started by k-means.
        named: Every code of the shared table is the name of a token: its row is the base's own
            embedding and does not learn, and tokens are named before anything else is coded.

    Raises:
        ConfigError: A value is out of its range.
    """

    depth: int = 8
    size: int = 1024
    writer_layers: int = 8
    lora_rank: int = 32
    lora_alpha: int = 32
    quantiser: QuantiserName = "vq"
    mean_surprisal: float = 5.0
    window: int = DEFAULT_WINDOW
    shared: bool = False
    named: bool = False

    def __post_init__(self) -> None:
        for field in ("depth", "size", "writer_layers", "lora_rank", "lora_alpha", "window"):
            check(self, field, type(getattr(self, field)) is int, "an integer")
        check(self, "depth", 1 <= self.depth <= MAX_DEPTH, f"1 to {MAX_DEPTH} codes per symbol")
        check(self, "size", MIN_SIZE <= self.size <= MAX_SIZE, f"2 to {MAX_SIZE:,} codes")
        check(self, "writer_layers", self.writer_layers >= 0, "0 (all layers) or more")
        check(self, "lora_rank", self.lora_rank >= 1, "at least 1")
        check(self, "lora_alpha", self.lora_alpha >= 1, "at least 1")
        names = get_args(QuantiserName)
        check(self, "quantiser", self.quantiser in names, f"one of {', '.join(names)}")
        check(self, "mean_surprisal", 0 < self.mean_surprisal <= 64, "in (0, 64] bits")
        check(self, "window", 8 <= self.window <= MAX_WINDOW, WINDOW_RANGE)
        check(self, "shared", isinstance(self.shared, bool), "true or false")
        check(self, "named", isinstance(self.named, bool), "true or false")
        check(self, "named", self.shared or not self.named, "false where `shared` is false")

    @property
    def bits_per_symbol(self) -> float:
        """Bits one symbol can carry at most: depth * log2(size)."""
        return self.depth * math.log2(self.size)


@dataclass(frozen=True, slots=True)
class CompressSettings:
    """How to compress one text. Exactly one of the three budgets applies.

    Attributes:
        ratio: Source tokens per symbol, 1 to 64. Used when no other budget is given.
        max_symbols: Hard cap on the symbols of one document.
        bits_per_symbol: Surprisal, in bits, that one symbol stands for, a token counting for 3.5 at
            most, and for 2 more where `facts` says so; what `stream` uses.
        depth: Codes per symbol; None means the codec's own depth.
        window: Largest number of source tokens written by one forward pass; None means the
            window the codec was trained on.
        context: Source tokens read again on the left of a window.
        memory: Symbols of earlier windows that the writer and the decompressor read first.
        on_symbols: What to do with source text that spells symbols.
        max_tokens: Largest document accepted, in base tokens.
        exact: Store the corrections that make decompression exactly the source; costs one pass of
            the whole model for each window.
        min_fidelity: Floor of the share of a span's tokens that read back right without
            corrections, 0 to 1; every span is then measured, at the same price. None measures
            nothing.
        on_low_fidelity: What becomes of a span below the floor. "keep" leaves it, measured. "raw"
            lets readers have the text instead (`zcontext.fidelity.readable_parts`, and the
            adapters for frameworks). "finer" writes it again at half its ratio, down to 1, and
            then does as "raw"; it takes the codec's full depth whatever `depth` says, and the
            budget as a beginning.
        protect: What is kept as text between symbols: "numbers", "names", "urls", "code",
            "tables", "json", and patterns such as "re:ART-[0-9]+". Every token of it takes a
            position of the budget.
        question: What will be asked of the text. It stands in front of every window while the
            writer reads, so that surprisal and codes follow it, and is not written. None, the
            default, writes for any question.
        emphasis: "end" is for a text that will be gone on with, as a draft or a chat is: its last
            tokens get a symbol each, the rest is written eight times coarser than the ratio says.
            None, the default, spends the budget by surprisal, or where the question is answered.
        writer: "one-pass" writes all symbols of a window in one forward pass. "autoregressive"
            writes them one by one and decides itself how many: a ratio is what it is asked for,
            `max_symbols` a cap that it keeps. It needs a codec that has the part "compose".
        placement: Where segments end within a window. "surprisal" counts places out from its start,
            so that each symbol has as much to say. "anchored" has the tokens around a place decide,
            so that windows that overlap agree and an edit changes the symbols near it only.
        facts: Whether numbers, names and addresses are said before what is as hard to guess, and
            draw more of the budget: a reader who guesses them gets them wrong. Neither a question
            nor an emphasis nor the writer that decides itself looks at it.
        surprisal: Who says how hard tokens are to guess: the "writer", for free; the plain "base",
            better, in one pass for each window; or "auto": the base where there are three tokens
            or more a code and neither a question nor an emphasis says what counts.

    Raises:
        ConfigError: A value is out of its range, two budgets are given, "finer" is to keep to
            `max_symbols`, or a writer that places symbols itself is told how.
    """

    ratio: float | None = None
    max_symbols: int | None = None
    bits_per_symbol: float | None = None
    depth: int | None = None
    window: int | None = None
    context: int = 0
    memory: int = 0
    on_symbols: OnSymbols = "refuse"
    max_tokens: int = 5_000_000
    exact: bool = False
    min_fidelity: float | None = None
    on_low_fidelity: OnLowFidelity = "keep"
    protect: tuple[str, ...] = ()
    question: str | None = None
    emphasis: EmphasisName | None = None
    writer: WriterName = "one-pass"
    placement: PlacementName = "surprisal"
    facts: bool = True
    surprisal: SurprisalName = "auto"

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ConfigError(
                f"give one budget, not {' and '.join(budgets)}", field=budgets[0], value=budgets
            )
        for name in ("max_symbols", "depth", "window", "context", "memory", "max_tokens"):
            whole = getattr(self, name) is None or type(getattr(self, name)) is int
            check(self, name, whole, "an integer")
        if self.ratio is not None:
            fits = MIN_RATIO <= self.ratio <= MAX_RATIO
            check(self, "ratio", fits, f"{MIN_RATIO:g} to {MAX_RATIO:g} tokens per symbol")
        if self.max_symbols is not None:
            check(self, "max_symbols", self.max_symbols >= 1, "at least one symbol")
        if self.bits_per_symbol is not None:
            fits = 0 < self.bits_per_symbol < math.inf
            check(self, "bits_per_symbol", fits, "a positive number of bits")
        if self.depth is not None:
            fits = 1 <= self.depth <= MAX_DEPTH
            check(self, "depth", fits, f"1 to {MAX_DEPTH} codes per symbol")
        if self.window is not None:
            check(self, "window", 8 <= self.window <= MAX_WINDOW, WINDOW_RANGE)
            check(self, "context", self.context < self.window, f"below window={self.window}")
        check(self, "context", self.context >= 0, "0 or more tokens")
        check(self, "memory", self.memory >= 0, "0 or more symbols")
        for name, known in CHOICES.items():
            names = get_args(known)
            check(self, name, getattr(self, name) in names, f"one of {', '.join(names)}")
        check(self, "max_tokens", self.max_tokens >= 1, "at least 1 token")
        asked = self.question is None or (isinstance(self.question, str) and self.question.strip())
        check(self, "question", bool(asked), "None or a text that is not blank")
        self._check_placement()
        self._check_emphasis()
        check_protect(self.protect)
        self._check_fidelity()

    def _check_placement(self) -> None:
        led = self.placement == "surprisal" or self.writer == "one-pass"
        room = "'surprisal' beside writer='autoregressive', which decides itself where segments end"
        check(self, "placement", led, room)

    def _check_emphasis(self) -> None:
        names = get_args(EmphasisName)
        fits = self.emphasis in (None, *names)
        check(self, "emphasis", fits, f"None or one of {', '.join(names)}")
        alone = self.question is None and self.writer == "one-pass"
        room = "None beside a question or writer='autoregressive', which place symbols themselves"
        check(self, "emphasis", self.emphasis is None or alone, room)

    def _check_fidelity(self) -> None:
        for name in ("exact", "facts"):
            check(self, name, isinstance(getattr(self, name), bool), "True or False")
        if self.min_fidelity is not None:
            fits = 0 <= self.min_fidelity <= 1
            check(self, "min_fidelity", fits, "a share of tokens in 0 to 1")
        if self.on_low_fidelity == "finer":
            room = "None with on_low_fidelity='finer', which writes as many symbols as it takes"
            check(self, "max_symbols", self.max_symbols is None, room)

    @property
    def measures(self) -> bool:
        """Whether every span is read back when it has been written."""
        return self.exact or self.min_fidelity is not None

    @property
    def floor(self) -> float:
        """The fidelity below which readers get the text; 0 where they always get symbols."""
        return 0.0 if self.on_low_fidelity == "keep" else self.min_fidelity or 0.0

    def replace(self, **changes: Any) -> CompressSettings:
        """A copy with some fields changed. A new budget takes the place of the old one.

        Args:
            **changes: Field names to new values; None leaves a field as it is.

        Returns:
            The checked copy.

        Raises:
            ConfigError: An unknown field, or a value out of range.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        _known_fields(type(self), changes)
        if any(name in changes for name in BUDGETS):
            changes = {**dict.fromkeys(BUDGETS), **changes}
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How a reader generates text.

    Attributes:
        max_new_tokens: Tokens generated at most.
        temperature: 0 is greedy; otherwise the sampling temperature.
        top_p: Nucleus of the distribution sampled from, in (0, 1].
        stop: Strings that end the answer; they are not part of it.
        seed: Seed of the sampler; needed when the temperature is not 0.

    Raises:
        ConfigError: A value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "seed"):
            check(self, name, type(getattr(self, name)) is int, "an integer")
        check(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1 token")
        check(self, "temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more")
        check(self, "top_p", 0 < self.top_p <= 1, "in (0, 1]")
        strings = not isinstance(self.stop, str) and all(
            isinstance(item, str) and item for item in self.stop
        )
        check(self, "stop", strings, "a tuple of non-empty strings")

    def replace(self, **changes: Any) -> GenerationSettings:
        """A copy with some fields changed.

        Args:
            **changes: Field names to new values; None leaves a field as it is.

        Returns:
            The checked copy.

        Raises:
            ConfigError: An unknown field, or a value out of range.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        _known_fields(type(self), changes)
        return dataclasses.replace(self, **changes)


T = TypeVar("T")


def _known_fields(kind: type[Any], table: dict[str, Any]) -> None:
    known = {f.name for f in dataclasses.fields(kind)}
    for name in table:
        if name not in known:
            raise ConfigError(
                f"{kind.__name__} has no setting {name!r}; it knows {', '.join(sorted(known))}",
                field=name,
                value=table[name],
            )


def from_table(kind: type[T], table: dict[str, Any]) -> T:
    """Fill a settings dataclass from a table (of TOML or JSON).

    Args:
        kind: The dataclass.
        table: Field names to values; lists become tuples.

    Returns:
        The checked settings.

    Raises:
        ConfigError: A name is unknown, a value has the wrong type, or is out of range.
    """
    _known_fields(kind, table)
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in table.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(
            f"{kind.__name__}: {error}; check the types in the table",
            field=kind.__name__,
            value=table,
        ) from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.

    Returns:
        Its tables.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no settings file at {path}; give the path of a TOML file",
            field="path",
            value=str(path),
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", field="path", value=str(path)) from error


def to_json(settings: Any) -> str:
    """Canonical JSON of a settings dataclass: sorted keys, no spaces.

    Args:
        settings: Any settings dataclass.

    Returns:
        ASCII text.

    Raises:
        TypeError: `settings` is not a dataclass instance.
    """
    return json.dumps(dataclasses.asdict(settings), sort_keys=True, separators=(",", ":"))
