"""The engines that commands use, made from the options a user gives. torch comes in here, late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zcontext.evaluation.judge import Judge
    from zcontext.spans import SupportsCompress, SupportsDecompress, SupportsPrune, SupportsRead
    from zcontext.vocabulary import ZVocabulary

_PANEL = "Model"

Bundle = Annotated[
    str,
    typer.Option(
        "--bundle",
        "-b",
        help="Trained codec: a folder, or the name of one that ships.",
        rich_help_panel=_PANEL,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Base model: a folder, GGUF file or hub id, if not where the bundle says.",
        rich_help_panel=_PANEL,
    ),
]
Quantization = Annotated[
    str,
    typer.Option("--quantization", help="nf4, nf4-dequantised or none.", rich_help_panel=_PANEL),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="auto, bf16 or fp32.", rich_help_panel=_PANEL),
]
Device = Annotated[
    str,
    typer.Option("--device", help="auto, cpu, cuda, cuda:0 or mps.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and where it runs.

    Attributes:
        bundle: Folder or name.
        base: Where the base is, if not where the bundle says.
        quantization: Of the base.
        dtype: "auto", "bf16" or "fp32".
        device: "auto" or a torch device.
    """

    bundle: str
    base: str | None
    quantization: str
    dtype: str
    device: str


class Engines:
    """Compressor, decompressor, reader and judge on one model, loaded when the first is needed.

    Args:
        options: Which model.
    """

    def __init__(self, options: ModelOptions) -> None:
        self._options = options

    @cached_property
    def model(self) -> Any:
        """The model."""
        from zcontext.bundle import load_bundle
        from zcontext.bundles import find_bundle

        options = self._options
        return load_bundle(
            find_bundle(options.bundle),
            quantization=options.quantization,
            dtype=options.dtype,
            device=options.device,
            base=options.base,
        )

    @property
    def vocabulary(self) -> ZVocabulary:
        """The symbols of the model's codec."""
        vocabulary: ZVocabulary = self.model.vocabulary
        return vocabulary

    def token_starts(self, text: str) -> Sequence[int]:
        """The character at which each base token of a text starts."""
        from zcontext.tokenization import text_tokenizer

        found = text_tokenizer(self.model.tokenizer).locate(text, max_tokens=max(1, len(text) * 4))
        return found.starts

    def compressor(self, *, store: Path | None = None) -> SupportsCompress:
        """A compressor, with a store on disk if one is named."""
        from zcontext.compressor import ZCompressor
        from zcontext.store import SQLiteStore

        # The store first: a bad path should not cost the seconds of loading a model.
        kept = None if store is None else SQLiteStore(store)
        return ZCompressor(self.model, store=kept)

    def pruner(self) -> SupportsPrune:
        """A pruner."""
        from zcontext.pruner import ZPruner

        return ZPruner(self.model)

    def token_bits(self, text: str) -> list[float]:
        """The surprisal of each base token of a text, under the plain base."""
        from zcontext.pruner import token_bits
        from zcontext.tokenization import text_tokenizer

        return token_bits(self.model, text_tokenizer(self.model.tokenizer).ids(text))

    def decompressor(self, *, batch_size: int = 8) -> SupportsDecompress:
        """A decompressor that reads so many spans in one pass."""
        from zcontext.readers import ZDecompressor

        return ZDecompressor(self.model, batch_size=batch_size)

    def reader(self, *, unknown_bias: float = 0.0) -> SupportsRead:
        """A reader, that much readier to say that a context does not tell."""
        from zcontext.readers import Inferencer

        return Inferencer(self.model, unknown_bias=unknown_bias)

    def judge(self) -> Judge:
        """The teacher-forced measure."""
        from zcontext.evaluation.judge import ModelJudge

        return ModelJudge(self.model)


def open_engines(
    bundle: str, base: str | None, quantization: str, dtype: str, device: str
) -> Engines:
    """Engines for the model options of a command.

    Args:
        bundle: Folder or name.
        base: Where the base is, if not where the bundle says.
        quantization: Of the base.
        dtype: "auto", "bf16" or "fp32".
        device: "auto" or a torch device.

    Returns:
        The engines; nothing is loaded yet.
    """
    return Engines(ModelOptions(bundle, base, quantization, dtype, device))
