"""The attention weights are the model's own, each lies over its patch, and rollout is computed as in the paper."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation import attention
from evaluation.attention_plots import overlay
from vit import VisionTransformer


@pytest.fixture
def model() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=12, patch_size=4, embed_dim=12, depth=3, num_heads=2, num_classes=5)
    for parameter in model.parameters():  # large weights, so that attention is far from uniform
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def all_weights(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    inputs = attention.attention_inputs(model, images)
    return [attention.attention_weights(block.attn, x) for block, x in zip(model.blocks, inputs, strict=True)]


def test_rows_sum_to_one_and_nothing_is_negative(model):
    layers = all_weights(model, torch.randn(4, 3, 12, 12))
    assert [layer.shape for layer in layers] == [(4, 2, 10, 10)] * 3
    for weights in layers:
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 2, 10))
    torch.testing.assert_close(attention.rollout(layers).sum(dim=-1), torch.ones(4, 10))


def test_a_forward_pass_by_hand_with_these_weights_gives_the_models_own_logits(model):
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        tokens = torch.cat([model.cls_token.expand(4, -1, -1), model.patch_embed(images)], dim=1) + model.pos_embed
        for block, weights in zip(model.blocks, all_weights(model, images), strict=True):
            normed = block.norm1(tokens)
            value = nn.functional.linear(normed, block.attn.qkv.weight[24:], block.attn.qkv.bias[24:])  # the last third
            heads = [weights[:, h] @ value[..., 6 * h : 6 * h + 6] for h in range(2)]
            tokens = tokens + block.attn.proj(torch.cat(heads, dim=-1))
            tokens = tokens + block.mlp(block.norm2(tokens))
        logits = model.head(model.norm(tokens)[:, 0])
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-4)
        largest = all_weights(model, images)[0].amax()
    assert largest > 0.5  # else uniform weights would pass too


def test_rollout_equals_a_plain_loop(model):
    layers = all_weights(model, torch.randn(3, 3, 12, 12))
    found = attention.rollout(layers).numpy()
    for image in range(3):
        expected = np.eye(10)
        for weights in layers:
            step = np.zeros((10, 10))
            for i in range(10):
                for j in range(10):
                    mean = np.mean([weights[image, head, i, j].item() for head in range(2)])
                    step[i, j] = 0.5 * mean + 0.5 * (i == j)
            step /= step.sum(axis=1, keepdims=True)
            expected = step.dot(expected)
        np.testing.assert_allclose(found[image], expected, rtol=1e-5, atol=1e-7)


def model_that_looks_at(patches: list[int]) -> VisionTransformer:
    """A model with 3 x 3 patches in which head h of the class token looks at patch patches[h] of any image.

    The position embedding of token t is the t-th unit vector and the patch embeddings are 0, so after the norm the t-th
    number of token t is its largest. Head h's query reads the number of the class token, its key that of the patch.
    """
    model = VisionTransformer(img_size=12, patch_size=4, embed_dim=12, depth=1, num_heads=len(patches), num_classes=2)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    block: Any = model.blocks[0]
    nn.init.ones_(block.norm1.weight)
    with torch.no_grad():
        model.get_parameter("pos_embed")[0, :, :10] = torch.eye(10)
        width = 12 // len(patches)
        for head, patch in enumerate(patches):
            block.attn.qkv.weight[head * width, 0] = 5.0  # query, from token 0
            block.attn.qkv.weight[12 + head * width, 1 + patch] = 5.0  # key, from the patch's token
    return model.eval()


def test_each_map_lies_over_the_patch_that_its_head_looks_at():
    patches = [5, 0, 7]  # row 1 column 2, top left corner, row 2 column 1: a mirrored map would differ
    model = model_that_looks_at(patches)
    images = torch.randn(2, 3, 12, 12)
    rollout, heads = attention.attention_maps(model, images)
    assert (rollout.shape, heads.shape) == ((2, 3, 3), (2, 3, 3, 3))
    for head, patch in enumerate(patches):
        row, column = divmod(patch, 3)
        assert (heads[:, head, row, column] > 0.99).all()
        assert heads[:, head].sum() < 2.0001
    even = torch.zeros(3, 3)
    for patch in patches:
        even[divmod(patch, 3)] = 1 / 6  # one head of three, and half goes to the residual connection
    torch.testing.assert_close(rollout, even.expand(2, 3, 3), atol=0.01, rtol=0)


def test_patches_are_numbered_row_by_row():
    """The other half of the claim: the patch at row r and column c of the image has the number r * S + c."""
    model = VisionTransformer(img_size=12, patch_size=4, embed_dim=12, depth=1, num_heads=1, num_classes=2)
    for row in range(3):
        for column in range(3):
            image = torch.zeros(1, 3, 12, 12)
            image[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
            with torch.no_grad():
                changed = (model.patch_embed(image) - model.patch_embed(torch.zeros_like(image))).abs().sum(dim=-1)
            assert attention.as_grid(changed)[0].nonzero().tolist() == [[row, column]]


def test_the_overlay_is_bright_over_the_patch_and_nowhere_else():
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    weights = torch.zeros(3, 3)
    weights[1, 2] = 0.2
    picture = overlay(image, weights, size=24)
    assert picture.shape == (24, 24, 3)
    assert 0 <= picture.min() <= picture.max() <= 1
    lightness = picture.mean(axis=-1)
    there = np.zeros((24, 24), bool)
    there[8:16, 16:24] = True
    assert lightness[there].min() > lightness[~there].max()  # in black and white too, whatever the image
    assert overlay(image, torch.zeros(3, 3)).max() <= 1  # no attention at all: no division by 0


def test_position_similarity_is_the_cosine_of_each_pair(model):
    found = attention.position_similarity(model)
    assert found.shape == (3, 3, 3, 3)
    for i in range(9):
        for j in range(9):
            one, other = model.pos_embed[0, 1 + i], model.pos_embed[0, 1 + j]
            cosine = torch.dot(one, other) / (one.norm() * other.norm())
            torch.testing.assert_close(found[i // 3, i % 3, j // 3, j % 3], cosine.detach())


def test_hooks_are_removed(model):
    before = model(torch.zeros(1, 3, 12, 12))
    attention.attention_maps(model, torch.zeros(1, 3, 12, 12))
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(torch.zeros(1, 3, 12, 12)), before, rtol=0, atol=0)


@pytest.fixture
def pooled() -> VisionTransformer:
    """Without a class token, with relative positions and normalized queries and keys."""
    torch.manual_seed(0)
    sizes = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**sizes, global_pool="avg", qk_norm=True, pos_embed="relative")  # pyright: ignore
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_these_weights_are_the_models_own_with_relative_positions_and_normalized_queries_too(pooled):
    images = torch.randn(4, 3, 12, 12)
    inputs = attention.attention_inputs(pooled, images)
    with torch.no_grad():
        for block, x in zip(pooled.blocks, inputs, strict=True):
            value = nn.functional.linear(x, block.attn.qkv.weight[32:], block.attn.qkv.bias[32:])  # the last third
            weights = attention.attention_weights(block.attn, x)
            heads = [weights[:, h] @ value[..., 8 * h : 8 * h + 8] for h in range(2)]
            expected = block.attn(x)
            torch.testing.assert_close(block.attn.proj(torch.cat(heads, dim=-1)), expected, rtol=1e-4, atol=1e-4)
            nn.init.zeros_(block.attn.rel_pos.relative_position_bias_table)
            uneven = (weights - attention.attention_weights(block.attn, x)).abs().amax()
            assert uneven > 0.1  # without the biases it would be seen


def test_without_a_class_token_a_map_shows_what_each_patch_gives_to_the_mean_of_all(pooled):
    images = torch.randn(2, 3, 12, 12)
    inputs = attention.attention_inputs(pooled, images)
    layers = [attention.attention_weights(b.attn, x) for b, x in zip(pooled.blocks, inputs, strict=True)]
    rollout, heads = attention.attention_maps(pooled, images)
    assert (rollout.shape, heads.shape) == ((2, 3, 3), (2, 2, 3, 3))
    torch.testing.assert_close(rollout.sum(dim=(1, 2)), torch.ones(2))
    for patch in range(9):
        row, column = divmod(patch, 3)
        torch.testing.assert_close(rollout[:, row, column], attention.rollout(layers)[..., patch].mean(dim=1))
        torch.testing.assert_close(heads[..., row, column], layers[-1][..., patch].mean(dim=2))


def test_relative_positions_are_laid_out_as_the_picture_around_the_patch_that_attends(pooled):
    biases = attention.position_biases(pooled)
    assert biases.shape == (3, 2, 5, 5)
    for layer, block in enumerate(pooled.blocks):
        bias = block.attn.rel_pos(9).view(2, 3, 3, 3, 3).detach()  # query's row and column, key's row and column
        assert torch.equal(biases[layer, :, 2, 2], bias[:, 1, 1, 1, 1])
        assert torch.equal(biases[layer, :, 2, 4], bias[:, 1, 0, 1, 2])  # two columns to the right
        assert torch.equal(biases[layer, :, 0, 3], bias[:, 2, 1, 0, 2])  # two rows above, one column to the right
