"""What a codec is made of, in the precision it is stored in, and the digest that names it.

What this module does not know: files, the base model's passes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import torch
from torch import Tensor

from zcontext.adapters import RoleAdapters
from zcontext.channel import Channel
from zcontext.codebook import Codebook
from zcontext.composer import Composer
from zcontext.config import ROLES, CodecConfig, Role
from zcontext.focus import Focus
from zcontext.lexicon import NO_TOKEN

STORAGE = torch.float16
PARTS = ("codebook", *ROLES)
OPTIONAL_PARTS = ("compose", "channel", "focus")
"""Parts that a bundle may have: the autoregressive writer's adapter and composer; the channel; what
finds where a text answers a question, an adapter and a head."""
_OWN: dict[str, str] = {"compose": "composer", "focus": "focus"}
DIGESTED = ("codebook", "compress", "decompress")
"""Parts that give a stored symbol its meaning, with the channel where there is one. INFER only
reads symbols; the autoregressive writer chooses others for a text, which mean what the codebook and
DECOMPRESS say all the same."""

_NAMED = "lexicon.named"

_RECIPE = 1
"""Counted up when the same numbers come to mean something else."""


def part_state(codebook: Codebook, adapters: RoleAdapters, part: str) -> dict[str, Tensor]:
    """The tensors of one part in storage precision, on the CPU.

    Args:
        codebook: The codebook.
        adapters: The adapters.
        part: One of `PARTS`.

    Returns:
        Name to tensor.
    """
    state: dict[str, Tensor] = (
        codebook.state_dict() if part == "codebook" else dict(adapters.named_parameters(part))  # type: ignore[arg-type]
    )
    stored = {n: t.detach().to("cpu", STORAGE).contiguous() for n, t in state.items()}
    if part == "codebook" and codebook.lexicon is not None:
        del stored[_NAMED]
        stored["named"] = codebook.lexicon.named.to("cpu", torch.int32)
    elif part == "codebook":
        stored["rows"], stored["row_scale"] = _in_bytes(codebook.rows.detach().cpu())
    return stored


def load_codebook(codebook: Codebook, stored: dict[str, Tensor]) -> None:
    """Fill a codebook from what `part_state` gave for it.

    Args:
        codebook: Changed in place.
        stored: Tensors of the part.

    Raises:
        RuntimeError: Names or shapes are those of another codec, or a token is named that the
            base does not have.
    """
    state = {n: t.float() for n, t in stored.items() if n != "row_scale"}
    if "row_scale" in stored:
        state["rows"] = stored["rows"].float() * stored["row_scale"].float()
    if "named" in state:
        state[_NAMED] = state.pop("named")
    codebook.load_state_dict(state)
    if codebook.lexicon is not None:
        named, n_tokens = codebook.lexicon.named, codebook.lexicon.n_tokens
        if bool(((named < NO_TOKEN) | (named >= n_tokens)).any()):
            raise RuntimeError(f"its codes name tokens beyond the base's {n_tokens:,}")


def _in_bytes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 `[..., hidden]` and their scales in storage precision `[..., 1]`.

    Half the size of 16-bit rows at an error under 1 % of a row, and what is rounded once stays.
    """
    scale = (rows.abs().amax(-1, keepdim=True) / 127).to(STORAGE)
    steps = torch.round(rows / scale.float().clamp_min(1e-12)).clamp(-127, 127)
    return steps.to(torch.int8).contiguous(), scale.contiguous()


def writer_state(role: Role, module: Composer | Focus, adapters: RoleAdapters) -> dict[str, Tensor]:
    """The tensors of the part "compose" or "focus" in storage precision, on the CPU.

    Args:
        role: Names the part and its adapter.
        module: What the part has beside the adapter.
        adapters: The adapters, that of the role among them.

    Returns:
        Name to tensor: `composer/...` or `focus/...`, and `adapter/...`.
    """
    own = {f"{_OWN[role]}/{n}": t for n, t in module.state_dict().items()}
    lora = {f"adapter/{n}": t for n, t in adapters.named_parameters(role).items()}
    return {n: t.detach().to("cpu", STORAGE).contiguous() for n, t in (own | lora).items()}


def load_writer(
    role: Role, module: Composer | Focus, adapters: RoleAdapters, stored: dict[str, Tensor]
) -> None:
    """Fill a part from what `writer_state` gave.

    Args:
        role: Names the part and its adapter.
        module: Changed in place.
        adapters: Changed in place.
        stored: Tensors of the part.

    Raises:
        UnsupportedBaseError: Names or shapes of the adapter are those of another base.
        RuntimeError: Names or shapes of the module are those of another codec.
    """  # noqa: DOC502 - raised by both
    split: dict[str, dict[str, Tensor]] = {_OWN[role]: {}, "adapter": {}}
    for name, tensor in stored.items():
        kind, _, rest = name.partition("/")
        split.setdefault(kind, {})[rest] = tensor.float()
    module.load_state_dict(split[_OWN[role]])
    adapters.load(role, split["adapter"])


def seal_writer(role: Role, module: Composer | Focus, adapters: RoleAdapters) -> None:
    """Round the part "compose" or "focus" to what a bundle keeps, and name it.

    The name is not the codec's. It is part of the key under which a store keeps what was written.

    Args:
        role: Names the part and its adapter.
        module: Changed in place.
        adapters: Changed in place.
    """
    state = writer_state(role, module, adapters)
    load_writer(role, module, adapters, state)
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    module.digest = digest.hexdigest()


def channel_state(channel: Channel) -> dict[str, Tensor]:
    """The tensors of the part "channel" in storage precision, on the CPU.

    Args:
        channel: The channel.

    Returns:
        Name to tensor.
    """
    state = channel.state_dict()
    return {n: t.detach().to("cpu", STORAGE).contiguous() for n, t in state.items()}


def round_to_storage(
    codebook: Codebook, adapters: RoleAdapters, channel: Channel | None = None
) -> None:
    """Round every learned value to what a bundle keeps, so that saving changes nothing.

    Args:
        codebook: Changed in place.
        adapters: Changed in place.
        channel: Changed in place, where there is one.
    """
    with torch.no_grad():
        if channel is not None:
            channel.load_state_dict(channel_state(channel))
        load_codebook(codebook, part_state(codebook, adapters, "codebook"))
        for role in ROLES:
            for parameter in adapters.named_parameters(role).values():
                parameter.copy_(parameter.to(STORAGE))


def codec_digest(
    codebook: Codebook,
    adapters: RoleAdapters,
    channel: Channel | None = None,
    *,
    config: CodecConfig,
    base_sha256: str,
) -> str:
    """Name of a codec: what determines which symbols a text gets and what they decode to.

    Args:
        codebook: The codebook.
        adapters: The adapters; INFER does not count.
        channel: The channel, where there is one.
        config: Shape of the codec.
        base_sha256: Of the base's weights.

    Returns:
        64 hex digits of a SHA-256.
    """
    digest = hashlib.sha256()
    shape = dataclasses.asdict(config)
    digest.update(json.dumps([_RECIPE, shape, base_sha256], sort_keys=True).encode())
    states = {part: part_state(codebook, adapters, part) for part in DIGESTED}
    if channel is not None:
        states["channel"] = channel_state(channel)
    for part, state in states.items():
        for name, tensor in sorted(state.items()):
            digest.update(f"{part}/{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
