"""The notebooks run offline with the bundle that ships, and so do the scripts for the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RUNNER = ROOT / "scripts" / "run_notebooks.py"
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))
SCRIPTS = {
    "langchain_rag": ["examples/documents", "Who leads the project?"],
    "llamaindex_query_engine": ["Who leads the project?"],
    "long_document": ["memo.txt", "Who leads the project?"],
}


def name_of(path: Path) -> str:
    return path.stem


def python(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def cells(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text("utf-8"))["cells"])


def written(path: Path, *sources: str) -> Path:
    """A notebook of code cells."""
    code = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{at}",
            "metadata": {},
            "outputs": [],
            "source": source.splitlines(keepends=True),
        }
        for at, source in enumerate(sources)
    ]
    path.write_text(json.dumps({"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_there_is_a_notebook_and_a_script_for_each_job() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SCRIPTS)
    for name in SCRIPTS:
        assert len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_runs_offline(path: Path) -> None:
    before = path.read_bytes()
    ran = python(RUNNER, "--check", path)
    assert ran.returncode == 0, ran.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_offline(name: str, tmp_path: Path) -> None:
    memo = tmp_path / "memo.txt"  # the long document's store is made beside it
    memo.write_bytes((EXAMPLES / "documents" / memo.name).read_bytes())
    given = [str(memo) if argument == memo.name else argument for argument in SCRIPTS[name]]
    ran = python(EXAMPLES / f"{name}.py", *given)
    assert ran.returncode == 0, ran.stderr
    assert "symbols" in ran.stdout or "positions" in ran.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_committed_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(line for output in outputs for line in output.get("text", ()))
    for told in ("tokens", "positions", " s", "text ", "symbols ", "nothing "):
        assert told in printed
    # No warnings, and nothing of the machine it ran on.
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert "/" not in printed.replace("://", "")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_what_jupyter_expects(path: Path) -> None:
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert {cell["cell_type"] for cell in notebook["cells"]} == {"code", "markdown"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_the_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    text = "".join(
        line for cell in cells(path) if cell["cell_type"] == "markdown" for line in cell["source"]
    )
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


# The runner


def test_outputs_are_what_a_kernel_would_show(tmp_path: Path) -> None:
    path = written(
        tmp_path / "n.ipynb",
        "import asyncio, sys\nprint('a')\nprint('b', file=sys.stderr)\nx = 2",
        "x + 1",
        "asyncio.get_running_loop().is_running()",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nNone",
        "from pathlib import Path\nPath('left.txt').write_text('here')\nNone",
    )
    assert python(RUNNER, path).returncode == 0
    one, two, three, four, _ = (cell["outputs"] for cell in cells(path))
    assert [(o["name"], o["text"]) for o in one] == [("stdout", ["a\n"]), ("stderr", ["b\n"])]
    assert two[0]["data"] == {"text/plain": ["3"]}
    assert three[0]["data"] == {"text/plain": ["True"]}
    assert [set(o["data"]) for o in four] == [{"image/png", "text/plain"}]
    assert (tmp_path / "left.txt").exists()


@pytest.mark.parametrize(
    "fault",
    [
        "1 / 0",
        "def f(:",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "raise SystemExit(0)",
    ],
)
def test_a_cell_that_fails_is_shown_and_nothing_is_saved(tmp_path: Path, fault: str) -> None:
    path = written(tmp_path / "n.ipynb", "print('fine')", fault)
    before = path.read_bytes()
    ran = python(RUNNER, path)
    assert ran.returncode == 1
    assert "n.ipynb, cell 2" in ran.stderr
    assert fault.splitlines()[-1] in ran.stderr
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["n.ipynb"]


def test_only_checked_is_not_saved(tmp_path: Path) -> None:
    path = written(tmp_path / "n.ipynb", "print('fine')")
    before = path.read_bytes()
    assert python(RUNNER, "--check", path).returncode == 0
    assert path.read_bytes() == before
