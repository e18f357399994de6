"""Schedules and steps are those computed by hand or by torch; weight decay touches the weights of layers only."""

import copy
import math

import pytest
import torch
from torch import nn

from resnet import ResNet18
from training.muon import Muon, orthogonalize
from training.optim import create_optimizer, create_scheduler, lr_factor, scale_relative_positions
from vit import VisionTransformer

# by hand: a cosine's quarters are 1/2 + sqrt(1/2)/2, 1/2 and 1/2 - sqrt(1/2)/2, its thirds 3/4 and 1/4
FACTORS = {
    (2, 6): [0.5, 1, 1, 0.8535534, 0.5, 0.1464466],
    (0, 4): [1, 0.8535534, 0.5, 0.1464466],
    (3, 6): [1 / 3, 2 / 3, 1, 1, 0.75, 0.25],
    (4, 4): [0.25, 0.5, 0.75, 1],
    (1, 1): [1],
}
MODELS = [lambda: VisionTransformer(embed_dim=24, depth=2), ResNet18]


@pytest.mark.parametrize(("steps", "factors"), FACTORS.items())
def test_factors_are_those_computed_by_hand(steps, factors):
    assert [lr_factor(step, *steps) for step in range(len(factors))] == pytest.approx(factors)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_factor_ends_at_zero_and_stays_there(schedule):
    assert [lr_factor(step, 2, 6, schedule) for step in (6, 7, 100)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("steps", "factors"),
    {(2, 6): [0.5, 1, 1, 0.75, 0.5, 0.25], (0, 4): [1, 0.75, 0.5, 0.25], (4, 4): [0.25, 0.5, 0.75, 1]}.items(),
)
def test_linear_factors_are_those_computed_by_hand(steps, factors):
    assert [lr_factor(step, *steps, schedule="linear") for step in range(len(factors))] == pytest.approx(factors)
    optimizer = create_optimizer(MODELS[0](), "muon", 0.3, 0.0, muon_learning_rate=0.2)
    rates = learning_rates(optimizer, create_scheduler(optimizer, *steps, schedule="linear"), len(factors))
    assert rates == [pytest.approx([0.3 * factor] * 2 + [0.2 * factor] * 2) for factor in factors]


def test_wsd_stays_at_the_peak_until_the_last_30_percent_of_the_steps_after_the_warmup():
    factors = [0.5, 1, *[1] * 8, 2 / 3, 1 / 3, 0]  # 2 steps of warmup, then 10, the last 3 of which fall
    assert [lr_factor(step, 2, 12, "wsd") for step in range(13)] == pytest.approx(factors)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_scaled_learning_rates_are_those_of_their_parameters_alone_and_follow_the_schedule(name):
    model = VisionTransformer(embed_dim=24, depth=2, pos_embed="relative", global_pool="avg")
    tables = [p for n, p in model.named_parameters() if n.endswith("relative_position_bias_table")]
    optimizer = create_optimizer(model, name, 0.3, 0.05, muon_learning_rate=0.02)
    before = {p: group for group in optimizer.param_groups for p in group["params"]}
    scale_relative_positions(optimizer, model, 30.0)
    create_scheduler(optimizer, warmup_steps=2, total_steps=4)  # the first step has half of the rate
    after = {p: group for group in optimizer.param_groups for p in group["params"]}
    assert after.keys() == before.keys() == set(model.parameters())
    assert len(tables) == 2
    for p, group in after.items():
        scale = 30 if any(p is table for table in tables) else 1
        peak = 0.02 if "parts" in group else 0.3
        assert group["lr"] == pytest.approx(0.5 * scale * peak)
        assert group["weight_decay"] == before[p]["weight_decay"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.15)  # which the history has


@pytest.mark.parametrize(("steps", "factors"), FACTORS.items())
def test_scheduler_sets_the_learning_rate_of_each_step_in_every_group(steps, factors):
    optimizer = create_optimizer(MODELS[0](), "sgd", learning_rate=0.2, weight_decay=0.0)
    scheduler = create_scheduler(optimizer, *steps)
    for factor in factors:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2 * factor] * 2)
        optimizer.step()
        scheduler.step()


def learning_rates(optimizer: torch.optim.Optimizer, scheduler, num_steps: int) -> list[list[float]]:
    """Of each group in each of the coming steps."""
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("longer", [0, 7], ids=["the same", "extended"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_schedule_taken_up_at_any_step_goes_on_as_one_of_its_length_that_was_never_left(name, longer, warmup_steps):
    def new_optimizer() -> torch.optim.Optimizer:
        return create_optimizer(nn.Linear(2, 2), name, learning_rate=0.3, weight_decay=0.1)

    total = 9 + longer
    uninterrupted = new_optimizer()
    expected = learning_rates(uninterrupted, create_scheduler(uninterrupted, warmup_steps, total), total)
    assert len({rates[0] for rates in expected}) > 5
    for steps_done in range(10):
        stopped, resumed = new_optimizer(), new_optimizer()
        learning_rates(stopped, create_scheduler(stopped, warmup_steps, 9), steps_done)
        resumed.load_state_dict(stopped.state_dict())
        scheduler = create_scheduler(resumed, warmup_steps, total, steps_done)
        assert learning_rates(resumed, scheduler, total - steps_done) == expected[steps_done:]


@pytest.mark.parametrize("create_model", MODELS, ids=["vit", "resnet"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_parameter_is_in_one_group_and_decays_only_as_weight_of_a_linear_or_conv_layer(create_model, name):
    model = create_model()
    optimizer = create_optimizer(model, name, learning_rate=0.1, weight_decay=0.05)
    decay = [(id(p), group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = {id(layer.weight) for layer in layers}
    assert len(weights) > 8
    assert sorted(decay) == sorted((id(p), 0.05 if id(p) in weights else 0.0) for p in model.parameters())


def test_adamw_without_gradients_shrinks_the_decayed_weights_alone():
    model = MODELS[0]()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    create_optimizer(model, "adamw", learning_rate=0.1, weight_decay=0.5).step()
    shrunk = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "head.weight"} <= shrunk
    assert not {"cls_token", "pos_embed", "norm.weight", "head.bias"} & shrunk
    for name in shrunk:
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), 0.95 * before[name])


def test_sgd_takes_nesterovs_step():
    model = nn.Linear(3, 1, bias=False)
    optimizer = create_optimizer(model, "sgd", learning_rate=0.1, weight_decay=0.0)
    weight, velocity = model.weight.detach().clone(), torch.zeros(1, 3)
    for gradient in (torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, 0.5, -1.0]])):
        model.weight.grad = gradient
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity)
        torch.testing.assert_close(model.weight.detach(), weight)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8), (1, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonalize_maps_each_singular_value_by_the_published_polynomial_five_times(shape, dtype):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=dtype)
    u, values, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    expected = (u * values[:, None]) @ v
    torch.testing.assert_close(orthogonalize(matrices), expected.to(dtype), rtol=tolerance, atol=tolerance)


def test_orthogonalize_leaves_a_gradient_of_zero_at_zero():
    assert not orthogonalize(torch.zeros(2, 3, 4)).any()


def gradients(model: nn.Module, number: int) -> None:
    """Give the parameters the number-th set of random gradients."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_takes_the_steps_of_torchs_muon_for_the_hidden_weights_and_of_adamw_for_the_rest():
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=24, depth=2)
    ours, weights = create_optimizer(model, "muon", 0.003, 0.1, muon_learning_rate=0.05), dict(model.named_parameters())
    matrices = {name for name in weights if name.startswith("blocks.") and weights[name].ndim == 2}
    assert len(matrices) == 8
    separate: dict[str, nn.Parameter] = {}  # torch's Muon has the queries', keys' and values' weights one by one
    for name in matrices:
        parts = weights[name].detach().clone().chunk(3 if "qkv" in name else 1)
        separate |= {f"{name} {i}": nn.Parameter(part) for i, part in enumerate(parts)}
    others = {name: nn.Parameter(weights[name].detach().clone()) for name in weights.keys() - matrices}
    muon = torch.optim.Muon(separate.values(), lr=0.05, weight_decay=0.1, adjust_lr_fn="original")
    decayed = [others[name] for name in ("patch_embed.proj.weight", "head.weight")]
    rest = [parameter for parameter in others.values() if all(parameter is not one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.003, betas=(0.9, 0.95))
    for number in range(3):
        before = {name: parameter.detach().clone() for name, parameter in separate.items()}
        gradients(model, number)
        for name, parameter in (separate | others).items():
            whole, _, part = name.partition(" ")
            gradient = weights[whole].grad
            assert gradient is not None
            parameter.grad = gradient.chunk(3)[int(part)] if "qkv.weight" in whole else gradient
        for optimizer in (ours, muon, adamw):
            optimizer.step()
        for name, parameter in separate.items():
            whole, _, part = name.partition(" ")
            found = weights[whole].chunk(3)[int(part)] if "qkv" in whole else weights[whole]
            step = (parameter - before[name]).norm()
            assert (found - parameter).norm() < 0.03 * (number + 1) * step, name  # torch iterates in bf16
        for name, parameter in others.items():
            torch.testing.assert_close(weights[name], parameter)


def test_muon_makes_the_update_of_a_tall_matrix_longer_and_shrinks_the_weights_apart_from_it():
    weight = nn.Parameter(torch.zeros(40, 8))
    weight.grad = torch.randn(40, 8)
    adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.1)
    Muon([weight], [], adamw, lr=0.1, weight_decay=0.5).step()
    update = weight.detach().clone()
    torch.testing.assert_close(update, -0.1 * math.sqrt(5) * orthogonalize(weight.grad[None])[0])
    with torch.no_grad():
        weight.copy_(torch.ones(40, 8))
    Muon([weight], [], adamw, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), 0.95 + update)


def test_muon_goes_on_from_its_saved_state_to_the_same_bits():
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=24, depth=2)
    optimizer = create_optimizer(model, "muon", 0.01, 0.1)
    for number in range(4):
        if number == 2:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        gradients(model, number)
        optimizer.step()
    resumed = VisionTransformer(embed_dim=24, depth=2)
    resumed.load_state_dict(saved[0])
    optimizer_after = create_optimizer(resumed, "muon", 0.01, 0.1)
    optimizer_after.load_state_dict(saved[1])
    for number in (2, 3):
        gradients(resumed, number)
        optimizer_after.step()
    for parameter, other in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, other)
    torch.testing.assert_close(optimizer_after.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
