"""One training run from a settings tree: base, model, stage, trainer, bundle.

What this module does not know: the command line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zcontext.bundle import fill, read_manifest, read_parts, save_bundle
from zcontext.config import CodecConfig, from_table
from zcontext.loading import load_base
from zcontext.model import ZLanguageModel
from zcontext.sealing import OPTIONAL_PARTS
from zcontext.training.config import TrainConfig
from zcontext.training.stages import AutoencodeStage
from zcontext.training.trainer import Stage, Trainer

OUTDATED: dict[str, tuple[str, ...]] = {
    "autoencode": OPTIONAL_PARTS,
    "restore": ("compose",),  # and the channel once it is over: it may be what the stage hears
}
"""Parts of the bundle it starts from that a stage drops: what they learned is of the codec as it
was."""


def build_model(config: TrainConfig) -> ZLanguageModel:
    """The model a run starts from.

    Args:
        config: The run's settings.

    Returns:
        A fresh codec, or the one of the bundle named in `[run] start`.
    """
    base = load_base(
        config.base.name,
        quantization=config.base.quantization,
        dtype=config.base.dtype,
        device=config.base.device,
    )
    if config.run.start is None:
        return ZLanguageModel.create(base, config.codec, seed=config.run.seed)
    manifest = read_manifest(config.run.start)
    model = ZLanguageModel.create(base, from_table(CodecConfig, manifest["config"]))
    parts = read_parts(config.run.start)
    for part in OUTDATED.get(config.run.stage, ()):
        parts.pop(part, None)
    fill(model, parts)
    return model


def build_stage(model: ZLanguageModel, config: TrainConfig) -> Stage:
    """The stage a run trains.

    Args:
        model: The model that learns.
        config: The run's settings.

    Returns:
        The stage.
    """
    if config.run.stage == "read":
        from zcontext.training.read_stage import ReadStage

        return ReadStage(model, config)
    if config.run.stage == "restore":
        from zcontext.training.restore_stage import RestoreStage

        return RestoreStage(model, config)
    if config.run.stage == "channel":
        from zcontext.training.channel_stage import ChannelStage

        return ChannelStage(model, config)
    if config.run.stage == "focus":
        from zcontext.training.focus_stage import FocusStage

        return FocusStage(model, config)
    if config.run.stage == "autoregress":
        from zcontext.training.autoregress_stage import AutoregressStage

        return AutoregressStage(model, config)
    return AutoencodeStage(model, config)


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What a bundle's manifest says of its run: every setting, files by their last name only.

    Args:
        config: The run's settings.

    Returns:
        JSON-ready tables.
    """
    tables = dataclasses.asdict(config)
    for table, name in (
        *(("run", name) for name in ("out", "bundle", "start")),
        *(("data", name) for name in ("shards", "dev")),
        ("read", "questions"),
        ("focus", "questions"),
        ("base", "name"),
    ):
        value = tables[table][name]
        if isinstance(value, str):
            tables[table][name] = Path(value).name
        elif value is not None:
            tables[table][name] = [Path(item).name for item in value]
    return tables


def train(
    config: TrainConfig, *, on_log: Callable[[dict[str, float]], None] | None = None
) -> dict[str, Any]:
    """Run a stage to its end (or its time limit) and write the bundle.

    Args:
        config: The run's settings.
        on_log: Called with every line of figures.

    Returns:
        The last health figures and where the bundle is.
    """
    model = build_model(config)
    stage = build_stage(model, config)
    trainer = Trainer(model, stage, run=config.run, optimiser=config.optimiser, on_log=on_log)
    figures = trainer.train()
    stage.finish()
    facts = {"stage": config.run.stage, "steps": trainer.step, "figures": figures}
    if trainer.accelerator.is_main_process:
        save_bundle(model, config.run.bundle, training=facts | {"config": settings_of(config)})
    return {**facts, "bundle": config.run.bundle}
