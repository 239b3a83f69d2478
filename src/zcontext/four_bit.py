"""The linear layers of a model in 4 bits, and the care they need.

What it is: `quantise_linears` replaces layers by bitsandbytes' `Linear4bit`, `dequantise_linears`
sends weights through NF4 and back; both start from the numbers of `nf4.py`, so the two models
multiply by the same weights on every device. `prepare_for_training` keeps gradients flowing.
What it does not know: files, tokenizers, adapters.

Why bitsandbytes is handed ready numbers: its own CPU kernel finds the nearest 8-bit code through a
table of 65,536 bins and its CUDA kernel by bisection, so 0.2 % of the block statistics differ by a
step between the two (2026-11-23), and a codec's figures would depend on where the base was loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from zcontext import nf4
from zcontext.errors import MissingDependencyError, UnsupportedBaseError

_WORTH_A_TEAM = 1 << 22
"""Weights from which on several threads are worth their waiting for each other."""


def has_bitsandbytes() -> bool:
    """Return whether bitsandbytes is installed.

    Returns:
        True when the package can be found; nothing is imported.
    """
    return importlib.util.find_spec("bitsandbytes") is not None


@contextlib.contextmanager
def without_kernel_advice() -> Iterator[None]:
    """Keep bitsandbytes from printing, at its import, an advice to install another package.

    Wrap the first import of bitsandbytes, or of what imports it (peft), in this.

    Yields:
        Nothing.
    """
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def keep(record: logging.LogRecord) -> bool:
        return "gemm_4bit_forward" not in record.getMessage()

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def dequantise_linears(model: nn.Module) -> int:
    """Replace every linear layer's weight by the one its 4-bit twin would multiply by, in place.

    The output head stays as it is, as it does in transformers' own 4-bit models.

    Args:
        model: a transformers causal language model.

    Returns:
        How many layers were changed.
    """
    names = _linear_names(model)
    for name in names:
        layer = _linear(model, name)
        with _threads_for(layer):
            _send_through_nf4(layer)
    return len(names)


def quantise_linears(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> int:
    """Replace every linear layer by a 4-bit one (nf4, double quantisation), in place.

    A layer whose input width is not a multiple of 64 keeps plain weights that went through 4 bits:
    bitsandbytes' AVX512 kernel counts blocks by the row and scales such a layer by the wrong
    statistics (an [48, 80] layer came back with errors as large as its weights; 0.50.2,
    2026-11-23).

    Args:
        model: a transformers causal language model.
        dtype: what the layers compute in.
        device: where the 4-bit layers are put; the rest of the model stays where it is.

    Returns:
        How many layers were changed.

    Raises:
        MissingDependencyError: when bitsandbytes is not installed.
    """
    if not has_bitsandbytes():
        raise MissingDependencyError(
            "4-bit layers need the package bitsandbytes, which is not installed. Install it, or "
            'load with quantization="nf4-dequantised" for the same numbers in plain layers.'
        )
    names = _linear_names(model)
    for name in names:
        layer = _linear(model, name)
        with _threads_for(layer):
            if layer.in_features % nf4.BLOCK:
                _send_through_nf4(layer)
            else:
                model.set_submodule(name, _four_bit_twin(layer, dtype, device))
    # peft asks the model for this before it chooses its own 4-bit LoRA layer.
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    return len(names)


def prepare_for_training(model: nn.Module) -> nn.Module:
    """Keep gradients flowing through frozen 4-bit layers, whatever runs before.

    On CPUs with AVX512-BF16 bitsandbytes repacks a layer's weights at its first forward in
    evaluation mode, and the repacked layer passes no gradient on: later training goes on with only
    a warning and learns nothing below it. This forbids the repacking.

    Args:
        model: any model; one without 4-bit layers is left as it is.

    Returns:
        The same model.

    Raises:
        UnsupportedBaseError: when a layer is repacked already, which cannot be undone exactly.
    """
    for name, layer in model.named_modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            state = getattr(getattr(layer, "weight", None), "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                raise UnsupportedBaseError(
                    f"the 4-bit layer {name} was repacked by an evaluation on this CPU and passes "
                    "no gradient on. Expected a model that has not run yet; load the base again "
                    "and call prepare_for_training() before its first forward."
                )
            layer.support_avx512bf16_for_cpu = False
    return model


def allow_repacking(model: nn.Module) -> nn.Module:
    """Let bitsandbytes repack 4-bit layers at their first evaluation, for speed on one CPU kind.

    On CPUs with AVX512-BF16 a repacked layer decodes 2.6 times as fast and prefills no faster
    (SmolLM2-135M, one thread, 2026-11-23). It is off unless asked for, because its numbers are
    others (block statistics rounded to bf16) and it cannot be trained through.

    Args:
        model: a model with 4-bit layers; only those whose width is a multiple of 32 are repacked.

    Returns:
        The same model.
    """
    if not has_bitsandbytes():
        return model
    capable = bool(_import_bitsandbytes().functional.has_avx512bf16())
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            fits = int(layer.out_features) % 32 == 0  # type: ignore[arg-type]
            layer.support_avx512bf16_for_cpu = capable and fits  # type: ignore[assignment]
    return model


def _linear_names(model: nn.Module) -> list[str]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not head
    ]
    if not names:
        raise UnsupportedBaseError(
            f"{type(model).__name__} has no linear layers to hold in 4 bits. Expected torch "
            'nn.Linear modules; load this base with quantization="none".'
        )
    return names


@contextlib.contextmanager
def _threads_for(layer: nn.Linear) -> Iterator[None]:
    """Quantise a small layer on one thread.

    It is a dozen operations of a millisecond each, and a team of threads waits for its slowest
    member after every one: with other work on the cores SmolLM2-135M took 42 s on two threads and
    1.7 s on one (2026-11-23).
    """
    threads = torch.get_num_threads()
    if layer.weight.numel() >= _WORTH_A_TEAM:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _send_through_nf4(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(nf4.roundtrip(layer.weight.data), requires_grad=False)


def _four_bit_twin(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Build the 4-bit layer that multiplies by `nf4.roundtrip(layer.weight)`."""
    bnb = _import_bitsandbytes()
    numbers = nf4.quantize(layer.weight.data.to(device))
    packed = ((numbers.levels[::2] << 4) | numbers.levels[1::2]).unsqueeze(1)
    state = bnb.functional.QuantState(
        absmax=numbers.absmax_codes,
        shape=torch.Size(numbers.shape),
        code=torch.tensor(nf4.LEVELS, device=device),
        blocksize=nf4.BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=numbers.offset,
        state2=bnb.functional.QuantState(
            absmax=numbers.absmax_scales,
            code=torch.tensor(nf4.dynamic_map(), device=device),
            blocksize=nf4.STATISTICS_BLOCK,
            dtype=torch.float32,
        ),
    )
    with torch.device("meta"):
        twin = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
    twin.weight = bnb.nn.Params4bit(
        packed,
        requires_grad=False,
        quant_state=state,
        blocksize=nf4.BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        module=twin,
        bnb_quantized=True,
    )
    twin.quant_state = state
    if layer.bias is not None:
        twin.bias = nn.Parameter(layer.bias.data.to(device, dtype), requires_grad=False)
    twin.support_avx512bf16_for_cpu = False
    twin.train(layer.training)
    return twin  # type: ignore[no-any-return]


def _import_bitsandbytes() -> Any:
    with without_kernel_advice():
        import bitsandbytes
    return bitsandbytes
