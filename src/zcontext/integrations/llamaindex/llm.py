"""ZContextLLM: a LlamaIndex LLM that reads prompts of text and symbols.

Symbols arrive spelled in the prompt, because everything in LlamaIndex is text; here they become
`Symbols` again, and anything that only looks like one is refused. Async methods never run the
model, or load it, on the event loop.

What it does not know: who wrote the symbols into the prompt, and how the model reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Final, TypeVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import TokenAsyncGen

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError
from zcontext.integrations.engines import Engine, Followed, follow, in_thread
from zcontext.integrations.llamaindex.tokens import TokenIds
from zcontext.integrations.llamaindex.turns import (
    as_chat,
    as_completion,
    parts_of,
    raw_of,
    turns_of,
    usage_of,
)
from zcontext.integrations.llamaindex.watch import READER_PREFIX
from zcontext.spans import Answer, Part, SupportsRead
from zcontext.spans import ChatMessage as Turn

_OPTIONS: Final = {
    "max_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
}

R = TypeVar("R", ChatResponse, CompletionResponse)


class ZContextLLM(CustomLLM):
    """Reads prompts that hold written symbols anywhere, with the model that wrote them.

    Args:
        model: Folder or name of a bundle (loaded at the first call), a `ZLanguageModel`, or any
            `SupportsRead`.
        max_new_tokens: Tokens generated at most; a call may say otherwise, as with all that
            follow.
        temperature: 0 is greedy.
        top_p: Nucleus of the distribution sampled from.
        stop: Strings that end the answer.
        seed: Of the sampler.
        is_chat_model: Whether prompts go through the base's chat template; instruction-tuned
            bases want that.
        **options: What every LlamaIndex LLM takes, such as `system_prompt` or `callback_manager`.

    Raises:
        ConfigError: if a setting is out of range or `model` is none of these.
        BundleError: if there is no such bundle.
    """

    max_new_tokens: int = Field(default=256, description="Tokens generated at most.")
    temperature: float = Field(default=0.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, description="Nucleus of the distribution sampled from.")
    stop: list[str] = Field(default_factory=list, description="Strings that end the answer.")
    seed: int = Field(default=0, description="Seed of the sampler.")
    is_chat_model: bool = Field(default=True, description="Whether to use the chat template.")
    codec: str = Field(default="", description="Digest of the codec.")

    _engine: Engine = PrivateAttr()

    def __init__(
        self,
        model: object,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        is_chat_model: bool = True,
        **options: Any,
    ) -> None:
        engine = Engine(model)
        options.pop("codec", None)
        super().__init__(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=list(stop),
            seed=seed,
            is_chat_model=is_chat_model,
            codec=engine.vocabulary.codec,
            **options,
        )
        self._engine = engine
        self._settings({})

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows it."""
        return "ZContextLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What the model takes and gives; loads the weights, which know their context."""
        return LLMMetadata(
            context_window=self._engine.reader().context_length,
            num_output=self.max_new_tokens,
            is_chat_model=self.is_chat_model,
            is_function_calling_model=False,
            model_name=self._name,
        )

    @property
    def tokenizer(self) -> TokenIds:
        """Ids of mixed text for LlamaIndex's counters, one per symbol."""
        return TokenIds(self._engine.reader)

    def to_payload(self) -> dict[str, Any]:
        """What events tell of it. Not `metadata`: events are sent on the loop, before loading."""
        return {"class_name": self.class_name(), "model_name": self._name}

    @property
    def _name(self) -> str:
        return f"{READER_PREFIX}{self._engine.vocabulary.tag}"

    # Chat

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The assistant's next turn."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, off the event loop."""
        return await in_thread(lambda: self._chat(messages, kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat`, piece by piece."""
        return self._stream_chat(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat`, off the event loop."""
        return follow(lambda: self._stream_chat(messages, kwargs))

    # Completion

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """What follows a prompt."""
        return self._complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """`complete`, off the event loop."""
        return await in_thread(lambda: self._complete(prompt, formatted, kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """`complete`, piece by piece."""
        return self._stream_complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete`, off the event loop."""
        return follow(lambda: self._stream_complete(prompt, formatted, kwargs))

    # What LlamaIndex's engines call; both look at `metadata` on the loop before anything else.

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """`predict`, off the event loop."""
        await in_thread(self._engine.reader)
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """`stream`, off the event loop."""
        await in_thread(self._engine.reader)
        return await super().astream(prompt, **prompt_args)

    # Without callbacks

    def _chat(self, messages: Sequence[ChatMessage], options: dict[str, Any]) -> ChatResponse:
        settings = self._settings(options)
        prompt = self._turns_or_parts(messages)
        if isinstance(prompt, str):
            answer = self._answer(prompt, settings)
        else:
            answer = self._engine.reader().chat(prompt, settings=settings)
        return as_chat(answer.text, raw=raw_of(answer))

    def _stream_chat(
        self, messages: Sequence[ChatMessage], options: dict[str, Any]
    ) -> ChatResponseGen:
        settings = self._settings(options)
        prompt = self._turns_or_parts(messages)
        if isinstance(prompt, str):
            return self._stream(parts_of(prompt, self._engine.vocabulary), settings, as_chat)
        reader = self._engine.reader()
        parts = [part for turn in prompt for part in turn.parts]
        pieces = reader.stream_chat(prompt, settings=settings)
        return _responses(reader, pieces, parts, as_chat)

    def _complete(
        self, prompt: str, formatted: bool, options: dict[str, Any]
    ) -> CompletionResponse:
        answer = self._answer(self._formatted(prompt, formatted), self._settings(options))
        return as_completion(answer.text, raw=raw_of(answer))

    def _stream_complete(
        self, prompt: str, formatted: bool, options: dict[str, Any]
    ) -> CompletionResponseGen:
        parts = parts_of(self._formatted(prompt, formatted), self._engine.vocabulary)
        return self._stream(parts, self._settings(options), as_completion)

    def _answer(self, prompt: str, settings: GenerationSettings) -> Answer:
        parts = parts_of(prompt, self._engine.vocabulary)
        return self._engine.reader().complete(parts, settings=settings)

    def _stream(
        self, parts: list[Part], settings: GenerationSettings, response: Callable[..., R]
    ) -> Generator[R, None, None]:
        reader = self._engine.reader()
        return _responses(reader, reader.stream(parts, settings=settings), parts, response)

    def _formatted(self, prompt: str, formatted: bool) -> str:
        if formatted or self.completion_to_prompt is None:
            return prompt
        return self.completion_to_prompt(prompt)

    def _turns_or_parts(self, messages: Sequence[ChatMessage]) -> list[Turn] | str:
        """Turns for the base's chat template, or the prompt of the user's own template."""
        if self.messages_to_prompt in (None, generic_prompt):
            return turns_of(messages, self._engine.vocabulary)
        return self.messages_to_prompt(messages)

    def _settings(self, options: dict[str, Any]) -> GenerationSettings:
        """The settings of one call.

        Raises:
            ConfigError: if an option is unknown or out of range.
        """
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ConfigError(
                f"ZContextLLM takes no option {unknown[0]!r}; it knows {', '.join(_OPTIONS)}.",
                field=unknown[0],
                value=options[unknown[0]],
            )
        changes = {_OPTIONS[name]: value for name, value in options.items() if value is not None}
        if "stop" in changes:
            stop = changes["stop"]
            changes["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        return GenerationSettings(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop),
            seed=self.seed,
        ).replace(**changes)


def _responses(
    reader: SupportsRead, pieces: Iterator[str], parts: Sequence[Part], response: Callable[..., R]
) -> Generator[R, None, None]:
    """Growing responses, and at the end one without new text that carries the usage."""
    followed = Followed(pieces)
    for piece in followed:
        yield response(followed.text, raw=None, delta=piece)
    if followed.answer is not None:
        raw = raw_of(followed.answer)
    else:
        n_output = len(TokenIds(lambda: reader)(followed.text))
        raw = {"usage": usage_of(n_prompt=reader.count(parts), n_output=n_output)}
    yield response(followed.text, raw=raw, delta="")
