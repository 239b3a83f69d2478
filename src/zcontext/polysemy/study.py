"""A study of what codes mean in some texts: settings in, report out.

Texts are compressed, and on what was written it is counted how often codes fire (`usage`), how
alike the contexts are and what paraphrases share (`likeness`); some codes get a closer look
(`codes`). What it does not know: files, pages, plots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zcontext.config import CompressSettings
from zcontext.errors import ConfigError
from zcontext.model import ZLanguageModel
from zcontext.polysemy.codes import CodeEntry, LookSettings, look_at
from zcontext.polysemy.firings import Progress, gather, write_passages
from zcontext.polysemy.likeness import Consistency, Paraphrases, consistency_of, paraphrase_overlap
from zcontext.polysemy.usage import Usage, usage_of
from zcontext.spans import SupportsCompress


@dataclass(frozen=True, slots=True)
class CodeReport:
    """What the codes of a codec mean, as seen on some texts.

    Attributes:
        codec: Digest of the codec.
        shared: All stages choose from one table.
        depth: Codes per symbol.
        size: Codes per table.
        n_texts: Texts looked at.
        n_tokens: Their tokens.
        ratio: Tokens per symbol.
        usage: How often codes fire.
        consistency: How alike their contexts are.
        paraphrases: What paraphrases share, if pairs were given.
        codes: A closer look at some.
    """

    codec: str
    shared: bool
    depth: int
    size: int
    n_texts: int
    n_tokens: int
    ratio: float
    usage: Usage
    consistency: Consistency
    paraphrases: Paraphrases | None
    codes: tuple[CodeEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class PolysemySettings:
    """How codes are looked at.

    Attributes:
        compress: How texts are compressed.
        max_tokens: Tokens looked at in all.
        look: Which codes are looked at more closely, and how.
        seed: Of what is drawn at random.

    Raises:
        ConfigError: A value is out of its range.
    """

    compress: CompressSettings = dataclasses.field(default_factory=CompressSettings)
    max_tokens: int = 20_000
    look: LookSettings = dataclasses.field(default_factory=LookSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(
                f"max_tokens must be 2 or more, got {self.max_tokens}",
                field="max_tokens",
                value=self.max_tokens,
            )


def study_codes(
    texts: Sequence[str],
    *,
    compressor: SupportsCompress,
    model: ZLanguageModel,
    pairs: Sequence[tuple[str, str]] = (),
    settings: PolysemySettings | None = None,
    progress: Progress = lambda label, done, total: None,
) -> CodeReport:
    """Compress texts and see what the codes mean in them.

    Args:
        texts: At least one that is not blank.
        compressor: Writes them.
        model: Its model.
        pairs: Paraphrases of each other; none leaves that part out.
        settings: How.
        progress: Told how far it is.

    Returns:
        The report.

    Raises:
        ConfigError: There is no text, or a single pair.
    """  # noqa: DOC502 - raised by the steps
    chosen = settings or PolysemySettings()
    passages = write_passages(
        texts,
        compressor=compressor,
        model=model,
        settings=chosen.compress,
        max_tokens=chosen.max_tokens,
        progress=progress,
    )
    found = gather(model, passages, progress=progress)
    n_tokens = sum(len(passage.tokens) for passage in passages)
    shared = None
    if pairs:
        shared = paraphrase_overlap(
            pairs, compressor=compressor, model=model, settings=chosen.compress, progress=progress
        )
    return CodeReport(
        codec=model.codec,
        shared=model.config.shared,
        depth=found.codes.shape[1],
        size=model.config.size,
        n_texts=len(passages),
        n_tokens=n_tokens,
        ratio=n_tokens / len(found.segments),
        usage=usage_of(found, size=model.config.size, shared=model.config.shared),
        consistency=consistency_of(found, seed=chosen.seed),
        paraphrases=shared,
        codes=look_at(model, found, settings=chosen.look, progress=progress),
    )
