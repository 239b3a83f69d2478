"""What both LangChain models share: options into settings, a stream with its answer, usage.

It knows `SupportsRead` and LangChain's names for options; it knows no messages and no prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from langchain_core.exceptions import ContextOverflowError as HostContextOverflowError
from langchain_core.messages.ai import UsageMetadata

from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, ContextOverflowError
from zcontext.integrations.engines import Engine
from zcontext.spans import Answer, Part, SupportsRead

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


class ReadingModel(Protocol):
    """The options that both models take."""

    temperature: float | None
    max_tokens: int | None
    top_p: float | None
    seed: int | None
    stop: list[str] | None


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


def parameters_of(model: ReadingModel, identity: str) -> dict[str, Any]:
    """What tells a model's answers from another's, for caches and traces."""
    names = ("temperature", "max_tokens", "top_p", "seed", "stop")
    return {"model": identity, **{name: getattr(model, name) for name in names}}


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

    def usage(self, reader: SupportsRead, prompt: Sequence[Part]) -> UsageMetadata:
        """What the stream took: from its answer, else counted."""
        if self.answer is not None:
            return usage_of(self.answer)
        n_symbols = sum(len(part) for part in prompt if not isinstance(part, str))
        n_input = reader.count(prompt)
        n_output = len(reader.token_ids([self.text])) if self.text else 0
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
