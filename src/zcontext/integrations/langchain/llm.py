"""A LangChain completion model that reads prompts of text and written symbols.

It turns prompts into parts and answers into generations; reading itself is the engine's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from zcontext.integrations.engines import Followed, follow, in_thread
from zcontext.integrations.langchain.reading import (
    FINISH,
    ReadingModel,
    engine_of,
    followed_usage,
    host_errors,
    settings_of,
    usage_of,
)
from zcontext.integrations.langchain.watching import LLM_TYPE


class ZContextLLM(ReadingModel, LLM):
    """Completes prompts; symbols may stand anywhere in them.

    Args:
        model: Folder or name of a bundle (loaded at the first call), a `ZLanguageModel`, or any
            `SupportsRead`.
        temperature: 0 is greedy.
        max_tokens: Most tokens generated.
        top_p: Nucleus of the distribution sampled from.
        seed: Of the sampler.
        stop: Strings that end an answer, where a call gives none.

    Raises:
        ValidationError: pydantic's, with our message, if `model` is none of these.
        BundleError: if there is no such bundle.
    """

    @property
    def _llm_type(self) -> str:
        return LLM_TYPE

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return self._complete(prompt, stop, kwargs).text

    def _complete(
        self, prompt: str, stop: list[str] | None, options: Mapping[str, Any]
    ) -> Generation:
        settings = settings_of(self, stop, options)
        engine = engine_of(self._engine, options)
        parts = engine.vocabulary.split(prompt)
        with host_errors():
            answer = engine.reader().complete(parts, settings=settings)
        info = {
            "finish_reason": FINISH[answer.stop_reason],
            "model_name": engine.name,
            "usage_metadata": usage_of(answer),
        }
        return Generation(text=answer.text, generation_info=info)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations = [[self._complete(prompt, stop, kwargs)] for prompt in prompts]
        used = [(batch[0].generation_info or {})["usage_metadata"] for batch in generations]
        totals = {
            "prompt_tokens": sum(usage["input_tokens"] for usage in used),
            "completion_tokens": sum(usage["output_tokens"] for usage in used),
            "total_tokens": sum(usage["total_tokens"] for usage in used),
        }
        output = {"token_usage": totals, "model_name": self.model_name}
        return LLMResult(generations=[list(batch) for batch in generations], llm_output=output)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return await in_thread(partial(self._generate, prompts, stop, **kwargs))

    async def _acall(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return await in_thread(partial(self._call, prompt, stop, **kwargs))

    def _chunks(
        self, prompt: str, stop: list[str] | None, options: Mapping[str, Any]
    ) -> Iterator[GenerationChunk]:
        settings = settings_of(self, stop, options)
        engine = engine_of(self._engine, options)
        parts = engine.vocabulary.split(prompt)
        reader = engine.reader()
        with host_errors():
            followed = Followed(reader.stream(parts, settings=settings))
            for piece in followed:
                yield GenerationChunk(text=piece)
        reason = FINISH[followed.answer.stop_reason] if followed.answer else None
        info = {
            "finish_reason": reason,
            "model_name": engine.name,
            "usage_metadata": followed_usage(followed, reader, parts),
        }
        yield GenerationChunk(text="", generation_info=info)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in self._chunks(prompt, stop, kwargs):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        async for chunk in follow(partial(self._chunks, prompt, stop, kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk
