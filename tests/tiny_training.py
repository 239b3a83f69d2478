"""Training stages on a tiny model: a corpus, a run that may stop in the middle, its log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tiny import tiny_z
from zcontext.model import ZLanguageModel
from zcontext.training.config import RunConfig, StageName, TrainConfig
from zcontext.training.data import write_shards
from zcontext.training.trainer import Stage, Trainer

TEXT = "The lighthouse keeper wrote the weather into his book each evening at nine. " * 12


def write_corpus(folder: Path) -> Path:
    """Six texts as shards, one token a byte."""
    texts = [f"{i}. {TEXT}" for i in range(6)]
    write_shards(texts, folder, encode=lambda t: list(t.encode()), seed=1)
    return folder


def run_settings(stage: StageName, out: Path, *, steps: int = 4) -> RunConfig:
    """A short run from a bundle of that name, which nothing opens unless it is built by `train`."""
    return RunConfig(
        stage=stage,
        out=str(out),
        bundle=str(out / "bundle"),
        start="tiny",
        steps=steps,
        log_every=1,
        evaluate_every=100,
        checkpoint_every=2,
        seed=3,
    )


def run_stage(
    kind: Callable[[ZLanguageModel, TrainConfig], Stage],
    config: TrainConfig,
    *,
    stop_after: int | None = None,
) -> ZLanguageModel:
    """Train a stage of a tiny codec, to its end or as if stopped after some steps."""
    model = tiny_z()
    trainer = Trainer(model, kind(model, config), run=config.run, optimiser=config.optimiser)
    if stop_after is None:
        trainer.train()
    else:
        run_until(trainer, stop_after)
    return model


def run_until(trainer: Trainer, step: int) -> None:
    """Go on to a step, and leave a checkpoint as an interrupted run does."""
    trainer.resume()
    while trainer.step < step:
        trainer._one_step()
        trainer.step += 1
    trainer.save_checkpoint()


def figures(out: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
