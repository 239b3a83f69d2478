"""Thinking in Z: the mechanism, on an untrained model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zcontext.compressor import ZCompressor
from zcontext.errors import (
    CodecMismatchError,
    ConfigError,
    ContextOverflowError,
    SymbolCollisionError,
)
from zcontext.layouts import embed_pieces
from zcontext.model import ZLanguageModel
from zcontext.prompts import question_parts
from zcontext.readers import ZDecompressor
from zcontext.spans import ChatMessage
from zcontext.thinking import Thinker, ThinkSettings
from zcontext.vocabulary import Symbols

ASKED = [ChatMessage("user", ("Where does the river end?",))]
FEW = ThinkSettings(max_symbols=4, end_probability=1.0)


def test_a_thought_is_symbols_of_the_codec_and_the_text_they_stand_for(
    tiny_model: ZLanguageModel,
) -> None:
    thought = Thinker(tiny_model).think(ASKED, settings=FEW)
    assert (len(thought.symbols), thought.stop_reason) == (4, "length")
    tiny_model.vocabulary.check(thought.symbols)
    assert thought.symbols.depth == tiny_model.config.depth
    assert thought.text == ZDecompressor(tiny_model).decompress(thought.symbols, n_tokens=16)
    assert tiny_model.adapters.role is None


def test_the_same_prompt_gives_the_same_thought(tiny_model: ZLanguageModel) -> None:
    one, other = (Thinker(tiny_model).think(ASKED, settings=FEW).symbols for _ in range(2))
    assert one == other


def test_every_symbol_is_fed_back_at_the_next_position(tiny_model: ZLanguageModel) -> None:
    """The cached loop against a slow twin that reads prompt and symbols anew for each step."""
    thinker = Thinker(tiny_model)
    symbols = thinker.think(ASKED, settings=FEW).symbols
    prompt = embed_pieces(tiny_model, thinker._pieces(ASKED))
    for at in range(4):
        before = torch.tensor(symbols.codes[:at]).reshape(1, at, symbols.depth).long()
        with torch.no_grad(), tiny_model.using("infer"):
            inputs = torch.cat([prompt, tiny_model.embed_codes(before)[0]]) if at else prompt
            hidden, _ = thinker._run(inputs.unsqueeze(0), 0, None)
            latent = thinker.latent(tiny_model.logits(hidden), ratio=FEW.ratio)
            codes = tiny_model.codebook.quantise(latent.view(1, 1, -1)).codes
        assert tuple(codes[0, 0].tolist()) == symbols.codes[at]


def test_a_certain_next_token_is_thought_as_the_writer_pools_it(tiny_model: ZLanguageModel) -> None:
    """Repeated `ratio` times, as a bag of the next tokens says it."""
    scores = torch.full((tiny_model.base_vocab,), -1e9)
    scores[100] = 0.0
    latent = Thinker(tiny_model).latent(scores, ratio=3)
    mean = tiny_model.codebook.mean_embedding
    embedded = tiny_model.embed_tokens(torch.tensor([[100]]))[0, 0].detach()
    torch.testing.assert_close(latent.detach(), mean + 3 * (embedded - mean))


def test_structure_is_no_part_of_a_thought(tiny_model: ZLanguageModel) -> None:
    scores = torch.zeros(tiny_model.base_vocab)
    with_end = scores.clone()
    with_end[tiny_model.end_token] = 50.0
    thinker = Thinker(tiny_model)
    torch.testing.assert_close(thinker.latent(scores, ratio=4), thinker.latent(with_end, ratio=4))


def test_it_ends_where_the_end_is_likely(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        scores = torch.zeros(tiny_model.base_vocab)
        if calls == 3:
            scores[tiny_model.end_token] = 50.0
        return scores

    thinker = Thinker(tiny_model)
    monkeypatch.setattr(tiny_model, "logits", logits)
    monkeypatch.setattr(ZDecompressor, "decompress", lambda self, symbols, **options: "said")
    thought = thinker.think(ASKED)
    assert (len(thought.symbols), thought.stop_reason, thought.text) == (2, "end", "said")


def test_an_end_at_once_is_an_empty_thought(tiny_model: ZLanguageModel) -> None:
    thought = Thinker(tiny_model).think(ASKED, settings=ThinkSettings(end_probability=1e-12))
    assert (len(thought.symbols), thought.text, thought.stop_reason) == (0, "", "end")


def test_symbols_and_text_mix_in_the_prompt_and_depth_can_be_less(
    tiny_model: ZLanguageModel,
) -> None:
    context = ZCompressor(tiny_model).compress("A river runs to the sea.", ratio=4).symbols
    messages = question_parts("Where to?", [context, " and more"])
    chosen = ThinkSettings(max_symbols=2, depth=1, end_probability=1.0)
    thought = Thinker(tiny_model).think(messages, settings=chosen)
    assert thought.symbols.depth == 1
    plain = question_parts("Where to?", [" and more"])
    other = Thinker(tiny_model).think(plain, settings=chosen)
    assert thought.n_prompt_positions == other.n_prompt_positions + len(context)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_symbols", 0), ("ratio", 0.5), ("depth", 9), ("end_probability", 0.0)],
)
def test_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        ThinkSettings(**{field: value})
    assert caught.value.field == field


def test_what_the_model_cannot_do_is_refused(tiny_model: ZLanguageModel) -> None:
    thinker = Thinker(tiny_model)
    with pytest.raises(ConfigError, match="codes per symbol"):
        thinker.think(ASKED, settings=ThinkSettings(depth=8))
    with pytest.raises(ContextOverflowError):
        thinker.think([ChatMessage("user", ("a" * 2100,))])
    with pytest.raises(CodecMismatchError):
        thinker.think([ChatMessage("user", (Symbols(((1, 2, 3),), 32, "0000"),))])
    spelled = tiny_model.vocabulary.render(Symbols(((1, 2, 3),), 32, tiny_model.codec[:4]))
    with pytest.raises(SymbolCollisionError):
        thinker.think([ChatMessage("user", (spelled,))])
