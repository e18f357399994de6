"""A Vision Transformer for small images, written by hand.

"An Image is Worth 16x16 Words" (Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929), in the pre-norm form. The
modules have the names of timm's VisionTransformer, so that weights move between the two:

    model = create_vit_tiny_cifar10()          # 32x32, patch 4, width 192, 12 blocks, 3 heads: 5,362,762 parameters
    logits = model(torch.randn(2, 3, 32, 32))  # (2, 10)

Shapes: B images, C channels, P patch size, T = (img_size / P)^2 patches, N = T + 1 tokens (the class token is token 0;
N = T without one), D embedding dimension, H heads, K classes.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut the image into P x P patches and project each to D numbers: a convolution with stride = kernel size = P."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)                                      # (B, D, img_size/P, img_size/P)
        return x.flatten(2).transpose(1, 2)                   # (B, T, D)


class Attention(nn.Module):
    """Multi-head self-attention: every token attends to all tokens, or only the first `num_queries` tokens do."""

    def __init__(
        self, dim: int, num_heads: int, dropout: float, qk_norm: bool = False, rel_pos: "RelPosBias | None" = None
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm = nn.LayerNorm(dim // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads, eps=1e-6) if qk_norm else nn.Identity()
        self.rel_pos = rel_pos
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(dropout)                     # nn.Dropout, cheaper on a CPU: see below

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        heads = (B, N, self.num_heads, D // self.num_heads)
        q, k, v = (y.view(heads).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))  # (B, H, N, D/H) each
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        q = q[:, :, :num_queries]                             # (B, H, Q, D/H), where Q = num_queries or N
        bias = self.rel_pos(x.shape[1])[:, :num_queries].to(q.dtype) if self.rel_pos else None  # (H, Q, N)
        if x.device.type == "cpu":                            # same result; on a CPU the fused kernel is slower in bf16
            attn = (q * self.scale) @ k.transpose(-2, -1)     # (B, H, Q, N)
            attn = attn if bias is None else attn + bias
            x = attn.softmax(dim=-1) @ v                      # (B, H, Q, D/H)
        else:
            x = F.scaled_dot_product_attention(q, k, v, bias) # (B, H, Q, D/H)
        x = x.transpose(1, 2).flatten(2)                      # (B, Q, D)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Two linear layers with GELU between them, applied to each token separately."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.gelu(self.fc1(x)))                    # (B, N, mlp_ratio * D)
        return self.drop(self.fc2(x))                         # (B, N, D)


class Block(nn.Module):
    """One pre-norm layer of the encoder: attention, then the MLP, each as x + f(norm(x)).

    With `num_queries`, only the first `num_queries` tokens are computed and returned; they still attend to all.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, qk_norm: bool = False,
        rel_pos: "RelPosBias | None" = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, dropout, qk_norm, rel_pos)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        x = x[:, :num_queries] + self.attn(self.norm1(x), num_queries)
        return x + self.mlp(self.norm2(x))                    # (B, Q, D), where Q = N without num_queries


class VisionTransformer(nn.Module):
    """Normalized images (B, C, img_size, img_size) to logits (B, num_classes).

    `img_size` and `patch_size` are in pixels, and `mlp_ratio` is the MLP's hidden width divided by `embed_dim`.
    `dropout` is applied after the position embedding, the attention's projection and both MLP layers (timm:
    pos_drop_rate and proj_drop_rate). Raises ValueError, naming the argument, for sizes that do not fit together.

    Images of half the size work too: patches of as many pixels, so a quarter as many. Learned positions are then
    averaged 2 x 2; of the relative ones every second offset is used.

    Options, off by default:
        global_pool: the head reads the class token ("token"), or there is none and it reads the patches' mean ("avg").
        qk_norm: LayerNorm on each head's queries and keys (arXiv 2302.05442).
        pos_embed: "learn" adds a vector for each place; "relative" instead adds to each head's attention scores a
            number for each offset between two patches (RelPosBias).
        zero_init: each block begins as the identity, and the logits at zero (init_weights).
    """

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        global_pool: Literal["token", "avg"] = "token",
        qk_norm: bool = False,
        pos_embed: Literal["learn", "relative"] = "learn",
        zero_init: bool = False,
    ):
        super().__init__()
        counts = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans, "num_classes": num_classes,
                  "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if img_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide img_size {img_size}")
        if embed_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        if not 1 <= embed_dim * mlp_ratio < 2**31:
            raise ValueError(f"mlp_ratio {mlp_ratio} gives the MLP of embed_dim {embed_dim} an impossible width")
        if not 0 <= dropout <= 0.99:
            raise ValueError(f"dropout must be between 0 and 0.99, got {dropout}")
        if global_pool not in ("token", "avg"):
            raise ValueError(f"global_pool must be token or avg, got {global_pool}")
        if pos_embed not in ("learn", "relative"):
            raise ValueError(f"pos_embed must be learn or relative, got {pos_embed}")

        self.num_prefix_tokens = 1 if global_pool == "token" else 0
        self.grid = img_size // patch_size
        self.sizes = [img_size] if self.grid % 2 else [img_size, img_size // 2]  # of images, in pixels
        num_tokens, learned = self.num_prefix_tokens + self.grid**2, pos_embed == "learn"
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if self.num_prefix_tokens else None
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, embed_dim)) if learned else None
        self.pos_drop = Dropout(dropout)
        self.blocks = nn.Sequential()
        for i in range(depth):
            rel_pos = None if learned else RelPosBias(self.grid, num_heads, self.num_prefix_tokens, i)
            self.blocks.append(Block(embed_dim, num_heads, mlp_ratio, dropout, qk_norm, rel_pos))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.init_weights(zero_init)

    def init_weights(self, zero_init: bool) -> None:
        """Normals of std 0.02 as in timm (patches: 1/sqrt(fan-in), as the paper's code; class token 1e-6), zero biases.

        `zero_init`, for Muon: zeros in the head and in the last layer of each residual branch, so that a block
        begins as the identity (arXiv 1901.09321); 0.7/sqrt(fan-in), chosen by hand, in the blocks' other matrices.
        """
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Conv2d):                 # fan-in C * P * P
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Linear) and zero_init:
                nn.init.zeros_(module.weight)
                if name.endswith(("qkv", "fc1")):             # the others are proj, fc2 and head
                    nn.init.trunc_normal_(module.weight, std=0.7 * module.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images (B, C, S, S), S in self.sizes, to logits (B, num_classes); ValueError for other sizes."""
        if x.shape[2] != x.shape[3] or x.shape[2] not in self.sizes:
            raise ValueError(f"images must have {' or '.join(map(str, self.sizes))} rows and columns, got {[*x.shape]}")
        x = self.patch_embed(x)                               # (B, T, D)
        pos_embed = self.positions(x.shape[1])
        if self.cls_token is not None:                        # (B, N, D)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.pos_drop(x if pos_embed is None else x + pos_embed)
        x = self.blocks[:-1](x)                               # (B, N, D)
        num_queries = None if self.cls_token is None else 1   # the head reads only the class token, or all patches
        x = self.blocks[-1](x, num_queries)                   # (B, 1 or T, D)
        return self.head(self.norm(x).mean(dim=1))            # (B, K)

    def positions(self, num_patches: int) -> Tensor | None:
        """The position embedding (1, N, D) for that many patches; in smaller images each place is the mean of four."""
        grid, prefix, pos_embed = round(num_patches**0.5), self.num_prefix_tokens, self.pos_embed
        if pos_embed is None or grid == self.grid:
            return pos_embed
        patches = pos_embed[:, prefix:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, (grid, grid), mode="area").flatten(2).transpose(1, 2)
        return torch.cat([pos_embed[:, :prefix], patches], dim=1)


def create_vit_tiny_cifar10(**overrides: Any) -> VisionTransformer:
    """ViT-Tiny for CIFAR-10: 32x32 images, patch 4, 192/12/3, dropout 0.1; `overrides` are arguments of the model."""
    return VisionTransformer(**{"dropout": 0.1, **overrides})


NEIGHBOURS = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]  # (rows, columns) away


class RelPosBias(nn.Module):
    """For each head, a learned number for each offset (rows, columns) between two patches, added to their score.

    T5's bias (arXiv 1910.10683) in two dimensions, as Swin's (2103.14030) and timm's of this name; as in timm, three
    more numbers are for the class token: as query, as key, as both.

    At first each head looks at the patch itself or at one of its eight neighbours, in turn over heads and blocks (as
    ConViT's, 2103.10697): the bias is minus the squared distance from there, at least -9. Swin and timm begin near 0.
    """

    index: Tensor

    def __init__(self, grid: int, num_heads: int, num_prefix_tokens: int, block: int):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        places, away = torch.arange(grid), torch.arange(grid - 1, -grid, -1)  # `away`: key's place minus query's
        table = torch.zeros(len(away) ** 2 + 3 * num_prefix_tokens, num_heads)
        for head in range(num_heads):
            row, column = NEIGHBOURS[(block * num_heads + head) % 9]
            distances = (away[:, None] - row) ** 2 + (away - column) ** 2     # squared, of each offset
            table[: distances.numel(), head] = -distances.flatten().clamp(max=9)
        self.relative_position_bias_table = nn.Parameter(table)
        offset = places[:, None] - places + grid - 1          # (grid, grid): query's minus key's, from 0
        index = offset[:, None, :, None] * len(away) + offset[None, :, None, :]
        self.register_buffer("index", index, persistent=False)                              # (grid, grid, grid, grid)

    def forward(self, num_tokens: int) -> Tensor:             # rows are queries, columns keys
        step, last = len(self.index) // round(num_tokens**0.5), len(self.relative_position_bias_table) - 1
        index = self.index[::step, ::step, ::step, ::step].flatten(2).flatten(0, 1)         # (T, T)
        if self.num_prefix_tokens:                                                          # (N, N)
            index = F.pad(index, (0, 0, 1, 0), value=last - 2)
            index = F.pad(index, (1, 0, 0, 0), value=last - 1)
            index[0, 0] = last
        return self.relative_position_bias_table[index].permute(2, 0, 1)                    # (H, N, N)


# The rest makes dropout cheaper on a CPU and changes nothing else. To skip it, read Dropout as nn.Dropout.


class Dropout(nn.Module):
    """Zero each element with probability p and scale the rest by 1/(1 - p); in eval mode do nothing.

    This is nn.Dropout with cheaper random numbers on a CPU: one random byte for each element, eight bytes from each
    64-bit draw. An element is zeroed if its byte is below a limit. The limit is 256 p, rounded up or down at random so
    that its mean is exactly 256 p: each call rounds it once for each feature, and all tokens share the result (which
    correlates two tokens by 4e-5 for p = 0.1). For a (64, 65, 768) bf16 tensor on 2 cores, forward and backward take
    3 ms instead of 21 ms; a training step has 11 such calls and 26 smaller ones. Other devices use a fused kernel.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * self.mask(x)

    def mask(self, x: Tensor) -> Tensor:
        """The factor for each element of x, 0 or 1 / (1 - p), in the shape and dtype of x."""
        draws = torch.randint(-(2**63), 2**63 - 1, ((x.numel() + 7) // 8,)).view(torch.uint8)[: x.numel()]
        limit = (256 * self.p + torch.rand(x.shape[-1])).floor().to(x.dtype)
        keep = draws.view(x.shape).to(x.dtype).ge_(limit)     # 0 or 1; ge_ stays in x's dtype, >= would make bools
        return keep.mul_(1 / (1 - self.p))                    # and converting those is slow

    def extra_repr(self) -> str:
        return f"p={self.p}"
