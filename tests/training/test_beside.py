"""What all methods that act through hooks share: they come, train, and go without a trace."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from masked_training import OPTIMIZERS
from prune_models import same_bits, small
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparseprune import Masks
from sparseprune.training.hard_concrete import HardConcrete
from sparseprune.training.method import Method
from sparseprune.training.targeted_dropout import TargetedDropout
from sparseprune.training.variational import VariationalDropout

METHODS: dict[str, Callable[..., Method]] = {
    "variational": lambda **more: VariationalDropout(100, initial=-6.0, **more),
    "weight gates": lambda **more: HardConcrete(1.0, 100, **more),
    "unit gates": lambda **more: HardConcrete(1.0, 100, "unit", **more),
    "input gates": lambda **more: HardConcrete(1.0, 100, "input", **more),
    "output gates": lambda **more: HardConcrete(1.0, 100, "output", **more),
    "targeted weights": lambda **more: TargetedDropout(0.5, 0.5, **more),
    "targeted units": lambda **more: TargetedDropout(0.5, 0.5, "unit", **more),
}
LEARNING = [name for name in METHODS if "targeted" not in name]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, method: Method, count: int) -> None:
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 3, 4, 4, generator=generator)
        y = torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + method.penalty()).backward()
        optimizer.step()


def hooks(model: nn.Module) -> int:
    ends = ("hooks", "pre_hooks", "hooks_always_called", "hooks_with_kwargs")
    kinds = [f"_forward_{end}" for end in ends]
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {**group, "params": [id(p) for p in group["params"]]} for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("optimized", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_finalize_leaves_an_ordinary_model(name: str, optimized: str) -> None:
    model = small()
    optimizer = OPTIMIZERS[optimized](model.parameters())
    keys, groups = list(model.state_dict()), options(optimizer)
    method = METHODS[name]()
    assert method.prepare(model, optimizer) is method
    assert hooks(model) > 0
    steps(model, optimizer, method, 3)
    masks = method.finalize()
    assert list(model.state_dict()) == keys
    assert options(optimizer) == groups
    assert set(optimizer.state) <= set(model.parameters())
    assert hooks(model) == 0
    assert masks == Masks.from_model(model)
    assert "weight" not in vars(model[0]) and not optimizer._optimizer_step_post_hooks
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_bits(twin, model)
    with pytest.raises(ValueError, match="prepared"):
        method.penalty()
    method.prepare(model, optimizer)  # and it can be used again
    steps(model, optimizer, method, 1)
    method.finalize()


@pytest.mark.parametrize("name", LEARNING)
def test_parameters_learn_in_a_group_without_decay(name: str) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    method = METHODS[name](lr=0.02).prepare(model, optimizer)
    group = optimizer.param_groups[1]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.02, 0.0, 3)
    before = [p.detach().clone() for p in group["params"]]
    steps(model, optimizer, method, 2)
    after = group["params"]
    assert all((b != a).float().mean() > 0.5 for b, a in zip(before, after, strict=True))
    assert method.penalty().requires_grad
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    method.finalize()


@pytest.mark.parametrize("name", LEARNING)
def test_resumes_from_a_checkpoint(name: str) -> None:
    """State of model and optimizer, into a fresh model that is prepared alike: bit-equal."""

    def prepared(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Method]:
        model = small(seed)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        return model, optimizer, METHODS[name]().prepare(model, optimizer)

    model, optimizer, method = prepared(0)
    steps(model, optimizer, method, 2)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    other = prepared(1)
    states = torch.load(file, weights_only=True)
    other[0].load_state_dict(states[0])
    other[1].load_state_dict(states[1])
    for run in ((model, optimizer, method), other):
        torch.manual_seed(3)
        steps(*run, 2)
        run[2].finalize()
        assert len(run[1].param_groups) == 1
    assert same_bits(model, other[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_copy_while_training_is_noisy_by_itself(name: str) -> None:
    """As for averaged models; the copy does not reach into the original."""
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = METHODS[name]().prepare(model, optimizer)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    x = torch.randn(2, 3, 4, 4)
    outputs = []
    for each in (model, twin):
        torch.manual_seed(0)
        outputs.append(each(x))
    assert torch.equal(*outputs)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).isnan().any()
    torch.manual_seed(0)
    # batch norm in train mode does not read its running statistics
    assert torch.equal(model(x), outputs[0])
    method.finalize()


@pytest.mark.parametrize("name", METHODS)
def test_tied_weights_are_one(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    method = METHODS[name]().prepare(model, optimizer)
    assert list(method.layers) == ["0.weight"]
    model(torch.randn(2, 4, dtype=torch.float64)).sum().backward()
    if isinstance(method, HardConcrete):
        model.eval()
        with torch.no_grad():
            method._own()["0.weight"].uniform_(-4, 4)
        x = torch.randn(3, 4, dtype=torch.float64)
        expected = model(x)
        method.finalize()
        assert torch.equal(model(x), expected)  # gated once, both biases with their outputs
    else:
        method.finalize()
    assert model[0].weight is model[2].weight
    assert hooks(model) == 0


@pytest.mark.parametrize("name", METHODS)
def test_frozen_weights_keep_their_values_until_the_end(name: str) -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    method = METHODS[name]().prepare(model, optimizer)
    steps(model, optimizer, method, 2)
    assert torch.equal(model[0].weight, before)
    masks = method.finalize()
    assert not model[0].weight.requires_grad
    assert masks["0.weight"].shape == before.shape


@pytest.mark.parametrize("name", METHODS)
def test_ignored_layers_are_left_alone(name: str) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = METHODS[name](ignore=("4", nn.Conv2d)).prepare(model, optimizer)
    assert list(method.layers) == ["3.weight"]
    assert hooks(model[0]) == hooks(model[4]) == 0
    method.finalize()


@pytest.mark.parametrize("name", METHODS)
def test_momentum_does_not_revive(name: str) -> None:
    """Masks of the method, attached for fine-tuning."""
    model = small()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    method = METHODS[name]().prepare(model, optimizer)
    steps(model, optimizer, method, 3)
    with torch.no_grad():
        model[3].weight[0] = 0  # at least something is pruned
    masks = method.finalize()
    assert masks.sparsity() > 0
    with masks.attach(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 3, 4, 4)).square().sum().backward()
            optimizer.step()
    for key, mask in masks.items():
        assert not model.get_parameter(key)[~mask].any()


@pytest.mark.parametrize("name", METHODS)
def test_an_error_in_forward_leaves_no_replaced_weight(name: str) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = METHODS[name]().prepare(model, optimizer)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5, 4, 4))  # five channels where three are expected
    assert model[0].weight is model[0]._parameters["weight"]
    method.finalize()


@pytest.mark.parametrize("name", METHODS)
def test_compiled_models_are_looked_through(name: str) -> None:
    model = small()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = METHODS[name]().prepare(compiled, optimizer)
    torch.manual_seed(0)
    y = compiled(torch.ones(2, 3, 4, 4))
    torch.manual_seed(0)
    assert torch.allclose(y, model(torch.ones(2, 3, 4, 4)))
    y.sum().backward()
    assert model[0].weight.grad is not None
    method.finalize()


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def embedded() -> nn.Module:
    model = nn.ModuleDict({"emb": nn.Embedding(6, 4), "head": nn.Linear(4, 6)})
    model["head"].weight = model["emb"].weight
    return model


def masked() -> nn.Module:
    model = small()
    torch_prune.l1_unstructured(model[3], "weight", amount=0.5)
    return model


REFUSED = {
    "attention": (attention, "out_proj.*MultiheadAttention"),
    "embedding": (embedded, "tied to a Embedding"),
    "torch prune": (masked, "torch.nn.utils.prune"),
    "nothing": (lambda: nn.ReLU(), "weights to prune"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_anything_changes(name: str, case: str) -> None:
    make, message = REFUSED[case]
    model = make()
    keys = list(model.state_dict())
    found = hooks(model)
    optimizer = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(ValueError, match=message):
        METHODS[name]().prepare(model, optimizer)
    assert list(model.state_dict()) == keys and hooks(model) == found
    assert len(optimizer.param_groups) == 1 and not optimizer._optimizer_step_post_hooks
    with pytest.raises(TypeError, match="optimizer"):
        METHODS[name]().prepare(small(), None)


def test_attention_is_fine_without_its_projection() -> None:
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = HardConcrete(1.0, 10, ignore="self_attn").prepare(model, optimizer)
    assert list(method.layers) == ["linear1.weight", "linear2.weight"]
    model.eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():  # the fused path would run past the gates
        model.linear1.gate_log_alpha.fill_(-4.0)
        model.linear2.gate_log_alpha.fill_(4.0)
        gated = model(x)
        with pytest.warns(UserWarning, match=r"no weight is left in linear1\.weight"):
            method.finalize()
        assert torch.allclose(model(x), gated, atol=1e-6)


@pytest.mark.parametrize("second", ["variational", "unit gates", "targeted weights"])
@pytest.mark.parametrize("name", METHODS)
def test_one_method_at_a_time(name: str, second: str) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = METHODS[name](ignore="0").prepare(model, optimizer)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"weight '3\.weight' must be free"):
        METHODS[second]().prepare(model, optimizer)
    assert list(model.state_dict()) == before
    METHODS[second](ignore=("3", "4")).prepare(model, optimizer).finalize()
    first.finalize()


@pytest.mark.parametrize("name", LEARNING)
def test_order_of_schedulers_and_wrappers(name: str) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="prepare first, then wrap"):
        METHODS[name]().prepare(nn.DataParallel(model), optimizer)
    method = METHODS[name]().prepare(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    steps(model, optimizer, method, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
    method.finalize()
    scheduled = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    with pytest.raises(ValueError, match="make the scheduler after prepare"):
        METHODS[name]().prepare(model, scheduled)


def test_optimizers_with_names() -> None:
    model = small()
    optimizer = torch.optim.Adam(model.named_parameters())
    method = HardConcrete(1.0, 10).prepare(model, optimizer)
    assert optimizer.param_groups[1]["param_names"][0] == "0.gate_log_alpha"
    method.finalize()


def test_a_skipped_step_of_the_scaler_is_none() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = VariationalDropout(1, warmup=(0, 10)).prepare(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for infinite in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 4)).sum() + method.penalty()).backward()
        if infinite:
            model.weight.grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    assert method.steps == 2
