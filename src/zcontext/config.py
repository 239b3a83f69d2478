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

MIN_RATIO = 1.0
MAX_RATIO = 64.0
DEFAULT_RATIO = 4.0
DEFAULT_WINDOW = 512
MAX_DEPTH = 8

Role = Literal["compress", "decompress", "infer"]
ROLES: tuple[Role, ...] = get_args(Role)
QuantiserName = Literal["vq", "gumbel"]
OnSymbols = Literal["refuse", "escape", "drop"]


def _require(condition: bool, message: str, *, field: str, value: object) -> None:
    if not condition:
        raise ConfigError(message, field=field, value=value)


def _check_window(window: int) -> None:
    _require(
        8 <= window <= 8192,
        f"window must be 8 to 8,192 tokens, got {window}",
        field="window",
        value=window,
    )


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """The shape of a codec: what a symbol is and how big the learned parts are.

    Attributes:
        depth: Residual stages, codes per symbol (1 to 8).
        size: Codes per stage (2 to 32,768).
        writer_layers: How many of the base's first layers the writer runs. 0 means all of them.
        lora_rank: Rank of every adapter.
        lora_alpha: Scale numerator of every adapter.
        quantiser: "vq" (nearest code) or "gumbel" (straight-through Gumbel-Softmax).
        mean_surprisal: Calibrated mean surprisal of ordinary text, in bits per token.
        window: Longest window the codec was trained on, in tokens; what compression uses unless
            told otherwise.

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

    def __post_init__(self) -> None:
        _require(
            1 <= self.depth <= MAX_DEPTH,
            f"depth must be 1 to {MAX_DEPTH}, got {self.depth}",
            field="depth",
            value=self.depth,
        )
        _require(
            2 <= self.size <= 32768,
            f"size must be 2 to 32,768 codes, got {self.size}",
            field="size",
            value=self.size,
        )
        _require(
            self.writer_layers >= 0,
            f"writer_layers cannot be negative, got {self.writer_layers}",
            field="writer_layers",
            value=self.writer_layers,
        )
        _require(
            self.lora_rank >= 1,
            f"lora_rank must be positive, got {self.lora_rank}",
            field="lora_rank",
            value=self.lora_rank,
        )
        _require(
            self.lora_alpha >= 1,
            f"lora_alpha must be positive, got {self.lora_alpha}",
            field="lora_alpha",
            value=self.lora_alpha,
        )
        _require(
            self.quantiser in get_args(QuantiserName),
            f"quantiser must be one of {get_args(QuantiserName)}, got {self.quantiser!r}",
            field="quantiser",
            value=self.quantiser,
        )
        _require(
            self.mean_surprisal > 0,
            f"mean_surprisal must be positive, got {self.mean_surprisal}",
            field="mean_surprisal",
            value=self.mean_surprisal,
        )
        _check_window(self.window)

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
        bits_per_symbol: Surprisal, in bits, that one symbol stands for; what `stream` uses.
        depth: Codes per symbol; None means the codec's own depth.
        window: Largest number of source tokens written by one forward pass; None means the
            window the codec was trained on.
        context: Source tokens read again on the left of a window.
        memory: Symbols of earlier windows that the writer and the decompressor read first.
        on_symbols: What to do with source text that spells symbols.
        max_tokens: Largest document accepted, in base tokens.

    Raises:
        ConfigError: A value is out of its range, or two budgets are given.
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

    def __post_init__(self) -> None:
        budgets = [
            n for n in ("ratio", "max_symbols", "bits_per_symbol") if getattr(self, n) is not None
        ]
        _require(
            len(budgets) <= 1,
            f"give one budget, not {' and '.join(budgets)}",
            field=budgets[0] if budgets else "ratio",
            value=budgets,
        )
        if self.ratio is not None:
            _require(
                MIN_RATIO <= self.ratio <= MAX_RATIO,
                f"ratio is source tokens per symbol and must be {MIN_RATIO:g} to {MAX_RATIO:g}, got {self.ratio}",
                field="ratio",
                value=self.ratio,
            )
        if self.max_symbols is not None:
            _require(
                self.max_symbols >= 1,
                f"max_symbols must be at least one symbol, got {self.max_symbols}",
                field="max_symbols",
                value=self.max_symbols,
            )
        if self.bits_per_symbol is not None:
            _require(
                self.bits_per_symbol > 0 and math.isfinite(self.bits_per_symbol),
                f"bits_per_symbol must be a positive number, got {self.bits_per_symbol}",
                field="bits_per_symbol",
                value=self.bits_per_symbol,
            )
        if self.depth is not None:
            _require(
                1 <= self.depth <= MAX_DEPTH,
                f"depth must be 1 to {MAX_DEPTH}, got {self.depth}",
                field="depth",
                value=self.depth,
            )
        if self.window is not None:
            _check_window(self.window)
            _require(
                0 <= self.context < self.window,
                f"context must be 0 to window-1 ({self.window - 1}), got {self.context}",
                field="context",
                value=self.context,
            )
        _require(
            self.context >= 0,
            f"context cannot be negative, got {self.context}",
            field="context",
            value=self.context,
        )
        _require(
            self.memory >= 0,
            f"memory cannot be negative, got {self.memory}",
            field="memory",
            value=self.memory,
        )
        _require(
            self.on_symbols in get_args(OnSymbols),
            f"on_symbols must be one of {get_args(OnSymbols)}, got {self.on_symbols!r}",
            field="on_symbols",
            value=self.on_symbols,
        )
        _require(
            self.max_tokens >= 1,
            f"max_tokens must be positive, got {self.max_tokens}",
            field="max_tokens",
            value=self.max_tokens,
        )

    def replace(self, **changes: Any) -> CompressSettings:
        """A copy with some fields changed. A new budget takes the place of the old one.

        Raises:
            ConfigError: An unknown field, or a value out of range.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        _known_fields(type(self), changes)
        budgets = ("ratio", "max_symbols", "bits_per_symbol")
        if any(name in changes for name in budgets):
            changes = {**dict.fromkeys(budgets), **changes}
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
        _require(
            self.max_new_tokens >= 1,
            f"max_new_tokens must be positive, got {self.max_new_tokens}",
            field="max_new_tokens",
            value=self.max_new_tokens,
        )
        _require(
            0 <= self.temperature < math.inf,
            f"temperature must be 0 or more, got {self.temperature}",
            field="temperature",
            value=self.temperature,
        )
        _require(
            0 < self.top_p <= 1,
            f"top_p must lie in (0, 1], got {self.top_p}",
            field="top_p",
            value=self.top_p,
        )
        _require(
            not isinstance(self.stop, str) and all(isinstance(s, str) and s for s in self.stop),
            f"stop must be a tuple of non-empty strings, got {self.stop!r}",
            field="stop",
            value=self.stop,
        )

    def replace(self, **changes: Any) -> GenerationSettings:
        """A copy with some fields changed; None leaves a field as it is.

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
        _require(
            name in known,
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

    Raises:
        TypeError: `settings` is not a dataclass instance.
    """
    return json.dumps(dataclasses.asdict(settings), sort_keys=True, separators=(",", ":"))
