"""Run the example notebooks and keep what they print and plot.

    python scripts/run_notebooks.py                 # all of examples/notebooks, outputs saved
    python scripts/run_notebooks.py --check NAME..  # run only; the files stay as they are

Each notebook runs in a process of its own, in its own folder, as in a fresh Jupyter kernel: inside
a running event loop, with figures shown when a cell ends. Unlike there, nothing can be reached over
the network. A notebook is replaced in one step once all its cells have run, or not at all. No
Jupyter is needed; what it would offer beyond text and figures (widgets, magics) does not work here.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plot  # before any cell: the first import ever tells of its fonts

NOTEBOOKS = Path(__file__).resolve().parents[1] / "examples" / "notebooks"


class CellError(Exception):
    """A cell failed; the message has its number and its traceback."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="*", help="files or names; all if none is given")
    parser.add_argument("--check", action="store_true", help="save nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    paths = [find(name) for name in chosen.notebook] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if chosen.here:
        return run(paths[0], save=not chosen.check)
    failed = 0
    for path in paths:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--here", str(path)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        code = subprocess.run(
            [*command, *(["--check"] if chosen.check else [])], env=environment, check=False
        ).returncode
        failed += code != 0
        told = "failed" if code else "ran" if chosen.check else "saved"
        print(f"{path.name}: {told}, {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failed else 0


def find(name: str) -> Path:
    path = Path(name)
    return (path if path.suffix == ".ipynb" else NOTEBOOKS / f"{name}.ipynb").resolve()


def run(path: Path, *, save: bool) -> int:
    """Run one notebook in this process."""
    notebook = json.loads(path.read_text("utf-8"))
    os.chdir(path.parent)
    sys.path[0] = str(path.parent)
    socket.socket.connect = _refuse  # type: ignore[method-assign]
    try:
        asyncio.run(execute(notebook))
    except CellError as error:
        print(f"{path.name}, {error}", file=sys.stderr)
        return 1
    if save:
        write(path, notebook)
    return 0


async def execute(notebook: dict[str, Any]) -> None:
    """Run all cells, in order, and put their outputs in place; a coroutine as kernels have a loop.

    Raises:
        CellError: A cell failed.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        cell["execution_count"] = count
        cell["outputs"] = run_cell("".join(cell["source"]), names, count)


def run_cell(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The outputs of one cell: what it printed, the value of its last line, its figures."""
    printed, complained = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(complained):
            value = _run_code(source, names, f"<cell {count}>")
    except (Exception, SystemExit) as error:
        told = printed.getvalue() + complained.getvalue() + traceback.format_exc()
        raise CellError(f"cell {count}:\n{source}\n\n{told}") from error
    outputs: list[dict[str, Any]] = [
        {"name": name, "output_type": "stream", "text": _lines(stream.getvalue())}
        for name, stream in (("stdout", printed), ("stderr", complained))
        if stream.getvalue()
    ]
    if value is not None:
        result = {"data": {"text/plain": _lines(repr(value))}, "execution_count": count}
        outputs.append({**result, "metadata": {}, "output_type": "execute_result"})
    return outputs + _figures()


def _run_code(source: str, names: dict[str, Any], filename: str) -> Any:
    tree = ast.parse(source, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, filename, "exec"), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), filename, "eval"), names)


def _figures() -> list[dict[str, Any]]:
    outputs = []
    for number in plot.get_fignums():
        figure, image = plot.figure(number), io.BytesIO()
        # Without its version of matplotlib, the same figure is the same file.
        figure.savefig(image, dpi=96, bbox_inches="tight", metadata={"Software": None})
        data = {
            "image/png": base64.b64encode(image.getvalue()).decode(),
            "text/plain": _lines(repr(figure)),
        }
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    plot.close("all")
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _refuse(self: socket.socket, address: object) -> None:
    raise OSError(f"notebooks run offline: no connection to {address!r}")


def write(path: Path, notebook: dict[str, Any]) -> None:
    """Replace the file in one step, so that nobody ever reads half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
