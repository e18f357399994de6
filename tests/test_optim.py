"""The schedule is linear warmup and half a cosine; weight decay touches the weights of linear and conv layers only."""

import pytest
import torch
from torch import nn

from resnet import ResNet18
from training.optim import create_optimizer, create_scheduler, lr_factor
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


def test_the_factor_ends_at_zero_and_stays_there():
    assert [lr_factor(step, 2, 6) for step in (6, 7, 100)] == [0, 0, 0]


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
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_schedule_taken_up_at_any_step_goes_on_as_one_of_its_length_that_was_never_left(name, longer, warmup_steps):
    def new_optimizer() -> torch.optim.Optimizer:
        return create_optimizer(nn.Linear(2, 2), name, learning_rate=0.3, weight_decay=0.1)

    total = 9 + longer
    uninterrupted = new_optimizer()
    expected = learning_rates(uninterrupted, create_scheduler(uninterrupted, warmup_steps, total), total)
    assert len({rate for rate, _ in expected}) > 5
    for steps_done in range(10):
        stopped, resumed = new_optimizer(), new_optimizer()
        learning_rates(stopped, create_scheduler(stopped, warmup_steps, 9), steps_done)
        resumed.load_state_dict(stopped.state_dict())
        scheduler = create_scheduler(resumed, warmup_steps, total, steps_done)
        assert learning_rates(resumed, scheduler, total - steps_done) == expected[steps_done:]


@pytest.mark.parametrize("create_model", MODELS, ids=["vit", "resnet"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
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
