"""A codec on disk: manifest, codebook, adapters; checked part by part when it is read.

The base weights are named in the manifest, not copied. Only JSON and safetensors are read, so a
bundle cannot carry code. What this module does not know: training, text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from zcontext.adapters import adapter_depth
from zcontext.config import ROLES, CodecConfig, from_table
from zcontext.errors import BundleError, ConfigError, UnsupportedBaseError
from zcontext.loading import load_base
from zcontext.model import ZLanguageModel
from zcontext.sealing import (
    OPTIONAL_PARTS,
    PARTS,
    channel_state,
    load_codebook,
    load_writer,
    part_state,
    writer_state,
)

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"


def save_bundle(
    model: ZLanguageModel,
    folder: str | Path,
    *,
    card: str | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a bundle beside its final name, then swap it in.

    Args:
        model: The model; it is sealed first.
        folder: Folder to create or replace.
        card: Text of the model card; None keeps the one that is there.
        training: Facts of the training run, kept in the manifest.

    Raises:
        BundleError: The folder cannot be written, or holds something that is no bundle.
    """
    model.seal()
    target = Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise BundleError(
            f"{target} is not empty and holds no bundle; give a new folder, so that nothing of "
            "yours is replaced"
        )
    if card is None and (target / CARD).is_file():
        card = (target / CARD).read_text(encoding="utf-8")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _write_parts(model, scratch, training or {})
            if card is not None:
                (scratch / CARD).write_text(card, encoding="utf-8")
            scratch.chmod(0o755)
            _swap(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"cannot write the bundle {target}: {error}; free space or choose another folder"
        ) from error


def _write_parts(model: ZLanguageModel, folder: Path, training: dict[str, Any]) -> None:
    parts = {}
    states = {part: part_state(model.codebook, model.adapters, part) for part in PARTS}
    if model.composer is not None:
        states["compose"] = writer_state("compose", model.composer, model.adapters)
    if model.channel is not None:
        states["channel"] = channel_state(model.channel)
    if model.focus is not None:
        states["focus"] = writer_state("focus", model.focus, model.adapters)
    for part, state in states.items():
        data = save(state)
        (folder / f"{part}.safetensors").write_bytes(data)
        parts[part] = {"sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data)}
    manifest = {
        "format": FORMAT,
        "zcontext": _version(),
        "codec": model.codec,
        "config": dataclasses.asdict(model.config),
        "base": {"name": model.base.name, "sha256": model.base.sha256},
        "parts": parts,
        "training": training,
    }
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _swap(scratch: Path, target: Path) -> None:
    """Put a finished folder in place; the old one is removed only after the new one stands."""
    if not target.exists():
        os.replace(scratch, target)
        return
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(scratch, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _version() -> str:
    try:
        return metadata.version("zcontext")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "0+source"


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read a bundle's manifest and check its form.

    Args:
        folder: Folder of the bundle.

    Returns:
        The manifest.

    Raises:
        BundleError: There is none, or it is not one of ours.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"no bundle at {folder}: {MANIFEST} is missing; give the folder that "
            "`zcontext train` or `save` wrote"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} cannot be read as JSON: {error}; fetch the bundle again"
        ) from error
    wanted = {"format": int, "codec": str, "config": dict, "base": dict, "parts": dict}
    for name, kind in wanted.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind):
            raise BundleError(
                f"{path} has no {name!r} of the expected kind ({kind.__name__}); it "
                "is not a bundle's manifest"
            )
    if manifest["format"] != FORMAT:
        raise BundleError(
            f"{path} has format {manifest['format']}, this version reads {FORMAT}; "
            "install the zcontext that wrote it"
        )
    if not set(PARTS) <= set(manifest["parts"]) <= {*PARTS, *OPTIONAL_PARTS}:
        raise BundleError(
            f"{path} lists the parts {sorted(manifest['parts'])}, expected {sorted(PARTS)} and "
            f"perhaps {sorted(OPTIONAL_PARTS)}; fetch the bundle again"
        )
    base = manifest["base"]
    if not all(isinstance(base.get(name), str) for name in ("name", "sha256")):
        raise BundleError(
            f"{path} names no base: {base!r}; expected its name and SHA-256. Fetch the bundle again"
        )
    found: dict[str, Any] = manifest
    return found


def _read_part(folder: Path, part: str, entry: Any) -> dict[str, Tensor]:
    path = folder / f"{part}.safetensors"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} is missing or unreadable ({error}); fetch the bundle again"
        ) from error
    wanted = entry.get("sha256") if isinstance(entry, dict) else None
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise BundleError(
            f"{path} was altered or cut short: its SHA-256 is {found[:12]}..., the "
            f"manifest says {str(wanted)[:12]}...; fetch the bundle again"
        )
    return _tensors(path, data)


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise BundleError(f"{path} is not a safetensors file: {error}") from error


def replace_infer(model: ZLanguageModel, file: str | Path) -> None:
    """Give a model another INFER adapter than its bundle's. Its codec stays what it is.

    Args:
        model: The model.
        file: The `infer.safetensors` of a bundle with adapters of the same shape.

    Raises:
        BundleError: The file is missing, damaged, or does not fit the model.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error}); give the infer.safetensors of a trained bundle"
        ) from error
    fill(model, {"infer": _tensors(path, data)})


def read_parts(
    folder: str | Path, parts: Iterable[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Read and check the tensors of a bundle.

    Args:
        folder: Folder of the bundle.
        parts: Which parts; None means all that it has.

    Returns:
        Part to name to tensor.

    Raises:
        BundleError: A part is missing, altered or truncated.
    """
    manifest = read_manifest(folder)
    listed = manifest["parts"]
    return {part: _read_part(Path(folder), part, listed[part]) for part in parts or listed}


def load_bundle(
    folder: str | Path,
    *,
    quantization: str = "nf4",
    dtype: str = "auto",
    device: str = "auto",
    base: str | None = None,
) -> ZLanguageModel:
    """Load a codec onto its base.

    Args:
        folder: Folder of the bundle.
        quantization: Of the base: "nf4", "nf4-dequantised" or "none".
        dtype: "auto", "bf16" or "fp32".
        device: "auto" or a torch device.
        base: Where to take the base from; None means the place named in the manifest.

    Returns:
        The model, ready to compress and to read.

    Raises:
        BundleError: The bundle is missing, altered, truncated or made for another base.
    """
    manifest = read_manifest(folder)
    parts = read_parts(folder)
    try:
        config = from_table(CodecConfig, manifest["config"])
    except ConfigError as error:
        raise BundleError(f"{folder}: the manifest's config is not valid: {error}") from error
    _check_rank(folder, config, parts)
    named = manifest["base"]
    loaded = load_base(
        base or named.get("name"), quantization=quantization, dtype=dtype, device=device
    )
    if loaded.sha256 != named.get("sha256"):
        raise BundleError(
            f"the bundle {folder} was made for the base {named.get('name')} with SHA-256 "
            f"{str(named.get('sha256'))[:12]}..., but the base loaded from {loaded.name} has "
            f"{loaded.sha256[:12]}...; symbols would be misread. Load the base it names"
        )
    model = ZLanguageModel(loaded, config)
    fill(model, parts)
    if model.codec != manifest["codec"]:
        raise BundleError(
            f"the bundle {folder} names codec {manifest['codec'][:12]}..., its parts make "
            f"{model.codec[:12]}...; fetch the bundle again"
        )
    return model


def _check_rank(
    folder: str | Path, config: CodecConfig, parts: dict[str, dict[str, Tensor]]
) -> None:
    """Refuse a rank that the adapters do not have, before memory is taken for it."""
    for part in {*ROLES, "compose", "focus"} & set(parts):
        ranks = {t.shape[0] for name, t in parts[part].items() if ".lora_A" in name}
        if ranks != {config.lora_rank}:
            raise BundleError(
                f"{folder}: the manifest says lora_rank={config.lora_rank}, the {part} adapter has "
                f"{sorted(ranks)}; fetch the bundle again"
            )


def fill(model: ZLanguageModel, parts: dict[str, dict[str, Tensor]]) -> None:
    """Put the tensors of a bundle into a model, and seal it.

    Args:
        model: A model of the same shape.
        parts: As `read_parts` gives them; any subset.

    Raises:
        BundleError: Names or shapes do not fit the model.
    """
    for part, state in parts.items():
        try:
            if part == "codebook":
                load_codebook(model.codebook, state)
            elif part == "compose":
                load_writer("compose", model.add_composer(), model.adapters, state)
            elif part == "channel":
                model.add_channel().load_state_dict({n: t.float() for n, t in state.items()})
            elif part == "focus":
                focus = model.add_focus()
                model.adapters.add("focus", depth=adapter_depth(state))
                load_writer("focus", focus, model.adapters, state)
            else:
                model.adapters.load(part, state)  # type: ignore[arg-type]
        except (RuntimeError, UnsupportedBaseError) as error:
            raise BundleError(f"the bundle's {part} does not fit the base: {error}") from error
    model.seal()
