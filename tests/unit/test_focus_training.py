"""The focus stage on a tiny model: it learns to find answers, and leaves the codec alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_z
from tiny_training import figures, run_settings, run_stage
from zcontext.errors import ConfigError, TrainingError
from zcontext.model import ZLanguageModel
from zcontext.tokenization import decoded
from zcontext.training.config import DataConfig, OptimiserConfig, RunConfig, TrainConfig
from zcontext.training.focus_stage import FocusStage
from zcontext.training.focusing import FocusConfig

PLACES = ["Oslo", "Lima", "Rome", "Bern", "Kiev", "Cork"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "context": f"It rained for a day. Ann{i} came from {place} by sea. Then it was calm.",
            "question": f"Whence Ann{i}?",
            "answers": [place],
        }
        for i, place in enumerate(PLACES)
    ]
    rows.append({"context": "Nothing.", "question": "What?", "answers": [], "answerable": False})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def configuration(shards: Path, questions: Path, out: Path, *, steps: int = 4) -> TrainConfig:
    return TrainConfig(
        run=run_settings("focus", out, steps=steps),
        data=DataConfig(shards=(str(shards),), dev=str(questions), dev_windows=6),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_steps=2),
        focus=FocusConfig(questions=(str(questions),), batch_questions=4),
    )


def run(config: TrainConfig, *, stop_after: int | None = None) -> ZLanguageModel:
    return run_stage(FocusStage, config, stop_after=stop_after)


def test_training_finds_answers(shards: Path, questions: Path, tmp_path: Path) -> None:
    config = configuration(shards, questions, tmp_path / "out", steps=60)
    model = run(config)
    bits = [line["bits"] for line in figures(tmp_path / "out") if "bits" in line]
    assert sum(bits[-16:]) / 16 < sum(bits[:2]) / 4
    stage = FocusStage(model, config)
    stage.finish()
    found = stage.evaluate()
    assert set(found) == {"bits", "kept@4", "kept@8", "kept@16"}
    assert found["kept@4"] > 0.6


def test_only_the_focus_learns(shards: Path, questions: Path, tmp_path: Path) -> None:
    model, before = run(configuration(shards, questions, tmp_path / "out")), tiny_z()
    for role in ("compress", "decompress", "infer"):
        old = before.adapters.state(role)
        assert all(torch.equal(t, old[n]) for n, t in model.adapters.state(role).items())
    old = before.codebook.state_dict()
    assert all(torch.equal(t, old[n]) for n, t in model.codebook.state_dict().items())
    model.seal()
    assert model.codec == before.codec
    assert model.focus is not None
    assert float(model.focus.commonness.exp().sum()) == pytest.approx(1.0, abs=1e-3)
    started = before.adapters.state("compress")
    learned = model.adapters.state("focus")
    assert not all(torch.equal(t, learned[n]) for n, t in started.items())


@pytest.mark.parametrize("layers", [0, 3])
def test_resumed_equals_uninterrupted(
    layers: int, shards: Path, questions: Path, tmp_path: Path
) -> None:
    def configured(out: str) -> TrainConfig:
        config = configuration(shards, questions, tmp_path / out)
        return dataclasses.replace(config, focus=dataclasses.replace(config.focus, layers=layers))

    whole = run(configured("whole"))
    run(configured("parted"), stop_after=2)
    parted = run(configured("parted"))
    assert whole.adapters.depth("focus") == max(2, layers)
    other = parted.adapters.state("focus")
    for name, tensor in whole.adapters.state("focus").items():
        torch.testing.assert_close(tensor, other[name], msg=name)


def test_files_are_drawn_from_in_the_shares_that_are_asked_for(
    shards: Path, questions: Path, tmp_path: Path
) -> None:
    config = configuration(shards, questions, tmp_path / "out")
    (tmp_path / "other.jsonl").write_text(
        '{"context": "Tom left.", "question": "Who left?", "answers": ["Tom"]}\n'
    )
    (tmp_path / "none.jsonl").write_text(
        '{"context": "Rain.", "question": "Who left?", "answers": ["Tom"]}\n'
    )
    files = [str(tmp_path / name) for name in ("none.jsonl", "other.jsonl", "questions.jsonl")]

    def drawn(*shares: float) -> float:
        focus = dataclasses.replace(
            config.focus, questions=tuple(files), question_shares=shares, other_share=0.0
        )
        stage = FocusStage(tiny_z(), dataclasses.replace(config, focus=focus))
        asked = [each for index in range(30) for each in stage.batch(index)]
        left = [decoded(tiny_z().tokenizer, each.question) == "Who left?\n\n" for each in asked]
        return sum(left) / len(left)

    assert 0.55 < drawn(0.7, 0.3) < 0.85
    assert drawn(0.0, 1.0) == 0
    assert 0.05 < drawn() < 0.3, "every question alike"
    with pytest.raises(TrainingError, match="for 2 files"):
        drawn(0.5, 0.3, 0.2)


def test_questions_are_asked_of_the_windows_that_answer_them(
    shards: Path, questions: Path, tmp_path: Path
) -> None:
    model = tiny_z()
    stage = FocusStage(model, configuration(shards, questions, tmp_path / "out"))
    for index in range(6):
        for asked in stage.batch(index):
            said = [
                decoded(model.tokenizer, window[answer.start : answer.end])
                for window, answers in zip(asked.windows, asked.answers, strict=True)
                for answer in answers
            ]
            assert len(said) == 1
            assert said[0] in PLACES
            assert decoded(model.tokenizer, asked.question).endswith("?\n\n")


def test_what_makes_no_sense_is_refused(shards: Path, questions: Path, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [{"batch_questions": 0}, {"other_share": 2.0}, {"layers": -1}]
    for settings in wrong:
        with pytest.raises(ConfigError):
            FocusConfig(**settings)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"context": "Rain.", "question": "Who?", "answers": ["Ann"]}\n')
    with pytest.raises(TrainingError, match="no question's answer"):
        FocusStage(tiny_z(), configuration(shards, empty, tmp_path / "out"))
    with pytest.raises(TrainingError, match="needs"):
        FocusStage(tiny_z(), TrainConfig(run=RunConfig(stage="focus")))
