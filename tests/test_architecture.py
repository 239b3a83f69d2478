"""The floors of the house: who may import whom, how light the import is, how long a module gets.

Each check is a function of a source tree that returns its faults, and each is shown a tree with
that fault planted.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import zcontext

SOURCE = Path(zcontext.__file__).parent
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "helpers", "common", "base", "core", "manager"}
HEAVY = {
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "tiktoken", "ray"),
    *("langchain", "langchain_core", "langchain_classic", "llama_index", "pydantic", "typer"),
}
HOSTS = {"langchain", "langchain_core", "langchain_classic", "langchain_text_splitters"} | {
    *("llama_index", "ray")
}
FLOORS = {
    0: "errors packing placement symbols vocabulary windows zspan errata documents spans config "
    "profiles accounting sqlite_store store testing fragile literals pruning sizes "
    "byte_spans phrases",
    1: "segmentation pooling precision naming lexicon relaxation codebook upkeep caches passes "
    "composer spelling pointing channel emphasis focus anchoring needs",
    2: "bases loading gguf nf4 four_bit tokenization adapters sealing bundle bundles model holding "
    "gloss",
    3: "prompts text_feed prefixes writing drafts generation compressor decompressor inferencer "
    "readers layouts pruner fidelity assurance budget thinking composing hearing attending terms "
    "refocusing surprisal",
    4: "training evaluation polysemy inspection overlaps export",
    5: "integrations cli",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
# Third parties that a floor may import while it is being imported; None: any but the hosts.
THIRD_PARTIES: dict[int, set[str] | None] = {0: set(), 1: {"torch"}}


@dataclass(frozen=True)
class Import:
    """One import statement: what it names, and whether importing the module runs it."""

    module: str
    line: int
    at_import: bool


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def unit(self) -> str:
        """The name that has a floor: a module, or the package it lies in."""
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[Import]:
        """All of them, in functions and under TYPE_CHECKING too."""
        for node, at_import in _statements(self.tree, at_import=True):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, node.lineno, at_import)
            elif isinstance(node, ast.ImportFrom):
                package = self.name.split(".")
                if self.path.name != "__init__.py":
                    package = package[:-1]
                above = package[: len(package) - node.level + 1] if node.level else []
                stem = [*(["zcontext", *above] if node.level else []), *filter(None, [node.module])]
                for alias in node.names:
                    yield Import(".".join([*stem, alias.name]), node.lineno, at_import)


def _statements(node: ast.AST, *, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inside = False
        yield child, inside
        yield from _statements(child, at_import=inside)


def modules(source: Path) -> dict[str, Module]:
    """The modules of a package by dotted name, its own __init__ left out."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts:
            name = ".".join(parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def target(name: str, known: dict[str, Module]) -> str | None:
    """The module of ours that an imported name lies in."""
    parts = name.split(".")
    if parts[0] != "zcontext":
        return None
    for end in range(len(parts), 1, -1):
        if ".".join(parts[1:end]) in known:
            return ".".join(parts[1:end])
    return None


def floor_faults(source: Path) -> list[str]:
    """Modules without a floor, and imports that point up."""
    known = modules(source)
    faults = [
        f"{module.name} has no floor: add it to FLOORS and to the design"
        for module in known.values()
        if module.unit not in FLOOR_OF
    ]
    for module in known.values():
        for each in module.imports():
            below = target(each.module, known)
            if below is None or module.unit not in FLOOR_OF:
                continue
            theirs = FLOOR_OF.get(known[below].unit, -1)
            if theirs > FLOOR_OF[module.unit]:
                faults.append(f"{module.name}:{each.line} imports {below}, which is above it")
    return faults


def cycle_faults(source: Path) -> list[str]:
    """Circles of modules that import each other, in functions and in types too."""
    known = modules(source)
    edges = {
        name: {t for each in module.imports() if (t := target(each.module, known))} - {name}
        for name, module in known.items()
    }
    # A package that gathers its own modules is no circle unless one of them asks it back.
    done: set[str] = set()
    faults: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            faults.append(" -> ".join([*above[above.index(name) :], name]))
            return
        if name not in done:
            for below in sorted(edges[name]):
                visit(below, (*above, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    return faults


def third_party_faults(source: Path) -> list[str]:
    """Imports of packages that do not belong on a floor."""
    faults = []
    for module in modules(source).values():
        floor = FLOOR_OF.get(module.unit, 5)
        for each in module.imports():
            package = each.module.partition(".")[0]
            if package == "zcontext" or package in sys.stdlib_module_names:
                continue
            allowed = THIRD_PARTIES.get(floor)
            if allowed is not None and each.at_import and package not in allowed:
                faults.append(f"{module.name}:{each.line} imports {package} on floor {floor}")
            if package in HOSTS and module.unit != "integrations":
                faults.append(f"{module.name}:{each.line} imports the host {package}")
    return faults


def shape_faults(source: Path) -> list[str]:
    """Modules and functions that are too long, silent about themselves or vaguely named."""
    faults = []
    for module in modules(source).values():
        n_lines = len(module.path.read_text(encoding="utf-8").splitlines())
        if n_lines > MAX_LINES:
            faults.append(f"{module.name} has {n_lines} lines, at most {MAX_LINES}")
        if not ast.get_docstring(module.tree):
            faults.append(f"{module.name} does not open with a docstring")
        if module.name.rpartition(".")[2] in VAGUE_NAMES:
            faults.append(f"{module.name} is named for nothing in particular")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if n_lines > MAX_FUNCTION_LINES:
                    faults.append(f"{module.name}.{node.name} has {n_lines} lines")
    return faults


def import_faults(source: Path) -> list[str]:
    """What importing the package and its facts loads, changes or fails on, in a new process."""
    facts = [name for name in FLOORS[0].split() if (source / f"{name}.py").exists()]
    code = (
        "import importlib, os, sys\n"
        "before = dict(os.environ)\n"
        f"for name in {['zcontext', *(f'zcontext.{name}' for name in facts)]!r}:\n"
        "    importlib.import_module(name)\n"
        "changed = ['the environment'] if dict(os.environ) != before else []\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)), *changed, sep=',')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    return [f"importing zcontext touches {what}" for what in done.stdout.strip().split(",") if what]


CHECKS = [floor_faults, cycle_faults, third_party_faults, shape_faults, import_faults]


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_has_no_fault(check: Callable[[Path], list[str]]) -> None:
    assert check(SOURCE) == []


DOC = '"""A module."""\n'
PLANTED = {
    "an import that points up": (
        floor_faults,
        {"errors": "from zcontext.model import ZLanguageModel", "model": ""},
        "errors:2 imports model, which is above it",
    ),
    "an upward import hidden in a function": (
        floor_faults,
        {"store": "def f():\n    from zcontext import cli", "cli": ""},
        "store:3 imports cli, which is above it",
    ),
    "an upward import for types only": (
        floor_faults,
        {"store": "if TYPE_CHECKING:\n    import zcontext.cli", "cli": ""},
        "store:3 imports cli, which is above it",
    ),
    "a relative upward import": (
        floor_faults,
        {"codebook": "from .training.stages import Stage", "training/stages": ""},
        "codebook:2 imports training.stages, which is above it",
    ),
    "a relative upward import from a package": (
        floor_faults,
        {"training/stages": "from ..integrations import ray", "integrations/ray": ""},
        "training.stages:2 imports integrations.ray, which is above it",
    ),
    "a module nobody gave a floor": (
        floor_faults,
        {"gadgets": ""},
        "gadgets has no floor: add it to FLOORS and to the design",
    ),
    "two modules that import each other": (
        cycle_faults,
        {"store": "import zcontext.spans", "spans": "from zcontext.store import x"},
        "spans -> store -> spans",
    ),
    "a circle of three, closed in a function": (
        cycle_faults,
        {
            "store": "from . import spans",
            "spans": "from .config import x",
            "config": "def f():\n    from .store import x",
        },
        "config -> store -> spans -> config",
    ),
    "torch on the floor of facts": (
        third_party_faults,
        {"spans": "try:\n    import torch\nexcept ImportError: pass"},
        "spans:3 imports torch on floor 0",
    ),
    "transformers on the floor of numerics": (
        third_party_faults,
        {"codebook": "from transformers import x"},
        "codebook:2 imports transformers on floor 1",
    ),
    "a host outside its door": (
        third_party_faults,
        {"compressor": "def f():\n    import langchain_core.documents"},
        "compressor:3 imports the host langchain_core",
    ),
    "a module over the limit": (
        shape_faults,
        {"spans": "x = 1\n" * MAX_LINES},
        f"spans has {MAX_LINES + 1} lines, at most {MAX_LINES}",
    ),
    "a function over the limit": (
        shape_faults,
        {"spans": "class A:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES},
        f"spans.f has {MAX_FUNCTION_LINES + 1} lines",
    ),
    "a vague name": (
        shape_faults,
        {"training/utils": ""},
        "training.utils is named for nothing in particular",
    ),
    "a heavy import at the front door": (
        import_faults,
        {"__init__": "import numpy"},
        "importing zcontext touches numpy",
    ),
    "a heavy import behind a module of facts": (
        import_faults,
        {"__init__": "", "store": "from zcontext.hidden import x", "hidden": "import numpy as x"},
        "importing zcontext touches numpy",
    ),
    "an environment variable set on import": (
        import_faults,
        {"__init__": "import os\nos.environ['OMP_NUM_THREADS'] = '7'"},
        "importing zcontext touches the environment",
    ),
    "a module that does not import": (
        import_faults,
        {"__init__": "", "errors": "1 / 0"},
        "ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.parametrize(("check", "files", "fault"), PLANTED.values(), ids=PLANTED.keys())
def test_each_guard_sees_its_planted_fault(
    check: Callable[[Path], list[str]], files: dict[str, str], fault: str, tmp_path: Path
) -> None:
    source = tmp_path / "zcontext"
    for name, text in files.items():
        path = source / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(DOC + text)
    assert check(source) == [fault]


def test_a_missing_docstring_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "spans.py").write_text("x = 1\n")
    assert shape_faults(tmp_path) == ["spans does not open with a docstring"]


def test_a_sound_tree_has_no_fault(tmp_path: Path) -> None:
    source = tmp_path / "zcontext"
    source.mkdir()
    (source / "__init__.py").write_text(DOC)
    (source / "errors.py").write_text(DOC + "import ast\n")
    (source / "spans.py").write_text(DOC + "from zcontext import errors\n")
    (source / "model.py").write_text(DOC + "import transformers\nfrom .spans import x\n")
    assert [fault for check in CHECKS for fault in check(source)] == []


# The public names


def name_faults(exported: list[str], get: Callable[[str], object], source: Path) -> list[str]:
    """Exported names that are unsorted, unreal, or not the ones type checkers see."""
    faults = [] if exported == sorted(set(exported)) else ["the names are not sorted and unique"]
    tree = ast.parse((source / "__init__.py").read_text(encoding="utf-8"))
    typed: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zcontext."):
            typed.update({alias.name: str(node.module) for alias in node.names})
    if set(typed) != set(exported) - {"__version__"}:
        difference = sorted(set(typed) ^ (set(exported) - {"__version__"}))
        faults.append(f"typed and exported names differ in {difference}")
    for name in exported:
        try:
            value = get(name)
        except (AttributeError, ImportError) as error:
            faults.append(f"{name} is not there: {error}")
            continue
        if name in typed and vars(sys.modules[typed[name]])[name] is not value:
            faults.append(f"{name} is not the one of {typed[name]}")
    return faults


@pytest.mark.filterwarnings("ignore")  # of the packages that the upper floors load
def test_the_exported_names_are_the_real_ones() -> None:
    assert name_faults(zcontext.__all__, lambda name: getattr(zcontext, name), SOURCE) == []
    assert set(zcontext.__all__) <= set(dir(zcontext))


def test_the_name_check_sees_planted_faults(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("from zcontext.errors import SpanError, StoreError\n")
    real = {"SpanError": zcontext.SpanError, "StoreError": object()}

    def get(name: str) -> object:
        try:
            return real[name]
        except KeyError:
            raise AttributeError(name) from None

    assert name_faults(["StoreError", "SpanError", "Ghost"], get, tmp_path) == [
        "the names are not sorted and unique",
        "typed and exported names differ in ['Ghost']",
        "StoreError is not the one of zcontext.errors",
        "Ghost is not there: Ghost",
    ]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        zcontext.Nonsense  # noqa: B018
