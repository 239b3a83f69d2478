"""Law B and the switch between roles."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tiny import tiny_base, tiny_z
from zcontext.adapters import RoleAdapters, decoder_layers, first_layers, linear_names
from zcontext.config import ROLES, CodecConfig
from zcontext.errors import UnsupportedBaseError
from zcontext.model import ZLanguageModel

IDS = torch.tensor([[5, 9, 200, 31, 77, 8]])


def plain_logits() -> torch.Tensor:
    with torch.no_grad():
        return tiny_base().model(IDS).logits


def logits(model: ZLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model.base.model(IDS).logits


def test_with_all_adapters_off_the_logits_are_bit_equal_to_the_plain_base():
    model = tiny_z()
    assert torch.equal(logits(model), plain_logits())
    with model.using(None):
        assert torch.equal(logits(model), plain_logits())


@pytest.mark.parametrize("role", ROLES)
def test_a_role_changes_the_logits_and_leaves_no_trace_afterwards(role):
    model = tiny_z()
    with model.using(role):
        assert not torch.equal(logits(model), plain_logits())
    assert torch.equal(logits(model), plain_logits())


def test_an_exception_inside_a_role_leaves_no_trace():
    model = tiny_z()
    with pytest.raises(KeyboardInterrupt), model.using("infer"), model.using("compress"):
        raise KeyboardInterrupt
    assert model.adapters.role is None
    assert torch.equal(logits(model), plain_logits())


def test_an_interrupt_in_the_middle_of_a_switch_leaves_no_trace(monkeypatch):
    model = tiny_z()
    activate = model.adapters.activate
    calls = []

    def interrupted(role):
        calls.append(role)
        activate(role)
        if len(calls) == 1:
            model.adapters._role = None  # as if it had come before the last line
            raise KeyboardInterrupt

    monkeypatch.setattr(model.adapters, "activate", interrupted)
    with pytest.raises(KeyboardInterrupt), model.using("infer"):
        pass
    assert torch.equal(logits(model), plain_logits())


def test_nested_roles_come_back_in_order():
    model = tiny_z()
    with model.using("infer"):
        inferred = logits(model)
        with model.using("compress"):
            assert model.adapters.role == "compress"
        with model.using(None):
            assert torch.equal(logits(model), plain_logits())
        assert model.adapters.role == "infer"
        assert torch.equal(logits(model), inferred)


def test_the_mode_is_evaluation_inside_and_as_before_outside():
    model = tiny_z()
    model.base.model.train()
    with model.using("compress"):
        assert not any(module.training for module in model.base.model.modules())
    assert model.base.model.training


def test_threads_that_use_different_roles_do_not_see_each_other():
    model = tiny_z()
    roles = [None, *ROLES]
    expected = {}
    for role in roles:
        with model.using(role):
            expected[role] = logits(model)
    wrong = []

    def work(role):
        for _ in range(8):
            with model.using(role):
                if not torch.equal(logits(model), expected[role]):
                    wrong.append(role)

    threads = [threading.Thread(target=work, args=(role,)) for role in roles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(logits(model), plain_logits())


def test_without_the_lock_threads_would_see_each_other():
    """The planted fault: the switch is shared state, so the lock is what keeps the law."""
    model = tiny_z()
    with model.using("infer"):
        expected = logits(model)
    model.lock = nullcontext()
    entered, disturbed = threading.Event(), threading.Event()
    seen = []

    def reader():
        with model.using("infer"):
            entered.set()
            disturbed.wait(10)
            seen.append(torch.equal(logits(model), expected))

    thread = threading.Thread(target=reader)
    thread.start()
    entered.wait(10)
    with model.using("compress"):
        disturbed.set()
        thread.join()
    assert seen == [False]


def test_switching_roles_leaves_alone_which_parameters_want_a_gradient():
    model = tiny_z()
    trained = list(model.parameters_of(("compress",)).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    model.adapters.activate("compress")
    model.adapters.activate("decompress")
    wanted = [p for p in model.base.model.parameters() if p.requires_grad]
    assert {id(p) for p in wanted} == {id(p) for p in trained}


def test_a_gradient_reaches_an_adapter_that_is_no_longer_active():
    model = tiny_z()
    trained = model.parameters_of(("compress",))
    for parameter in trained.values():
        parameter.requires_grad_(True)
    model.adapters.activate("compress")
    loss = model.base.model(IDS).logits.square().mean()
    model.adapters.activate("decompress")
    loss.backward()
    assert all(p.grad is not None for p in trained.values())


def test_the_writers_adapter_stands_only_on_the_layers_it_runs():
    model = tiny_z()
    layers = {name.split("layers.")[1].split(".")[0] for name in model.adapters.state("compress")}
    assert layers == {"0", "1"}
    assert len(model.adapters.state("infer")) == 2 * len(model.adapters.state("compress"))


def test_a_role_of_its_own_can_read_deeper_than_the_writer_and_deeper_again():
    model = tiny_z()
    adapters = model.adapters
    assert adapters.depth("focus") == 0
    assert adapters.depth("compress") == 2
    assert adapters.depth("infer") == 4
    adapters.add("focus")
    adapters.load("focus", adapters.state("compress"))
    with torch.no_grad():
        for parameter in adapters.named_parameters("focus").values():
            parameter.add_(0.3)
    begun = adapters.state("focus")
    states = []
    for depth, found in ((0, 2), (3, 3), (2, 3), (99, 4)):
        adapters.add("focus", depth=depth)
        assert adapters.depth("focus") == found
        deeper = adapters.state("focus")
        assert all(torch.equal(tensor, deeper[name]) for name, tensor in begun.items())
        assert not any(t.any() for n, t in deeper.items() if n not in begun and "lora_B" in n)
        with model.using("focus"), torch.no_grad():
            states.append(model.base.model(IDS).logits)
    assert all(torch.equal(states[0], each) for each in states), "what is new changes nothing"


def test_the_first_layers_alone_run_and_all_come_back_even_after_an_error():
    model = tiny_z()
    core = model.base.model.base_model
    with first_layers(core, 2):
        assert len(decoder_layers(core)[1]) == 2
    with pytest.raises(RuntimeError), first_layers(core, 1):
        raise RuntimeError
    assert len(decoder_layers(core)[1]) == 4
    assert core.config.num_hidden_layers == 4
    with first_layers(core, 0):
        assert len(decoder_layers(core)[1]) == 4


def test_the_state_of_an_adapter_round_trips_and_a_foreign_one_is_refused():
    one, other = tiny_z(seed=0), tiny_z(seed=1)
    other.adapters.load("infer", one.adapters.state("infer"))
    for name, tensor in one.adapters.state("infer").items():
        assert torch.equal(tensor, other.adapters.state("infer")[name])
    with pytest.raises(UnsupportedBaseError, match="another base"):
        other.adapters.load("infer", one.adapters.state("compress"))


def test_the_same_seed_gives_the_same_adapters_and_leaves_the_global_one_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    base = tiny_base()
    torch.manual_seed(5)
    one = RoleAdapters(base.model, CodecConfig(lora_rank=2, writer_layers=2), seed=3)
    assert torch.equal(torch.rand(3), expected)
    other = RoleAdapters(tiny_base().model, CodecConfig(lora_rank=2, writer_layers=2), seed=3)
    for name, tensor in one.state("compress").items():
        assert torch.equal(tensor, other.state("compress")[name])


def test_a_base_without_layers_or_projections_is_refused():
    with pytest.raises(UnsupportedBaseError, match="no list of decoder layers"):
        decoder_layers(nn.Linear(2, 2))
    assert linear_names(nn.LayerNorm(2)) == []
