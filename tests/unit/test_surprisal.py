"""Who says what is hard to guess: the writer, or the base where codes are few."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny import tiny_focused, tiny_z
from zcontext.compressor import ZCompressor
from zcontext.config import CompressSettings, SurprisalName
from zcontext.errors import ConfigError, ModelError
from zcontext.model import ZLanguageModel
from zcontext.surprisal import base_surprisal, scarce
from zcontext.training.data import build_batch
from zcontext.training.transcribing import transcribe
from zcontext.writing import WindowTask, WindowWriter

TEXT = "The tide had gone out by noon, and boats lay on the sand as if they had been left there. "
EVERY_BYTE = 257
SMALL = CompressSettings(window=48)


@pytest.fixture(scope="module")
def model() -> ZLanguageModel:
    return tiny_focused(named=True, size=EVERY_BYTE, depth=4)


@pytest.fixture(scope="module")
def compressor(model: ZLanguageModel) -> ZCompressor:
    return ZCompressor(model)


def window(text: str, *, n_symbols: int, surprisal: SurprisalName, depth: int = 1) -> WindowTask:
    ids = list(text.encode())
    return WindowTask(ids, 0, (), depth, take=lambda _: n_symbols, surprisal=surprisal)


def test_it_is_the_loss_of_the_plain_base_behind_the_start_token() -> None:
    model = tiny_z()
    ids = torch.tensor([list(TEXT.encode()[:40]), list(TEXT.encode()[20:60])])
    bits = base_surprisal(model, ids)
    inputs = torch.cat([torch.full_like(ids[:, :1], model.start_token), ids[:, :-1]], dim=1)
    with torch.no_grad(), model.using(None):
        logits = model.base.model(input_ids=inputs).logits[..., : model.base_vocab]
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    assert torch.allclose(bits, expected / torch.log(torch.tensor(2.0)), atol=1e-4)
    # What fills a row up changes nothing before it, nor does the role that was active.
    filled = torch.cat([ids, ids[:, :8]], dim=1)
    with model.using("compress"):
        assert torch.allclose(base_surprisal(model, filled)[:, :40], bits, atol=1e-5)
        assert model.adapters.role == "compress"


def test_codes_are_scarce_from_three_tokens_each() -> None:
    assert scarce(12, 4, depth=1)
    assert not scarce(11, 4, depth=1)
    assert not scarce(64, 4, depth=8)
    assert scarce(96, 4, depth=8)
    assert not scarce(12, 0, depth=1)


def test_a_base_that_says_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_z(named=True, size=EVERY_BYTE)
    monkeypatch.setattr(
        model, "logits", lambda states: states.new_full((len(states), 256), torch.nan)
    )
    with pytest.raises(ModelError, match="not finite"):
        WindowWriter(model).write([window(TEXT, n_symbols=4, surprisal="base")])


@pytest.mark.parametrize(("ratio", "depth", "asked"), [(8, 1, True), (8, 4, False), (16, 4, True)])
def test_the_base_is_asked_where_codes_are_scarce(
    compressor: ZCompressor, ratio: float, depth: int, asked: bool
) -> None:
    by_writer, by_base, auto = (
        compressor.compress(
            TEXT * 2, settings=SMALL.replace(surprisal=who), ratio=ratio, depth=depth
        )
        for who in ("writer", "base", "auto")
    )
    assert by_writer.n_symbols == by_base.n_symbols == auto.n_symbols
    assert by_writer.spans != by_base.spans
    assert auto.spans == (by_base if asked else by_writer).spans


def test_what_the_base_finds_hardest_is_named(model: ZLanguageModel) -> None:
    n = 16
    task = window(TEXT, n_symbols=n, surprisal="base")
    (written,) = WindowWriter(model).write([task])
    hardest = base_surprisal(model, torch.tensor([list(task.ids)]))[0].topk(n).indices.sort().values
    assert model.codebook.lexicon is not None
    named = model.codebook.lexicon.tokens_of(written.codes)
    assert named == [task.ids[at] for at in hardest.tolist()]


def test_a_question_or_an_emphasis_leaves_it_to_the_writer(compressor: ZCompressor) -> None:
    for how in ({"question": "Where did the boats lie?"}, {"emphasis": "end"}):
        settings = SMALL.replace(ratio=16, depth=1, **how)  # type: ignore[arg-type]
        auto, by_writer = (
            compressor.compress(TEXT * 2, settings=settings.replace(surprisal=who))
            for who in ("auto", "writer")
        )
        assert auto.spans == by_writer.spans


def test_windows_that_share_a_batch_do_not_share_an_answer(model: ZLanguageModel) -> None:
    few = window(TEXT, n_symbols=4, surprisal="auto")
    many = window(TEXT, n_symbols=60, surprisal="auto")
    writer = WindowWriter(model, batch_size=2)
    together = writer.write([few, many])
    assert together == [writer.write([task])[0] for task in (few, many)]


def test_training_writes_as_documents_are_written(model: ZLanguageModel) -> None:
    ids = torch.tensor([list(TEXT.encode()[:48])])
    for n_slots, who in ((4, "base"), (24, "writer")):
        batch = build_batch(ids, None, n_prior=0, n_slots=n_slots, depth=1)
        with model.lock:
            written = transcribe(model, batch)
        (expected,) = WindowWriter(model).write(
            [window(TEXT[:48], n_symbols=n_slots, surprisal=who)]  # type: ignore[arg-type]
        )
        assert [tuple(codes) for codes in written.codes[0].tolist()] == list(expected.codes)


def test_nobody_else_can_be_asked() -> None:
    with pytest.raises(ConfigError, match="surprisal must be one of auto, writer, base"):
        CompressSettings(surprisal="oracle")  # type: ignore[arg-type]
