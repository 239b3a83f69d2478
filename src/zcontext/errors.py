"""The exceptions zcontext raises, all of them, in one tree.

::

    ZContextError
     + ConfigError (ValueError)             .field .value
     + VocabularyError (ValueError)
     |   + SymbolCollisionError             user text spells symbols
     |   + UnknownSymbolError               a code or spelling this codec does not have
     + WindowError (ValueError)
     + SpanError
     |   + CodecMismatchError               symbols written by another codec
     |   + CorruptSpanError                 a stored document that fails its checks
     + ModelError
     |   + UnsupportedBaseError
     |   + BundleError
     |   + ContextOverflowError
     |   + OverloadedError                  too many calls wait for the model
     + StoreError
     + TrainingError
     |   + DivergedError                    .step .last_checkpoint
     + MissingDependencyError (ImportError) .extra

A message says what was wrong with its value, what was expected, and what to do.
This module knows nothing about what raises them and imports nothing of ours.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any


class ZContextError(Exception):
    """Anything zcontext refuses or fails to do; catch this to catch all of it."""


class ConfigError(ZContextError, ValueError):
    """A setting has a value that cannot be used.

    Args:
        message: What was wrong, what was expected, what to do.
        field: Name of the setting.
        value: The value that was refused.
    """

    def __init__(self, message: str, *, field: str, value: object) -> None:
        super().__init__(message)
        self.field = field
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders (Ray, multiprocessing) by pickle, which replays
        # positional arguments only and would lose keyword-only ones.
        return partial(type(self), field=self.field, value=self.value), self.args


class VocabularyError(ZContextError, ValueError):
    """Symbols, or text holding them, break the rules of the written form."""


class SymbolCollisionError(VocabularyError):
    """User text spells symbols where only ordinary text may stand."""


class UnknownSymbolError(VocabularyError):
    """A symbol is malformed, or names a code that the codec does not have."""


class WindowError(ZContextError, ValueError):
    """An extent, a window or a window plan cannot exist as described."""


class SpanError(ZContextError):
    """A span or a document is inconsistent with itself or with its codec."""


class CodecMismatchError(SpanError):
    """Symbols written by one codec were handed to another."""


class CorruptSpanError(SpanError):
    """Stored spans fail their checks: truncated, altered or of an unknown schema."""


class ModelError(ZContextError):
    """A model cannot be loaded, or cannot do what was asked of it."""


class UnsupportedBaseError(ModelError):
    """The base model is of a kind zcontext cannot read through."""


class BundleError(ModelError):
    """A bundle on disk is altered, truncated, incomplete or made for something else."""


class ContextOverflowError(ModelError):
    """A prompt needs more positions than the model has."""


class OverloadedError(ModelError):
    """More calls wait for the model than are allowed to."""


class StoreError(ZContextError):
    """A span store cannot be opened, read or written."""


class TrainingError(ZContextError):
    """A training run cannot start or go on."""


class DivergedError(TrainingError):
    """Training left the finite numbers.

    Args:
        message: What was seen and what to do.
        step: The optimiser step at which it was seen.
        last_checkpoint: The newest checkpoint written before that, if there is one.
    """

    def __init__(self, message: str, *, step: int, last_checkpoint: str | Path | None) -> None:
        super().__init__(message)
        self.step = step
        self.last_checkpoint = last_checkpoint

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = partial(type(self), step=self.step, last_checkpoint=self.last_checkpoint)
        return rebuild, self.args


class MissingDependencyError(ZContextError, ImportError):
    """An optional package, or the data it ships, is not installed.

    Args:
        message: What is missing, what needs it, and how to install it.
        extra: The extra of zcontext that installs it, if there is one.
    """

    def __init__(self, message: str, *, extra: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), extra=self.extra), self.args
