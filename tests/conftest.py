"""Fixtures shared by all tests."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny import tiny_base, tiny_z
from tiny_training import write_corpus
from zcontext.loading import LoadedBase
from zcontext.model import ZLanguageModel

# A runner that starts the tests in the background leaves SIGINT ignored, here and in every child,
# and the tests of Ctrl-C would wait forever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model() -> ZLanguageModel:
    """One untrained codec for all tests that do not change it."""
    return tiny_z()


@pytest.fixture
def fresh_base() -> LoadedBase:
    """A base of a test's own."""
    return tiny_base()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A small corpus, as `zcontext prepare` leaves it."""
    return write_corpus(tmp_path / "shards")
