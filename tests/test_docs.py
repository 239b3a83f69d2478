"""The documentation holds: snippets run, links lead somewhere, tables name what there is."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import zcontext
from tiny import tiny_base, tiny_z
from zcontext import config, errors
from zcontext.compressor import ZCompressor
from zcontext.training import config as training

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {"langchain.md", "llamaindex.md", "agents.md"}  # run by tests/integrations
GENERATED = {"cli.md", "benchmarks.md"}
GROWING = {"log.md"}
MAX_LINES = 150
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
PAGES = sorted(DOCS.rglob("*.md"))
OURS = [page for page in PAGES if page.name not in ELSEWHERE | GENERATED | GROWING]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Snippet:
    """One python block: its code, where it stands, and whether it runs without a trained codec."""

    code: str
    line: int
    runs: bool


def snippets(text: str) -> Iterator[Snippet]:
    for match in FENCE.finditer(text):
        language, *marks = match.group(1).split() or [""]
        if language == "python":
            line = text[: match.start()].count("\n") + 1
            yield Snippet(match.group(2), line, "no-run" not in marks)


def run(found: list[Snippet], page: str) -> None:
    """Blocks in order, in one namespace; a failure names the line of the page."""
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in found:
        tree = ast.increment_lineno(ast.parse(snippet.code), snippet.line)
        exec(compile(tree, page, "exec"), names)


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that looks like a checkout and may be written to."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_the_snippets_of_a_page_run_in_order(page: Path) -> None:
    run([s for s in snippets(page.read_text("utf-8")) if s.runs], name_of(page))


with_weights = [p for p in OURS if any(not s.runs for s in snippets(p.read_text("utf-8")))]


@pytest.mark.parametrize("page", with_weights, ids=name_of)
def test_snippets_for_a_trained_bundle_run_on_an_untrained_one(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny random base in its place: names, arguments and types are right."""

    def from_bundle(bundle: str = "", **options: Any) -> ZCompressor:
        return ZCompressor(tiny_z(), **options)

    # An untrained reader does not stop by itself, and a whole memo is long for a test.
    monkeypatch.setattr(
        "zcontext.inferencer.GenerationSettings",
        lambda: config.GenerationSettings(max_new_tokens=4),
    )
    Path("examples").unlink()
    for path in (ROOT / "examples" / "documents").glob("*.txt"):
        copy = Path("examples", "documents", path.name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8")[:80], encoding="utf-8")
    monkeypatch.setattr(ZCompressor, "from_bundle", from_bundle)
    monkeypatch.setattr("zcontext.bundle.load_bundle", lambda folder, **options: tiny_z())
    monkeypatch.setattr("zcontext.bundles.find_bundle", Path)
    monkeypatch.setattr(zcontext, "load_base", lambda name=None, **options: tiny_base())
    run([s for s in snippets(page.read_text("utf-8")) if not s.runs], name_of(page))


# Links


def anchors(text: str) -> set[str]:
    """What the headings of a page can be linked by."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        found = target.exists()
        if found and anchor:
            found = anchor in anchors(target.read_text("utf-8"))
        if not found:
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    coming = [DOCS / "index.md"]
    while coming:
        page = coming.pop()
        if page in seen or not page.exists():
            continue
        seen.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(page.read_text("utf-8"))]
        coming += [(page.parent / link).resolve() for link in links if link.endswith(".md")]
    assert set(PAGES) <= seen


# Tables


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = re.split(rf"^#+ {heading}$", page.read_text("utf-8"), flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


SETTINGS = [
    config.CompressSettings,
    config.GenerationSettings,
    config.CodecConfig,
    training.RunConfig,
    training.BaseConfig,
    training.DataConfig,
    training.OptimiserConfig,
    training.AutoencodeConfig,
    training.ReadConfig,
    training.AutoregressConfig,
]


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_the_settings_page_has_every_field_with_its_default(kind: Any) -> None:
    page = (
        "training-settings.md"
        if kind.__module__.startswith(training.__package__)
        else "settings.md"
    )
    told = [(row[0], row[1]) for row in rows(DOCS / "reference" / page, kind.__name__)]
    real = [(f"`{f.name}`", f"`{f.default!r}`") for f in dataclasses.fields(kind)]
    assert (set(real) - set(told), set(told) - set(real)) == (set(), set())
    assert told == real


def test_the_error_page_has_every_error() -> None:
    kinds = [v for v in vars(errors).values() if isinstance(v, type)]
    ours = {kind.__name__ for kind in kinds if issubclass(kind, errors.ZContextError)}
    told = [row[0].strip("`") for row in rows(DOCS / "reference" / "errors.md", "Errors")]
    assert set(told) == ours
    assert len(told) == len(ours)


def test_the_api_page_has_every_public_name() -> None:
    text = (DOCS / "reference" / "python-api.md").read_text("utf-8")
    missing = [n for n in zcontext.__all__ if not re.search(rf"`[^`]*\b{n}\b[^`]*`", text)]
    assert missing == []


def test_the_architecture_page_has_every_module() -> None:
    text = (DOCS / "development" / "architecture.md").read_text("utf-8")
    package = Path(zcontext.__file__).parent
    known = [p for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    names = {path.stem for path in known if not path.name.startswith("_")}
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("page", OURS, ids=name_of)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text("utf-8").splitlines()) <= MAX_LINES


# Planted faults


def test_a_failing_snippet_is_seen_with_its_line() -> None:
    text = "# Page\n\n```python\nx = 1\n```\n\nText.\n\n```python\n\nassert x == 2\n```\n"
    with pytest.raises(AssertionError) as caught:
        run(list(snippets(text)), "page.md")
    assert caught.traceback[-1].lineno + 1 == 11


def test_marks_and_other_languages_are_told_apart() -> None:
    text = "```bash\nls\n```\n```python no-run\na\n```\n```\nplain\n```\n```python\nb\n```\n"
    assert [(s.code, s.runs) for s in snippets(text)] == [("a\n", False), ("b\n", True)]


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A title: of 2 parts\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[1](there.md) [2](there.md#a-title-of-2-parts) [3](https://example.org/x) [4](#own)\n"
        "# Own\n[5](gone.md) [6](there.md#gone) [7](#gone)\n```\n[8](in-code.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#gone", "#gone"]
