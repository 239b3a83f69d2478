"""LlamaIndex: compress what was retrieved, read it in place of the text.

- `ZContextPostprocessor` puts symbols in the place of retrieved nodes' text.
- `ZContextTransform` writes them ahead of time, in an `IngestionPipeline`.
- `ZContextLLM` reads prompts that hold symbols.
- `zcontext_synthesizer` builds the response synthesizer that counts a symbol as one token.

It needs the extra ``llama-index``. What it does not know: how text becomes symbols, and how a span
is written into metadata (see `zcontext.integrations.exchange`).
"""

from __future__ import annotations

from zcontext.errors import MissingDependencyError

try:
    import llama_index.core  # noqa: F401 - says first what is missing
except ImportError as error:
    raise MissingDependencyError(
        "zcontext.integrations.llamaindex needs llama-index-core: "
        "pip install 'zcontext[llama-index]'.",
        extra="llama-index",
    ) from error

from zcontext.integrations.llamaindex.llm import ZContextLLM
from zcontext.integrations.llamaindex.nodes import ZContextPostprocessor, ZContextTransform
from zcontext.integrations.llamaindex.synthesis import (
    TruncationWarning,
    ZContextPromptHelper,
    zcontext_synthesizer,
)

__all__ = [
    "TruncationWarning",
    "ZContextLLM",
    "ZContextPostprocessor",
    "ZContextPromptHelper",
    "ZContextTransform",
    "zcontext_synthesizer",
]
