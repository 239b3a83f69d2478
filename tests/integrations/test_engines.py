"""Bundles behind a door: found when named, loaded when needed, loaded once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from langchain_core.documents import Document
from pieces import RIVER

from zcontext.bundle import save_bundle
from zcontext.errors import BundleError, ConfigError, OverloadedError
from zcontext.integrations import waiting
from zcontext.integrations.engines import Engine, follow, in_thread
from zcontext.integrations.langchain import ChatZContext, ZContextCompressor, ZContextLLM
from zcontext.model import ZLanguageModel
from zcontext.readers import Inferencer
from zcontext.testing import ByteCodec


@pytest.fixture
def bundle(tiny_model: ZLanguageModel, tmp_path: Path) -> Path:
    save_bundle(tiny_model, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def loads(tiny_model: ZLanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The bundles that were loaded; the tiny base has no place that it could be loaded from."""
    seen: list[Path] = []

    def load(path: Path, **_: Any) -> ZLanguageModel:
        seen.append(path)
        return tiny_model

    monkeypatch.setattr("zcontext.bundle.load_bundle", load)
    monkeypatch.setattr("zcontext.integrations.engines._models", {})
    return seen


def test_weights_are_loaded_when_needed_and_once_for_all_components(
    bundle: Path, loads: list[Path], tiny_model: ZLanguageModel
) -> None:
    compressor = ZContextCompressor(model=bundle, ratio=4)
    chat, llm = ChatZContext(model=str(bundle), max_tokens=2), ZContextLLM(model=bundle)
    assert compressor.vocabulary == chat.vocabulary == tiny_model.vocabulary
    assert chat.model_name == "tiny"
    assert not loads
    (document,) = compressor.compress_documents([Document(page_content=RIVER)], "q")
    assert loads == [bundle]
    chat.invoke(document.page_content)
    assert llm.get_num_tokens(document.page_content) == document.metadata["zcontext_n_symbols"]
    assert loads == [bundle]


def test_a_call_may_name_another_bundle(bundle: Path, loads: list[Path]) -> None:
    chat = ChatZContext(model=ByteCodec(), max_tokens=2)
    assert chat.invoke("hi", model=str(bundle)).response_metadata["model_name"] == "tiny"
    assert loads == [bundle]


def test_swapping_stored_spans_loads_no_weights(bundle: Path, loads: list[Path]) -> None:
    (indexed,) = ZContextCompressor(model=bundle, ratio=4).transform_documents(
        [Document(page_content=RIVER)]
    )
    loads.clear()
    (swapped,) = ZContextCompressor(model=bundle).compress_documents([indexed], "q")
    assert swapped.metadata["zcontext_action"] == "swapped"
    assert not loads


def test_making_and_naming_models_imports_no_torch(bundle: Path) -> None:
    code = (
        "import sys\n"
        "from zcontext.integrations.langchain import ChatZContext, ZContextCompressor\n"
        f"chat = ChatZContext(model={str(bundle)!r})\n"
        f"ZContextCompressor(model={str(bundle)!r}, ratio=4).vocabulary\n"
        "chat._identifying_params\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_another_infer_adapter_is_another_identity(bundle: Path) -> None:
    """The codec's digest leaves INFER out, and a cache of answers must not."""
    before = Engine(bundle).identity
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["parts"]["infer"]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert Engine(bundle).vocabulary.codec in before
    assert Engine(bundle).identity != before


def test_a_reader_with_a_bias_is_used_and_has_an_identity(tiny_model: ZLanguageModel) -> None:
    plain, careful = Inferencer(tiny_model), Inferencer(tiny_model, unknown_bias=1e4)
    assert Engine(plain).identity != Engine(careful).identity
    llm = ChatZContext(model=careful, max_tokens=1)
    assert llm.invoke("Who?").content == "u"  # the tiny base has bytes for tokens


def test_what_is_no_bundle_is_refused_when_it_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no bundle 'nowhere'"):
        Engine("nowhere")
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    for text in ("{", json.dumps({**manifest, "codec": "xyz"}), json.dumps([1])):
        (bundle / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match="names no codec"):
            Engine(bundle)


def test_an_engine_that_only_reads_is_not_asked_to_compress() -> None:
    class Half:
        """Takes away some of a ByteCodec's methods."""

        def __init__(self, *hidden: str) -> None:
            self._codec, self._hidden = ByteCodec(), hidden

        def __getattr__(self, name: str) -> Any:
            if name in self._hidden:
                raise AttributeError(name)
            return getattr(self._codec, name)

    reader = Engine(Half("compress", "compress_many"))
    assert reader.reader().context_length
    with pytest.raises(ConfigError, match="does not compress"):
        reader.compressor()
    with pytest.raises(ConfigError, match="does not read"):
        Engine(Half("complete", "chat")).reader()
    with pytest.raises(ConfigError, match="model is a dict"):
        Engine({})


def test_a_copy_goes_on_with_the_same_engine() -> None:
    codec = ByteCodec()
    assert deepcopy(Engine(codec)).reader() is codec


async def test_context_variables_travel_into_the_thread() -> None:
    from contextvars import ContextVar

    name: ContextVar[str] = ContextVar("name", default="nobody")
    name.set("somebody")
    assert await in_thread(name.get) == "somebody"
    assert [piece async for piece in follow(lambda: iter([name.get()]))] == ["somebody"]


async def test_an_error_in_a_stream_arrives_after_the_pieces_before_it() -> None:
    def broken() -> Any:
        yield "a"
        raise ValueError("b")

    pieces = follow(broken)
    assert await anext(pieces) == "a"
    with pytest.raises(ValueError, match="b"):
        await anext(pieces)


async def test_a_cancelled_stream_stops_at_its_next_piece() -> None:
    n_made = 0

    def endless() -> Any:
        nonlocal n_made
        while True:
            n_made += 1
            time.sleep(0.005)
            yield "x"

    async def read() -> None:
        async for _ in follow(endless):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.sleep(0.05)
    stopped = n_made
    await asyncio.sleep(0.05)
    assert n_made == stopped > 0


# How many may wait


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_limit", 2)


@pytest.mark.usefixtures("two_places")
async def test_a_call_beyond_the_limit_is_refused_and_places_are_given_back() -> None:
    gate = Event()
    held = [asyncio.create_task(in_thread(gate.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2 calls run or wait"):
        await in_thread(lambda: None)
    with pytest.raises(OverloadedError):
        [piece async for piece in follow(lambda: iter("ab"))]
    gate.set()
    assert await asyncio.gather(*held) == [True, True]
    assert [piece async for piece in follow(lambda: iter("ab"))] == ["a", "b"]
    assert await in_thread(lambda: 3) == 3


@pytest.mark.usefixtures("two_places")
async def test_a_cancelled_call_and_a_failed_one_leave_no_place_taken() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
    task = asyncio.create_task(in_thread(lambda: time.sleep(0.05)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stream = follow(lambda: iter("abc"))
    assert await anext(stream) == "a"
    await stream.aclose()
    assert await asyncio.gather(in_thread(lambda: 1), in_thread(lambda: 2)) == [1, 2]


@pytest.mark.parametrize("limit", [0, -1, 2.0, "many", True])
def test_a_limit_that_is_no_count_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        waiting.set_max_waiting(limit)


def test_the_environment_sets_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_limit", None)
    monkeypatch.setenv(waiting.VARIABLE, "7")
    assert waiting.max_waiting() == 7
    monkeypatch.setattr(waiting, "_limit", None)
    monkeypatch.setenv(waiting.VARIABLE, "none")
    with pytest.raises(ConfigError):
        waiting.max_waiting()
