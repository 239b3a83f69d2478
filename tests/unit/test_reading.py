"""The read stage: prompts, symbols written for them, what INFER is trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tiny import tiny_z
from zcontext.config import CodecConfig
from zcontext.errors import TrainingError
from zcontext.prompts import encode_messages, question_parts
from zcontext.spans import UNKNOWN
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.data import write_shards
from zcontext.training.prompt_source import PromptSource
from zcontext.training.questions import Question
from zcontext.training.read_stage import ReadStage
from zcontext.training.reading import (
    Chunk,
    Prompt,
    ReadConfig,
    Reply,
    compress_chunks,
    reply_states,
)
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


@pytest.fixture
def source(config: TrainConfig) -> PromptSource:
    model = tiny_z()
    return PromptSource(
        model.tokenizer,
        end_token=model.end_token,
        codec=CodecConfig(depth=2, size=16),
        settings=config.read,
        files=[
            [
                Question("Tom keeps the light. Ann keeps the boat.", "Who keeps the light?", "Tom"),
                Question("Tom keeps the light. Ann keeps the boat.", "Who keeps the boat?", "Ann"),
                Question("Tom keeps the light. Ann keeps the boat.", "Who sleeps?", UNKNOWN),
            ]
        ],
        corpus=None,
    )


def test_prompts_are_those_that_answering_uses(source: PromptSource) -> None:
    tokenizer = tiny_z().tokenizer
    prompt = source.question(Question("", "Who?", "Tom"), [Chunk([40, 41, 42], None, 1)])
    trained = [t for p in prompt.pieces if not isinstance(p, Reply) for t in _ids(p)]
    text = tokenizer.decode([40, 41, 42])
    [asked] = encode_messages(tokenizer, question_parts("Who?", [text]))
    assert trained == list(asked)
    assert prompt.pieces[-1] == Reply(prompt.replies[0])


def test_turns_are_laid_out_as_the_chat_that_they_become(source: PromptSource) -> None:
    tokenizer = tiny_z().tokenizer
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng) for _ in range(60)]
    chats = [prompt for prompt in drawn if len(prompt.replies) > 1]
    assert {len(prompt.replies) for prompt in chats} == {2, 3}
    for prompt in chats:
        text = tokenizer.decode([t for piece in prompt.pieces for t in _ids(piece)])
        assert text.count("<|im_start|>assistant\n") == len(prompt.replies)
        assert text.count("<|im_end|>\n<|im_start|>user\nQuestion: ") == len(prompt.replies) - 1
        assert "<|im_end|><|im_end|>" not in text
        said = [tokenizer.decode(reply) for reply in prompt.replies]
        assert set(said) <= {"Tom<|im_end|>", "Ann<|im_end|>", "unknown<|im_end|>"}
        assert len(set(said)) == len(said)


def test_further_questions_are_answered_by_what_was_left_of_the_context(
    config: TrainConfig,
) -> None:
    model = tiny_z()
    text = "Tom keeps the light." + " The sea is calm tonight." * 8 + " Ann keeps the boat."
    source = PromptSource(
        model.tokenizer,
        end_token=model.end_token,
        codec=CodecConfig(depth=2, size=16),
        settings=dataclasses.replace(
            config.read, max_context=60, swap_share=0.0, distractor_share=0.0
        ),
        files=[[Question(text, "Light?", "Tom"), Question(text, "Boat?", "Ann")]],
        corpus=None,
    )
    rng = np.random.default_rng(0)
    assert {len(source.draw(rng).replies) for _ in range(40)} == {1}


def test_files_are_drawn_from_in_the_shares_that_are_asked_for(config: TrainConfig) -> None:
    model = tiny_z()

    def drawn(*shares: float) -> list[str]:
        source = PromptSource(
            model.tokenizer,
            end_token=model.end_token,
            codec=CodecConfig(depth=2, size=16),
            settings=dataclasses.replace(
                config.read, question_shares=shares, swap_share=0.0, distractor_share=0.0
            ),
            files=[
                [Question("Who?", "Who?", UNKNOWN)],
                [Question(f"Tom {i}.", "Who?", "Tom") for i in range(9)],
                [Question("Ann.", "Who?", "Ann")],
            ],
            corpus=None,
        )
        rng = np.random.default_rng(0)
        said = (source.draw(rng).replies[0] for _ in range(200))
        names = [model.tokenizer.decode(reply).removesuffix("<|im_end|>") for reply in said]
        return [name for name in names if name != UNKNOWN]

    assert set(drawn(1.0, 0.0)) == {"Tom"}
    assert 0.55 < np.mean([name == "Ann" for name in drawn(0.3, 0.7)]) < 0.85
    assert 0.02 < np.mean([name == "Ann" for name in drawn()]) < 0.2, "every question alike"
    for wrong in ((0.2, 0.3, 0.5), (-0.1, 1.1), (0.0, 0.0)):
        with pytest.raises(TrainingError, match="for 2 files that hold answerable questions"):
            drawn(*wrong)


def test_passages_are_cut_as_the_compressor_cuts_them_and_fill_the_room(
    config: TrainConfig,
) -> None:
    model = tiny_z()
    rows = [
        Question(f"{i}: " + "a lamp is lit. " * 5 + f"Tom {i} lit it.", f"Who lit {i}?", f"Tom {i}")
        for i in range(9)
    ]
    settings = dataclasses.replace(
        config.read, max_context=400, distractor_share=1.0, raw_share=0.0, swap_share=0.0
    )
    source = PromptSource(
        model.tokenizer,
        end_token=model.end_token,
        codec=CodecConfig(depth=2, size=16, window=64),
        settings=settings,
        files=[rows],
        corpus=None,
    )
    rng = np.random.default_rng(0)
    places = set()
    for prompt in (source.draw(rng) for _ in range(30)):
        chunks = [p for p in prompt.pieces if isinstance(p, Chunk)]
        assert max(len(chunk.ids) for chunk in chunks) <= 64
        text = model.tokenizer.decode([t for chunk in chunks for t in chunk.ids])
        assert 300 < len(text) <= 400
        name = model.tokenizer.decode(prompt.replies[0]).removesuffix("<|im_end|>")
        assert f"{name} lit it." in text
        places.add(text.index(name) // 100)
    assert len(places) > 2, "the passage that answers stands anywhere"


def _ids(piece: list[int] | Chunk | Reply) -> list[int]:
    return piece if isinstance(piece, list) else piece.ids


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
    assert any(unknown in p.replies for p in prompts)
    assert all(r[-1] == model.end_token for p in prompts if p.task != "continue" for r in p.replies)


def test_texts_to_go_on_with_are_long_and_written_with_emphasis_on_their_end(
    config: TrainConfig, tmp_path: Path
) -> None:
    write_shards(
        ["It was a calm night. " * 60], tmp_path / "long", encode=lambda t: list(t.encode())
    )
    read = dataclasses.replace(
        config.read, continue_share=1.0, continue_context=300, end_share=1.0, raw_share=0.0
    )
    data = dataclasses.replace(config.data, shards=(str(tmp_path / "long"),))
    prompts = ReadStage(tiny_z(), dataclasses.replace(config, read=read, data=data)).batch(0)
    chunks = [p for prompt in prompts for p in prompt.pieces if isinstance(p, Chunk)]
    assert max(len(chunk.ids) for chunk in chunks) > 96
    written = [chunk.emphasis.fine for chunk in chunks if chunk.emphasis is not None]
    assert written
    for fine in written:
        n_fine = int(fine.sum())
        assert fine[len(fine) - n_fine :].all(), "what is emphasised is the end"
    assert all(len(reply) <= 96 for prompt in prompts for reply in prompt.replies)


def test_contexts_of_questions_are_written_in_pairs_as_often_as_asked(config: TrainConfig) -> None:
    grains: dict[float, set[int]] = {}
    for share in (0.0, 1.0):
        read = dataclasses.replace(
            config.read, focus_share=1.0, pair_share=share, raw_share=0.0, min_ratio=4.0
        )
        stage = ReadStage(tiny_z(), dataclasses.replace(config, read=read))
        drawn = [p for i in range(6) for prompt in stage.batch(i) for p in prompt.pieces]
        chunks = [p for p in drawn if isinstance(p, Chunk) and p.emphasis is not None]
        grains[share] = {chunk.emphasis.grain for chunk in chunks if chunk.emphasis is not None}
        written = compress_chunks(stage.model, chunks)
        assert [len(symbols) for symbols in written] == [chunk.n_symbols for chunk in chunks]
    assert grains == {0.0: {1}, 1.0: {2}}


def test_replies_that_are_thought_begin_as_symbols(config: TrainConfig, tmp_path: Path) -> None:
    text = "It was a calm night. " * 60
    write_shards([text], tmp_path / "long", encode=lambda t: list(t.encode()))
    read = dataclasses.replace(config.read, continue_share=1.0, thought_share=1.0, raw_share=0.0)
    data = dataclasses.replace(config.data, shards=(str(tmp_path / "long"),))
    stage = ReadStage(tiny_z(), dataclasses.replace(config, read=read, data=data))
    prompts = [p for index in range(4) for p in stage.batch(index) if p.task == "continue"]
    thoughts = 0
    for prompt in prompts:
        *given, reply = prompt.pieces
        last_told = max(at for at, piece in enumerate(given) if isinstance(piece, list))
        held = [piece for piece in given[last_told + 1 :] if isinstance(piece, Chunk)]
        thoughts += bool(held)
        assert all(chunk.ratio is not None for chunk in held)
        assert isinstance(reply, Reply)
        context = [piece for piece in given[:last_told] if isinstance(piece, Chunk)]
        said = [token for chunk in [*context, *held] for token in chunk.ids]
        assert bytes([*said, *reply.ids]).decode() in text, "the reply goes on with what is held"
    assert thoughts > len(prompts) / 2


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
    short = [[10, 11, 12], Reply([30, 2])]
    long = [[20, 21, 22, 23, 24, 25, 26], Reply([31, 2]), [27, 28], Reply([32, 33, 2])]
    with torch.no_grad(), model.using("infer"):
        alone = reply_states(model, [short])
        together = reply_states(model, [short, long])
        ids = [20, 21, 22, 23, 24, 25, 26, 31, 2, 27, 28, 32, 33, 2]
        whole = model.run(
            model.embed_tokens(torch.tensor([ids])),
            positions=torch.arange(len(ids))[None],
            mask=torch.ones(1, len(ids), dtype=torch.long),
        ).hidden[0]
    assert together.shape == (2 + 2 + 3, model.hidden_size)
    assert torch.allclose(alone, together[:2], atol=1e-5)
    assert torch.allclose(together[2:], whole[[6, 7, 10, 11, 12]], atol=1e-5)


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


def test_instructions_that_are_nowhere_cannot_be_drawn(config: TrainConfig) -> None:
    settings = dataclasses.replace(config.read, instruct_share=0.2)
    with pytest.raises(TrainingError, match="instruct_share needs instructions"):
        ReadStage(tiny_z(), dataclasses.replace(config, read=settings))


def test_a_control_teaches_and_does_not_learn(config: TrainConfig, tmp_path: Path) -> None:
    model, other = tiny_z(), tiny_z(seed=7)
    teacher = other.adapters.state("infer")
    save_file(teacher, tmp_path / "control.safetensors")
    settings = dataclasses.replace(config.read, teacher=str(tmp_path / "control.safetensors"))
    stage = ReadStage(model, dataclasses.replace(config, read=settings))
    batch = stage.batch(0)
    taught = stage.module(batch, 0, torch.Generator()).metrics["divergence"]
    plain = ReadStage(tiny_z(), config).module(batch, 0, torch.Generator()).metrics["divergence"]
    assert not torch.isclose(taught, plain)
    Trainer(model, stage, run=config.run, optimiser=OptimiserConfig(warmup_steps=1)).train()
    after = model.adapters.state("teach")
    assert all(torch.equal(after[n], t) for n, t in teacher.items())


def test_who_reads_the_text_alike_is_taught_nothing(config: TrainConfig, tmp_path: Path) -> None:
    """The divergence of INFER from itself is nothing where no chunk is compressed."""
    model = tiny_z()
    save_file(model.adapters.state("infer"), tmp_path / "infer.safetensors")
    settings = dataclasses.replace(
        config.read, teacher=str(tmp_path / "infer.safetensors"), raw_share=1.0, thought_share=0.0
    )
    stage = ReadStage(model, dataclasses.replace(config, read=settings))
    prompts = [p for i in range(4) for p in stage.batch(i) if p.task == "question"]
    figures = stage.module(prompts, 0, torch.Generator()).metrics
    assert float(figures["divergence"]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("weight", "complaint"), [(0.0, "distil_weight above 0"), (0.1, "cannot be read")]
)
def test_a_teacher_that_cannot_teach_says_so(
    config: TrainConfig, tmp_path: Path, weight: float, complaint: str
) -> None:
    file = tmp_path / "control.safetensors"
    file.write_bytes(b"not an adapter")
    settings = dataclasses.replace(config.read, teacher=str(file), distil_weight=weight)
    with pytest.raises(TrainingError, match=complaint):
        ReadStage(tiny_z(), dataclasses.replace(config, read=settings))
