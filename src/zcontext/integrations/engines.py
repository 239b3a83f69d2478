"""Who does the work behind a door: an engine the user made, or a bundle loaded when first needed.

A compressor and a reader given the same bundle share one model, so the weights are in memory
once. Also here: how blocking calls and streams are awaited from an event loop.

Framework-free; torch is imported only when a bundle is opened.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary

from zcontext.bundles import find_bundle
from zcontext.errors import BundleError, ConfigError
from zcontext.integrations.waiting import POOL, place_in_line
from zcontext.spans import Answer, SupportsCompress, SupportsPrune, SupportsRead
from zcontext.vocabulary import ZVocabulary

if TYPE_CHECKING:
    from zcontext.model import ZLanguageModel

__all__ = ["Engine", "Followed", "follow", "in_thread"]

T = TypeVar("T")

# Weak, so that weights go when the last compressor or reader on them goes.
_models: WeakValueDictionary[Path, ZLanguageModel] = WeakValueDictionary()
_loading: Final = RLock()


class Engine:
    """A compressor and a reader behind one name.

    Args:
        source: A `SupportsCompress` or `SupportsRead` (or both), a `ZLanguageModel`, or the
            folder or name of a bundle.

    Raises:
        ConfigError: if it is none of these.
        BundleError: if there is no such bundle.
    """

    def __init__(self, source: object) -> None:
        self._compressor: SupportsCompress | None = None
        self._reader: SupportsRead | None = None
        self._pruner: SupportsPrune | None = None
        self._vocabulary: ZVocabulary | None = None
        self._reads_as = ""
        self._path: Path | None = None
        self._model: Any = None
        if isinstance(source, str | Path):
            self._path = find_bundle(source).resolve()
            self._vocabulary, self._reads_as = _named_codec(self._path)
        else:
            self._take(source)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Itself: a component that a framework copies goes on with the same weights."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the bundle themselves; weights do not travel.
        known = self._path or self._model or self._compressor or self._reader
        return type(self), (known,)

    def _take(self, source: object) -> None:
        if isinstance(source, SupportsCompress):
            self._compressor = source
        if isinstance(source, SupportsRead):
            self._reader = source
        if self._compressor is None and self._reader is None:
            # By shape: importing the class would load torch for users who never need it.
            if not (hasattr(source, "codebook") and hasattr(source, "using")):
                raise ConfigError(
                    f"model is a {type(source).__name__}: give a bundle's folder or name, a "
                    "ZLanguageModel, a ZCompressor or an Inferencer.",
                    field="model",
                    value=source,
                )
            self._model = source

    @property
    def name(self) -> str:
        """What to call it: the bundle's folder name, or the engine's class."""
        known = self._compressor or self._reader or self._model
        return self._path.name if self._path else type(known).__name__

    @property
    def identity(self) -> str:
        """What tells its answers from another engine's, for caches of answers.

        The codec does not name the INFER adapter, which may be trained further; a bundle does.
        """
        bias = getattr(self._reader, "unknown_bias", 0.0)
        leaning = f"/unknown{bias:+g}" if bias else ""
        return f"{self._path or self.name}#{self.vocabulary.codec}{self._reads_as}{leaning}"

    @property
    def vocabulary(self) -> ZVocabulary:
        """Of its codec; known without loading weights."""
        if self._vocabulary is not None:
            return self._vocabulary
        known = self._compressor or self._reader or self._model
        vocabulary: ZVocabulary = known.vocabulary
        return vocabulary

    def compressor(self) -> SupportsCompress:
        """The compressor, loaded if it is not there yet.

        Returns:
            The same one each time.

        Raises:
            ConfigError: if the engine given can only read.
            ModelError: if the bundle or its base cannot be loaded.
        """
        with _loading:
            if self._compressor is None:
                model = self._loaded("compress")
                from zcontext.compressor import ZCompressor

                self._compressor = ZCompressor(model)
            return self._compressor

    def reader(self) -> SupportsRead:
        """The reader, loaded if it is not there yet.

        Returns:
            The same one each time.

        Raises:
            ConfigError: if the engine given can only compress.
            ModelError: if the bundle or its base cannot be loaded.
        """
        with _loading:
            if self._reader is None:
                model = self._loaded("read")
                from zcontext.readers import Inferencer

                self._reader = Inferencer(model)
            return self._reader

    def pruner(self) -> SupportsPrune:
        """The pruner, loaded if it is not there yet.

        Returns:
            The same one each time.

        Raises:
            ConfigError: if the engine given has no model to prune by.
            ModelError: if the bundle or its base cannot be loaded.
        """
        with _loading:
            if self._pruner is None and isinstance(self._compressor, SupportsPrune):
                self._pruner = self._compressor
            if self._pruner is None:
                # A compressor or reader that the user made has its model with it.
                given = self._compressor or self._reader
                model = getattr(given, "model", None) or self._loaded("prune")
                from zcontext.pruner import ZPruner

                self._pruner = ZPruner(model, settings=getattr(given, "settings", None))
            return self._pruner

    def _loaded(self, verb: str) -> ZLanguageModel:
        if self._model is None and self._path is None:
            raise ConfigError(
                f"model is a {self.name}, which does not {verb}: give a bundle's folder or a "
                "ZLanguageModel, which do both, or the engine that does.",
                field="model",
                value=self.name,
            )
        if self._model is None:
            from zcontext.bundle import load_bundle

            assert self._path is not None
            model = _models.get(self._path)
            if model is None:
                model = _models[self._path] = load_bundle(self._path)
            self._model = model
        loaded: ZLanguageModel = self._model
        return loaded


def _named_codec(bundle: Path) -> tuple[ZVocabulary, str]:
    """Vocabulary and INFER adapter that a manifest names; the bundle is checked when it is loaded.

    Read here and not with `zcontext.bundle`, which loads torch: models are made, and asked for
    their vocabulary, on event loops.
    """
    manifest = bundle / "manifest.json"
    try:
        named = json.loads(manifest.read_text(encoding="utf-8"))
        shape = named["config"]
        vocabulary = ZVocabulary(codec=named["codec"], depth=shape["depth"], size=shape["size"])
        return vocabulary, f"/{named['parts']['infer']['sha256']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{manifest} names no codec: {error!r}. Fetch the bundle again, or give another folder."
        ) from error


@dataclass(slots=True)
class Followed:
    """A stream of text that remembers what came, and the answer if the stream ends with one.

    Args:
        pieces: The stream; a generator may return an `Answer`.
    """

    pieces: Iterator[str]
    answer: Answer | None = field(default=None, init=False)
    text: str = field(default="", init=False)

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                try:
                    piece = next(self.pieces)
                except StopIteration as end:
                    self.answer = end.value if isinstance(end.value, Answer) else None
                    return
                self.text += piece
                yield piece
        finally:
            # A consumer that stops early must not leave the model's lock taken.
            close = getattr(self.pieces, "close", None)
            if close is not None:
                close()


async def in_thread(call: Callable[[], T]) -> T:
    """The result of a blocking call, without blocking the event loop.

    Args:
        call: Run in a thread, with the caller's context variables.

    Returns:
        What it returns.

    Raises:
        OverloadedError: Too many calls wait already.
    """  # noqa: DOC502 - raised by `place_in_line`
    context = contextvars.copy_context()
    with place_in_line():
        return await asyncio.get_running_loop().run_in_executor(POOL, context.run, call)


async def follow(start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """The pieces of a blocking stream, without blocking the event loop.

    The stream lives in one thread from beginning to end: it holds the model's lock, which only the
    thread that took it can give back. A consumer that stops early ends the stream at its next
    piece.

    Args:
        start: Makes the stream; called in the thread.

    Yields:
        Its pieces, in order.

    Raises:
        BaseException: whatever the stream raises; `OverloadedError` if too many calls wait already.
    """
    with place_in_line():
        async for piece in _followed(start):
            yield piece


async def _followed(start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """`follow`, once a place is taken."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()
    abandoned = Event()

    def send(piece: tuple[T] | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody follows any more
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def work() -> None:
        stream: Iterator[T] = iter(())
        try:
            stream = start()
            for piece in stream:
                if abandoned.is_set():
                    break
                send((piece,))
        except BaseException as error:  # handed to whoever follows
            send(error)
        else:
            send(None)
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    # A thread of its own and not the loop's pool: many streams waiting for one model would
    # otherwise keep everything else out of the pool.
    context = contextvars.copy_context()
    Thread(target=context.run, args=(work,), name="zcontext-stream", daemon=True).start()
    try:
        while True:
            piece = await pieces.get()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece[0]
    finally:
        abandoned.set()
