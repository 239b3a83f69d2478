"""The channel stage on a tiny model: what it estimates, what it learns, what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zcontext.bundle
import zcontext.training.run
from tiny import tiny_base, tiny_z
from tiny_training import TEXT, figures, run_settings, run_stage
from zcontext.bundle import load_bundle, save_bundle
from zcontext.channel import Channel
from zcontext.errors import ConfigError, TrainingError
from zcontext.fidelity import read_span
from zcontext.layouts import lay_out
from zcontext.model import ZLanguageModel
from zcontext.segmentation import segment_of
from zcontext.training.channel_stage import ChannelStage
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.data import build_batch
from zcontext.training.judging import lengths_of
from zcontext.training.listening import ChannelConfig, Listen
from zcontext.training.objective import BITS
from zcontext.training.run import train
from zcontext.training.transcribing import remember
from zcontext.vocabulary import Symbols


def configuration(shards: Path, out: Path, *, steps: int = 4, **objective: Any) -> TrainConfig:
    return TrainConfig(
        run=run_settings("channel", out, steps=steps),
        data=DataConfig(
            shards=(str(shards),), batch_tokens=96, min_window=24, max_window=48, max_ratio=6.0
        ),
        optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=2),
        channel=ChannelConfig(fit_batches=4, example_batches=12, batch_examples=256, **objective),
    )


def run(config: TrainConfig, *, stop_after: int | None = None) -> ZLanguageModel:
    return run_stage(ChannelStage, config, stop_after=stop_after)


def test_training_makes_the_text_cheaper_than_the_reader_alone_does(
    shards: Path, tmp_path: Path
) -> None:
    run(configuration(shards, tmp_path, steps=40))
    told = [(line["bits_per_token"], line["unheard_bits"]) for line in figures(tmp_path)]
    heard, unheard = (sum(column[-8:]) / 8 for column in zip(*told, strict=True))
    assert heard < 0.8 * unheard


def test_only_the_channel_learns(shards: Path, tmp_path: Path) -> None:
    model, before = run(configuration(shards, tmp_path)), tiny_z()
    for role in ("compress", "decompress", "infer"):
        old = before.adapters.state(role)
        assert all(torch.equal(t, old[n]) for n, t in model.adapters.state(role).items())
    old = before.codebook.state_dict()
    assert all(torch.equal(t, old[n]) for n, t in model.codebook.state_dict().items())
    fresh = Channel(hidden_size=64, vocab_size=model.base_vocab).state_dict()
    assert model.channel is not None
    changed = {n for n, t in model.channel.state_dict().items() if not torch.equal(t, fresh[n])}
    assert changed == set(fresh)


def test_resumed_equals_uninterrupted(shards: Path, tmp_path: Path) -> None:
    whole = run(configuration(shards, tmp_path / "whole"))
    run(configuration(shards, tmp_path / "parted"), stop_after=2)
    parted = run(configuration(shards, tmp_path / "parted"))
    assert whole.channel is not None
    assert parted.channel is not None
    other = parted.channel.state_dict()
    for name, tensor in whole.channel.state_dict().items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_the_gaussian_half_is_what_the_windows_show(shards: Path, tmp_path: Path) -> None:
    """A token's strength is its squared length under the metric; the noise is about the errors'."""
    model = tiny_z()
    stage = ChannelStage(model, configuration(shards, tmp_path))
    stage.before_step(0)
    channel, book = model.add_channel(), model.codebook
    table = model.base.model.get_input_embeddings().weight.detach()
    deviations = table - book.mean_embedding
    torch.testing.assert_close(
        channel.strength, torch.einsum("vh,hg,vg->v", deviations, channel.metric, deviations)
    )
    assert bool((torch.linalg.eigvalsh(channel.metric.double()) > 0).all())
    assert float(channel.commonness.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert int(channel.commonness.argmax()) == b" "[0]
    tokens, errors, features = (torch.cat(part) for part in zip(*stage._seen(), strict=True))
    off = errors.square().sum(-1) / (tokens.square().sum(-1).mean())
    guessed = (features @ channel.noise).exp()
    assert float((guessed / off).log().mean()) == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize("n_prior", [0, 40, 80])
def test_windows_are_read_as_they_will_be(n_prior: int) -> None:
    """The stage's lanes are those of the span that is laid out from the same symbols."""
    model = tiny_z()
    listen = Listen(model, ChannelConfig())
    ids = torch.tensor([list(TEXT[: n_prior + 40].encode())])
    batch = build_batch(ids, None, n_prior=n_prior, n_slots=10, depth=3)
    memory = remember(model, batch, facts_first=True)
    in_front: list[list[int]] = []
    if batch.prior is not None:
        prior = build_batch(batch.prior, None, n_prior=0, n_slots=10, depth=3)
        in_front = listen.write(prior)[2].flatten(0, 1).tolist()
    ids, ends, codes = listen.write(batch, memory)
    assert codes.shape == (1, 10, 3)
    lengths = lengths_of(ends[0])
    assert int(lengths.sum()) == 40
    assert int(lengths.min()) >= 1
    assert segment_of(ends[0], 40).bincount().tolist() == lengths.tolist()
    examples = listen.examples(batch, None)
    nats, hits = examples.judged(listen.channel)
    assert nats.shape == hits.shape == (40,)
    torch.testing.assert_close(nats, -examples.odds, atol=1e-2, rtol=1e-3)  # it is fresh
    run_through(model, "channel", seed=1)
    symbols = Symbols(tuple(map(tuple, codes[0].tolist())), 32, model.codec[:4])
    earlier = Symbols(tuple(map(tuple, in_front)), 32, model.codec[:4])
    layout = lay_out(model, earlier, symbols, 40, ends=(ends[0] + 1).tolist())
    reading = read_span(model, layout, ids[0].tolist())
    nats, hits = listen.examples(batch, None).judged(listen.channel)
    assert float(nats.mean()) * BITS == pytest.approx(sum(reading.bits) / 40, abs=0.02)
    assert float(hits.float().mean()) == pytest.approx(reading.accuracy)


def test_a_run_writes_a_bundle_that_the_codec_goes_on_without(
    shards: Path, tmp_path: Path, monkeypatch
) -> None:
    for module in (zcontext.bundle, zcontext.training.run):
        monkeypatch.setattr(module, "load_base", lambda *_, **__: tiny_base())
    save_bundle(tiny_z(), tmp_path / "start")
    config = configuration(shards, tmp_path / "run")
    overrides = {"start": str(tmp_path / "start"), "steps": 2}
    config = TrainConfig(
        run=RunConfig(**{**_fields(config.run), **overrides}),
        data=config.data,
        optimiser=config.optimiser,
        channel=config.channel,
    )
    train(config)
    model = load_bundle(tmp_path / "run" / "bundle")
    assert model.channel is not None
    assert model.codec != tiny_z().codec
    again = {
        **_fields(config.run),
        "stage": "autoencode",
        "start": str(tmp_path / "run" / "bundle"),
    }
    onward = zcontext.training.run.build_model(TrainConfig(run=RunConfig(**again)))
    assert onward.channel is None  # it would hear what the codec no longer says


def test_settings_that_make_no_sense_are_refused(shards: Path, tmp_path: Path) -> None:
    for wrong in ({"fit_batches": 0}, {"max_token_drop": 1.5}):
        with pytest.raises(ConfigError):
            ChannelConfig(**wrong)  # type: ignore[arg-type]
    config = configuration(shards, tmp_path)
    alone = TrainConfig(run=RunConfig(stage="channel"), data=config.data)
    with pytest.raises(TrainingError, match="name its bundle"):
        ChannelStage(tiny_z(), alone)


def run_through(model: ZLanguageModel, part: str, *, seed: int) -> None:
    """Random values in a part that starts out doing nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in getattr(model, part).parameters():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))


def _fields(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in type(settings).__dataclass_fields__}
