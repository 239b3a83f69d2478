"""The terms on which a model compresses: settings with every default filled in, checked against it.

What this module does not know: text, how windows are written.
"""

from __future__ import annotations

from zcontext.config import DEFAULT_RATIO, CompressSettings
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel


def in_force(
    settings: CompressSettings, model: ZLanguageModel, *, n_asked: int
) -> CompressSettings:
    """Settings with every default filled in.

    Args:
        settings: What was asked for.
        model: Who is to compress.
        n_asked: Tokens of the question.

    Returns:
        The settings, with a budget, a depth and a window.

    Raises:
        ConfigError: The codec has no such writer or depth, or a window does not fit the base.
    """
    if settings.writer == "autoregressive" and model.composer is None:
        raise ConfigError(
            "writer='autoregressive': this codec's bundle lacks the part 'compose'. Load one "
            "that has it, train one (zcontext train benchmarks/train/autoregress.toml), or use "
            "writer='one-pass'",
            field="writer",
            value=settings.writer,
        )
    if settings.ratio is settings.max_symbols is settings.bits_per_symbol is None:
        settings = settings.replace(ratio=DEFAULT_RATIO)
    codec = model.config
    by_itself = settings.writer == "autoregressive"
    if by_itself or focuses(settings, model) or settings.emphasis:
        # Beside what was asked for, facts distract a reader; that writer decides by itself.
        settings = settings.replace(facts=False)
        if by_itself or settings.surprisal == "auto":
            settings = settings.replace(surprisal="writer")
    depth = None if settings.on_low_fidelity == "finer" else settings.depth
    chosen = settings.replace(depth=depth or codec.depth, window=settings.window or codec.window)
    if (chosen.depth or 0) > codec.depth:
        raise ConfigError(
            f"depth={chosen.depth}: this codec has {codec.depth} codes per symbol at most",
            field="depth",
            value=chosen.depth,
        )
    if (chosen.window or 0) + chosen.memory + n_asked > model.context_length:
        asked = f" and a question of {n_asked} tokens" if n_asked else ""
        raise ConfigError(
            f"window={chosen.window} tokens and memory={chosen.memory} symbols{asked} need "
            f"more than the {model.context_length} positions of the base; lower one of them",
            field="window",
            value=chosen.window,
        )
    return chosen


def focuses(settings: CompressSettings, model: ZLanguageModel) -> bool:
    """Whether symbols go where a text answers the question."""
    asked = settings.question is not None and settings.writer == "one-pass"
    return asked and model.focus is not None


def can_refocus(model: ZLanguageModel) -> bool:
    """Whether stored documents can be written again for a question: codes are names, with focus."""
    return model.focus is not None and model.config.named


def writes_as(settings: CompressSettings, model: ZLanguageModel) -> str:
    """What determines the symbols of a text: the codec, and the parts that place or choose them."""
    if settings.writer != "one-pass" and model.composer is not None:
        return f"{model.codec}+{model.composer.digest}"
    if focuses(settings, model) and model.focus is not None:
        return f"{model.codec}+{model.focus.digest}"
    return model.codec
