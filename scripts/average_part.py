r"""Give a bundle the mean, weight by weight, of what several runs made of one part ("model soup").

    python scripts/average_part.py bundles/smollm2-135m \
        bundles/smollm2-135m runs/cpu-read/bundle runs/cpu-control/bundle --weights 2 1 1
    python scripts/average_part.py bundles/smollm2-135m \
        bundles/smollm2-135m runs/focus/bundle --part focus

Runs that went on from one start in different ways lie in one valley: their mean is about as good as
each where it is good (Wortsman et al. 2022, arXiv 2203.05482). The codec stays what it is. A run is
given by its bundle, or by the file of its part alone. With --enough the bundle also says how many
symbols its reader reads best for one question, with --pairs what two tokens a symbol are worth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from zcontext.bundle import fill, load_bundle, save_bundle
from zcontext.focus import OF_READER

STAGES = {"infer": "read", "focus": "focus"}
"""Parts outside the codec, and the stage that trains each."""


def mean_of(files: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of parts of one shape, in their precision."""
    said = {f"focus/{name}" for name in OF_READER}  # no mean, and not in every file
    states = [{n: t for n, t in load_file(file).items() if n not in said} for file in files]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(each != shapes[0] for each in shapes):
        raise SystemExit("these parts are not of one shape; give runs that began alike")
    of_all = sum(weights)
    mean = {name: torch.zeros_like(first, dtype=torch.float32) for name, first in states[0].items()}
    for state, weight in zip(states, weights, strict=True):
        for name, tensor in state.items():
            mean[name] += tensor.float() * (weight / of_all)
    return {name: tensor.to(states[0][name].dtype) for name, tensor in mean.items()}


def told_of(bundles: Sequence[Path], stage: str, before: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of the last run of a stage among some bundles tells; else what stood."""
    for bundle in reversed(bundles):
        manifest = bundle / "manifest.json"
        told = json.loads(manifest.read_text("utf-8"))["training"] if manifest.is_file() else {}
        if told.get("stage") == stage:
            return dict(told)
    return before


def main(arguments: Sequence[str] | None = None) -> None:
    """Average, and write the bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="changed in place")
    parser.add_argument("of", type=Path, nargs="*", help="bundles or files of the part to average")
    parser.add_argument("--part", choices=sorted(STAGES), default="infer")
    parser.add_argument("--weights", type=float, nargs="*", help="of each; all alike without it")
    parser.add_argument("--enough", type=int, help="symbols for one question; 0 for no limit")
    parser.add_argument(
        "--pairs", type=float, help="what two tokens a symbol are worth; 0: nothing"
    )
    options = parser.parse_args(arguments)
    training = json.loads((options.bundle / "manifest.json").read_text("utf-8"))["training"]
    model = load_bundle(options.bundle)
    weights = options.weights or [1.0] * len(options.of)
    if len(weights) != len(options.of):
        raise SystemExit(
            f"{len(weights)} weights for {len(options.of)} of a part; give one for each"
        )
    told = {name: getattr(options, name) for name in OF_READER}
    if any(value is not None and value < 0 for value in told.values()):
        parser.error("--enough and --pairs are 0 or more")
    if model.focus is None and any(value is not None for value in told.values()):
        raise SystemExit("--enough and --pairs are the focus's, and this bundle has no focus")
    kept = (
        {}
        if model.focus is None
        else {name: float(getattr(model.focus, name)) for name in OF_READER}
    )
    if options.of:
        name, stage = f"{options.part}.safetensors", STAGES[options.part]
        files = [path / name if path.is_dir() else path for path in options.of]
        fill(model, {options.part: mean_of(files, weights)})
        before = training.get(stage, {})
        training[stage] = told_of(options.of, stage, before) | {"mean_of": weights}
    for name, value in kept.items():
        getattr(model.focus, name).fill_(value if told[name] is None else told[name])
    save_bundle(model, options.bundle, training=training)


if __name__ == "__main__":
    main()
