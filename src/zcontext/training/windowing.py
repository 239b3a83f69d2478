"""What the stages that learn from windows of a corpus share: the windows they train and judge on.

What this module does not know: models, losses.
"""

from __future__ import annotations

from typing import Any

from zcontext.config import CodecConfig
from zcontext.errors import TrainingError
from zcontext.tokenization import text_tokenizer
from zcontext.training.config import TrainConfig
from zcontext.training.data import Corpus, WindowSampler, read_texts


def open_sampler(config: TrainConfig, *, max_depth: int) -> WindowSampler:
    """The run's batches.

    Args:
        config: The run's settings.
        max_depth: Codes per symbol of the codec.

    Returns:
        The sampler.

    Raises:
        TrainingError: There are no shards, one is not readable, or there are shares of depths that
            the codec lacks.
    """
    data = config.data
    if len(data.depth_shares) > max_depth:
        raise TrainingError(
            f"[data] depth_shares has {len(data.depth_shares)} depths, the codec {max_depth}: "
            "give a share for each, or fewer"
        )
    if not data.shards:
        raise TrainingError(
            f"the {config.run.stage} stage needs [data] shards; see `zcontext prepare`"
        )
    return WindowSampler(
        corpus=Corpus.load(data.shards),
        batch_tokens=data.batch_tokens,
        min_window=data.min_window,
        max_window=data.max_window,
        min_ratio=data.min_ratio,
        max_ratio=data.max_ratio,
        max_depth=max_depth,
        full_depth_share=data.full_depth_share,
        depth_shares=data.depth_shares,
        min_tokens_per_code=data.min_tokens_per_code,
        memory_share=data.memory_share,
        max_prior=data.max_prior,
        ratio_ramp=data.ratio_ramp,
        seed=config.run.seed,
    )


def open_sampler_of_trained(config: TrainConfig, codec: CodecConfig) -> WindowSampler:
    """The batches of a run that learns beside a codec that is trained.

    Args:
        config: The run's settings.
        codec: Shape of the codec.

    Returns:
        The sampler.

    Raises:
        TrainingError: There is no bundle to start from, or there are no readable shards.
    """
    stage = config.run.stage
    if config.run.start is None:
        raise TrainingError(
            f"the {stage} stage learns from a trained codec: name its bundle in [run] start"
        )
    return open_sampler(config, max_depth=codec.depth)


def dev_windows(config: TrainConfig, tokenizer: Any, *, batch: int = 1) -> list[list[int]]:
    """The windows that the health figures are taken on: one from the start of each text.

    Args:
        config: The run's settings; `[data] dev` names the texts.
        tokenizer: The base's fast tokenizer.
        batch: Windows that are measured together; figures are means over whole batches.

    Returns:
        Token ids, a multiple of `batch` windows.

    Raises:
        TrainingError: There are fewer than `batch` texts long enough.
    """
    data, tokens = config.data, text_tokenizer(tokenizer)
    rows: list[list[int]] = []
    for text in read_texts(str(data.dev)):
        row = list(tokens.ids(text))[: data.dev_window]
        if len(row) == data.dev_window:
            rows.append(row)
        if len(rows) == data.dev_windows:
            break
    if len(rows) < batch:
        raise TrainingError(
            f"{data.dev} has {len(rows)} texts of {data.dev_window} tokens, {batch} are needed"
        )
    return rows[: len(rows) - len(rows) % batch]
