"""The read stage: what a batch of prompts with symbols in them costs.

A prompt is a sequence of token runs, symbol embeddings and the replies that INFER must give, at
consecutive positions. What this module does not know: where prompts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zcontext.emphasis import Emphasis, place_runs, runs_of
from zcontext.model import ZLanguageModel
from zcontext.naming import place_symbols
from zcontext.training.cross_entropy import divergences, token_losses
from zcontext.training.objective import BITS, StepOutput


@dataclass(frozen=True, slots=True)
class Reply:
    """What INFER must say at its place in a prompt.

    Attributes:
        ids: Its tokens, the end token included where the reply is complete.
    """

    ids: list[int]


Piece = list[int] | Tensor | Reply
"""Token ids that are given, the embeddings of symbols `[k, hidden]`, or a reply."""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Settings of the stage.

    Attributes:
        questions: Question files, see `questions.read_questions`.
        question_shares: Share of the questions that comes from each file; empty draws every
            question of all files alike.
        batch_rows: Prompts per micro-batch.
        max_turns: Questions about one context at most: as many turns of a chat, so that symbols
            are written and read once for all of them.
        min_ratio: Lowest ratio drawn.
        max_ratio: Highest ratio drawn.
        max_context: Context tokens of one prompt, all chunks together.
        raw_share: Share of chunks handed over as text.
        distractor_share: Share of questions with other passages beside the right one.
        max_distractors: How many of them at most, as far as `max_context` has room.
        swap_share: Share of questions whose passage is replaced, so that the answer is `unknown`.
        unanswerable_share: Largest share of unanswerable questions taken from the files.
        restate_share: Share of prompts that ask for the text itself.
        continue_share: Share of prompts that go on with the text.
        continue_context: Tokens of a text that is gone on with, at most (never below 96).
        end_share: Share of the texts to go on with that are written with emphasis on their end.
        thought_share: Share of the texts to go on with whose reply begins as symbols, as when it is
            thought (`zcontext.thinking`).
        lookup_share: Share of prompts that quote some words of the text and ask what follows them:
            what teaches INFER to find a place in symbols by content.
        ask_share: Share of the other prompts that ask for a question to an answer, as
            `zcontext.training.question_writing` does.
        instructions: Files of `zcontext instructions`.
        instruct_share: Share of the other prompts that are instructions, none of them a question.
        focus_share: Share of questions whose passages are written for them, finer where answers
            stand (and in other places, as a writer that does not know the answer would).
        pair_share: Share of these that are written two tokens a symbol there, not one.
        distil_weight: Weight of the divergence from a teacher that reads the raw text.
        teacher: File of an INFER adapter that teaches, a control's say; the plain base without one.
        start_from_decompress: Start INFER from a copy of DECOMPRESS, which reads symbols already.
    """

    questions: tuple[str, ...] = ()
    question_shares: tuple[float, ...] = ()
    batch_rows: int = 8
    max_turns: int = 4
    min_ratio: float = 2.0
    max_ratio: float = 18.0
    max_context: int = 400
    raw_share: float = 0.15
    distractor_share: float = 0.2
    max_distractors: int = 4
    swap_share: float = 0.08
    unanswerable_share: float = 0.15
    restate_share: float = 0.15
    continue_share: float = 0.1
    continue_context: int = 96
    end_share: float = 0.0
    thought_share: float = 0.0
    lookup_share: float = 0.1
    ask_share: float = 0.0
    instructions: tuple[str, ...] = ()
    instruct_share: float = 0.0
    focus_share: float = 0.0
    pair_share: float = 0.0
    distil_weight: float = 0.0
    teacher: str = ""
    start_from_decompress: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of context: tokens that will be read as they are or compressed.

    Attributes:
        ids: Its tokens.
        ratio: Tokens per symbol; None leaves it as text.
        depth: Codes per symbol.
        emphasis: Which tokens are written finer than others, for a question; None for any.
    """

    ids: list[int]
    ratio: float | None
    depth: int
    emphasis: Emphasis | None = None

    @property
    def n_symbols(self) -> int:
        """Symbols it is written as."""
        if self.emphasis is not None:
            return self.emphasis.n_slots
        return max(1, int(len(self.ids) / (self.ratio or 1.0)))


def emphasised_chunks(chunks: Sequence[Chunk], emphases: Sequence[Emphasis] | None) -> list[Chunk]:
    """Chunks of one passage, each with its emphasis.

    Args:
        chunks: The chunks.
        emphases: One for each; None where there is none to give, and they stay as they are.

    Returns:
        The chunks.
    """
    if emphases is None:
        return list(chunks)
    return [
        replace(chunk, emphasis=emphasis) for chunk, emphasis in zip(chunks, emphases, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One training prompt.

    Attributes:
        pieces: Token ids, chunks and replies, in order.
        task: Name for the log.
    """

    pieces: tuple[list[int] | Chunk | Reply, ...]
    task: str

    @property
    def replies(self) -> list[list[int]]:
        """Tokens of the replies, in order."""
        return [piece.ids for piece in self.pieces if isinstance(piece, Reply)]


@torch.no_grad()
def compress_chunks(z: ZLanguageModel, chunks: Sequence[Chunk]) -> list[Tensor]:
    """Symbols for chunks, as the compressor would write them with one window each.

    Args:
        z: The model; COMPRESS is made active.
        chunks: Chunks with a ratio.

    Returns:
        Embeddings `[k, hidden]` of each chunk.
    """
    if not chunks:
        return []
    z.adapters.activate("compress")
    longest = max(len(c.ids) for c in chunks)
    ids = torch.full((len(chunks), longest), z.end_token, device=z.device)
    mask = torch.zeros_like(ids)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk.ids)] = torch.tensor(chunk.ids, device=z.device)
        mask[row, : len(chunk.ids)] = 1
    state = z.read(ids, mask)
    counts = [chunk.n_symbols for chunk in chunks]
    ends = torch.zeros(len(chunks), max(counts), dtype=torch.long, device=z.device)
    slot_mask = torch.zeros_like(ends)
    for row, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        bits, text = state.surprisal[row, : len(chunk.ids)], torch.tensor([chunk.ids])
        if chunk.emphasis is None:
            starts = z.codebook.cut(text)
            placed = place_symbols(z.config, bits[None], count, depth=chunk.depth, starts=starts)[0]
        else:
            runs = runs_of(chunk.emphasis.fine)
            starts = z.codebook.cut(text, [{start for start, *_ in runs}])
            placed = torch.cat(
                place_runs(
                    z.config,
                    bits,
                    runs,
                    count,
                    grain=chunk.emphasis.grain,
                    depth=chunk.depth,
                    starts=starts,
                )
            )
        ends[row, :count] = placed.to(z.device)
        ends[row, count:] = len(chunk.ids) - 1
        slot_mask[row, :count] = 1
    latents = z.write(state, ends, slot_mask)
    return [
        z.quantise(
            latents[row : row + 1, :count],
            state.ids[row : row + 1],
            ends[row : row + 1, :count],
            state.surprisal[row : row + 1],
            depth=chunk.depth,
        ).embeddings[0]
        for row, (chunk, count) in enumerate(zip(chunks, counts, strict=True))
    ]


class Read(nn.Module):
    """Answer from symbols.

    Args:
        model: The model; only INFER learns.
        config: Settings of the stage.
    """

    def __init__(self, model: ZLanguageModel, config: ReadConfig) -> None:
        super().__init__()
        self.z = model
        self.config = config
        self.base = model.base.model

    def forward(self, batch: Sequence[Prompt], step: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch.

        Args:
            batch: Prompts.
            step: Unused: the objective does not change over the run.
            generator: Unused: everything random was drawn with the batch.

        Returns:
            Loss and figures.
        """
        del step, generator
        z = self.z
        rows = given(z, batch)
        replies = [reply for prompt in batch for reply in prompt.replies]
        z.adapters.activate("infer")
        states = reply_states(z, rows)
        target = torch.tensor([t for reply in replies for t in reply], device=z.device)
        nll, likeliest = token_losses(z, states, target)
        # Between a token of any reply counting alike and a reply counting alike.
        weight = torch.cat([torch.full((len(r),), 1.0 / len(r) ** 0.5) for r in replies])
        weight = weight.to(nll.device)
        loss = (nll * weight).sum() / weight.sum()
        metrics = {
            "bits_per_token": nll.detach().mean() * BITS,
            "accuracy": (likeliest == target).float().mean(),
        }
        if self.config.distil_weight > 0:
            divergence = self._divergence(batch, states)
            loss = loss + self.config.distil_weight * divergence
            metrics["divergence"] = divergence.detach()
        return StepOutput(loss, metrics, states.detach(), None)

    def _divergence(self, batch: Sequence[Prompt], states: Tensor) -> Tensor:
        """KL from the teacher that reads the raw text, on the replies' tokens."""
        z = self.z
        raw: list[list[Piece]] = [
            [piece.ids if isinstance(piece, Chunk) else piece for piece in prompt.pieces]
            for prompt in batch
        ]
        with torch.no_grad(), z.using("teach" if self.config.teacher else None):
            teacher = reply_states(z, raw)
        return divergences(z, states, teacher).mean()


def given(z: ZLanguageModel, batch: Sequence[Prompt]) -> list[list[Piece]]:
    """Prompts as INFER reads them: chunks as their text, or as the symbols written for them.

    Args:
        z: The model; COMPRESS is left active where a chunk is compressed.
        batch: Prompts.

    Returns:
        The pieces of each.
    """
    chunks = [p for prompt in batch for p in prompt.pieces if isinstance(p, Chunk)]
    written = iter(compress_chunks(z, [chunk for chunk in chunks if chunk.ratio is not None]))
    rows: list[list[Piece]] = []
    for prompt in batch:
        rows.append([])
        for piece in prompt.pieces:
            if isinstance(piece, Chunk):
                rows[-1].append(piece.ids if piece.ratio is None else next(written))
            else:
                rows[-1].append(piece)
    return rows


def reply_states(z: ZLanguageModel, rows: Sequence[Sequence[Piece]]) -> Tensor:
    """States that predict the replies' tokens, under whatever adapter is active.

    Args:
        z: The model.
        rows: The pieces of each prompt; a reply is never the first.

    Returns:
        `[total reply tokens, hidden]`, prompt after prompt, reply after reply.
    """
    embedded, places = [], []
    for row, pieces in enumerate(rows):
        parts: list[Tensor] = []
        length = 0
        for piece in pieces:
            ids = piece.ids if isinstance(piece, Reply) else piece
            if not len(ids):
                continue
            if isinstance(piece, Reply):
                places += [(row, at) for at in range(length - 1, length - 1 + len(ids))]
            part = z.embed_tokens(torch.tensor([ids]))[0] if isinstance(ids, list) else ids
            parts.append(part.to(z.base.dtype))
            length += len(ids)
        embedded.append(torch.cat(parts))
    longest = max(map(len, embedded))
    inputs = torch.stack([nn.functional.pad(e, (0, 0, 0, longest - len(e))) for e in embedded])
    mask = torch.stack([torch.arange(longest, device=z.device) < len(e) for e in embedded]).long()
    positions = torch.arange(longest, device=z.device).expand(len(embedded), -1)
    hidden = z.run(inputs, positions=positions, mask=mask).hidden
    at = torch.tensor(places, device=z.device)
    return hidden[at[:, 0], at[:, 1]]
