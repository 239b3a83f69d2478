"""The bench: every engine a comparison needs, on one model and, if there is one, a control's.

It knows models; not tasks, files or figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zcontext.compressor import ZCompressor
from zcontext.evaluation.conditions import Reader
from zcontext.evaluation.continuation import Foreteller
from zcontext.evaluation.foretellers import InferForeteller, PlainForeteller
from zcontext.evaluation.judge import Judge, ModelJudge
from zcontext.evaluation.peers import Evictor, Peer, find_evictors, find_peers
from zcontext.evaluation.respondents import PlainBase, ReaderRespondent, Respondent
from zcontext.model import ZLanguageModel
from zcontext.readers import Inferencer, ZDecompressor
from zcontext.spans import SupportsCompress, SupportsDecompress


@dataclass(frozen=True, slots=True)
class Bench:
    """Engines side by side.

    Attributes:
        compressor: Writes symbols.
        decompressor: Restores text from them.
        judge: Teacher-forced bits.
        respondents: Who answers questions.
        foretellers: Who foresees continuations.
        peers: Methods that shorten text, by name.
        evictors: Methods that drop keys and values, by name.
        control: What the control is, in words.
        readers: Who reads the text that rivals leave: the control alone where it was trained to,
            else INFER as well, so that a weak control is no advantage of the symbols.
        model: Whose times are measured; None where there is nothing to time.
    """

    compressor: SupportsCompress
    decompressor: SupportsDecompress
    judge: Judge
    respondents: Mapping[Reader, Respondent]
    foretellers: Mapping[Reader, Foreteller]
    peers: Mapping[str, Peer] = field(default_factory=dict)
    evictors: Mapping[str, Evictor] = field(default_factory=dict)
    control: str = "plain base"
    readers: tuple[Reader, ...] = ("infer", "control")
    model: ZLanguageModel | None = None


def open_bench(
    model: ZLanguageModel,
    *,
    control: ZLanguageModel | None = None,
    control_name: str = "",
    with_peers: bool = True,
) -> Bench:
    """A bench on real models.

    Args:
        model: Writes and reads symbols.
        control: Its INFER adapter, trained on raw text, is the control; None takes the plain base.
            The model itself makes its own INFER adapter the control, which also reads text.
        control_name: What reports call it.
        with_peers: Also the other methods that are installed.

    Returns:
        The bench.
    """
    respondents: dict[Reader, Respondent] = {
        "infer": ReaderRespondent(Inferencer(model, prefix_cache_bytes=0))
    }
    foretellers: dict[Reader, Foreteller] = {"infer": InferForeteller(model)}
    told = "plain base (no adapter was trained on raw text)"
    if control is None:
        respondents["control"] = PlainBase(model)
        foretellers["control"] = PlainForeteller(model)
    else:
        told = f"INFER adapter of {control_name}, trained on raw text"
        if control is model:
            told = "the bundle's own INFER adapter, reading text"
        reader = Inferencer(control, prefix_cache_bytes=0)
        respondents["control"] = ReaderRespondent(reader, name="control")
        foretellers["control"] = InferForeteller(control)
    return Bench(
        compressor=ZCompressor(model),
        decompressor=ZDecompressor(model, batch_size=8),
        judge=ModelJudge(model),
        respondents=respondents,
        foretellers=foretellers,
        peers={peer.name: peer for peer in find_peers(model)} if with_peers else {},
        evictors={e.name: e for e in find_evictors(control or model)} if with_peers else {},
        control=told,
        readers=("infer", "control") if control is None else ("control",),
        model=model,
    )
