"""Response synthesizers that lose no symbol: `zcontext_synthesizer` and its prompt helper.

LlamaIndex's own prompt helper counts prompts with cl100k, some twenty tokens for a symbol that
takes one position. It then calls the model more often than needed and, in `simple_summarize`, drops
what it believes not to fit. Here everything is counted in positions of the model that will read it.

What it does not know: how nodes were compressed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, PromptHelper
from llama_index.core.llms import LLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate
from llama_index.core.response_synthesizers import (
    BaseSynthesizer,
    ResponseMode,
    get_response_synthesizer,
)
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.utilities.token_counting import TokenCounter

from zcontext.errors import ConfigError
from zcontext.integrations.llamaindex.llm import ZContextLLM
from zcontext.spans import QUESTION_PROMPT

QA_TEMPLATE: Final = ChatPromptTemplate(
    message_templates=[
        ChatMessage(QUESTION_PROMPT.format(context="{context_str}", question="{query_str}"))
    ]
)
"""The question as `Inferencer.ask` puts it, which is what the reader was trained on."""

_WITHOUT_LLM: Final[dict[ResponseMode, type[BaseSynthesizer]]] = {
    ResponseMode.NO_TEXT: NoText,
    ResponseMode.CONTEXT_ONLY: ContextOnly,
}
_PER_MESSAGE: Final = 8
_PER_PROMPT: Final = 48
"""Positions kept free for what a chat template adds around messages: marks, a system prompt."""


class TruncationWarning(UserWarning):
    """Part of the context did not fit into the one prompt of its mode and was left out."""


class _PositionCounter(TokenCounter):
    """Counts in positions; LlamaIndex's own counts messages with cl100k whatever it is given."""

    def estimate_tokens_in_messages(self, messages: list[ChatMessage]) -> int:
        texts = sum(self.get_string_tokens(message.content or "") for message in messages)
        return texts + _PER_MESSAGE * len(messages) + _PER_PROMPT


class ZContextPromptHelper(PromptHelper):
    """Packs chunks into prompts, counting a symbol as the one position it takes.

    Also for `Settings.prompt_helper`, which chat engines use.

    Args:
        llm: The model that will read the prompts; its weights are loaded to learn their context.

    Raises:
        BundleError: if its bundle cannot be loaded.
    """

    def __init__(self, llm: ZContextLLM) -> None:
        metadata = llm.metadata
        super().__init__(
            context_window=metadata.context_window,
            num_output=metadata.num_output,
            chunk_overlap_ratio=0.0,  # a symbol read twice is not more context
            tokenizer=llm.tokenizer,
        )
        self._token_counter = _PositionCounter(tokenizer=llm.tokenizer)

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows it."""
        return "ZContextPromptHelper"

    def repack(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[Any] | None = None,
    ) -> list[str]:
        """Chunks joined into as few as fit, and split at spaces where they do not.

        Refining modes ask for a padding of 500 for the answer so far. It is at most `num_output`
        long, so that is what they get: less for small models, more where it would not suffice.
        """
        if padding > DEFAULT_PADDING:
            padding = self.num_output + 4 * DEFAULT_PADDING
        return super().repack(prompt, text_chunks, padding=padding, llm=llm, tools=tools)

    def truncate(
        self,
        prompt: BasePromptTemplate,
        text_chunks: Sequence[str],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[Any] | None = None,
    ) -> list[str]:
        """The beginning of each chunk that fits, with a warning if that is not all of it."""
        kept = super().truncate(prompt, text_chunks, padding=padding, llm=llm, tools=tools)
        count = self._token_counter.get_string_tokens
        before, after = sum(map(count, text_chunks)), sum(map(count, kept))
        if after < before:
            warnings.warn(
                f"The context takes {before:,} positions and the prompt has room for {after:,}: "
                "the rest is left out. Compress more (a higher ratio, or max_symbols), retrieve "
                "fewer nodes, or use response_mode='compact', which reads everything.",
                TruncationWarning,
                stacklevel=2,
            )
        return kept


def zcontext_synthesizer(
    llm: ZContextLLM,
    *,
    response_mode: ResponseMode | str = ResponseMode.COMPACT,
    **options: Any,
) -> BaseSynthesizer:
    """A response synthesizer that counts symbols as the positions they take.

    Args:
        llm: The model that reads the symbols.
        response_mode: As in LlamaIndex; modes that read nodes lose none of their symbols.
        **options: What else `get_response_synthesizer` takes, such as `streaming`, `use_async` or
            templates. `text_qa_template` is by default the prompt that the reader was trained on.

    Returns:
        The synthesizer, for `response_synthesizer=` of a query engine.

    Raises:
        ConfigError: if `llm` reads no symbols, the mode is unknown, or an option cannot be.
    """
    if not isinstance(llm, ZContextLLM):
        raise ConfigError(
            f"llm is a {type(llm).__name__}, which cannot read symbols: give a ZContextLLM on the "
            "bundle that writes them.",
            field="llm",
            value=llm,
        )
    if options.get("multimodal"):
        raise ConfigError(
            "multimodal=True: this model reads text and symbols only. Leave it out.",
            field="multimodal",
            value=True,
        )
    try:
        mode = ResponseMode(response_mode)
    except ValueError as error:
        known = ", ".join(mode.value for mode in ResponseMode)
        raise ConfigError(
            f"response_mode={response_mode!r}: give one of {known}.",
            field="response_mode",
            value=response_mode,
        ) from error
    options.setdefault("prompt_helper", ZContextPromptHelper(llm))
    if mode in _WITHOUT_LLM:
        # LlamaIndex's factory forgets the llm here, and then asks for an OpenAI key.
        kept = ("callback_manager", "prompt_helper", "streaming")
        return _WITHOUT_LLM[mode](llm=llm, **{k: options[k] for k in kept if k in options})
    if llm.is_chat_model:
        options.setdefault("text_qa_template", QA_TEMPLATE)
    return get_response_synthesizer(llm=llm, response_mode=mode, **options)
