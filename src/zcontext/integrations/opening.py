"""Which exchange a door uses: symbols, or text for readers that know none."""

from __future__ import annotations

from zcontext.integrations.engines import Engine
from zcontext.integrations.exchange import Exchange, ExchangeSettings
from zcontext.integrations.pruned import PrunedExchange

__all__ = ["AnyExchange", "open_exchange"]

AnyExchange = Exchange | PrunedExchange


def open_exchange(
    engine: Engine, settings: ExchangeSettings, query: str | None = None
) -> AnyExchange:
    """The exchange that settings ask for.

    Args:
        engine: Who does the work; loaded when there is some.
        settings: When to exchange, and what for.
        query: What was asked, where that is known.

    Returns:
        The exchange.
    """
    if settings.output == "text":
        return PrunedExchange(engine.vocabulary, pruner=engine.pruner, settings=settings)
    return Exchange(
        engine.vocabulary,
        compressor=engine.compressor,
        settings=settings,
        question=settings.question_of(query),
    )
