"""What a Vision Transformer looks at: the attention weights of its blocks, in fp32, and their rollout.

The model does not keep the weights. They are computed again here, from the input of each block's
attention (the output of `norm1`) and the block's own query and key weights.

Shapes: B images, N tokens (the class token, where there is one, is token 0), D embedding dimension, H heads, L
blocks, S patches along a side.
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def has_attention(model: nn.Module) -> bool:
    """Whether the model has transformer blocks, under timm's name."""
    return hasattr(model, "blocks")


@torch.inference_mode()
def attention_inputs(model: Any, images: Tensor) -> list[Tensor]:
    """The input of each block's attention for normalized images (B, C, height, width): L tensors (B, N, D)."""
    inputs: list[Tensor] = []
    hooks = [block.norm1.register_forward_hook(lambda _, __, x: inputs.append(x.float())) for block in model.blocks]
    try:
        model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


@torch.inference_mode()
def attention_weights(attention: Any, x: Tensor) -> Tensor:
    """The attention weights (B, H, N, N) of a block for its input (B, N, D): a row for each query token, with sum 1."""
    q, k, _ = attention.queries_keys_values(x)  # (B, H, N, D/H) each
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    bias = 0 if attention.rel_pos is None else attention.rel_pos(x.shape[1])  # of relative positions
    return (logits + bias).softmax(dim=-1)


def rollout(layers: Iterable[Tensor]) -> Tensor:
    """Attention rollout (B, N, N) from the weights (B, H, N, N) of all blocks, first block first.

    Each block counts with the mean of its heads' weights and the identity (its residual connection), in equal parts;
    the rollout is the product over the blocks (Abnar and Zuidema, 2020, https://arxiv.org/abs/2005.00928). It says how
    much of each output token comes from each input token, in rows with sum 1.
    """

    def step(weights: Tensor) -> Tensor:
        return (weights.mean(dim=1) + torch.eye(weights.shape[-1], device=weights.device)) / 2  # (B, N, N)

    return functools.reduce(lambda flow, after: after @ flow, map(step, layers))


def attention_maps(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Where the class token looks, for normalized images (B, C, height, width); without one, the mean of all patches.

    Returns the rollout (B, S, S) over all blocks and the heads (B, H, S, S) of the last block, laid out as the patches
    are in the image. A class token's attention to itself is left out, so a map's sum is then below 1.
    """
    rolled, heads, prefix = [], [], model.num_prefix_tokens
    read = slice(0, 1) if prefix else slice(None)  # the tokens that the head reads
    for image in images.split(1):  # one by one: with 3,000 tokens a block's weights take 100 MB an image
        inputs = attention_inputs(model, image)
        layers = (attention_weights(block.attn, x) for block, x in zip(model.blocks, inputs, strict=True))
        rolled.append(rollout(layers)[:, read, prefix:].mean(dim=1))
        heads.append(attention_weights(model.blocks[-1].attn, inputs[-1])[:, :, read, prefix:].mean(dim=2))
    return as_grid(torch.cat(rolled)).cpu(), as_grid(torch.cat(heads)).cpu()


def as_grid(patches: Tensor) -> Tensor:
    """Reshape one number a patch, row by row (..., S * S), to (..., S, S)."""
    side = round(patches.shape[-1] ** 0.5)
    return patches.unflatten(-1, (side, side))


def position_biases(model: Any) -> Tensor:
    """Relative positions (L, H, 2S - 1, 2S - 1): for each head of each block, the bias of a patch that lies so many
    rows and columns below and to the right of the patch that attends, from -(S - 1) to S - 1.
    """
    tables = [block.attn.rel_pos.relative_position_bias_table.detach().float().cpu() for block in model.blocks]
    offsets = (2 * len(model.blocks[0].attn.rel_pos.index) - 1) ** 2  # the class token's numbers come after them
    return as_grid(torch.stack(tables)[:, :offsets].transpose(1, 2)).flip(-2, -1)  # a table has query minus key


def position_similarity(model: Any) -> Tensor:
    """Cosine similarity of the patches' position embeddings (S, S, S, S): for each patch, a map over all patches.

    As in figure 7 of the ViT paper (https://arxiv.org/abs/2010.11929).
    """
    embeddings = nn.functional.normalize(model.pos_embed.detach().float().cpu()[0, model.num_prefix_tokens :], dim=1)
    maps = as_grid(embeddings @ embeddings.T)  # (S * S, S, S)
    return maps.unflatten(0, maps.shape[1:])
