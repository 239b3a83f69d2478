"""What was counted, in which unit, and what compression saved.

Base tokens, symbols, tiktoken tokens, bytes and KV-cache bytes are different things: a `Count`
carries its unit, and adding or comparing counts of two units is an error, never a number.

Floor 0, standard library only (tiktoken is imported when its tokens are first counted). Nothing
here estimates: a tokenizer that cannot be had is an error that names the remedies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, get_args

from zcontext.errors import ConfigError, MissingDependencyError
from zcontext.vocabulary import utf8_bytes

if TYPE_CHECKING:
    import tiktoken

    from zcontext.spans import ZDocument

Unit = Literal[
    "base_tokens",  # ids of the base tokenizer
    "symbols",
    "positions",  # what the reader prefills: one per base token, one per symbol
    "cl100k_base",
    "o200k_base",
    "utf8_bytes",
    "stored_bytes",  # what is kept: UTF-8 of a text, or packed symbols, their places and errata
    "kv_bytes",
]
Encoding = Literal["cl100k_base", "o200k_base"]

_URL: Final = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_CACHE_VARIABLES: Final = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
_environment_lock = Lock()
_loaded: dict[str, tiktoken.Encoding] = {}


@dataclass(frozen=True, slots=True)
class Count:
    """A number of things, and what the things are.

    Args:
        n: How many; 0 or more.
        unit: Of what.

    Raises:
        ConfigError: if the unit is unknown or the number is not a non-negative integer.
    """

    n: int
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ConfigError(
                f"unit={self.unit!r}: give one of {', '.join(get_args(Unit))}.",
                field="unit",
                value=self.unit,
            )
        if type(self.n) is not int or self.n < 0:
            raise ConfigError(
                f"n={self.n!r} {self.unit}: give an integer of 0 or more.", field="n", value=self.n
            )

    def _same(self, other: Count) -> int:
        if other.unit != self.unit:
            raise ConfigError(
                f"{self.n} {self.unit} and {other.n} {other.unit} are different things: count both "
                "in one unit first.",
                field="unit",
                value=other.unit,
            )
        return other.n

    def __add__(self, other: Count) -> Count:
        return Count(self.n + self._same(other), self.unit)

    def __lt__(self, other: Count) -> bool:
        return self.n < self._same(other)

    def __le__(self, other: Count) -> bool:
        return self.n <= self._same(other)

    def __gt__(self, other: Count) -> bool:
        return self.n > self._same(other)

    def __ge__(self, other: Count) -> bool:
        return self.n >= self._same(other)

    def __str__(self) -> str:
        return f"{self.n:,} {self.unit}"


def count_bytes(text: str) -> Count:
    """UTF-8 bytes of a text.

    Args:
        text: Any text.

    Returns:
        The count, in "utf8_bytes".

    Raises:
        VocabularyError: if the text holds a lone surrogate.
    """
    return Count(len(utf8_bytes(text)), "utf8_bytes")


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one position costs in a model's KV cache.

    Args:
        n_layers: Layers that keep keys and values.
        n_kv_heads: Key/value heads per layer.
        head_dim: Numbers per head.
        bytes_per_value: 2 for bf16 and fp16, 4 for fp32.

    Raises:
        ConfigError: if one of them is not a positive integer.
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    bytes_per_value: int = 2

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_kv_heads", "head_dim", "bytes_per_value"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"{name}={value!r}: give an integer of 1 or more.", field=name, value=value
                )

    @property
    def bytes_per_position(self) -> int:
        """Keys and values of all layers for one position."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * self.bytes_per_value

    def kv_bytes(self, n_positions: int) -> Count:
        """The cache for so many positions."""
        return Count(n_positions * self.bytes_per_position, "kv_bytes")


@dataclass(frozen=True, slots=True)
class TiktokenCounter:
    """Counts tokens of an OpenAI encoding, offline where its table can be found.

    The table is looked for where ``TIKTOKEN_CACHE_DIR`` points (tiktoken may download it into
    there), else in the copy that llama-index-core ships, else in tiktoken's own cache.

    Args:
        encoding: "cl100k_base" or "o200k_base".

    Raises:
        ConfigError: if the encoding is another one.
    """

    encoding: Encoding = "cl100k_base"

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            raise ConfigError(
                f"encoding={self.encoding!r}: give one of {', '.join(get_args(Encoding))}.",
                field="encoding",
                value=self.encoding,
            )

    def count(self, text: str) -> Count:
        """Tokens of a text; special tokens spelled in it count as ordinary text.

        Args:
            text: Any text.

        Returns:
            The count, in the unit of the encoding.

        Raises:
            MissingDependencyError: if tiktoken or the encoding's table cannot be had.
            VocabularyError: if the text holds a lone surrogate.
        """
        utf8_bytes(text)
        return Count(len(_encoding(self.encoding).encode_ordinary(text)), self.encoding)


def _encoding(name: Encoding) -> tiktoken.Encoding:
    """The encoding, loaded once; one at a time because loading sets the environment."""
    with _environment_lock:
        if name not in _loaded:
            try:
                import tiktoken
            except ImportError as error:
                raise MissingDependencyError(
                    f"Counting {name} tokens needs tiktoken: pip install tiktoken.",
                ) from error
            with _cache_directory(name):
                try:
                    _loaded[name] = tiktoken.get_encoding(name)
                except (OSError, ValueError) as error:  # no network, or a table that was altered
                    raise _no_table(name, str(error)) from error
        return _loaded[name]


@contextmanager
def _cache_directory(name: str) -> Iterator[None]:
    """Point tiktoken at a folder that has the table, and take it back afterwards.

    Without a table it is not called at all: it would try to download for minutes.
    """
    if any(os.environ.get(variable) for variable in _CACHE_VARIABLES):
        yield
        return
    # tiktoken names a cached table by the SHA-1 of its address.
    table = sha1(_URL.format(name).encode(), usedforsecurity=False).hexdigest()
    folder = next((path for path in _folders() if (path / table).is_file()), None)
    if folder is None:
        raise _no_table(name, "no copy of its table on this machine")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def _folders() -> Iterator[Path]:
    package = find_spec("llama_index")
    for root in (package.submodule_search_locations or []) if package else []:
        yield Path(root) / "core" / "_static" / "tiktoken_cache"
    yield Path(tempfile.gettempdir()) / "data-gym-cache"


def _no_table(name: str, reason: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"The {name} encoding cannot be loaded: {reason}. Install llama-index-core, which ships "
        "it; or set TIKTOKEN_CACHE_DIR to a folder that holds it (or, online, to one tiktoken may "
        "download it into); or count base tokens instead. zcontext does not estimate."
    )


@dataclass(frozen=True, slots=True)
class Saving:
    """The sum of one unit before and after compression.

    Raises:
        ConfigError: if the two are in different units.
    """

    before: Count
    after: Count

    def __post_init__(self) -> None:
        self.before._same(self.after)

    @property
    def unit(self) -> Unit:
        """What was counted."""
        return self.before.unit

    @property
    def saved(self) -> int:
        """How many fewer; negative when compression cost more than it saved."""
        return self.before.n - self.after.n

    @property
    def ratio(self) -> float:
        """Before / after; 1.0 for nothing against nothing."""
        if self.after.n:
            return self.before.n / self.after.n
        return float("inf") if self.before.n else 1.0


@dataclass(slots=True)
class Ledger:
    """Adds up what compression saved, unit by unit. Safe to share between threads.

    Args:
        kv_bytes_per_position: If given, `add` also books KV-cache bytes.
    """

    kv_bytes_per_position: int | None = None
    _savings: dict[Unit, Saving] = field(default_factory=dict, init=False)
    _n_documents: int = field(default=0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def record(self, *, before: Count, after: Count) -> None:
        """Book one saving.

        Args:
            before: What there was.
            after: What there is now.

        Raises:
            ConfigError: if the two are in different units.
        """
        new = Saving(before, after)
        with self._lock:
            old = self._savings.get(new.unit, Saving(Count(0, new.unit), Count(0, new.unit)))
            self._savings[new.unit] = Saving(old.before + before, old.after + after)

    def add(self, document: ZDocument) -> None:
        """Book a document: positions, bytes stored instead of UTF-8, and KV bytes."""
        self.record(
            before=Count(document.n_tokens, "positions"),
            after=Count(document.n_positions, "positions"),
        )
        stored = -(-document.total_bits // 8)
        self.record(
            before=Count(document.n_bytes, "stored_bytes"), after=Count(stored, "stored_bytes")
        )
        if (each := self.kv_bytes_per_position) is not None:
            self.record(
                before=Count(document.n_tokens * each, "kv_bytes"),
                after=Count(document.n_positions * each, "kv_bytes"),
            )
        with self._lock:
            self._n_documents += 1

    def add_text(self, before: str, after: str, *, count: Callable[[str], Count]) -> None:
        """Book two texts under a counter, such as `TiktokenCounter().count`."""
        self.record(before=count(before), after=count(after))

    @property
    def n_documents(self) -> int:
        """Documents booked by `add`."""
        return self._n_documents

    @property
    def savings(self) -> dict[Unit, Saving]:
        """The sums so far, one per unit."""
        with self._lock:
            return dict(self._savings)

    def __str__(self) -> str:
        lines = [
            f"{saving.unit}: {saving.before.n:,} -> {saving.after.n:,} ({saving.ratio:.2f}x)"
            for saving in self.savings.values()
        ]
        return "\n".join(lines) or "nothing booked"
