"""The read stage: prompts, symbols written for them, what INFER is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tiny import tiny_z
from zcontext.errors import TrainingError
from zcontext.prompts import encode_messages, question_parts
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.data import write_shards
from zcontext.training.questions import UNKNOWN
from zcontext.training.read_stage import ReadStage
from zcontext.training.reading import Chunk, Prompt, ReadConfig, answer_states, compress_chunks
from zcontext.training.trainer import Trainer


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    rows = [
        {
            "context": f"The keeper of light {i} is called Tom {i}. He sleeps by day.",
            "question": f"Who keeps light {i}?",
            "answers": [f"Tom {i}"] if i % 4 else [],
            "answerable": bool(i % 4),
        }
        for i in range(24)
    ]
    questions = tmp_path / "q.jsonl"
    questions.write_text("\n".join(map(json.dumps, rows)))
    texts = [f"{i}. It was a calm night with little wind. " * 6 for i in range(6)]
    write_shards(texts, tmp_path / "shards", encode=lambda t: list(t.encode()))
    return TrainConfig(
        run=RunConfig(
            stage="read", out=str(tmp_path / "out"), steps=3, log_every=1, evaluate_every=3
        ),
        data=DataConfig(shards=(str(tmp_path / "shards"),), dev=str(questions), dev_windows=4),
        read=ReadConfig(questions=(str(questions),), batch_rows=4, distil_weight=0.1),
    )


def test_prompts_are_those_that_answering_uses(config: TrainConfig) -> None:
    model = tiny_z()
    stage = ReadStage(model, config)
    chunk = Chunk([40, 41, 42], None, 1)
    from zcontext.training.read_stage import PLACE

    pieces = stage.lay_out(question_parts("Who?", [PLACE]), [chunk])
    trained = [t for p in pieces for t in (p.ids if isinstance(p, Chunk) else p)]
    text = model.tokenizer.decode([40, 41, 42])
    [asked] = encode_messages(model.tokenizer, question_parts("Who?", [text]))
    assert trained == list(asked)


def test_a_batch_depends_on_seed_and_index_alone(config: TrainConfig) -> None:
    stage = ReadStage(tiny_z(), config)
    assert stage.batch(3) == stage.batch(3)
    assert stage.batch(3) != stage.batch(4)


def test_every_task_is_drawn_and_answers_end(config: TrainConfig) -> None:
    model = tiny_z()
    stage = ReadStage(model, config)
    prompts: list[Prompt] = [p for i in range(40) for p in stage.batch(i)]
    assert {p.task for p in prompts} == {"question", "restate", "continue", "look up"}
    unknown = [*model.tokenizer(UNKNOWN, add_special_tokens=False).input_ids, model.end_token]
    assert any(p.answer == unknown for p in prompts)
    assert all(
        p.answer[-1] == model.end_token for p in prompts if p.task in ("question", "restate")
    )


def test_symbols_are_those_the_compressor_writes(config: TrainConfig) -> None:
    from zcontext.compressor import ZCompressor

    model = tiny_z()
    text = "The harbour master counted forty-one boats before noon."
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    [written] = compress_chunks(model, [Chunk(ids, 4.0, 2)])
    document = ZCompressor(model).compress(text, ratio=4.0, depth=2)
    expected = model.embed_codes(torch.tensor([document.symbols.codes]))[0]
    assert torch.allclose(written, expected)


def test_padding_does_not_reach_a_prompt() -> None:
    model = tiny_z()
    short, long = [[10, 11, 12]], [[20, 21, 22, 23, 24, 25, 26]]
    with torch.no_grad(), model.using("infer"):
        alone = answer_states(model, [short], [[30, 2]])
        together = answer_states(model, [short, long], [[30, 2], [31, 2]])
    assert torch.allclose(alone, together[:2], atol=1e-5)


def test_only_infer_learns_and_it_starts_from_decompress(config: TrainConfig) -> None:
    model = tiny_z()
    with torch.no_grad():
        for parameter in model.adapters.named_parameters("infer").values():
            parameter.zero_()
    codec = model.codec
    stage = ReadStage(model, config)
    started = model.adapters.state("infer")
    decompress = model.adapters.state("decompress")
    assert all(torch.equal(started[n], decompress[n]) for n in started)
    trainer = Trainer(model, stage, run=config.run, optimiser=OptimiserConfig(warmup_steps=1))
    figures = trainer.train()
    assert {"answer@4", "answer@raw", "answer@none", "answer@shuffled"} <= set(figures)
    assert any(not torch.equal(started[n], t) for n, t in model.adapters.state("infer").items())
    model.seal()
    assert model.codec == codec


def test_a_stage_without_questions_says_so() -> None:
    with pytest.raises(TrainingError, match="questions"):
        ReadStage(tiny_z(), TrainConfig(run=RunConfig(stage="read")))
