"""The autoregress stage on a tiny model: what it learns from, and what it leaves alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zcontext.bundle
import zcontext.training.run
from tiny import tiny_base, tiny_z
from tiny_training import TEXT, figures, run_settings, run_stage
from zcontext.bundle import load_bundle, save_bundle
from zcontext.composing import Composed, Composition, Passage
from zcontext.compressor import ZCompressor
from zcontext.errors import ConfigError, TrainingError
from zcontext.model import ZLanguageModel
from zcontext.training.autoregress import (
    Autoregress,
    AutoregressConfig,
    closed_ends,
    one_pass_path,
)
from zcontext.training.autoregress_stage import AutoregressStage
from zcontext.training.config import DataConfig, OptimiserConfig, TrainConfig
from zcontext.training.data import WindowBatch, build_batch
from zcontext.training.restore_loss import restore_loss
from zcontext.training.retracing import retrace
from zcontext.training.run import train


def configuration(shards: Path, out: Path, *, steps: int = 4, **objective: Any) -> TrainConfig:
    return TrainConfig(
        run=run_settings("autoregress", out, steps=steps),
        data=DataConfig(
            shards=(str(shards),),
            batch_tokens=64,
            min_window=16,
            max_window=32,
            memory_share=0.3,
            full_depth_share=0.8,
        ),
        optimiser=OptimiserConfig(learning_rate=5e-3, warmup_steps=2),
        autoregress=AutoregressConfig(**objective),
    )


def run(config: TrainConfig, *, stop_after: int | None = None) -> ZLanguageModel:
    return run_stage(AutoregressStage, config, stop_after=stop_after)


def length_error(objective: Autoregress, passage: Passage) -> tuple[Composed, torch.Tensor]:
    """A path drawn, and what its length costs when it is followed again."""
    model, seeds = objective.z, torch.Generator().manual_seed(0)
    with model.using("compose"):
        found = Composition(model, passage, depth=3, seeds=seeds).run()
        assert found.path is not None
        drawn = retrace(model, passage, found.path)
    survival = torch.cumsum(torch.nn.functional.logsigmoid(-drawn.odds), dim=1).exp()
    return found, objective._length_error(passage, found.path, drawn, survival)


def batch_of(texts: list[str], *, n_slots: int, depth: int = 3) -> WindowBatch:
    ids = torch.tensor([list(text.encode()) for text in texts])
    return build_batch(ids, None, n_prior=0, n_slots=n_slots, depth=depth)


def test_training_lowers_what_distillation_costs(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path, steps=30, distil_steps=30)
    run(config)
    told = [line["distil"] + line["end_nats"] for line in figures(tmp_path)]
    assert sum(told[-5:]) < 0.8 * sum(told[:5])


def test_along_the_one_pass_writers_symbols_it_is_to_say_just_these(shards: Path) -> None:
    """The path of distillation: nearest codes of the one-pass latents, its ends, then END."""
    model = tiny_z()
    model.add_composer()
    objective = Autoregress(model, AutoregressConfig())
    batch = batch_of([TEXT[:40], TEXT[100:140]], n_slots=8)
    passage, _ = objective.read(batch)
    path = one_pass_path(model, passage, depth=3)
    assert bool((path.ended.sum(-1) == 1).all())
    assert bool((path.written.sum(-1) == path.real.sum(-1) - 1).all())
    for row in range(2):
        count = int(path.written[row].sum())
        ids = batch.ids[row : row + 1]
        with model.using("compress"), torch.no_grad():
            state = model.read(ids, torch.ones_like(ids))
            ends = path.ends[row : row + 1, :count]
            latents = model.write(state, ends, torch.ones_like(ends))
        wanted = model.codebook.nearest(latents, depth=3)[0]
        assert torch.equal(path.codes[row, :count], wanted)
        assert int(path.ends[row, count - 1]) == 39


def test_only_the_composer_and_its_adapter_learn(shards: Path, tmp_path: Path) -> None:
    model = tiny_z()
    stage = AutoregressStage(model, configuration(shards, tmp_path, distil_steps=0))
    names = set(stage.parameters())
    assert all(name.startswith(("compose/", "composer/")) for name in names)
    for parameter in stage.parameters().values():
        parameter.requires_grad_(True)
    output = stage.module(stage.batch(0), 0, torch.Generator().manual_seed(0))
    output.loss.backward()
    for name, parameter in stage.parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    others = [*model.parameters_of(("compress", "decompress", "infer")).values()]
    assert all(p.grad is None for p in [*others, *model.codebook.parameters()])


def test_the_codec_keeps_its_digest_and_the_bundle_gains_a_part(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zcontext.bundle, zcontext.training.run):
        monkeypatch.setattr(module, "load_base", lambda *a, **k: tiny_base())
    save_bundle(tiny_z(), tmp_path / "start")
    config = configuration(shards, tmp_path / "out", distil_steps=2)
    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, start=str(tmp_path / "start"))
    )
    result = train(config)
    loaded = load_bundle(result["bundle"])
    assert loaded.codec == tiny_z().codec
    document = ZCompressor(loaded).compress(TEXT[:80], writer="autoregressive")
    assert document.codec == tiny_z().codec
    # A codec that is trained further drops the part; one whose reader is, keeps it.
    again = dataclasses.replace(config.run, start=result["bundle"], stage="autoencode")
    build = zcontext.training.run.build_model
    assert build(dataclasses.replace(config, run=again)).composer is None
    again = dataclasses.replace(again, stage="read")
    assert build(dataclasses.replace(config, run=again)).composer is not None


def test_resumed_equals_uninterrupted(shards: Path, tmp_path: Path) -> None:
    whole = run(configuration(shards, tmp_path / "whole", distil_steps=2))
    config = configuration(shards, tmp_path / "parts", distil_steps=2)
    run(config, stop_after=2)
    parts = run(config)
    assert whole.composer is not None
    assert parts.composer is not None
    for (name, one), two in zip(
        whole.composer.named_parameters(), parts.composer.parameters(), strict=True
    ):
        assert torch.equal(one, two), name


def test_the_length_term_is_what_it_says_where_nothing_is_left_to_chance() -> None:
    """END impossible and the pace asked for: the expected number is the number written."""
    model = tiny_z()
    composer = model.add_composer()
    with torch.no_grad():
        composer.to_end.bias.fill_(-30.0)
    objective = Autoregress(model, AutoregressConfig())
    batch = batch_of([TEXT[:48], TEXT[60:108]], n_slots=12)
    passage, _ = objective.read(batch)
    found, error = length_error(objective, passage)
    totals = sum(pointer.total / pointer.price for pointer in passage.pointers(depth=3))
    assert float(error.detach()) == pytest.approx((totals / 96 - 12 / 48) ** 2, abs=1e-6)
    n_written = sum(map(len, found.codes))
    assert abs(n_written - totals) <= 2


def test_more_symbols_than_asked_for_speed_the_pace_up_and_call_for_end() -> None:
    model = tiny_z()
    composer = model.add_composer()
    with torch.no_grad():
        composer.to_pace.bias.fill_(-0.5)  # half of what was asked for: twice the symbols
        composer.to_end.bias.fill_(-3.0)
    objective = Autoregress(model, AutoregressConfig())
    passage, _ = objective.read(batch_of([TEXT[:48]] * 2, n_slots=6))
    found, error = length_error(objective, passage)
    assert sum(map(len, found.codes)) / 96 > 6 / 48
    pace, end = torch.autograd.grad(error, [composer.to_pace.bias, composer.to_end.bias])
    assert float(pace) < 0  # a step down the gradient raises both
    assert float(end) < 0


def test_symbols_that_are_not_there_do_not_reach_the_reader() -> None:
    model = tiny_z()
    ids = torch.tensor([list(TEXT[:24].encode())] * 2)
    ends = torch.tensor([[7, 15, 23]] * 2)
    symbols = torch.randn(2, 3, model.hidden_size)
    real = torch.tensor([[True, True, True], [True, True, False]])
    with torch.no_grad(), model.using("decompress"):
        nll, _ = restore_loss(model, symbols, ids, ends=ends, real=real)
        symbols[1, 2] = 9.0
        again, _ = restore_loss(model, symbols, ids, ends=ends, real=real)
        short, _ = restore_loss(model, symbols[1:, :2], ids[1:], ends=ends[1:, :2])
    assert torch.equal(nll, again)
    assert torch.allclose(nll[1], short[0], atol=1e-5)


def test_the_last_symbol_written_closes_the_window() -> None:
    model = tiny_z()
    composer = model.add_composer()
    with torch.no_grad():
        composer.to_end.bias.fill_(0.0)  # END is as likely as not
    objective = Autoregress(model, AutoregressConfig())
    passage, _ = objective.read(batch_of([TEXT[i : i + 40] for i in range(4)], n_slots=10))
    with model.using("compose"):
        seeds = torch.Generator().manual_seed(0)
        found = Composition(model, passage, depth=3, seeds=seeds).run()
    assert found.path is not None
    assert bool(found.path.ended.any())
    closed = closed_ends(found.path, 40)
    for row, ends in enumerate(found.ends):
        assert ends[-1] == 40
        assert (closed[row, : len(ends)] + 1).tolist() == list(ends)


@pytest.mark.parametrize("codec", [{}, {"named": True, "size": 260}])
def test_health_figures_compare_both_writers_at_equal_length(
    codec: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(json.dumps({"text": TEXT[i:]}) + "\n" for i in range(6)))
    config = configuration(shards, tmp_path)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, dev=str(dev), dev_window=32, dev_windows=6)
    )
    model = tiny_z(**codec)
    found = AutoregressStage(model, config).evaluate()
    kinds = ("c", "accuracy", "gap", "ratio", "one_pass_c", "one_pass_accuracy")
    assert set(found) == {f"{kind}@{ratio}" for kind in kinds for ratio in (4, 8, 16)}
    assert found["ratio@4"] < found["ratio@8"] < found["ratio@16"]
    model.add_channel()
    heard = AutoregressStage(model, config).evaluate()
    assert all(heard[f"c@{ratio}"] <= found[f"c@{ratio}"] for ratio in (4, 8, 16))
    # Whose codes are names tells a reader with a channel what is named whole.
    assert (heard["c@4"] < 0.9 * found["c@4"]) == model.config.named


def test_what_it_needs_is_asked_for(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    nowhere = dataclasses.replace(config, run=dataclasses.replace(config.run, start=None))
    with pytest.raises(TrainingError, match=r"\[run\] start"):
        AutoregressStage(tiny_z(), nowhere)
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=()))
    with pytest.raises(TrainingError, match="shards"):
        AutoregressStage(tiny_z(), without)
    with pytest.raises(ConfigError, match="temperature_end"):
        AutoregressConfig(temperature_end=0.0)


def test_the_settings_that_ship_are_read() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "train" / "autoregress.toml"
    assert TrainConfig.load(path).run.stage == "autoregress"
