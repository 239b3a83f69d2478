"""Law R: one decoding loop, the same tokens cached or not, alone or in company."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zcontext.generation
from tiny import tiny_tokenizer, tiny_z
from zcontext.config import GenerationSettings
from zcontext.errors import ConfigError, ModelError
from zcontext.generation import Decoding, Prefill, generate, stream
from zcontext.text_feed import TextFeed

GREEDY = GenerationSettings()
LIVELY = GenerationSettings(temperature=1.5, seed=3)
TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model():
    return tiny_z()


def prompt(model, n: int, *, seed: int = 0, new: int = 12, forced: bool = False) -> Prefill:
    ids = torch.randint(3, 259, (1, n), generator=torch.Generator().manual_seed(seed))
    embeddings = model.embed_tokens(ids)[0].detach()
    return Prefill(embeddings, torch.arange(n), n, new, forced)


@torch.no_grad()
def uncached(model, row: Prefill) -> list[int]:
    """The slow twin: the whole prompt again for every token, no cache, no batch."""
    inputs, positions, ids = row.embeddings[None], row.positions[None], []
    while len(ids) < row.max_new_tokens:
        with model.using("infer"):
            mask = torch.ones(1, inputs.shape[1], dtype=torch.long)
            hidden = model.run(inputs, positions=positions, mask=mask).hidden
        token = int(model.logits(hidden[:, -1]).argmax())
        if token in (0, 1, END):
            break
        ids.append(token)
        inputs = torch.cat([inputs, model.embed_tokens(torch.tensor([[token]]))], dim=1)
        step = torch.tensor([[row.next_position + len(ids) - 1]])
        positions = torch.cat([positions, step], dim=1)
    return ids


@pytest.mark.parametrize("seed", range(4))
def test_cached_decoding_equals_uncached_decoding(model, seed):
    row = prompt(model, 5 + 7 * seed, seed=seed)
    assert list(generate(model, "infer", [row], settings=GREEDY)[0].ids) == uncached(model, row)


@pytest.mark.parametrize("chosen", [GREEDY, LIVELY, LIVELY.replace(top_p=0.8)])
def test_batched_equals_single_with_uneven_prompts_and_uneven_ends(model, chosen):
    rows = [prompt(model, n, seed=n, new=new) for n, new in [(3, 9), (17, 2), (8, 14), (1, 5)]]
    alone = [generate(model, "infer", [row], settings=chosen)[0] for row in rows]
    assert generate(model, "infer", rows, settings=chosen) == alone
    assert [r.n_tokens for r in alone] == [9, 2, 14, 5] or any(
        r.stop_reason != "length" for r in alone
    )


def test_a_first_bias_weighs_the_first_token_alone(model):
    row = prompt(model, 9)
    free = list(generate(model, "infer", [row], settings=LIVELY)[0].ids)
    later = next(token for token in free if token != free[0])
    first = dataclasses.replace(row, first_bias={free[0]: -1e4})
    assert generate(model, "infer", [first], settings=LIVELY)[0].ids[0] != free[0]
    elsewhere = dataclasses.replace(row, first_bias={later: -1e4})
    assert list(generate(model, "infer", [elsewhere], settings=LIVELY)[0].ids) == free


def test_batched_equals_single_when_rows_end_at_stop_strings(model):
    rows = [prompt(model, n, seed=n, new=30) for n in (3, 9, 6)]
    free = [generate(model, "infer", [row], settings=LIVELY)[0] for row in rows]
    # Whatever two of the rows say half way through becomes a stop string.
    stops = tuple(dict.fromkeys(r.text[len(r.text) // 2] for r in free[:2]))
    chosen = LIVELY.replace(stop=stops)
    alone = [generate(model, "infer", [row], settings=chosen)[0] for row in rows]
    assert generate(model, "infer", rows, settings=chosen) == alone
    assert [r.stop_reason for r in alone[:2]] == ["stop", "stop"]
    assert all(stop not in r.text for r in alone for stop in stops)


def script(monkeypatch, *lines: list[int]) -> None:
    """Make row i say its line, whatever the model thinks; a row is known by its first position."""
    said = {i: iter(line) for i, line in enumerate(lines)}
    monkeypatch.setattr(
        zcontext.generation._Row, "choose", lambda row, scores: next(said[row.prompt.next_position])
    )


def scripted(model, row: int, new: int) -> Prefill:
    return Prefill(torch.zeros(2, 64), torch.arange(2), row, new)


A, B, C = TOKENIZER("abc", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("line", "new", "text", "reason", "n_tokens"),
    [
        ([A, END], 9, "a", "end", 2),
        ([A, B, C], 9, "a", "stop", 3),
        ([A, A], 2, "aa", "length", 2),
        ([A, END], 2, "a", "end", 2),  # the end token on the last step: not "length" as well
        ([A, B, C], 3, "a", "stop", 3),  # a stop string on the last step
        ([A, B, END], 9, "ab", "end", 3),  # half a stop string held back comes out at the end
        ([A, B], 2, "ab", "length", 2),
        ([END], 1, "", "end", 1),
    ],
)
def test_every_row_ends_for_one_reason_on_the_step_it_comes_up(
    model, monkeypatch, line, new, text, reason, n_tokens
):
    script(monkeypatch, line)
    chosen = GenerationSettings(stop=("bc",))
    decoding = Decoding(model, "infer", [scripted(model, 0, new)], settings=chosen)
    said = list(stream(decoding))
    result = decoding.results()[0]
    assert (result.text, result.stop_reason, result.n_tokens) == (text, reason, n_tokens)
    assert "".join(said) == text
    assert all(said)


def test_rows_that_end_on_the_same_step_for_different_reasons_all_end(model, monkeypatch):
    script(monkeypatch, [A, END], [B, C], [A, A], [A, A, A, END])
    rows = [scripted(model, i, new) for i, new in enumerate([9, 9, 2, 9])]
    decoding = Decoding(model, "infer", rows, settings=GenerationSettings(stop=("bc",)))
    decoding.step()
    assert len(decoding.step()) == 4
    assert len(decoding.step()) == 1
    decoding.step()
    assert decoding.done
    reasons = [r.stop_reason for r in decoding.results()]
    assert reasons == ["end", "stop", "length", "end"]


def test_a_forced_row_has_exactly_its_length_and_holds_nothing_but_text(model):
    rows = [prompt(model, 4, seed=s, new=n, forced=True) for s, n in [(0, 40), (1, 1), (2, 23)]]
    chosen = LIVELY.replace(temperature=50.0, stop=("a", "e"))
    results = generate(model, "decompress", rows, settings=chosen)
    assert [len(r.ids) for r in results] == [40, 1, 23]
    assert {r.stop_reason for r in results} == {"length"}
    assert all(token > 2 for r in results for token in r.ids)


def test_the_same_seed_draws_the_same_answer_and_another_seed_another(model):
    row = prompt(model, 6)
    draws = [
        generate(model, "infer", [row], settings=LIVELY.replace(seed=seed))[0].ids
        for seed in (3, 3, 4)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_the_global_generator_is_left_alone(model):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    generate(model, "infer", [prompt(model, 4)], settings=LIVELY)
    assert torch.equal(torch.rand(2), expected)


@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_a_draw_lies_in_the_nucleus(seed, top_p):
    scores = torch.randn(20, generator=torch.Generator().manual_seed(seed))
    chosen = GenerationSettings(temperature=1.0, top_p=top_p, seed=seed)
    row = zcontext.generation._Row(
        Prefill(torch.zeros(1, 4), torch.zeros(1), 0, 1), chosen, TOKENIZER, frozenset()
    )
    token = row.choose(scores)
    shares = scores.double().softmax(-1)
    likelier = float(shares[shares > shares[token]].sum())
    assert likelier < top_p


def test_a_past_gives_the_same_answer_and_is_not_changed(model):
    whole = prompt(model, 12)
    with model.using("infer"), torch.no_grad():
        past = model.run(
            whole.embeddings[None, :8],
            positions=torch.arange(8)[None],
            mask=torch.ones(1, 8, dtype=torch.long),
            use_cache=True,
        ).cache
    before = [layer.keys.clone() for layer in past.layers]
    rest = Prefill(whole.embeddings[8:], torch.arange(8, 12), 12, 12)
    first = generate(model, "infer", [rest], settings=GREEDY, past=past)[0]
    second = generate(model, "infer", [rest], settings=GREEDY, past=past)[0]
    assert first == second == generate(model, "infer", [whole], settings=GREEDY)[0]
    assert all(torch.equal(a, b.keys) for a, b in zip(before, past.layers, strict=True))
    assert past.get_seq_length() == 8


def test_a_step_that_was_interrupted_can_be_taken_again(model, monkeypatch):
    row = prompt(model, 6)
    expected = generate(model, "infer", [row], settings=GREEDY)[0]
    decoding = Decoding(model, "infer", [row], settings=GREEDY)
    decoding.step()
    run, calls = model.run, []

    def interrupted(*args, **kwargs):
        out = run(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(model, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - in one of the steps
        while True:
            decoding.step()
    while not decoding.done:
        decoding.step()
    assert decoding.results()[0] == expected
    assert model.adapters.role is None


def test_prompts_that_cannot_be_decoded_are_refused(model):
    empty = Prefill(torch.zeros(0, 64), torch.zeros(0), 0, 4)
    for rows in ([], [empty], [prompt(model, 3, new=0)]):
        with pytest.raises(ConfigError, match="cannot be decoded"):
            Decoding(model, "infer", rows, settings=GREEDY)


def test_scores_that_are_not_numbers_are_reported(model, monkeypatch):
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full((1, 259), torch.nan))
    with pytest.raises(ModelError, match="not numbers"):
        generate(model, "infer", [prompt(model, 3)], settings=GREEDY)


# -- text feed --------------------------------------------------------------------------------

texts = st.text(st.sampled_from("abcé中👩‍🚀 \n"), max_size=20)
stops = st.lists(st.text(st.sampled_from("abcé中🚀"), min_size=1, max_size=3), max_size=3)


def cut_at_first_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """The slow twin: grow the text by a character until it holds a stop string."""
    for end in range(len(text) + 1):
        found = [at for at in (text[:end].find(s) for s in stop) if at >= 0]
        if found:
            return text[: min(found)], True
    return text, False


@settings(max_examples=300)
@given(texts, stops)
def test_a_feed_lets_out_whole_characters_and_no_part_of_a_stop_string(text, stop):
    feed = TextFeed(TOKENIZER, stop=stop)
    said = []
    expected, stopped = cut_at_first_stop(text, stop)
    for token in TOKENIZER(text, add_special_tokens=False).input_ids:
        said.append(feed.push(token))
        assert expected.startswith("".join(said))
    said.append(feed.finish())
    assert "".join(said) == expected
    assert feed.stopped == stopped


def test_half_a_character_is_dropped_and_a_broken_one_in_the_middle_is_shown():
    emoji = TOKENIZER("🚀", add_special_tokens=False).input_ids
    feed = TextFeed(TOKENIZER)
    assert [feed.push(t) for t in [A, *emoji[:3]]] == ["a", "", "", ""]
    assert feed.finish() == ""
    feed = TextFeed(TOKENIZER)
    said = "".join(feed.push(t) for t in [A, *emoji[:2], B]) + feed.finish()
    assert said[0] == "a"
    assert said[-1] == "b"
    assert "\ufffd" in said


def test_text_is_let_out_as_soon_as_it_can_be_no_part_of_a_stop_string():
    feed = TextFeed(TOKENIZER, stop=["abd"])
    assert [feed.push(t) for t in (A, B, C)] == ["", "", "abc"]
