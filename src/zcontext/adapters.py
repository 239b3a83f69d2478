"""One LoRA adapter per role on one shared base, and the switch between them.

What it does not know: what the roles are for. The switch is mutable state of the base model, so
whoever flips it must hold the model's lock; `ZLanguageModel.using` does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zcontext.config import ROLES, CodecConfig, Role
from zcontext.errors import UnsupportedBaseError
from zcontext.four_bit import without_kernel_advice

with without_kernel_advice():  # peft imports bitsandbytes, which has something to say
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer


_LAYER = re.compile(r"\.(\d+)\.")
WRITERS: tuple[Role, ...] = ("compress", "compose", "focus")
"""Roles that run the first layers only."""


def decoder_layers(core: nn.Module) -> tuple[str, nn.ModuleList]:
    """Find the stack of decoder layers inside a base model without its head.

    Args:
        core: For example a `LlamaModel`.

    Returns:
        The attribute's name and the list.

    Raises:
        UnsupportedBaseError: No list of layers was found directly under `core`.
    """
    for name in ("layers", "h", "blocks", "block"):
        layers = getattr(core, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            return name, layers
    raise UnsupportedBaseError(
        f"{type(core).__name__} has no list of decoder layers named layers, h, blocks or block; "
        "use a decoder-only base such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
    )


def linear_names(layer: nn.Module) -> list[str]:
    """Names of the projections inside a decoder layer.

    Args:
        layer: One decoder layer.

    Returns:
        Last parts of their names, sorted.
    """
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in layer.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
        }
    )


def adapter_depth(names: Iterable[str]) -> int:
    """How many decoder layers an adapter is for, by the names of its tensors.

    Args:
        names: Names of tensors, other parts' among them.

    Returns:
        One more than the last layer that a name tells; 0 where none does.
    """
    found = (_LAYER.search(name) for name in names if ".lora_" in name)
    return max((int(each[1]) + 1 for each in found if each), default=0)


@contextmanager
def first_layers(core: nn.Module, n_layers: int) -> Iterator[None]:
    """Run only the first layers of a base model inside the block (the writer's early exit).

    Args:
        core: Base model without head.
        n_layers: Layers kept; 0 or more than there are keeps all.

    Yields:
        Nothing; the full stack is back afterwards.
    """
    name, layers = decoder_layers(core)
    if n_layers <= 0 or n_layers >= len(layers):
        yield
        return
    config: Any = core.config
    full = config.num_hidden_layers
    setattr(core, name, layers[:n_layers])
    config.num_hidden_layers = n_layers
    try:
        yield
    finally:
        setattr(core, name, layers)
        config.num_hidden_layers = full


class RoleAdapters:
    """The three adapters of a codec, injected into a base model in place.

    Args:
        model: A causal LM; its linear layers are wrapped.
        config: Rank, scale and the writer's depth.
        seed: Of the adapters' random halves.

    Raises:
        UnsupportedBaseError: The base has no linear layers that adapters can wrap.
    """

    def __init__(self, model: nn.Module, config: CodecConfig, *, seed: int = 0) -> None:
        core: Any = model.base_model
        self._model = model
        self._config = config
        self._targets = linear_names(decoder_layers(core)[1][0])
        if not self._targets:
            raise UnsupportedBaseError(
                f"{type(model).__name__} has no linear layers to adapt; use a transformer base"
            )
        self._layers: list[BaseTunerLayer] = []
        self._role: Role | None = None
        self._inject(ROLES, seed=seed)
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def add(self, role: Role, *, depth: int = 0, seed: int = 0) -> None:
        """Inject one more adapter, or deepen it; what is new changes nothing before it is trained.

        Args:
            role: A role that is not among `ROLES`.
            depth: First layers that it is for, where that is more than a writer's.
            seed: Of its random half.
        """
        learning = {n for n, p in self._model.named_parameters() if p.requires_grad}
        self._inject((role,), depth=depth, seed=seed)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in learning)

    def _inject(self, roles: tuple[Role, ...], *, depth: int = 0, seed: int) -> None:
        model, config = self._model, self._config
        core: Any = model.base_model
        n_layers = len(decoder_layers(core)[1])
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft warns that a model has several adapters, which is the point here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            torch.manual_seed(seed)
            for role in roles:
                first, last = self.depth(role), config.writer_layers if role in WRITERS else 0
                last = min(max(last, depth), n_layers) if last > 0 else n_layers
                if first >= last:
                    continue
                is_whole = (first, last) == (0, n_layers)
                lora = LoraConfig(
                    r=config.lora_rank,
                    lora_alpha=config.lora_alpha,
                    target_modules=self._targets,
                    layers_to_transform=None if is_whole else list(range(first, last)),
                    task_type="CAUSAL_LM",
                )
                inject_adapter_in_model(lora, model, adapter_name=role)
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        for name, parameter in model.named_parameters():
            if ".lora_" in name:  # in fp32 whatever the base is: trained so, and stored exactly
                parameter.data = parameter.data.float()
        model.train(model.training)  # the layers just injected take the base's mode
        self.activate(self._role)

    def depth(self, role: Role) -> int:
        """How many of the first layers an adapter is for.

        Args:
            role: The role; 0 where it has no adapter.

        Returns:
            The number of layers.
        """
        return adapter_depth(self.named_parameters(role))

    @property
    def role(self) -> Role | None:
        """The active role; None means the plain base."""
        return self._role

    def activate(self, role: Role | None) -> None:
        """Make one adapter the active one, or none.

        peft's own switch also freezes the adapter it leaves, which would silently drop the gradient
        of a pass already recorded in this step, and walks every parameter (25 ms on a 135M base,
        more than a decoding step's worth). So its two switches are set here, and no parameter.

        Args:
            role: The role, or None for the plain base.
        """
        for layer in self._layers:
            has = role is not None and role in layer.lora_A
            layer._disable_adapters = not has
            if has:
                layer._active_adapter = [role]
        self._role = role

    def named_parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """The parameters of one adapter under stable names.

        Args:
            role: The role.

        Returns:
            Name without the role to parameter.
        """
        mark = f".{role}."
        return {
            name.replace(mark, "."): parameter
            for name, parameter in self._model.named_parameters()
            if mark in name and ".lora_" in name
        }

    def state(self, role: Role) -> dict[str, Tensor]:
        """A detached copy of one adapter, on the CPU.

        Args:
            role: The role.

        Returns:
            Name to tensor.
        """
        return {n: p.detach().cpu().clone() for n, p in self.named_parameters(role).items()}

    def load(self, role: Role, state: dict[str, Tensor]) -> None:
        """Fill one adapter.

        Args:
            role: The role.
            state: As `state` gives it.

        Raises:
            UnsupportedBaseError: Names or shapes are those of another base.
        """
        own = self.named_parameters(role)
        if set(own) != set(state) or any(own[n].shape != state[n].shape for n in own):
            raise UnsupportedBaseError(
                f"the {role} adapter was made for another base: {len(state)} tensors given, "
                f"{len(own)} expected with other names or shapes; load it onto the base named in "
                "its manifest"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
