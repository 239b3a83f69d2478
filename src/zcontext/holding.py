"""Hold a model with one adapter active, and put everything back whatever happens meanwhile.

What it does not know: what the model is used for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from zcontext.adapters import RoleAdapters
from zcontext.config import Role


@contextmanager
def held(
    model: nn.Module, adapters: RoleAdapters, lock: threading.RLock, role: Role | None
) -> Iterator[None]:
    """Hold a model with one adapter active, in evaluation mode.

    Args:
        model: The base.
        adapters: Of the base.
        lock: Held meanwhile.
        role: The role, or None for the plain base.

    Yields:
        Nothing; role and mode are put back afterwards, and so is torch's gradient mode: an
        interrupt inside `torch.no_grad` itself, between its switch and the body, would leave the
        whole thread without gradients.
    """

    def put_back() -> None:
        torch.set_grad_enabled(gradients)
        if training:
            model.train()
        # The role may be as before and its layers not: an interrupt came within a switch.
        if before != role or adapters.role != before:
            adapters.activate(before)

    with lock:
        before, training = adapters.role, model.training
        gradients = torch.is_grad_enabled()
        try:
            try:
                if before != role:
                    adapters.activate(role)
                if training:
                    model.eval()
                yield
            finally:
                put_back()
        finally:
            put_back()  # an interrupt may have come in the middle of the first
