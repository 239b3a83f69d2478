"""The guides' snippets run, and their diffs lead from one working program to another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pieces import arrived

from zcontext import errors
from zcontext.integrations import exchange
from zcontext.integrations import langchain as door
from zcontext.testing import ByteCodec
from zcontext.vocabulary import Symbols

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    return BLOCK.findall((GUIDES / name).read_text(encoding="utf-8"))


def side(diff: str, mark: str) -> str:
    """One side of a diff: "-" is what was there before, "+" is what is there after."""
    other = "+" if mark == "-" else "-"
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith(other))


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "guide", "exec"), names)


def follow(name: str) -> dict[str, Any]:
    """Run a guide from beginning to end."""
    names: dict[str, Any] = {"__name__": "guide"}
    for language, code in blocks(name):
        if language in ("python", "diff"):
            run(side(code, "+") if language == "diff" else code, names)
    return names


def before_and_after(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides of the guide's diff, each run after the first snippet."""
    first = next(code for language, code in blocks(name) if language == "python")
    [diff] = [code for language, code in blocks(name) if language == "diff"]
    sides: list[dict[str, Any]] = []
    for mark in "-+":
        names: dict[str, Any] = {"__name__": "guide"}
        run(first, names)
        run(side(diff, mark), names)
        sides.append(names)
    return sides[0], sides[1]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like a checkout."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "documents").symlink_to(ROOT / "examples" / "documents")
    monkeypatch.chdir(tmp_path)


def test_the_retrieval_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = follow("langchain.md")
    names["store"].client.close()
    printed = capsys.readouterr().out
    assert "compressed" in printed
    assert "'symbols': " in printed
    assert "[ |z" in names["question"]
    assert names["kept"] == names["history"][1:]


def test_the_retrieval_guides_diff_is_the_whole_change() -> None:
    before, after = before_and_after("langchain.md")
    assert before["result"]["answer"] == "Four thousand three hundred miles."
    codec: ByteCodec = after["model"]
    found = [document.page_content for document in after["result"]["context"]]
    assert arrived(codec) == [code for text in found for code in codec.vocabulary.parse(text)]
    assert len(found) == 4
    [diff] = [code for language, code in blocks("langchain.md") if language == "diff"]
    assert len([line for line in diff.splitlines() if line.startswith("+")]) <= 6


def test_the_agents_guide_runs() -> None:
    names = follow("agents.md")
    assert names["wary"] is not names["trusting"]


def test_the_agents_guides_diff_compresses_what_a_tool_answers() -> None:
    text = (ROOT / "examples" / "documents" / "mississippi.txt").read_text("utf-8")
    before, after = before_and_after("agents.md")
    call = {"name": "read_book", "args": {"title": "x"}, "id": "1", "type": "tool_call"}
    messages = [
        HumanMessage("How long is the river?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage(text, tool_call_id="1"),
    ]
    n_symbols = []
    for names in (before, after):
        assert isinstance(names["state"]["messages"][-1], AIMessage)
        state = names["agent"].invoke({"messages": messages})
        assert state["messages"][2].content == text
        parts = names["model"].calls[-1].parts
        n_symbols.append(sum(len(part) for part in parts if isinstance(part, Symbols)))
    assert n_symbols == [0, -(-len(text.encode()) // 4)]


def test_the_guides_name_what_exists() -> None:
    from langchain.agents import middleware
    from langchain_core import exceptions
    from pydantic import ValidationError

    known = {
        *vars(exchange), *door.__all__, *vars(errors), *vars(middleware), *vars(exceptions),
        ValidationError.__name__,
    }  # fmt: skip
    texts = [(GUIDES / name).read_text(encoding="utf-8") for name in ("langchain.md", "agents.md")]
    for text in texts:
        assert set(re.findall(r"`(\w*ZContext\w+|\w+Warning|\w+Error)`", text)) <= known
    for name in door.__all__:
        assert name in "".join(texts) or name == "SpanWarning"
    table = texts[0][texts[0].index("| key (") : texts[0].index("One document comes out")]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {cell for row in rows for cell in re.findall(r"`(\w+)`", row)}
    assert named == {key.removeprefix(exchange.PREFIX) for key in exchange.KEYS}
