"""zcontext: text as Z-tokens, discrete symbols a language model wrote for itself and reads back.

The public names are the ones in `__all__`. Each is imported from its module when it is first used,
so that `import zcontext` is quick and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zcontext.accounting import Count as Count
    from zcontext.accounting import KVShape as KVShape
    from zcontext.accounting import Ledger as Ledger
    from zcontext.accounting import TiktokenCounter as TiktokenCounter
    from zcontext.accounting import count_bytes as count_bytes
    from zcontext.compressor import ZCompressor as ZCompressor
    from zcontext.config import CodecConfig as CodecConfig
    from zcontext.config import CompressSettings as CompressSettings
    from zcontext.config import GenerationSettings as GenerationSettings
    from zcontext.errors import BundleError as BundleError
    from zcontext.errors import CodecMismatchError as CodecMismatchError
    from zcontext.errors import ConfigError as ConfigError
    from zcontext.errors import ContextOverflowError as ContextOverflowError
    from zcontext.errors import CorruptSpanError as CorruptSpanError
    from zcontext.errors import DivergedError as DivergedError
    from zcontext.errors import MissingDependencyError as MissingDependencyError
    from zcontext.errors import ModelError as ModelError
    from zcontext.errors import OverloadedError as OverloadedError
    from zcontext.errors import SpanError as SpanError
    from zcontext.errors import StoreError as StoreError
    from zcontext.errors import SymbolCollisionError as SymbolCollisionError
    from zcontext.errors import TrainingError as TrainingError
    from zcontext.errors import UnknownSymbolError as UnknownSymbolError
    from zcontext.errors import UnsupportedBaseError as UnsupportedBaseError
    from zcontext.errors import VocabularyError as VocabularyError
    from zcontext.errors import WindowError as WindowError
    from zcontext.errors import ZContextError as ZContextError
    from zcontext.loading import LoadedBase as LoadedBase
    from zcontext.loading import load_base as load_base
    from zcontext.model import ZLanguageModel as ZLanguageModel
    from zcontext.readers import Inferencer as Inferencer
    from zcontext.readers import ZDecompressor as ZDecompressor
    from zcontext.spans import QUESTION_PROMPT as QUESTION_PROMPT
    from zcontext.spans import Answer as Answer
    from zcontext.spans import ChatMessage as ChatMessage
    from zcontext.spans import Fidelity as Fidelity
    from zcontext.spans import Part as Part
    from zcontext.spans import StopReason as StopReason
    from zcontext.spans import SupportsCompress as SupportsCompress
    from zcontext.spans import SupportsDecompress as SupportsDecompress
    from zcontext.spans import SupportsRead as SupportsRead
    from zcontext.spans import ZDocument as ZDocument
    from zcontext.spans import ZSpan as ZSpan
    from zcontext.store import MemoryStore as MemoryStore
    from zcontext.store import SpanStore as SpanStore
    from zcontext.store import SQLiteStore as SQLiteStore
    from zcontext.store import store_key as store_key
    from zcontext.vocabulary import Symbols as Symbols
    from zcontext.vocabulary import ZVocabulary as ZVocabulary
    from zcontext.vocabulary import has_symbols as has_symbols
    from zcontext.windows import Extent as Extent
    from zcontext.windows import Window as Window
    from zcontext.windows import WindowPlan as WindowPlan

__version__ = "0.1.0"

_NAMES_OF = {
    "accounting": "Count KVShape Ledger TiktokenCounter count_bytes",
    "compressor": "ZCompressor",
    "config": "CodecConfig CompressSettings GenerationSettings",
    "errors": (
        "BundleError CodecMismatchError ConfigError ContextOverflowError CorruptSpanError "
        "DivergedError MissingDependencyError ModelError OverloadedError SpanError StoreError "
        "SymbolCollisionError TrainingError UnknownSymbolError UnsupportedBaseError "
        "VocabularyError WindowError ZContextError"
    ),
    "loading": "LoadedBase load_base",
    "model": "ZLanguageModel",
    "readers": "Inferencer ZDecompressor",
    "spans": (
        "Answer ChatMessage Fidelity Part QUESTION_PROMPT StopReason SupportsCompress "
        "SupportsDecompress SupportsRead ZDocument ZSpan"
    ),
    "store": "MemoryStore SQLiteStore SpanStore store_key",
    "vocabulary": "Symbols ZVocabulary has_symbols",
    "windows": "Extent Window WindowPlan",
}
_HOME = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
