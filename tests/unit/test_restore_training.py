"""The restore stage on a tiny model: DECOMPRESS alone learns, from what the codec writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import zcontext.bundle
import zcontext.training.run
from tiny import tiny_base, tiny_z
from tiny_training import TEXT, figures, run_settings, run_stage
from zcontext.bundle import load_bundle, save_bundle
from zcontext.errors import ConfigError, TrainingError
from zcontext.fidelity import read_span
from zcontext.layouts import lay_out
from zcontext.model import ZLanguageModel
from zcontext.needs import fact_tokens
from zcontext.passes import ReadState
from zcontext.tokenization import spelled
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.data import Corpus, WindowSampler, build_batch
from zcontext.training.objective import BITS
from zcontext.training.restore_stage import RestoreStage
from zcontext.training.restoring import Restore, RestoreConfig
from zcontext.training.run import train
from zcontext.training.transcribing import transcribe
from zcontext.vocabulary import Symbols


def configuration(shards: Path, out: Path, *, steps: int = 4, **data: object) -> TrainConfig:
    return TrainConfig(
        run=run_settings("restore", out, steps=steps),
        data=DataConfig(
            shards=(str(shards),),
            batch_tokens=96,
            min_window=24,
            max_window=48,
            memory_share=0.5,
            **data,  # type: ignore[arg-type]
        ),
        optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=2),
    )


def run(config: TrainConfig, *, stop_after: int | None = None) -> ZLanguageModel:
    return run_stage(RestoreStage, config, stop_after=stop_after)


def test_training_makes_the_text_cheaper(shards: Path, tmp_path: Path) -> None:
    run(configuration(shards, tmp_path, steps=40))
    bits = [line["bits_per_token"] for line in figures(tmp_path)]
    # A random base with a tied head says hardly more than "anything".
    assert sum(bits[-8:]) < 0.97 * sum(bits[:8])


def test_only_the_decompressor_learns(shards: Path, tmp_path: Path) -> None:
    model, before = run(configuration(shards, tmp_path)), tiny_z()
    for role in ("compress", "decompress", "infer"):
        old, now = before.adapters.state(role), model.adapters.state(role)
        kept = all(torch.equal(tensor, old[name]) for name, tensor in now.items())
        assert kept == (role != "decompress")
    old = before.codebook.state_dict()
    assert all(torch.equal(t, old[n]) for n, t in model.codebook.state_dict().items())


def test_resumed_equals_uninterrupted(shards: Path, tmp_path: Path) -> None:
    whole = run(configuration(shards, tmp_path / "whole"))
    run(configuration(shards, tmp_path / "parted"), stop_after=2)
    parted = run(configuration(shards, tmp_path / "parted"))
    other = parted.adapters.state("decompress")
    for name, tensor in whole.adapters.state("decompress").items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_the_writer_is_asked_as_it_will_be() -> None:
    """Segments cover each window, and facts are named where there are too few names for all."""
    model = tiny_z(depth=2, size=257, named=True)
    texts = ["it was cold in the year of 1912 and later", TEXT[:41]]
    ids = torch.tensor([model.tokenizer.encode(text) for text in texts])
    text, starts = spelled(model.tokenizer, ids[0].tolist())
    assert fact_tokens(text, starts).nonzero().flatten().tolist() == [27, 28, 29, 30]
    batch = build_batch(ids, None, n_prior=0, n_slots=8, depth=2)
    plain, first = transcribe(model, batch), transcribe(model, batch, facts_first=True)
    assert plain.codes.shape == first.codes.shape == (2, 8, 2)
    assert plain.ends[:, -1].tolist() == first.ends[:, -1].tolist() == [40, 40]
    torch.testing.assert_close(model.embed_codes(first.codes), first.embeddings)
    said = [
        set(model.codebook.lexicon.tokens_of(found.codes[0].tolist())) & set(ids[0, 27:31].tolist())
        for found in (plain, first)
    ]
    assert len(said[0]) < len(said[1]) == 3  # 1, 9 and 2


def test_symbols_of_the_window_in_front_are_read(shards: Path) -> None:
    """Other symbols in front make another loss; they stand before the window's own."""
    objective = Restore(tiny_z(), RestoreConfig())
    ids = torch.tensor([list(TEXT[:64].encode())])
    other = torch.cat([ids[:, :32].flip(1), ids[:, 32:]], dim=1)
    losses = [
        objective.say(build_batch(rows, None, n_prior=n_prior, n_slots=8, depth=3))[0]
        for rows, n_prior in ((ids, 32), (other, 32), (ids[:, 32:], 0))
    ]
    assert all(loss.shape == (1, 33) for loss in losses)
    assert not torch.allclose(losses[0], losses[1])
    assert not torch.allclose(losses[0], losses[2])


def test_several_windows_in_front_are_written_one_by_one(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_z()
    ids = torch.tensor([list(TEXT[:72].encode()), list(TEXT[72:144].encode())])
    heard: list[torch.Tensor | None] = []
    read = model.read

    def listening(*args: torch.Tensor, memory: torch.Tensor | None = None) -> ReadState:
        heard.append(memory)
        return read(*args, memory=memory)

    monkeypatch.setattr(model, "read", listening)
    batch = build_batch(ids, None, n_prior=48, n_slots=6, depth=3)
    Restore(model, RestoreConfig()).say(batch)
    assert heard[0] is None
    apart = [
        transcribe(model, build_batch(rows, None, n_prior=0, n_slots=6, depth=3))
        for rows in ids[:, :48].split(24, dim=1)
    ]
    memory = torch.cat([found.embeddings for found in apart], dim=1)
    torch.testing.assert_close(heard[1], memory)

    sampler = WindowSampler(
        Corpus.load([shards]), 512, 24, 40, 2, 8, 3, memory_share=0.5, max_prior=4
    )
    drawn = [sampler.batch(step) for step in range(100)]
    counts = {0 if b.prior is None else len(b.prior) / len(b.ids) for b in drawn}
    assert counts == {0, 1, 2, 3, 4}


def test_what_it_hears_is_what_the_text_costs_with_the_channel() -> None:
    """DECOMPRESS then learns what the channel leaves to it, and nothing else learns."""
    model = tiny_z(depth=2, size=257, named=True)
    with pytest.raises(ConfigError, match="no channel"):
        Restore(model, RestoreConfig(heard=True))
    channel, generator = model.add_channel(), torch.Generator().manual_seed(0)
    for parameter in channel.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.seal()
    ids = torch.tensor([model.tokenizer.encode(TEXT[:40]), model.tokenizer.encode(TEXT[50:90])])
    batch = build_batch(ids, None, n_prior=0, n_slots=5, depth=2)
    for parameter in model.parameters_of(("decompress",)).values():
        parameter.requires_grad_(True)
    nats, hits = Restore(model, RestoreConfig(heard=True)).say(batch)
    written = transcribe(model, batch)
    for row, (tokens, ends, codes) in enumerate(zip(ids, written.ends, written.codes, strict=True)):
        symbols = Symbols(tuple(map(tuple, codes.tolist())), 257, model.codec[:4])
        nothing = Symbols((), 257, model.codec[:4])
        layout = lay_out(model, nothing, symbols, 40, ends=(ends + 1).tolist())
        reading = read_span(model, layout, tokens.tolist())
        assert float(nats[row].detach().mean()) * BITS == pytest.approx(
            sum(reading.bits) / 40, abs=0.02
        )
        assert float(hits[row].float().mean()) == pytest.approx(reading.accuracy)
    nats.mean().backward()
    grads = [p.grad for p in model.parameters_of(("decompress",)).values()]
    assert any(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)
    assert all(parameter.grad is None for parameter in channel.parameters())


def test_health_figures_name_ratio_and_depth(shards: Path, tmp_path: Path) -> None:
    dev = tmp_path / "dev.txt"
    dev.write_text(TEXT)
    config = configuration(shards, tmp_path, dev=str(dev), dev_windows=1, dev_window=65)
    model = tiny_z()
    found = RestoreStage(model, config).evaluate()
    depth = model.config.depth
    assert {"c@4/1", "c@8/1", "c@16/1", f"c@16/{depth}", f"memory@16/{depth}"} <= set(found)
    assert RestoreStage(model, configuration(shards, tmp_path)).evaluate() == {}


def test_a_bundle_keeps_its_focus_and_drops_what_heard_the_old_reader(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zcontext.bundle, zcontext.training.run):
        monkeypatch.setattr(module, "load_base", lambda *_, **__: tiny_base())
    model = tiny_z()
    model.add_channel()
    model.add_focus()
    model.seal()
    save_bundle(model, tmp_path / "start")
    config = dataclasses.replace(
        configuration(shards, tmp_path / "run", steps=1), restore=RestoreConfig(heard=True)
    )
    start = dataclasses.replace(config.run, start=str(tmp_path / "start"))
    train(dataclasses.replace(config, run=start))
    onward = load_bundle(tmp_path / "run" / "bundle")
    assert onward.channel is None
    assert onward.focus is not None
    assert onward.codec != model.codec


def test_depths_and_ratios_are_drawn_as_told(shards: Path) -> None:
    corpus = Corpus.load([shards])
    sampler = WindowSampler(
        corpus,
        64,
        32,
        64,
        2,
        18,
        8,
        depth_shares=(0.5, 0, 0, 0, 0, 0, 0, 0.5),
        min_tokens_per_code=1.4,
    )
    drawn = [sampler.batch(step) for step in range(200)]
    depths = np.array([batch.depth for batch in drawn])
    assert set(depths) == {1, 8}
    assert 70 < (depths == 1).sum() < 130
    ratios = np.array([batch.ids.shape[1] / batch.n_slots for batch in drawn])
    assert ratios[depths == 8].min() >= 1.4 * 8
    assert ratios[depths == 1].min() < 4


def test_settings_that_make_no_sense_are_refused(shards: Path, tmp_path: Path) -> None:
    for wrong in ({"facts_share": 1.5}, {"max_token_drop": -0.1}, {"spread_share": 2}):
        with pytest.raises(ConfigError):
            RestoreConfig(**wrong)  # type: ignore[arg-type]
    for shares in ((0.5, 0.4), (1.5, -0.5)):
        with pytest.raises(ConfigError, match="add up to 1"):
            DataConfig(depth_shares=shares)
    with pytest.raises(TrainingError, match="depth_shares has 4 depths, the codec 3"):
        RestoreStage(tiny_z(depth=3), configuration(shards, tmp_path, depth_shares=(0.25,) * 4))
    alone = TrainConfig(run=RunConfig(stage="restore"), data=configuration(shards, tmp_path).data)
    with pytest.raises(TrainingError, match="name its bundle"):
        RestoreStage(tiny_z(), alone)
