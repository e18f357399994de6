"""vit.py computes what timm's VisionTransformer computes, and refuses sizes that do not fit together."""

import ast
import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

import vit
from training.device import autocast
from vit import Attention, Dropout, RelPosBias, VisionTransformer, create_vit_tiny_cifar10

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 10,
}


def test_the_file_begins_with_patches_and_imports_only_torch_and_typing():
    tree = ast.parse(Path(vit.__file__).read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes[:5] == ["PatchEmbed", "Attention", "Mlp", "Block", "VisionTransformer"]
    imports = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    imports += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in imports} == {"torch", "typing"}


def test_vit_tiny_has_the_recipes_size():
    model = create_vit_tiny_cifar10()
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_362_762
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert {module.p for module in model.modules() if isinstance(module, Dropout)} == {0.1}


def test_dropout_is_applied_after_the_embedding_the_projection_and_both_layers_of_the_mlp():
    model, called = create_vit_tiny_cifar10(depth=1), []
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(torch.zeros(1, 3, 32, 32))
    assert called == ["pos_drop", "blocks.0.attn.proj_drop", "blocks.0.mlp.drop", "blocks.0.mlp.drop"]


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
def test_the_weights_load_into_timm_and_back_with_the_same_logits_and_gradients(sizes):
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


def assert_the_same_logits_and_gradients(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Of two models in double precision."""
    logits, expected = ours(images), theirs(images)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    logits.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-9, msg=f"gradient of {name}")


def test_mean_pooling_and_qk_norm_are_timms_with_the_same_weights():
    torch.manual_seed(0)
    sizes: Any = {"img_size": 12, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    ours = VisionTransformer(**sizes, global_pool="avg", qk_norm=True).double()
    theirs = timm.models.vision_transformer.VisionTransformer(
        **sizes, class_token=False, global_pool="avg", fc_norm=False, qk_norm=True
    ).double()
    for parameter in ours.parameters():  # norms too: those of queries and keys begin at 1 and 0
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 12, 12).double()
    assert_the_same_logits_and_gradients(ours, theirs, images)
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_with_relative_positions_logits_and_gradients_are_timms(global_pool):
    torch.manual_seed(0)
    args = {**SMALL, "global_pool": global_pool, "qk_norm": True}
    ours = VisionTransformer(**args, pos_embed="relative").double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs = VisionTransformerRelPos(
        **args, rel_pos_type="bias", class_token=global_pool == "token", init_values=None
    ).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    assert_the_same_logits_and_gradients(ours, theirs, images)


def test_each_head_begins_at_one_neighbour_of_a_patch():
    model = VisionTransformer(**{**SMALL, "depth": 3, "num_heads": 3}, pos_embed="relative")
    patch = 8 * 3 + 4  # row 3, column 4 of 8 x 8
    seen = set()
    for rel_pos in (module for module in model.modules() if isinstance(module, RelPosBias)):
        for weights in rel_pos(65)[:, 1 + patch, 1:].softmax(dim=1):  # with zero queries and keys
            row, column = divmod(int(weights.argmax()), 8)
            assert weights.max() > 0.25
            seen.add((row - 3, column - 4))
    assert seen == {(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)}


def test_half_size_images_have_the_positions_of_the_same_places():
    model = VisionTransformer(depth=1, embed_dim=24)
    full, small = model.positions(64), model.positions(16)
    assert full is model.pos_embed
    assert full is not None
    assert small is not None
    assert torch.equal(small[:, 0], full[:, 0])  # the class token's
    places = full[0, 1:].view(4, 2, 4, 2, -1).mean(dim=(1, 3)).flatten(0, 1)  # each is the middle of four
    torch.testing.assert_close(small[0, 1:], places)


def test_half_size_images_have_the_biases_of_the_same_distances_in_the_picture():
    bias = RelPosBias(grid=8, num_heads=2, num_prefix_tokens=1, block=0)
    nn.init.normal_(bias.relative_position_bias_table)
    full, small = bias(65), bias(17)
    assert torch.equal(small[:, 0, :5], full[:, 0, :5])  # the class token's
    assert torch.equal(small[:, :5, 0], full[:, :5, 0])
    patches = full[:, 1:, 1:].view(2, 8, 8, 8, 8)[:, ::2, ::2, ::2, ::2]
    assert torch.equal(small[:, 1:, 1:], patches.reshape(2, 16, 16))


@pytest.mark.parametrize("global_pool", ["token", "avg"])
@pytest.mark.parametrize("pos_embed", ["learn", "relative"])
def test_half_size_images_give_logits_and_a_gradient_to_every_parameter(global_pool, pos_embed):
    model = VisionTransformer(depth=2, embed_dim=24, global_pool=global_pool, pos_embed=pos_embed, qk_norm=True)
    logits = model(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("pos_embed", ["learn", "relative"])
@pytest.mark.parametrize("size", [(16, 64), (28, 28), (64, 64), (32, 16), (8, 8)])
def test_images_of_another_size_or_shape_are_refused(pos_embed, size):
    model = VisionTransformer(depth=1, embed_dim=24, pos_embed=pos_embed)
    with pytest.raises(ValueError, match=r"images must have 32 or 16 rows and columns, got \[1, 3, "):
        model(torch.randn(1, 3, *size))


def test_an_odd_grid_has_no_half():
    with pytest.raises(ValueError, match="images must have 12 rows"):
        VisionTransformer(img_size=12, depth=1, embed_dim=24)(torch.randn(1, 3, 6, 6))


def test_with_zero_init_a_block_begins_as_the_identity_and_all_classes_are_equally_likely():
    torch.manual_seed(0)
    model = VisionTransformer(depth=2, zero_init=True)
    x, weights = torch.randn(2, 65, 192), dict(model.named_parameters())
    assert torch.equal(model.blocks(x), x)
    assert not model(torch.randn(2, 3, 32, 32)).any()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"):
        assert weights[name].std().item() == pytest.approx(0.7 * 192**-0.5, rel=0.05)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_the_untrained_loss_is_that_of_guessing(num_classes):
    torch.manual_seed(0)
    model = create_vit_tiny_cifar10(num_classes=num_classes).eval()
    loss = F.cross_entropy(model(torch.randn(64, 3, 32, 32)), torch.randint(num_classes, (64,)))
    assert loss.item() == pytest.approx(math.log(num_classes), abs=0.1)


def test_the_initial_weights_have_the_stated_standard_deviation():
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
        ({"pos_embed": "rope"}, "pos_embed must be learn or relative, got rope"),
        ({"global_pool": "max"}, "global_pool must be token or avg, got max"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        VisionTransformer(**arguments)


@pytest.mark.parametrize("name", ["vit tiny", "one block"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_computing_only_the_class_token_at_the_end_changes_no_logit_and_no_gradient(name, dtype, tolerance):
    torch.manual_seed(0)
    model = create_vit_tiny_cifar10(dropout=0.0, depth=12 if name == "vit tiny" else 1).to(dtype)
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(3, 3, 32, 32, dtype=dtype)

    def in_full(images: Tensor) -> Tensor:
        assert model.cls_token is not None
        x = torch.cat([model.cls_token.expand(len(images), -1, -1), model.patch_embed(images)], dim=1)
        return model.head(model.norm(model.blocks(x + model.get_parameter("pos_embed")))[:, 0])

    logits, expected = model(images), in_full(images)
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    gradients, expected_gradients = (
        torch.autograd.grad(F.cross_entropy(out, torch.arange(3)), [*model.parameters()]) for out in (logits, expected)
    )
    for (parameter, _), gradient, full in zip(model.named_parameters(), gradients, expected_gradients, strict=True):
        atol = tolerance * full.abs().max().item()
        torch.testing.assert_close(gradient, full, rtol=tolerance, atol=max(atol, tolerance / 10), msg=parameter)


@pytest.mark.parametrize("num_queries", [None, 1, 2])
def test_attention_equals_torchs_and_is_as_exact(num_queries):
    torch.manual_seed(0)
    attention, x = Attention(48, num_heads=3, dropout=0.0), torch.randn(2, 65, 48)

    def by_torch(attention: Attention, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (3, 16)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2))
        return attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, :num_queries]

    found, expected = attention(x, num_queries), by_torch(attention, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    exact = by_torch(copy.deepcopy(attention).double(), x.double())
    assert (found - exact).norm() <= 2 * (expected - exact).norm()
    torch.testing.assert_close(attention.double()(x.double(), num_queries), exact, rtol=1e-12, atol=1e-13)


def test_bf16_logits_differ_from_fp32_only_by_rounding():
    torch.manual_seed(0)
    model = create_vit_tiny_cifar10(dropout=0.0)
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(8, 3, 32, 32)
    expected = model(images)
    with autocast(torch.device("cpu"), torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    error = ((logits.float() - expected).norm() / expected.norm()).item()
    assert 2**-12 < error < 4 * 2**-8  # one rounding is off by up to 2^-8; those of 12 blocks partly cancel out


def drops(p: float, dtype: torch.dtype, calls: int = 4000, shape: tuple[int, ...] = (4, 5, 61)) -> Tensor:
    """Which elements dropout zeroes, over many calls: bools (calls, tokens, features)."""
    torch.manual_seed(0)
    drop, ones = Dropout(p), torch.ones(shape, dtype=dtype)  # 1,220 elements use only half of the last 64-bit draw
    return torch.stack([drop(ones) == 0 for _ in range(calls)]).flatten(1, 2)


def rounding_variance(p: float) -> float:
    """Variance over the calls of a feature's drop rate, which is 256 p rounded up or down, divided by 256."""
    chance_up = 256 * p % 1
    return chance_up * (1 - chance_up) / 256**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.99])
def test_dropout_drops_every_token_and_every_feature_at_exactly_its_rate(p, dtype):
    zeros = drops(p, dtype).double()
    calls, tokens, features = zeros.shape
    rounding = rounding_variance(p) / calls
    element = p * (1 - p) / calls
    for over, variance in {
        (0, 1, 2): element / (tokens * features) + rounding / features,
        (0, 1): element / tokens + rounding,
        (0, 2): element / features + rounding / features,
    }.items():
        assert (zeros.mean(over) - p).abs().max() < 5 * math.sqrt(variance), over


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_neighbours_and_the_same_place_in_two_calls_independently(p):
    zeros = (drops(p, torch.float32).double() - p) / math.sqrt(p * (1 - p))
    flat = zeros.flatten(1)
    pairs = {f"{lag} apart": (flat[:, lag:], flat[:, :-lag]) for lag in (*range(1, 10), 64)}
    pairs |= {f"{calls} calls apart": (flat[calls:], flat[:-calls]) for calls in (1, 2)}
    pairs["a token apart"] = zeros[:, 1:], zeros[:, :-1]
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < 5 / math.sqrt(one.numel()), name


@pytest.mark.parametrize("p", [0.003, 0.1, 0.5])
def test_tokens_share_the_rounding_of_a_feature_and_features_share_none(p):
    """With n tokens, the variance of a feature's number of drops is then n p (1 - p) (1 + (n - 1) correlation)."""
    torch.manual_seed(0)
    drop, ones, calls = Dropout(p), torch.ones(64 * 65, 96), 150
    counts = torch.stack([(drop(ones) == 0).sum(dim=0) for _ in range(calls)]).double()
    n = len(ones)
    ratio = (counts - n * p).square().mean().item() / (n * p * (1 - p))
    stated = rounding_variance(p) / (p * (1 - p))
    if p == 0.1:
        assert stated == pytest.approx(4e-5, rel=0.05)
    expected = 1 + (n - 1) * stated
    assert ratio == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / counts.numel()))
    in_all = (counts.sum(dim=1) - 96 * n * p).square().mean().item() / (96 * n * p * (1 - p))
    assert in_all == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / calls))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_dropout_multiplies_values_and_gradients_by_the_same_mask(p, dtype):
    torch.manual_seed(0)
    x, weights = (torch.randn(64, 67, dtype=dtype) for _ in range(2))
    y = Dropout(p)(x.requires_grad_())
    y.backward(weights)
    assert y.dtype == dtype
    mask = (y != 0) * torch.tensor(1 / (1 - p), dtype=dtype)
    assert 0 < (y != 0).sum() < y.numel()
    assert torch.equal(y, x * mask)
    assert x.grad is not None
    assert torch.equal(x.grad, weights * mask)


def test_dropout_repeats_its_draws_from_the_same_random_state_of_torch():
    drop, x = Dropout(0.3), torch.ones(3, 7, 11)
    torch.manual_seed(5)
    first = drop(x)
    state = torch.get_rng_state()
    second, third = drop(x), drop(x)
    torch.manual_seed(5)
    assert torch.equal(drop(x), first)
    torch.rand(9)
    torch.set_rng_state(state)
    assert torch.equal(drop(x), second)
    assert torch.equal(drop(x), third)
    assert not torch.equal(first, second)


def test_dropout_changes_nothing_and_draws_nothing_in_evaluation_and_at_0():
    x, state = torch.randn(3, 7), torch.get_rng_state()
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(0, 5, 8), (1, 1, 1), (3,), (2, 3, 5)])
def test_dropout_takes_any_shape_even_an_empty_one(shape):
    assert Dropout(0.5)(torch.ones(shape)).shape == shape
