"""A LangChain chat model that reads messages of text and written symbols.

It turns messages into turns and answers into messages; reading itself is the engine's, the base's
chat template included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from zcontext.errors import ConfigError
from zcontext.integrations.engines import Engine, Followed, follow, in_thread
from zcontext.integrations.langchain.messages import parts_of, turns_of
from zcontext.integrations.langchain.reading import (
    FINISH,
    ReadingModel,
    engine_of,
    followed_usage,
    host_errors,
    settings_of,
    usage_of,
)
from zcontext.integrations.langchain.tools import introduce, read_calls
from zcontext.integrations.langchain.watching import CHAT_TYPE
from zcontext.spans import ChatMessage


class ChatZContext(ReadingModel, BaseChatModel):
    """Answers messages; symbols may stand anywhere in them.

    Args:
        model: Folder or name of a bundle (loaded at the first call), a `ZLanguageModel`, or any
            `SupportsRead`.
        temperature: 0 is greedy.
        max_tokens: Most tokens generated.
        top_p: Nucleus of the distribution sampled from.
        seed: Of the sampler.
        stop: Strings that end an answer, where a call gives none.
        timeout: Taken as hosted models take it; a local model has none.
        max_retries: Taken as hosted models take it; a local model is not asked twice.

    Raises:
        ValidationError: pydantic's, with our message, if `model` is none of these.
        BundleError: if there is no such bundle.
    """

    timeout: float | None = None
    max_retries: int | None = None

    @property
    def _llm_type(self) -> str:
        return CHAT_TYPE

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools described in its prompt.

        The model is asked to use them, not forced: small models often answer in words instead.

        Args:
            tools: What LangChain takes for tools.
            tool_choice: "any" (or True, "required"), "none", "auto", or the name of one tool.
            **kwargs: Further options of each call.

        Returns:
            The bound model.

        Raises:
            ConfigError: if `tool_choice` is a dict that names no tool.
        """
        choice: Any = tool_choice
        if isinstance(choice, dict):  # OpenAI's form, or Anthropic's
            choice = (choice.get("function") or choice).get("name")
            if not isinstance(choice, str):
                raise ConfigError(
                    f"tool_choice={tool_choice!r} names no tool: give its name, 'any' or 'none'",
                    field="tool_choice",
                    value=tool_choice,
                )
        if choice in (True, "required"):
            choice = "any"
        return self.bind(
            tools=[convert_to_openai_tool(tool) for tool in tools],
            tool_choice=choice or None,
            **kwargs,
        )

    def _prompt(
        self, messages: Sequence[BaseMessage], engine: Engine, options: Mapping[str, Any]
    ) -> list[ChatMessage]:
        tools = options.get("tools") or ()
        described = introduce(messages, tools=tools, choice=options.get("tool_choice"))
        return turns_of(described, engine.vocabulary)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings = settings_of(self, stop, kwargs)
        engine = engine_of(self._engine, kwargs)
        turns = self._prompt(messages, engine, kwargs)
        with host_errors():
            answer = engine.reader().chat(turns, settings=settings)
        message = read_calls(answer.text) if kwargs.get("tools") else AIMessage(answer.text)
        message.usage_metadata = usage_of(answer)
        message.response_metadata = {
            "finish_reason": FINISH[answer.stop_reason],
            "model_name": engine.name,
            "model_provider": "zcontext",
        }
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await in_thread(partial(self._generate, messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if kwargs.get("tools"):
            # A call is only a call when it is complete: nothing to show before that.
            yield _as_chunk(self._generate(messages, stop, **kwargs))
            return
        settings = settings_of(self, stop, kwargs)
        engine = engine_of(self._engine, kwargs)
        turns = self._prompt(messages, engine, kwargs)
        reader = engine.reader()
        with host_errors():
            followed = Followed(reader.stream_chat(turns, settings=settings))
            for piece in followed:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        info = {"model_name": engine.name, "model_provider": "zcontext"}
        if followed.answer is not None:
            info["finish_reason"] = FINISH[followed.answer.stop_reason]
        last = AIMessageChunk(
            content="",
            usage_metadata=followed_usage(followed, reader, parts_of(turns)),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last, generation_info=info)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in follow(partial(self._stream, messages, stop, **kwargs)):
            yield chunk


def _as_chunk(result: ChatResult) -> ChatGenerationChunk:
    """A whole answer as the first and last chunk of a stream."""
    message = result.generations[0].message
    assert isinstance(message, AIMessage)
    chunk = AIMessageChunk(
        content=message.content,
        tool_calls=message.tool_calls,
        invalid_tool_calls=message.invalid_tool_calls,
        usage_metadata=message.usage_metadata,
        chunk_position="last",
    )
    return ChatGenerationChunk(message=chunk, generation_info=message.response_metadata)
