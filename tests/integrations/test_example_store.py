"""The Qdrant example: one process writes the spans, another answers from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_spans_written_by_one_process_are_read_by_another(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    memo = (ROOT / "examples" / "documents" / "memo.txt").read_text(encoding="utf-8")
    (tmp_path / "texts" / "memo.txt").write_text(memo[:1500], encoding="utf-8")

    def run(*arguments: str) -> str:
        script = str(ROOT / "examples" / "qdrant_store.py")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert "2 chunks compressed" in run("index", str(tmp_path / "texts"), str(tmp_path / "qdrant"))
    assert "positions read" in run("ask", str(tmp_path / "qdrant"), "Who leads the project?")
