r"""Give a bundle the mean, weight by weight, of several INFER adapters ("model soup").

    python scripts/average_infer.py bundles/smollm2-135m \
        bundles/smollm2-135m runs/cpu-read/bundle runs/cpu-control/bundle --weights 2 1 1

Adapters that went on from one start in different ways lie in one valley: their mean is about as
good as each where it is good (Wortsman et al. 2022, arXiv 2203.05482). The codec stays what it is.
A run is given by its bundle, or by the file of its INFER alone. With --enough the bundle also says
how many symbols its reader reads best for one question.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from zcontext.bundle import load_bundle, replace_infer, save_bundle

INFER = "infer.safetensors"


def mean_of(files: Sequence[Path], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The weighted mean of adapters of one shape, in their precision."""
    states = [load_file(file) for file in files]
    if any(state.keys() != states[0].keys() for state in states):
        raise SystemExit("these adapters are not of one shape; give runs that began alike")
    of_all = sum(weights)
    mean = {name: torch.zeros_like(first, dtype=torch.float32) for name, first in states[0].items()}
    for state, weight in zip(states, weights, strict=True):
        for name, tensor in state.items():
            mean[name] += tensor.float() * (weight / of_all)
    return {name: tensor.to(states[0][name].dtype) for name, tensor in mean.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Average, and write the bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="changed in place")
    parser.add_argument("of", type=Path, nargs="*", help="bundles or INFER files to average")
    parser.add_argument("--weights", type=float, nargs="*", help="of each; all alike without it")
    parser.add_argument("--enough", type=int, help="symbols for one question; 0 for no limit")
    options = parser.parse_args(arguments)
    training = json.loads((options.bundle / "manifest.json").read_text("utf-8"))["training"]
    model = load_bundle(options.bundle)
    weights = options.weights or [1.0] * len(options.of)
    if len(weights) != len(options.of):
        raise SystemExit(
            f"{len(weights)} weights for {len(options.of)} adapters; give one for each"
        )
    if options.of:
        files = [path / INFER if path.is_dir() else path for path in options.of]
        scratch = options.bundle.parent / f".{options.bundle.name}.{INFER}"
        try:
            save_file(mean_of(files, weights), scratch)
            replace_infer(model, scratch)
        finally:
            scratch.unlink(missing_ok=True)
        training.setdefault("read", {})["mean_of"] = weights
    if options.enough is not None:
        if model.focus is None:
            raise SystemExit("--enough is the focus's, and this bundle has no focus")
        model.focus.enough.fill_(options.enough)
    save_bundle(model, options.bundle, training=training)


if __name__ == "__main__":
    main()
