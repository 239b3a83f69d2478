"""The training path on a tiny model: data, objective, loop, resumption, divergence."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import tiny_base, tiny_z
from tiny_training import TEXT, figures, run_until
from zcontext.config import CodecConfig
from zcontext.errors import ConfigError, DivergedError, TrainingError
from zcontext.model import ZLanguageModel
from zcontext.spans import UNKNOWN
from zcontext.surprisal import base_surprisal
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.data import Corpus, WindowSampler, build_batch, read_texts, write_shards
from zcontext.training.objective import Autoencode, AutoencodeConfig
from zcontext.training.questions import read_questions
from zcontext.training.restore_loss import restore_loss
from zcontext.training.run import settings_of
from zcontext.training.stages import AutoencodeStage
from zcontext.training.trainer import CHECKPOINT, Trainer, learning_rate_factor


def configuration(shards: Path, out: Path, *, steps: int = 6, **objective: object) -> TrainConfig:
    return TrainConfig(
        run=RunConfig(
            out=str(out), steps=steps, log_every=1, evaluate_every=100, checkpoint_every=3, seed=3
        ),
        codec=CodecConfig(depth=2, size=16, writer_layers=2, lora_rank=4, lora_alpha=4),
        data=DataConfig(
            shards=(str(shards),), batch_tokens=64, min_window=16, max_window=32, memory_share=0.3
        ),
        optimiser=OptimiserConfig(warmup_steps=2),
        autoencode=AutoencodeConfig(discrete_from=2, fit_latents=100, **objective),  # type: ignore[arg-type]
    )


def run(
    config: TrainConfig, *, stop_after: int | None = None, sharpness: float = 1.0
) -> ZLanguageModel:
    base = tiny_base()
    with torch.no_grad():  # the tied head of a random base says hardly more than "anything"
        base.model.get_input_embeddings().weight.mul_(sharpness)
    model = ZLanguageModel.create(base, config.codec, seed=0)
    trainer = Trainer(
        model, AutoencodeStage(model, config), run=config.run, optimiser=config.optimiser
    )
    if stop_after is None:
        trainer.train()
    else:
        run_until(trainer, stop_after)
    return model


def test_the_mean_surprisal_is_calibrated(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    model = tiny_z(depth=2, size=16)
    with torch.no_grad():
        model.codebook.surprise.bias.fill_(2.0)
    AutoencodeStage(model, config).finish()
    assert 1.0 < model.config.mean_surprisal < 3.5


def test_a_batch_depends_on_seed_and_step_alone(shards: Path) -> None:
    def sampler(seed: int) -> WindowSampler:
        return WindowSampler(
            Corpus.load([shards]), 64, 16, 32, 2.0, 8.0, 4, memory_share=0.5, seed=seed
        )

    for step in (0, 7, 2**40):
        one, two = sampler(1).batch(step), sampler(1).batch(step)
        assert torch.equal(one.ids, two.ids)
        assert one.n_slots == two.n_slots
    assert not torch.equal(sampler(1).batch(0).ids[:1, :8], sampler(2).batch(0).ids[:1, :8])


def test_a_window_never_crosses_a_document(shards: Path) -> None:
    corpus = Corpus.load([shards])
    marked = np.repeat(np.arange(len(corpus.offsets) - 1), np.diff(corpus.offsets))
    sampler = WindowSampler(
        dataclasses.replace(corpus, tokens=marked.astype(np.uint16)), 64, 16, 64, 2, 8, 1, seed=5
    )
    for step in range(40):
        rows = sampler.batch(step).ids
        assert (rows == rows[:, :1]).all()


def test_shards_hold_every_token_once(tmp_path: Path) -> None:
    texts = ["a" * 5000, "b" * 100, "c" * 9]
    written = write_shards(texts, tmp_path, encode=lambda t: list(t.encode()), shard_tokens=1000)
    corpus = Corpus.load([tmp_path])
    assert written == corpus.n_tokens == 5109
    assert sorted(corpus.tokens.tolist()) == sorted("".join(texts).encode())


def test_names_survive_an_interruption(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path, restart_every=1)
    codec = dataclasses.replace(config.codec, size=64, shared=True, named=True)
    config = dataclasses.replace(config, codec=codec)
    run(config, stop_after=4)
    model = run(config)
    whole = run(
        dataclasses.replace(config, run=dataclasses.replace(config.run, out=str(tmp_path / "one")))
    )
    assert torch.equal(model.codebook.lexicon.named, whole.codebook.lexicon.named)
    commonest = np.bincount(np.frombuffer(TEXT.encode(), np.uint8)).argmax()
    assert int(model.codebook.lexicon.named[1, 0]) == commonest


def test_the_memory_of_several_windows_is_that_of_each(shards: Path) -> None:
    model = tiny_z()
    objective = Autoencode(model, AutoencodeConfig(discrete_from=0))
    ids = torch.tensor([list(TEXT[:72].encode()), list(TEXT[72:144].encode())])
    bits = torch.full(ids.shape, 3.0)

    def memory(rows: torch.Tensor, n_prior: int) -> torch.Tensor:
        known = bits[:, : rows.shape[1]]
        batch = build_batch(rows, known, n_prior=n_prior, n_slots=6, depth=3)
        found = objective._memory(batch, objective.slots(batch), 1)
        assert found is not None
        return found

    both = memory(ids, 48)
    apart = [memory(ids[:, at : at + 48], 24) for at in (0, 24)]
    torch.testing.assert_close(both, torch.cat(apart, dim=1))
    for step in (0, 5):  # continuous and discrete
        config = AutoencodeConfig(discrete_from=3)
        batch = build_batch(ids, None, n_prior=48, n_slots=6, depth=3)
        generator = torch.Generator().manual_seed(0)
        assert torch.isfinite(Autoencode(model, config)(batch, step, generator).loss)


def test_surprisal_is_kept_in_eighths_of_a_bit(tmp_path: Path) -> None:
    write_shards(
        ["abcdefghij"],
        tmp_path,
        encode=lambda t: list(t.encode()),
        surprise=lambda docs: [np.full(len(d), 3.3, np.float32) for d in docs],
    )
    batch = WindowSampler(Corpus.load([tmp_path]), 8, 8, 8, 2, 4, 1).batch(0)
    assert batch.surprisal is not None
    assert float(batch.surprisal[0, 0]) == 3.25


def test_resumed_equals_uninterrupted(shards: Path, tmp_path: Path) -> None:
    whole = run(configuration(shards, tmp_path / "whole"))
    config = configuration(shards, tmp_path / "parts")
    run(config, stop_after=3)
    assert (tmp_path / "parts" / CHECKPOINT).is_file()
    parts = run(config)
    for (name, one), two in zip(
        whole.codebook.named_parameters(), parts.codebook.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    for role in ("compress", "decompress"):
        for name, tensor in whole.adapters.state(role).items():  # type: ignore[arg-type]
            assert torch.equal(tensor, parts.adapters.state(role)[name]), name  # type: ignore[arg-type]


def test_both_adapters_and_the_codebook_get_a_gradient(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    model = tiny_z(depth=2, size=16)
    stage = AutoencodeStage(model, config)
    for parameter in stage.parameters().values():
        parameter.requires_grad_(True)
    output = stage.module(stage.batch(0), 5, torch.Generator().manual_seed(0))
    output.loss.backward()
    for name, parameter in stage.parameters().items():
        if "codebook/gain" in name or "surprise" in name or "expectation" in name:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_infer_is_left_alone_by_the_autoencode_stage(shards: Path, tmp_path: Path) -> None:
    before = ZLanguageModel.create(
        tiny_base(), configuration(shards, tmp_path).codec, seed=0
    ).adapters.state("infer")
    after = run(configuration(shards, tmp_path)).adapters.state("infer")
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("quantiser", ["vq", "gumbel"])
def test_training_lowers_the_loss(shards: Path, tmp_path: Path, quantiser: str) -> None:
    config = configuration(shards, tmp_path, steps=40, quantiser=quantiser)
    fast = OptimiserConfig(learning_rate=2e-2, warmup_steps=2)
    run(dataclasses.replace(config, optimiser=fast), sharpness=10.0)
    lines = figures(tmp_path)
    bits = [line["bits_per_token"] for line in lines if "bits_per_token" in line]
    assert sum(bits[-5:]) < 0.85 * sum(bits[:5])


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    run(config, stop_after=3)
    model = ZLanguageModel.create(tiny_base(), config.codec, seed=0)
    trainer = Trainer(
        model, AutoencodeStage(model, config), run=config.run, optimiser=config.optimiser
    )
    trainer.resume()
    with torch.no_grad():
        model.codebook.slot.fill_(float("nan"))
    with pytest.raises(DivergedError) as caught:
        trainer._one_step()
    assert caught.value.step == 3
    assert str(caught.value.last_checkpoint).endswith(CHECKPOINT)


def test_a_first_loss_that_is_not_finite_names_no_checkpoint(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    model = ZLanguageModel.create(tiny_base(), config.codec, seed=0)
    stage = AutoencodeStage(model, config)
    trainer = Trainer(model, stage, run=config.run, optimiser=config.optimiser)
    with torch.no_grad():
        model.codebook.slot.fill_(float("nan"))
    with pytest.raises(DivergedError, match="starts over") as caught:
        trainer._one_step()
    assert caught.value.last_checkpoint is None


def test_a_checkpoint_of_other_shapes_is_refused_with_the_way_out(
    shards: Path, tmp_path: Path
) -> None:
    config = configuration(shards, tmp_path)
    run(config, stop_after=1)
    wider = dataclasses.replace(config, codec=dataclasses.replace(config.codec, lora_rank=8))
    with pytest.raises(TrainingError, match="delete it to start over"):
        run(wider, stop_after=2)


def test_a_run_stops_when_its_minutes_are_over_and_goes_on_later(
    shards: Path, tmp_path: Path
) -> None:
    config = configuration(shards, tmp_path)
    short = dataclasses.replace(config, run=dataclasses.replace(config.run, minutes=1e-9))
    run(short)
    assert figures(tmp_path)[-1]["step"] == 1
    run(config)
    assert figures(tmp_path)[-1]["step"] == 6


def test_a_checkpoint_of_another_run_is_refused(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    run(config, stop_after=1)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=99))
    with pytest.raises(TrainingError, match="belongs to another run"):
        run(other)


def test_a_truncated_checkpoint_is_refused(shards: Path, tmp_path: Path) -> None:
    config = configuration(shards, tmp_path)
    run(config, stop_after=1)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TrainingError, match="does not fit"):
        run(config)


def test_surprisal_from_the_corpus_and_on_the_fly_give_the_same_slots() -> None:
    model = tiny_z()
    ids = torch.tensor([list(TEXT.encode()[:48])])
    bits = base_surprisal(model, ids)
    objective = Autoencode(model, AutoencodeConfig())
    known = objective.slots(build_batch(ids, bits, n_prior=0, n_slots=6, depth=1))
    found = objective.slots(build_batch(ids, None, n_prior=0, n_slots=6, depth=1))
    assert torch.equal(known.ends, found.ends)


def test_the_right_symbols_matter_more_than_none() -> None:
    """The loss has a path from the symbols: other symbols give other losses."""
    model = tiny_z()
    ids = torch.tensor([list(TEXT.encode()[:32])] * 2)
    with torch.no_grad(), model.using("decompress"):
        symbols = torch.randn(2, 4, model.hidden_size)
        nll, _ = restore_loss(model, symbols, ids)
    assert not torch.allclose(nll[0], nll[1])


def test_the_schedule_warms_up_and_falls() -> None:
    config = OptimiserConfig(warmup_steps=10, decay_share=0.5, final_share=0.1)
    factors = [learning_rate_factor(s, steps=100, config=config) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1.0
    assert factors[-1] < 0.13
    assert all(a >= b for a, b in itertools.pairwise(factors[50:]))


def test_texts_come_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three"}\n')
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "four"}\n')
    from pyarrow import parquet, table

    parquet.write_table(table({"text": ["five", None, "six"]}), tmp_path / "d.parquet")
    assert list(read_texts(tmp_path)) == ["one", "two", "three", "four", "five", "six"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bin", "", "unknown kind"),
        ("x.jsonl", '{"body": 1}', "line 1"),
        ("x.jsonl", "{", "line 1"),
    ],
)
def test_a_corpus_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        list(read_texts(tmp_path / name))


def test_questions_of_every_shape(tmp_path: Path) -> None:
    rows = [
        {"context": "c", "question": "q", "answers": ["a"], "answerable": True},
        {"context": "c", "question": "q", "answers": [], "answerable": False},
        {"context": "c", "question": "q", "answers": {"text": ["a", "b"]}},
        {"query": "Passage: p\nQuestion: q?", "choices": ["no", "yes"], "gold": 1},
        {"context": "c", "qas": [{"question": "q", "answers": [{"text": "a "}]}]},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [q.answer for q in read_questions([path])] == ["a", UNKNOWN, "a", "yes", "a"]
    path.write_text('{"nothing": 1}')
    with pytest.raises(ConfigError, match="line 1"):
        read_questions([path])


def test_a_damaged_file_of_questions_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"context": "c", "question": "q", "answers": ["a"]}\n\xff\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions([path])
    with pytest.raises(ConfigError, match=r"give a \.jsonl"):
        read_questions([tmp_path / "nowhere.jsonl"])


def test_a_shard_that_was_cut_short_is_named(shards: Path) -> None:
    (shard,) = shards.glob("*.npz")
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(TrainingError, match="is not a shard"):
        Corpus.load([shards])


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (DataConfig, "min_window", 0),
        (DataConfig, "max_window", 8),
        (DataConfig, "min_ratio", 0.0),
        (DataConfig, "max_ratio", 1.0),
        (DataConfig, "memory_share", 1.5),
        (OptimiserConfig, "learning_rate", -1e-3),
        (OptimiserConfig, "accumulate", 0),
        (OptimiserConfig, "mixed_precision", "fp8"),
        (AutoencodeConfig, "quantiser", "gumbl"),
        (RunConfig, "stage", "sleep"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_runs(
    kind: Any, field: str, value: object
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value)


def test_a_training_file_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("[run]\nstepz = 3\n")
    with pytest.raises(ConfigError, match="stepz"):
        TrainConfig.load(path)
    path.write_text("[runs]\nsteps = 3\n")
    with pytest.raises(ConfigError, match="unknown table"):
        TrainConfig.load(path)
    path.write_text("[run]\nsteps = 3\n")
    assert TrainConfig.load(path, run__seed=4).run.seed == 4


def test_a_manifest_holds_no_path_of_the_machine_it_was_made_on() -> None:
    config = TrainConfig(
        run=RunConfig(out="/home/me/runs/x", start="/home/me/bundles/y"),
        data=DataConfig(shards=("/data/shards",), dev="/data/dev.jsonl"),
    )
    tables = settings_of(config)
    assert "/" not in json.dumps(tables)
    assert tables["data"]["shards"] == ["shards"]
    assert tables["run"]["start"] == "y"
