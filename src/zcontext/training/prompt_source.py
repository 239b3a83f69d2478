"""Prompts of the read stage, drawn from question files and the corpus.

They are laid out by `zcontext.prompts`, the module that answering uses, so INFER is trained on the
very prompts it will meet. What this module does not know: the model's weights, the loss.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zcontext.config import CodecConfig
from zcontext.emphasis import emphasise, emphasise_end
from zcontext.errors import TrainingError
from zcontext.prompts import encode_messages, question_parts
from zcontext.spans import UNKNOWN, ChatMessage
from zcontext.symbols import Symbols
from zcontext.tokenization import text_tokenizer, token_seams
from zcontext.training.data import Corpus
from zcontext.training.instructions import Instruction, instruction_parts
from zcontext.training.question_writing import writing_parts
from zcontext.training.questions import Question, drawn_from
from zcontext.training.reading import Chunk, Prompt, ReadConfig, Reply, emphasised_chunks
from zcontext.windows import WindowPlan

RESTATE = "\n\nRepeat the context word for word."
CONTINUE = "\n\nContinue the text."
LOOKUP = '\n\nWhat follows these words in the context: "{words}"?'
LOOKUP_AGAIN = 'What follows these words: "{words}"?'
QUOTED = 6
"""Tokens that a look-up quotes, and tokens it asks for."""
MOST_FOCUSED = 2
"""Questions about one context at most that it is written for."""
OVERLOOKED = 0.1
"""Share of the answers that a focused context is not written for."""
SHORTEST = 16
"""Tokens of a distractor at least, and of what is thought."""
SHORTEST_PASSAGE, LONGEST_PASSAGE = 24, 96
"""Tokens of a passage of the corpus; what is gone on with may be longer."""
PLACE = Symbols(((0,),), 2, "0000")
"""Stands for a chunk or a reply while a chat is laid out."""


class PromptSource:
    """Draws prompts.

    Args:
        tokenizer: The base's fast tokenizer.
        end_token: What ends a reply.
        codec: Its depth and the window that it writes at a time.
        settings: Settings of the stage.
        files: Questions of each file.
        corpus: Where passages come from; None leaves questions alone.
        instructions: What else is asked of a reader.

    Raises:
        TrainingError: There is no answerable question, or no instruction whose texts fit in
            `max_context`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        end_token: int,
        codec: CodecConfig,
        settings: ReadConfig,
        files: Sequence[Sequence[Question]],
        corpus: Corpus | None,
        instructions: Sequence[Instruction] = (),
    ) -> None:
        self._tokenizer, self._end, self._codec = tokenizer, end_token, codec
        self._settings, self._corpus = settings, corpus
        self._answerable = [
            found for rows in files if (found := [row for row in rows if row.answer != UNKNOWN])
        ]
        self._unanswerable = [row for rows in files for row in rows if row.answer == UNKNOWN]
        if not self._answerable:
            raise TrainingError("the question files hold no answerable question")
        self._shares = drawn_from(self._answerable, settings.question_shares)
        self._about: dict[str, list[Question]] = defaultdict(list)
        for rows in files:
            for row in rows:
                self._about[row.context].append(row)
        self._contexts = list(self._about)
        self._ids: dict[str, list[int]] = {}
        self._instructions = [row for row in instructions if self._fits(row)]
        if instructions and not self._instructions:
            raise TrainingError(
                f"the texts of no instruction fit in max_context, {settings.max_context} tokens"
            )

    def draw(self, rng: np.random.Generator) -> Prompt:
        """A prompt.

        Args:
            rng: Decides everything.

        Returns:
            A chat about a context, or a task on a passage of the corpus.
        """
        settings, at = self._settings, rng.random()
        shares = np.cumsum([settings.restate_share, settings.continue_share, settings.lookup_share])
        if self._corpus is not None and at < shares[-1]:
            kinds = ("restate", "continue", "look up")
            return self._corpus_prompt(kinds[int(np.searchsorted(shares, at, "right"))], rng)
        if settings.ask_share and rng.random() < settings.ask_share:
            return self._writing_prompt(rng)
        if self._instructions and rng.random() < settings.instruct_share:
            return self._instruction_prompt(rng)
        return self._question_prompt(rng)

    def question(self, row: Question, context: Sequence[Chunk]) -> Prompt:
        """One question about one context, as `Inferencer.ask` puts it.

        Args:
            row: The question and its answer.
            context: Its chunks.

        Returns:
            The prompt.
        """
        turns = question_parts(row.question, [PLACE] * len(context))
        return Prompt(self.lay_out(turns, [*context, self._reply(row.answer)]), "question")

    def chunks(self, ids: list[int], ratio: float | None, depth: int) -> list[Chunk]:
        """A context window by window, as the compressor cuts it, or whole as text.

        Args:
            ids: Its tokens.
            ratio: Tokens per symbol; None leaves it as text.
            depth: Codes per symbol.

        Returns:
            The chunks, in order.
        """
        if ratio is None:
            return [Chunk(ids, None, depth)]
        windows = WindowPlan(self._codec.window).cover(len(ids))
        return [Chunk(ids[w.target.start : w.target.end], ratio, depth) for w in windows]

    def context_ids(self, row: Question, rng: np.random.Generator) -> list[int]:
        """Tokens of a question's context, cut around the answer when it is too long.

        Args:
            row: The question.
            rng: Where the answer lies within the cut.

        Returns:
            At most `max_context` tokens.
        """
        if row.context not in self._ids:
            self._ids[row.context] = self._encode(row.context)
        ids, room = self._ids[row.context], self._settings.max_context
        if len(ids) <= room:
            return ids
        place = row.context.find(row.answer) if row.answer != UNKNOWN else -1
        share = max(0, place) / max(1, len(row.context))
        start = int(share * len(ids)) - int(rng.integers(room // 4, 3 * room // 4))
        start = max(0, min(start, len(ids) - room))
        return ids[start : start + room]

    def lay_out(
        self, messages: Sequence[ChatMessage], contents: Sequence[Chunk | Reply]
    ) -> tuple[list[int] | Chunk | Reply, ...]:
        """A chat in which a `PLACE` stands for each chunk and for each reply but the last.

        Args:
            messages: Turns, the last one the user's.
            contents: Chunks and replies in the order of their places; the last reply follows the
                opened turn of the assistant.

        Returns:
            What `Prompt.pieces` holds.
        """
        coming = iter(contents)
        pieces: list[list[int] | Chunk | Reply] = []
        for piece in encode_messages(self._tokenizer, messages):
            if not isinstance(piece, list):
                pieces.append(next(coming))
            elif pieces and isinstance(pieces[-1], Reply) and piece[0] == self._end:
                pieces.append(piece[1:])  # The reply brought its end token along.
            else:
                pieces.append(piece)
        return (*pieces, next(coming))

    # -- questions --------------------------------------------------------------------------------

    def _fits(self, row: Instruction) -> bool:
        """Whether nothing of its texts would have to be cut: what should be said is of all."""
        return sum(len(self._encode(each)) for each in row.contexts) <= self._settings.max_context

    def _instruction_prompt(self, rng: np.random.Generator) -> Prompt:
        """What is to be done with a text or two, each as it was stored."""
        row = self._instructions[int(rng.integers(len(self._instructions)))]
        chunks = [self._drawn_chunks(self._encode(each), rng) for each in row.contexts]
        messages = instruction_parts(row.request, [[PLACE] * len(each) for each in chunks])
        laid = itertools.chain.from_iterable(chunks)
        return Prompt(self.lay_out(messages, [*laid, self._reply(row.answer)]), "instruction")

    def _writing_prompt(self, rng: np.random.Generator) -> Prompt:
        """An answer that a question is to be written for."""
        row = self._answerable_row(rng)
        chunks = self._drawn_chunks(self.context_ids(row, rng), rng)
        messages = writing_parts(row.answer, [PLACE] * len(chunks))
        reply = self._reply(row.question)
        return Prompt(self.lay_out(messages, [*chunks, reply]), "write a question")

    def _question_prompt(self, rng: np.random.Generator) -> Prompt:
        settings = self._settings
        row = self._answerable_row(rng)
        if self._unanswerable and rng.random() < settings.unanswerable_share:
            row = self._row(self._unanswerable, rng)
        context = self.context_ids(row, rng)
        asked = [row]
        swap, distract = rng.random(2) < (settings.swap_share, settings.distractor_share)
        swap, distract = (chosen and len(self._contexts) > 1 for chosen in (swap, distract))
        if swap:
            context = self.context_ids(self._other(row, rng), rng)
            asked = [Question("", row.question, UNKNOWN)]
        else:
            asked += self._more(row, context, rng)
        passages = [context]
        room = settings.max_context - len(context)
        while distract and room >= SHORTEST and len(passages) <= settings.max_distractors:
            other = self.context_ids(self._other(row, rng), rng)[:room]
            passages.insert(int(rng.integers(len(passages) + 1)), other)
            room -= len(other)
        about = None
        if rng.random() < settings.focus_share:
            asked = asked[:MOST_FOCUSED]
            about = [question.answer for question in asked]
        chunks = [
            chunk for passage in passages for chunk in self._drawn_chunks(passage, rng, about=about)
        ]
        messages = question_parts(asked[0].question, [PLACE] * len(chunks))
        for further in asked[1:]:
            messages.append(ChatMessage("assistant", (PLACE,)))
            messages.append(ChatMessage("user", (f"Question: {further.question}",)))
        replies = [self._reply(question.answer) for question in asked]
        return Prompt(self.lay_out(messages, [*chunks, *replies]), "question")

    def _more(
        self, row: Question, context: Sequence[int], rng: np.random.Generator
    ) -> list[Question]:
        """Further questions that the same context, as it was cut, answers or leaves open."""
        others = [other for other in self._about[row.context] if other is not row]
        rng.shuffle(others)
        text = self._tokenizer.decode(context)
        found: list[Question] = []
        for other in others:
            if len(found) == self._settings.max_turns - 1:
                break
            open_one = other.answer == UNKNOWN
            if (
                rng.random() < self._settings.unanswerable_share
                if open_one
                else (other.answer in text)
            ):
                found.append(other)
        return found

    def _answerable_row(self, rng: np.random.Generator) -> Question:
        file = int(np.searchsorted(self._shares, rng.random(), "right"))
        return self._row(self._answerable[file], rng)

    def _row(self, rows: Sequence[Question], rng: np.random.Generator) -> Question:
        return rows[int(rng.integers(len(rows)))]

    def _other(self, row: Question, rng: np.random.Generator) -> Question:
        """A question about another passage."""
        at = int(rng.integers(len(self._contexts) - 1))
        if self._contexts[at] == row.context:
            at = len(self._contexts) - 1
        return self._row(self._about[self._contexts[at]], rng)

    # -- passages ---------------------------------------------------------------------------------

    def _corpus_prompt(self, task: str, rng: np.random.Generator) -> Prompt:
        """A passage to be said again, to be continued, or to find quotations in."""
        longest = LONGEST_PASSAGE
        if task == "continue":
            longest = max(longest, self._settings.continue_context)
        n = int(rng.integers(SHORTEST_PASSAGE, longest + 1))
        ids = self._passage(n + min(n, LONGEST_PASSAGE), rng)
        if task == "continue" and len(ids) <= n:
            n = len(ids) // 2
        context, rest = ids[:n], ids[n:]
        to_go_on = task == "continue" and rng.random() < self._settings.end_share
        chunks = self._drawn_chunks(context, rng, to_go_on=to_go_on)
        if task == "look up" and len(context) >= 4 * QUOTED:
            return self._lookup(context, chunks, rng)
        thought: list[Chunk] = []
        if task == "continue" and rest:
            request, target = CONTINUE, rest
            if len(rest) >= 2 * SHORTEST and rng.random() < self._settings.thought_share:
                n_held = int(rng.integers(SHORTEST, len(rest) - SHORTEST + 1))
                thought, target = self._thought(rest[:n_held], rng), rest[n_held:]
        else:
            task, request, target = "restate", RESTATE, [*context, self._end]
        message = ChatMessage("user", ("Context:\n", *[PLACE] * len(chunks), request))
        *asked, reply = self.lay_out([message], [*chunks, Reply(target)])
        return Prompt((*asked, *thought, reply), task)

    def _thought(self, ids: list[int], rng: np.random.Generator) -> list[Chunk]:
        """The beginning of a reply as it is held while the rest is thought: block by block."""
        found, ratio = [], self._ratio(rng)
        while ids:
            n = int(rng.integers(SHORTEST, 3 * SHORTEST))
            found += self.chunks(ids[:n], ratio, self._codec.depth)
            ids = ids[n:]
        return found

    def _lookup(
        self, context: list[int], chunks: Sequence[Chunk], rng: np.random.Generator
    ) -> Prompt:
        """Quotations of a passage, each to be followed by what follows it there."""
        messages: list[ChatMessage] = []
        replies = []
        last = len(context) - 2 * QUOTED
        for at in rng.choice(last + 1, min(self._settings.max_turns, last + 1), replace=False):
            words = self._tokenizer.decode(context[at : at + QUOTED]).strip()
            if messages:
                request: tuple[Any, ...] = (LOOKUP_AGAIN.format(words=words),)
                messages.append(ChatMessage("assistant", (PLACE,)))
            else:
                places = [PLACE] * len(chunks)
                request = ("Context:\n", *places, LOOKUP.format(words=words))
            messages.append(ChatMessage("user", request))
            replies.append(Reply([*context[at + QUOTED : at + 2 * QUOTED], self._end]))
        return Prompt(self.lay_out(messages, [*chunks, *replies]), "look up")

    def _passage(self, length: int, rng: np.random.Generator) -> list[int]:
        """Tokens of the corpus, fewer where a document ends."""
        corpus = self._corpus
        assert corpus is not None
        document = int(rng.integers(len(corpus.offsets) - 1))
        start, end = corpus.offsets[document], corpus.offsets[document + 1]
        at = int(rng.integers(start, max(start + 1, end - length)))
        return [int(t) for t in corpus.tokens[at : min(at + length, end)]]

    def _drawn_chunks(
        self,
        ids: list[int],
        rng: np.random.Generator,
        *,
        about: Sequence[str] | None = None,
        to_go_on: bool = False,
    ) -> list[Chunk]:
        """A passage as text, or at a ratio and a depth, as it is written for some purpose."""
        full, ratio = self._codec.depth, self._ratio(rng)
        depth = full if rng.random() < 0.7 else int(rng.integers(1, full + 1))
        as_text = rng.random() < self._settings.raw_share
        if as_text or (about is None and not to_go_on):
            return self.chunks(ids, None if as_text else ratio, depth)
        chunks = self.chunks(ids, ratio, full)
        lengths = [len(chunk.ids) for chunk in chunks]
        n_symbols = max(1, int(len(ids) / ratio))
        if about is None:
            return emphasised_chunks(chunks, emphasise_end(lengths, n_symbols))
        relevance = torch.split(self._relevance(ids, about, rng), lengths)
        seams = token_seams(self._tokenizer, len(self._tokenizer))
        opens = torch.split(seams.openings(ids), lengths)
        pairs = np.inf if (share := self._settings.pair_share) and rng.random() < share else 0.0
        emphases = emphasise(relevance, n_symbols, opens=opens, pairs=pairs)
        return emphasised_chunks(chunks, emphases)

    def _ratio(self, rng: np.random.Generator) -> float:
        """Tokens per symbol: as often 4 to 8 as 8 to 16."""
        low, high = np.log(self._settings.min_ratio), np.log(self._settings.max_ratio)
        return float(np.exp(rng.uniform(low, high)))

    def _relevance(
        self, ids: list[int], answers: Sequence[str], rng: np.random.Generator
    ) -> Tensor:
        """Log-odds as a writer might give them: mostly high at the answers, high elsewhere too."""
        odds = rng.normal(size=len(ids))
        for _ in range(int(rng.integers(4))):
            odds[int(rng.integers(len(ids)))] += rng.uniform(3, 9)
        pieces = [self._tokenizer.decode([token]) for token in ids]
        starts = np.cumsum([0, *map(len, pieces)])
        text = "".join(pieces)
        for answer in answers:
            at = text.find(answer)
            if at >= 0 and rng.random() >= OVERLOOKED:
                first, last = np.searchsorted(starts, [at, at + len(answer) - 1], "right") - 1
                odds[first : last + 1] += rng.uniform(4, 9)
        return torch.from_numpy(odds)

    def _encode(self, text: str) -> list[int]:
        return list(text_tokenizer(self._tokenizer).ids(text))

    def _reply(self, answer: str) -> Reply:
        return Reply([*self._encode(answer), self._end])
