"""vit.py computes what timm's VisionTransformer computes, learns, and refuses sizes that do not fit together."""

import math

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F

from vit import Dropout, VisionTransformer, create_vit_tiny_cifar10


def test_vit_tiny_has_the_recipes_size():
    model = create_vit_tiny_cifar10()
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_362_762
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert {module.p for module in model.modules() if isinstance(module, Dropout)} == {0.1}


@pytest.mark.parametrize(
    "sizes",
    [
        {"patch_size": 2},
        {"patch_size": 4},
        {"patch_size": 8},
        {"embed_dim": 96, "depth": 6},
        {"img_size": 24, "patch_size": 3, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 100, "in_chans": 1},
    ],
)
def test_weights_move_to_timm_and_back_with_the_same_logits_and_gradients(sizes):
    torch.manual_seed(0)
    ours = create_vit_tiny_cifar10(**sizes)
    arguments = {"img_size": 32, "patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3, "num_classes": 10}
    theirs = timm.models.vision_transformer.VisionTransformer(**(arguments | sizes))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, sizes.get("in_chans", 3), *[sizes.get("img_size", 32)] * 2)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    ours(images).square().sum().backward()
    theirs(images).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5, msg=f"gradient of {name}")
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_untrained_loss_is_that_of_guessing(num_classes):
    torch.manual_seed(0)
    model = create_vit_tiny_cifar10(num_classes=num_classes).eval()
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(num_classes, (64,)))
    assert loss.item() == pytest.approx(math.log(num_classes), abs=0.1)


def test_initial_weights_have_the_stated_spread():
    torch.manual_seed(0)
    model = create_vit_tiny_cifar10()
    weights = dict(model.named_parameters())
    assert weights["blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["patch_embed.proj.weight"].std().item() == pytest.approx(48**-0.5, rel=0.05)
    assert not any(value.any() for name, value in weights.items() if name.endswith(".bias"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"patch_size": 5}, "patch_size"),
        ({"num_heads": 5}, "num_heads"),
        ({"depth": 0}, "depth"),
        ({"img_size": -32}, "img_size"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"num_classes": 0}, "num_classes"),
        ({"mlp_ratio": 0.001}, "mlp_ratio"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        VisionTransformer(**arguments)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_independently_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 2_000_003  # no multiple of the four elements to a draw
    dropped = Dropout(p)(torch.ones(n))
    zeros = dropped == 0
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - p)])

    def share(events: torch.Tensor, probability: float) -> tuple[float, float]:
        return events.double().mean().item(), 5 * math.sqrt(probability * (1 - probability) / len(events))

    for lane in range(4):  # of a 64-bit draw
        rate, five_sigma = share(zeros[lane::4], p)
        assert rate == pytest.approx(p, abs=five_sigma)
    for lag in (1, 2, 3, 4):
        rate, five_sigma = share(zeros[lag:] & zeros[:-lag], p * p)
        assert rate == pytest.approx(p * p, abs=five_sigma)


def test_dropout_backward_uses_the_forwards_mask_and_the_saved_random_state_repeats_it():
    drop = Dropout(0.3)
    x = torch.randn(64, 65, dtype=torch.bfloat16, requires_grad=True)
    state = torch.get_rng_state()
    y = drop(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), y)
    assert drop.eval()(x) is x
