r"""Give a bundle the mean, weight by weight, of several INFER adapters ("model soup").

    python scripts/average_infer.py bundles/smollm2-135m \
        bundles/smollm2-135m runs/cpu-read/bundle runs/cpu-control/bundle

Adapters that went on from one start in different ways lie in one valley: their mean is about as
good as each where it is good (Wortsman et al. 2022, arXiv 2203.05482). The codec stays what it is.
With --enough the bundle also says how many symbols its reader reads best for one question.
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


def mean_of(files: list[Path]) -> dict[str, torch.Tensor]:
    """The mean of adapters of one shape, in their precision."""
    states = [load_file(file) for file in files]
    if any(state.keys() != states[0].keys() for state in states):
        raise SystemExit("these adapters are not of one shape; give runs that began alike")
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0).to(first.dtype)
        for name, first in states[0].items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Average, and write the bundle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="changed in place")
    parser.add_argument("of", type=Path, nargs="*", help="bundles whose INFER is averaged, if any")
    parser.add_argument("--enough", type=int, help="symbols for one question; 0 for no limit")
    options = parser.parse_args(arguments)
    training = json.loads((options.bundle / "manifest.json").read_text("utf-8"))["training"]
    model = load_bundle(options.bundle)
    if options.of:
        scratch = options.bundle.parent / f".{options.bundle.name}.{INFER}"
        try:
            save_file(mean_of([folder / INFER for folder in options.of]), scratch)
            replace_infer(model, scratch)
        finally:
            scratch.unlink(missing_ok=True)
        training.setdefault("read", {})["mean_of"] = len(options.of)
    if options.enough is not None:
        if model.focus is None:
            raise SystemExit("--enough is the focus's, and this bundle has no focus")
        model.focus.enough.fill_(options.enough)
    save_bundle(model, options.bundle, training=training)


if __name__ == "__main__":
    main()
