"""The benchmark of the codec's own choices: what it compares differs in that choice alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import zcontext.writing
from tiny import tiny_z
from zcontext.compressor import ZCompressor
from zcontext.naming import place_symbols

TEXTS = ["The river rises in the north, and was first mapped in 1832. " * 3, "No 7, ZZ top! " * 9]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "codec.py"
    spec = importlib.util.spec_from_file_location("codec_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compressor() -> ZCompressor:
    model = tiny_z(size=257, named=True)
    with torch.no_grad():
        model.codebook.surprise.bias.fill_(0.5)
    model.seal()
    return ZCompressor(model)


def test_both_placements_are_measured_at_one_ratio(bench, compressor):
    row = bench.placement(compressor, TEXTS, ratio=6.0, depth=3)
    assert row["effective_ratio"] == pytest.approx(6.0, abs=0.3)
    assert row["hardest"] != row["even"]
    assert row["difference"][0] == pytest.approx(row["hardest"][0] - row["even"][0], abs=1e-3)
    assert zcontext.writing.place_symbols is place_symbols


def test_the_other_placement_is_taken_back_after_an_error(bench):
    with pytest.raises(RuntimeError, match="half way"), bench.slots_placed(bench.evenly):
        raise RuntimeError("half way")
    assert zcontext.writing.place_symbols is place_symbols


def test_density_and_memory_are_measured_on_windows_of_the_same_texts(bench, compressor):
    found = bench.density(compressor, TEXTS * 4, ratio=4.0)
    for by in ("by_surprisal", "by_facts"):
        third = found[by]
        assert third["quotient"] == pytest.approx(third["dense"][0] / third["plain"][0], abs=0.01)
    row = bench.memory(compressor, TEXTS, ratio=4.0, depth=1)
    assert row["symbols"] == 64
    assert row["with"][0] > 0


def test_texts_are_cut_to_the_token(bench, compressor):
    assert bench.cut(compressor, TEXTS, 50, 3) == [
        ("\n\n".join(TEXTS))[a : a + 50] for a in (0, 102, 204)
    ]
