"""The read stage: what a batch of prompts with symbols in them costs.

A prompt is a sequence of token runs and symbol embeddings at consecutive positions, followed by the
answer that INFER must give. What this module does not know: where prompts come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zcontext.model import ZLanguageModel
from zcontext.segmentation import place_slots
from zcontext.training.cross_entropy import token_losses
from zcontext.training.objective import BITS, StepOutput

Piece = list[int] | Tensor
"""Token ids, or the embeddings of symbols `[k, hidden]`."""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Settings of the stage.

    Attributes:
        questions: Question files, see `questions.read_questions`.
        batch_rows: Prompts per micro-batch.
        min_ratio: Lowest ratio drawn.
        max_ratio: Highest ratio drawn.
        max_context: Context tokens of one prompt, all chunks together.
        raw_share: Share of chunks handed over as text.
        distractor_share: Share of questions with other passages beside the right one.
        swap_share: Share of questions whose passage is replaced, so that the answer is `unknown`.
        unanswerable_share: Largest share of unanswerable questions taken from the files.
        restate_share: Share of prompts that ask for the text itself.
        continue_share: Share of prompts that go on with the text.
        lookup_share: Share of prompts that quote some words of the text and ask what follows them:
            what teaches INFER to find a place in symbols by content.
        distil_weight: Weight of the divergence from the plain base reading the raw text.
        start_from_decompress: Start INFER from a copy of DECOMPRESS, which reads symbols already.
    """

    questions: tuple[str, ...] = ()
    batch_rows: int = 8
    min_ratio: float = 2.0
    max_ratio: float = 18.0
    max_context: int = 400
    raw_share: float = 0.15
    distractor_share: float = 0.2
    swap_share: float = 0.08
    unanswerable_share: float = 0.15
    restate_share: float = 0.15
    continue_share: float = 0.1
    lookup_share: float = 0.1
    distil_weight: float = 0.0
    start_from_decompress: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of context: tokens that will be read as they are or compressed.

    Attributes:
        ids: Its tokens.
        ratio: Tokens per symbol; None leaves it as text.
        depth: Codes per symbol.
    """

    ids: list[int]
    ratio: float | None
    depth: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One training prompt.

    Attributes:
        pieces: Token ids and chunks, in order.
        answer: What INFER must say, its end token included.
        task: Name for the log.
    """

    pieces: tuple[list[int] | Chunk, ...]
    answer: list[int]
    task: str


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
    counts = [max(1, int(len(c.ids) / (c.ratio or 1.0))) for c in chunks]
    ends = torch.zeros(len(chunks), max(counts), dtype=torch.long, device=z.device)
    slot_mask = torch.zeros_like(ends)
    for row, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        placed = place_slots(state.surprisal[row, : len(chunk.ids)].cpu(), count)
        ends[row, :count] = placed.to(z.device)
        ends[row, count:] = len(chunk.ids) - 1
        slot_mask[row, :count] = 1
    latents = z.write(state, ends, slot_mask)
    return [
        z.quantise(
            latents[row : row + 1, :count],
            state.tokens[row : row + 1],
            ends[row : row + 1, :count],
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
        chunks = [
            p for b in batch for p in b.pieces if isinstance(p, Chunk) and p.ratio is not None
        ]
        written = iter(compress_chunks(z, chunks))
        rows: list[list[Piece]] = []
        for prompt in batch:
            row: list[Piece] = []
            for piece in prompt.pieces:
                if isinstance(piece, list):
                    row.append(piece)
                else:
                    row.append(piece.ids if piece.ratio is None else next(written))
            rows.append(row)
        answers = [prompt.answer for prompt in batch]
        z.adapters.activate("infer")
        states = answer_states(z, rows, answers)
        target = torch.tensor([t for a in answers for t in a], device=z.device)
        nll, likeliest = token_losses(z, states, target)
        # Every prompt counts alike, however long its answer.
        weight = torch.cat([torch.full((len(a),), 1.0 / len(a) ** 0.5) for a in answers])
        weight = weight.to(nll.device)
        loss = (nll * weight).sum() / weight.sum()
        metrics = {
            "bits_per_token": nll.detach().mean() * BITS,
            "accuracy": (likeliest == target).float().mean(),
        }
        if self.config.distil_weight > 0:
            divergence = self._divergence(batch, answers, states)
            loss = loss + self.config.distil_weight * divergence
            metrics["divergence"] = divergence.detach()
        return StepOutput(loss, metrics, states.detach(), None)

    def _divergence(
        self, batch: Sequence[Prompt], answers: Sequence[list[int]], states: Tensor
    ) -> Tensor:
        """KL from the plain base that reads the raw text, on the answers' tokens."""
        z = self.z
        raw: list[list[Piece]] = [
            [p if isinstance(p, list) else p.ids for p in prompt.pieces] for prompt in batch
        ]
        with torch.no_grad(), z.using(None):
            teacher = z.logits(answer_states(z, raw, answers)).log_softmax(-1)
        return nn.functional.kl_div(
            z.logits(states).log_softmax(-1), teacher, reduction="batchmean", log_target=True
        )


def answer_states(
    z: ZLanguageModel, rows: Sequence[Sequence[Piece]], answers: Sequence[list[int]]
) -> Tensor:
    """States that predict the answers' tokens, under whatever adapter is active.

    Args:
        z: The model.
        rows: The pieces of each prompt.
        answers: The tokens that follow each prompt.

    Returns:
        `[total answer tokens, hidden]`, prompt after prompt.
    """
    embedded = []
    for row, answer in zip(rows, answers, strict=True):
        parts = [
            z.embed_tokens(torch.tensor([piece]))[0] if isinstance(piece, list) else piece
            for piece in (*row, answer)
            if len(piece)
        ]
        embedded.append(torch.cat([p.to(z.base.dtype) for p in parts]))
    longest = max(len(e) for e in embedded)
    inputs = torch.stack([nn.functional.pad(e, (0, 0, 0, longest - len(e))) for e in embedded])
    mask = torch.stack([torch.arange(longest, device=z.device) < len(e) for e in embedded]).long()
    positions = torch.arange(longest, device=z.device).expand(len(embedded), -1)
    hidden = z.run(inputs, positions=positions, mask=mask).hidden
    return torch.cat(
        [
            hidden[row, len(e) - len(a) - 1 : len(e) - 1]
            for row, (e, a) in enumerate(zip(embedded, answers, strict=True))
        ]
    )
