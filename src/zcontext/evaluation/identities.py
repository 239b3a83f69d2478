"""What figures depend on: digests of the parts of a model that play a role in them.

A prediction is kept under all that shaped it and nothing else, so that a part which played no role
can be replaced without everything being measured anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from hashlib import sha256

from torch import Tensor

from zcontext.model import ZLanguageModel
from zcontext.sealing import part_state


def writer_identity(model: ZLanguageModel) -> str:
    """Digest of what decides which symbols are written, and what readers hear in them.

    These are the base, the codebook and COMPRESS. DECOMPRESS and the channel, which are of the
    codec too, only say them again.

    Args:
        model: The model.

    Returns:
        Hex digits.
    """
    config = json.dumps(dataclasses.asdict(model.config), sort_keys=True)
    told = f"write/{model.base.sha256}/{model.base.quantization}/{config}"
    parts = {
        f"{part}/{name}": tensor
        for part in ("codebook", "compress")
        for name, tensor in part_state(model.codebook, model.adapters, part).items()
    }
    return _digest(told, parts)


def infer_identity(model: ZLanguageModel) -> str:
    """Digest of what answers under INFER depend on, whatever symbols are: the base and the adapter.

    Args:
        model: The model.

    Returns:
        Hex digits.
    """
    told = f"infer/{model.base.sha256}/{model.base.quantization}"
    return _digest(told, model.parameters_of(("infer",)))


def base_identity(model: ZLanguageModel) -> str:
    """What answers of the plain base depend on.

    Args:
        model: The model.

    Returns:
        Its weights' digest and their precision.
    """
    return f"plain/{model.base.sha256}/{model.base.quantization}"


def _digest(told: str, tensors: Mapping[str, Tensor]) -> str:
    digest = sha256(told.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
