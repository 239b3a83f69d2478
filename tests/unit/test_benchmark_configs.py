"""The configurations of benchmarks/train: what has to be equal is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from zcontext.training.config import TrainConfig

TRAIN = Path(__file__).parents[2] / "benchmarks" / "train"


def flat(name: str) -> dict[str, Any]:
    """Every setting of a file, as `table.key`."""
    tables = tomllib.loads((TRAIN / name).read_text(encoding="utf-8"))
    return {f"{table}.{key}": v for table, of in tables.items() for key, v in of.items()}


def test_the_raw_control_is_trained_as_the_reader_of_symbols_but_for_what_it_reads() -> None:
    reader, control = flat("cpu-read.toml"), flat("cpu-control.toml")
    differing = {
        name for name in reader | control if reader.get(name, ...) != control.get(name, ...)
    }
    assert differing == {"run.out", "run.bundle", "read.raw_share"}
    assert control["read.raw_share"] == 1.0
    assert TrainConfig.load(TRAIN / "cpu-control.toml").read.raw_share == 1.0
