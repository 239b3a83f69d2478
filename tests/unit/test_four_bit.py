"""4-bit layers multiply by NF4's numbers, and never cut the gradient of what is trained below."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from zcontext import four_bit, nf4
from zcontext.errors import MissingDependencyError, ModelError, UnsupportedBaseError
from zcontext.loading import LoadedBase, prepare_for_training

# Every test here holds a layer of its: there is none where it cannot be installed (Intel Macs).
bnb = pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
HAS_THE_TRAP = bool(bnb.functional.has_avx512bf16())


class Low(nn.Module):
    """A trainable low-rank branch beside a frozen layer, as LoRA adds one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


def ids() -> torch.Tensor:
    return torch.arange(3, 35).view(2, 16)


def with_low_rank_branch(base: LoadedBase) -> tuple[nn.Module, Low]:
    first = base.model.model.layers[0].self_attn
    first.q_proj = Low(first.q_proj)
    return base.model, first.q_proj


def gradient_after_an_evaluation(model: nn.Module, low: Low) -> float:
    model.eval()
    with torch.no_grad():
        model(ids())
    model.train()
    model(ids(), labels=ids()).loss.backward()
    assert low.down.weight.grad is not None
    return float(low.down.weight.grad.norm())


def four_bit_base(base: LoadedBase) -> LoadedBase:
    base.model.requires_grad_(False)
    four_bit.quantise_linears(base.model, dtype=torch.float32, device=CPU)
    return base


def test_gradients_reach_the_first_layer_through_4_bit_layers_after_an_evaluation(
    fresh_base: LoadedBase,
) -> None:
    model, low = with_low_rank_branch(four_bit_base(fresh_base))
    prepare_for_training(model)
    before = gradient_after_an_evaluation(model, low)
    low.down.weight.grad = None
    assert before > 1e-4
    assert gradient_after_an_evaluation(model, low) == pytest.approx(before)


def test_planted_fault_a_repacked_layer_loses_the_gradient_where_the_cpu_has_the_trap(
    fresh_base: LoadedBase,
) -> None:
    model, low = with_low_rank_branch(four_bit_base(fresh_base))
    four_bit.allow_repacking(model)
    allowed = [m.support_avx512bf16_for_cpu for m in model.modules() if hasattr(m, "quant_state")]
    assert any(allowed) == HAS_THE_TRAP
    if not HAS_THE_TRAP:
        assert gradient_after_an_evaluation(model, low) > 1e-4
        return
    model.eval()
    with torch.no_grad():
        model(ids())
    with pytest.raises(UnsupportedBaseError, match=r"repacked by an evaluation"):
        prepare_for_training(model)
    model.train()
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        model(ids(), labels=ids()).loss.backward()
    assert low.down.weight.grad is None or float(low.down.weight.grad.norm()) == 0.0


def test_a_4_bit_model_equals_the_one_whose_weights_went_through_4_bits(
    fresh_base: LoadedBase,
) -> None:
    twin = copy.deepcopy(fresh_base.model)
    plain = fresh_base.model(ids()).logits
    assert four_bit.dequantise_linears(fresh_base.model) == 4 * 7
    assert four_bit.quantise_linears(twin, dtype=torch.float32, device=CPU) == 4 * 7
    dequantised = fresh_base.model(ids()).logits
    assert torch.equal(twin(ids()).logits, dequantised)
    assert not torch.equal(plain, dequantised)


@pytest.mark.parametrize(
    ("rows", "columns"), [(32, 64), (48, 80), (5, 7), (33, 64), (48, 32), (3, 192)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_4_bit_layer_of_any_shape_multiplies_by_the_round_trip(
    rows: int, columns: int, bias: bool
) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(columns, rows, bias=bias))
    x = torch.randn(3, columns)
    weight = nf4.roundtrip(holder[0].weight.data)
    expected = nn.functional.linear(x, weight, holder[0].bias)
    four_bit.quantise_linears(holder, dtype=torch.float32, device=CPU)
    torch.testing.assert_close(holder(x), expected)
    assert isinstance(holder[0], bnb.nn.Linear4bit) == (columns % 64 == 0)


def test_the_head_and_the_embeddings_are_not_quantised(fresh_base: LoadedBase) -> None:
    model = fresh_base.model
    embeddings = model.get_input_embeddings().weight.clone()
    four_bit.quantise_linears(model, dtype=torch.float32, device=CPU)
    assert type(model.lm_head) is nn.Linear
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_only_layers_whose_shape_fits_are_repacked() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 48))
    four_bit.quantise_linears(model, dtype=torch.float32, device=CPU)
    assert not any(layer.support_avx512bf16_for_cpu for layer in model)
    four_bit.allow_repacking(model)
    assert [layer.support_avx512bf16_for_cpu for layer in model] == [HAS_THE_TRAP, False]
    model.eval()
    with torch.no_grad():
        model(torch.randn(2, 64))


def test_a_plain_model_may_be_prepared_for_training_too(fresh_base: LoadedBase) -> None:
    assert prepare_for_training(fresh_base.model) is fresh_base.model


def test_without_bitsandbytes_4_bit_layers_are_refused_with_the_way_out(
    fresh_base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bit, "has_bitsandbytes", lambda: False)
    with pytest.raises(MissingDependencyError, match="nf4-dequantised"):
        four_bit.quantise_linears(fresh_base.model, dtype=torch.float32, device=CPU)
    assert four_bit.allow_repacking(fresh_base.model) is fresh_base.model


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UnsupportedBaseError, match="no linear layers"):
        four_bit.dequantise_linears(nn.Sequential(nn.Embedding(4, 4)))


def test_the_number_of_threads_is_restored_even_when_a_layer_is_refused() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = nn.Sequential(nn.Linear(64, 64))
        four_bit.dequantise_linears(model)
        model[0].weight.data[0, 0] = float("nan")
        with pytest.raises(ModelError, match="NaN"):
            four_bit.dequantise_linears(model)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
