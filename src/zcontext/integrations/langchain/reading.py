"""What both LangChain models share: fields, options into settings, a followed stream, usage.

It knows `SupportsRead` and LangChain's names for options; it knows no messages and no prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from langchain_core.exceptions import ContextOverflowError as HostContextOverflowError
from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams
from langchain_core.messages.ai import UsageMetadata
from pydantic import PrivateAttr, model_validator

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.integrations.engines import Engine, Followed
from zcontext.spans import Answer, Part, SupportsRead
from zcontext.vocabulary import ZVocabulary

_SETTINGS: Final = {
    "temperature": "temperature",
    "max_tokens": "max_new_tokens",
    "top_p": "top_p",
    "seed": "seed",
}
# What LangChain itself passes along and a local model has no use for.
_IGNORED: Final = frozenset(
    (
        "functions",
        "ls_structured_output_format",
        "max_retries",
        "model",
        "parallel_tool_calls",
        "response_format",
        "stream",
        "strict",
        "structured_output_format",
        "timeout",
        "tool_choice",
        "tools",
    )
)
FINISH: Final = {"end": "stop", "stop": "stop", "length": "length"}
"""Our stop reasons under the names that LangChain's users look for."""


class PromptTooLongError(ContextOverflowError, HostContextOverflowError):
    """A prompt needs more positions than the model has; also LangChain's error for that."""


class ReadingModel(BaseLanguageModel[Any]):
    """What the chat model and the completion model have in common; each documents the fields."""

    model: Any
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    _engine: Engine = PrivateAttr()

    @model_validator(mode="after")
    def _name_zcontext_engine(self) -> Self:
        self._engine = Engine(self.model)  # nothing is loaded
        return self

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols this model reads."""
        return self._engine.vocabulary

    @property
    def model_name(self) -> str:
        """Name of the bundle or engine."""
        return self._engine.name

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        names = ("temperature", "max_tokens", "top_p", "seed", "stop")
        own = {name: getattr(self, name) for name in names}
        return {"model": self._engine.identity, **own}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "zcontext"
        params["ls_model_name"] = str(kwargs.get("model") or self.model_name)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Base ids for text, one id for each symbol; needs no network.

        Args:
            text: Text, with or without symbols.

        Returns:
            The ids.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._engine.reader().token_ids(self.vocabulary.split(text))


def settings_of(
    model: ReadingModel, stop: Sequence[str] | None, options: Mapping[str, Any]
) -> GenerationSettings:
    """Settings of one call: the call's options before the model's own.

    Args:
        model: Gives the defaults.
        stop: Stop sequences of this call, instead of the model's.
        options: Further options of this call.

    Returns:
        The settings.

    Raises:
        ConfigError: if an option is unknown or out of its range.
    """
    unknown = set(options) - set(_SETTINGS) - _IGNORED
    if unknown:
        name = min(unknown)
        raise ConfigError(
            f"{name}={options[name]!r} is not an option of this model: it takes "
            f"{', '.join(_SETTINGS)} and stop.",
            field=name,
            value=options[name],
        )
    given = {
        ours: options[name] if options.get(name) is not None else getattr(model, name)
        for name, ours in _SETTINGS.items()
    }
    sequences = stop if stop is not None else model.stop
    return GenerationSettings().replace(**given, stop=tuple(sequences or ()))


def engine_of(engine: Engine, options: Mapping[str, Any]) -> Engine:
    """The engine of one call: another bundle if the call names one by `model=`."""
    named = options.get("model")
    return Engine(named) if isinstance(named, str | Path) else engine


def followed_usage(
    followed: Followed, reader: SupportsRead, prompt: Sequence[Part]
) -> UsageMetadata:
    """What a stream took: from its answer, else counted."""
    if followed.answer is not None:
        return usage_of(followed.answer)
    n_symbols = sum(len(part) for part in prompt if not isinstance(part, str))
    n_input = reader.count(prompt)
    n_output = len(reader.token_ids([followed.text])) if followed.text else 0
    return _usage(n_input, n_output, n_symbols)


def usage_of(answer: Answer) -> UsageMetadata:
    """Token counts of an answer; a symbol counts as one token."""
    n_input = answer.n_prompt_tokens + answer.n_prompt_symbols
    return _usage(n_input, answer.n_output_tokens, answer.n_prompt_symbols)


def _usage(n_input: int, n_output: int, n_symbols: int) -> UsageMetadata:
    # LangChain allows keys of our own here: how many of the input positions were symbols.
    details: Any = {"symbols": n_symbols}
    return UsageMetadata(
        input_tokens=n_input,
        output_tokens=n_output,
        total_tokens=n_input + n_output,
        input_token_details=details,
    )


@contextmanager
def host_errors() -> Iterator[None]:
    """Give LangChain its own error where it has one that its middlewares look for.

    Yields:
        Nothing.

    Raises:
        PromptTooLongError: in place of `ContextOverflowError`.
    """
    try:
        yield
    except ContextOverflowError as error:
        raise PromptTooLongError(str(error)) from error
