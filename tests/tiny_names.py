"""A tiny codec of names with an autoregressive writer, and what is done with it in tests."""

from __future__ import annotations

import torch

from tiny import tiny_z
from zcontext.composing import Composed, Composition, Passage
from zcontext.model import ZLanguageModel
from zcontext.pointing import Request
from zcontext.tokenization import text_tokenizer

STORY = (
    "Anna lives in Oslo. She is 31 years old and builds bridges! In 2019 she moved there from "
    "Lima, where her father had a shop. Why? Nobody asked her.\n\nThe shop is closed now. "
)
PHRASES = ("he", "er", " the", " sh", "she ", " is ", " in ", "op", "ed", "Os")
EVERY_TOKEN = 260
DEPTH = 3


def naming_z(*, seed: int = 0, complete: bool = True, ends: float = -1.5) -> ZLanguageModel:
    """A codec of bytes and phrases, whose composer has random values."""
    n_phrases = len(PHRASES)
    model = tiny_z(seed=seed, depth=DEPTH, size=EVERY_TOKEN + n_phrases, named=True)
    tokens = text_tokenizer(model.tokenizer)
    known = range(model.base_vocab) if complete else range(30, model.base_vocab, 2)
    assert model.codebook.lexicon is not None
    phrases = [tuple(tokens.ids(phrase)) for phrase in PHRASES]
    model.codebook.lexicon.name([*((token,) for token in known), *phrases])
    assert model.codebook.lexicon.complete == complete
    composer, generator = model.add_composer(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for parameter in model.parameters_of(("compose",)).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        composer.to_end.bias.fill_(ends)
    model.seal()
    return model


def ids_of(model: ZLanguageModel, *texts: str) -> torch.Tensor:
    tokens = text_tokenizer(model.tokenizer)
    return torch.tensor([tokens.ids(text) for text in texts])


def passage_of(model: ZLanguageModel, ids: torch.Tensor, *, price: float = 8.0) -> Passage:
    with model.using("compress"), torch.no_grad():
        state = model.read(ids, torch.ones_like(ids))
    n = ids.shape[1]
    rows, requests = [range(n)] * len(ids), [Request(price, n)] * len(ids)
    return Passage.of(state, rows, requests, codebook=model.codebook, start=0, width=n)


def composed(
    model: ZLanguageModel, passage: Passage, seeds: torch.Generator | None = None
) -> Composed:
    with model.using("compose"):
        return Composition(model, passage, depth=DEPTH, seeds=seeds).run()
