"""A GGUF file as a plain transformers folder: converted once, kept by the file's hash.

What it is: the way from one GGUF file to a folder with float32 safetensors and a tokenizer that
splits text as the original does. Reading a GGUF file takes transformers some twenty seconds on two
cores (2026-11-23), the folder half a second, so the folder is kept in the cache and put in its
place by one rename: it is there whole or not at all.
What it does not know: 4-bit, devices, which base a codec wants; that is `loading.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zcontext.errors import UnsupportedBaseError

logger = logging.getLogger(__name__)

CONVERSION = 1
"""Raised when the conversion changes, so that folders made by the old one are not used."""
_STALE_SECONDS = 3600.0
_RECORD = "zcontext-conversion.json"
_INTEGER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 10: 8, 11: 8}
"""Bytes of a GGUF value, by its kind, where that is an integer."""
_MOST_BLOCKS = 1024
"""Layers of a file whose tensors' names are out of sight."""


def cache_dir() -> Path:
    """Return where converted bases are kept.

    Returns:
        `$ZCONTEXT_CACHE`, else `$XDG_CACHE_HOME/zcontext`, else `~/.cache/zcontext`.
    """
    if explicit := os.environ.get("ZCONTEXT_CACHE"):
        return Path(explicit).expanduser()
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "zcontext"


@contextlib.contextmanager
def plain_folder(path: Path, *, digest: str) -> Iterator[Path]:
    """Give a folder that holds the GGUF file's model as float32 safetensors, with its tokenizer.

    Args:
        path: the GGUF file.
        digest: its sha256, which names the cached folder.

    Yields:
        The folder. It outlives the block, unless nothing could be kept (a read-only or full disk):
        then it is a temporary one, removed on exit.

    Raises:
        UnsupportedBaseError: when transformers cannot read the file as a causal language model.
    """  # noqa: DOC502 - raised by the conversion
    home = cache_dir() / "bases"
    target = home / f"{path.stem}-{digest[:16]}-{CONVERSION}"
    if _is_whole(target):
        yield target
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    except OSError as error:
        logger.warning("cannot keep converted bases in %s (%s); converting each time", home, error)
        with tempfile.TemporaryDirectory(prefix="zcontext-") as scratch:
            _convert(path, Path(scratch))
            yield Path(scratch)
        return
    try:
        _convert(path, partial)
        if target.exists() and not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
        # Another process may have won the race: rename onto a non-empty folder fails, and its
        # folder is as good as ours.
        with contextlib.suppress(OSError):
            os.replace(partial, target)
        yield target if _is_whole(target) else partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether every file the conversion wrote is there at its size."""
    try:
        sizes = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _remove_stale(home: Path) -> None:
    """Remove what processes that were killed in the middle left behind."""
    for left in home.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _convert(path: Path, folder: Path) -> None:
    """Write the file's model and tokenizer into an existing folder."""
    import torch
    import transformers

    _check_blocks(path)
    options: dict[str, Any] = {}
    # transformers >= 5.20 or so can keep GGUF blocks packed; earlier versions always unpack.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    logger.info("converting %s; this is done once", path.name)
    try:
        tokenizer = read_tokenizer(path)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, **options
        )
    except Exception as error:  # a damaged file can fail anywhere in three libraries
        raise UnsupportedBaseError(
            f"transformers {transformers.__version__} cannot read {path.name} as a causal language "
            f"model: {error}. Expected a GGUF file of an architecture that transformers converts; "
            "use the model's safetensors folder or hub id instead."
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / _RECORD).write_text(json.dumps({"source": path.name, "sizes": sizes}))


def _check_blocks(path: Path) -> None:
    """Refuse a file that says it has more layers than it has: each would be built, to the last."""
    head = _head(path)
    key = b".block_count"
    at = head.find(key)
    if at < 0:
        return
    kind = int.from_bytes(head[at + len(key) : at + len(key) + 4], "little")
    value = at + len(key) + 4
    declared = int.from_bytes(head[value : value + _INTEGER_BYTES.get(kind, 0)], "little")
    present = {int(number) for number in re.findall(rb"blk\.(\d{1,5})\.", head)}
    most = max(present) + 1 if present else _MOST_BLOCKS
    if declared > most:
        raise UnsupportedBaseError(
            f"{path.name} says it has {declared:,} layers and has at most {most:,}: it is damaged. "
            "Fetch it again, or use the model's safetensors folder or hub id instead."
        )


def _head(path: Path) -> bytes:
    """The part of the file that holds its facts, and of most files the names of its tensors."""
    with path.open("rb") as file:
        return file.read(1 << 24)


def read_tokenizer(path: Path) -> Any:
    """Read a GGUF file's tokenizer, with the splitting rules that transformers leaves out.

    A GGUF file names its splitting rules in `tokenizer.ggml.pre`; transformers ignores the name and
    splits as GPT-2 did. SmolLM2 splits every digit off on its own first, so that "  7" is two
    spaces and a digit, not a space and " 7".

    Args:
        path: the GGUF file.

    Returns:
        The tokenizer, as transformers' class.
    """
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.clean_up_tokenization_spaces = False
    if _splitting_rules(path) == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    return tokenizer


def _splitting_rules(path: Path) -> str:
    """Return the file's `tokenizer.ggml.pre`, or "" where it has none.

    Found as bytes: the file's own reader takes five seconds to step over the vocabulary.
    """
    key = b"tokenizer.ggml.pre"
    head = _head(path)
    at = head.find(len(key).to_bytes(8, "little") + key)
    if at < 0:
        return ""
    value = at + 8 + len(key) + 4
    length = int.from_bytes(head[value : value + 8], "little")
    return head[value + 8 : value + 8 + length].decode("utf-8", errors="replace")
