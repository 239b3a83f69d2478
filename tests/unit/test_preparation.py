from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from zcontext.errors import TrainingError
from zcontext.loading import LoadedBase
from zcontext.training.objective import BITS
from zcontext.training.preparation import BaseSurprisal


def one_by_one(base: LoadedBase, ids: list[int], window: int) -> np.ndarray:
    """The slow twin: one window at a time, no padding."""
    found = []
    for start in range(0, len(ids), window):
        row = ids[start : start + window]
        inputs = torch.tensor([[base.tokenizer.bos_token_id, *row[:-1]]])
        with torch.no_grad():
            scores = base.model(input_ids=inputs).logits[0].float()
        found.append(nn.functional.cross_entropy(scores, torch.tensor(row), reduction="none"))
    return torch.cat(found).numpy() * BITS


def test_batched_surprisal_is_that_of_each_window_alone(fresh_base: LoadedBase) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.integers(3, 259, n).tolist() for n in (1, 40, 7, 16, 33, 8, 100)]
    seen: list[int] = []
    surprise = BaseSurprisal(fresh_base, window=16, batch_tokens=48, on_progress=seen.append)
    found = surprise(documents)
    assert [len(bits) for bits in found] == [len(ids) for ids in documents]
    assert sum(seen) == sum(map(len, documents))
    for bits, ids in zip(found, documents, strict=True):
        np.testing.assert_allclose(bits, one_by_one(fresh_base, ids, 16), rtol=1e-3, atol=1e-3)


def test_no_document_gives_no_surprisal(fresh_base: LoadedBase) -> None:
    assert BaseSurprisal(fresh_base)([]) == []


def test_a_base_that_gives_no_numbers_is_refused(fresh_base: LoadedBase) -> None:
    with torch.no_grad():
        fresh_base.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        BaseSurprisal(replace(fresh_base))([[5, 6, 7, 8]])
