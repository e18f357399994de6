"""Muon, the optimizer of the hidden layers' weights."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Muon for the hidden layers' weights, and an AdamW for the other parameters, as one optimizer.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of each matrix orthogonal
    before the step. The numbers are those of torch.optim.Muon(lr, weight_decay, momentum=0.95), up to rounding. Two
    things differ: matrices of the same shape go through the products together and in the weights' own precision (torch
    takes bf16; on a CPU without its instructions that was 29 times as slow), and the queries', keys' and values' parts
    of `fused_qkv` are orthogonalized apart. Convolutions count as matrices (out, in * height * width).
    """

    def __init__(
        self, hidden: list[nn.Parameter], fused_qkv: list[nn.Parameter], adamw: torch.optim.AdamW, lr: float,
        weight_decay: float, momentum: float = 0.95,
    ):  # fmt: skip
        muon = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        groups = [{"params": hidden, "parts": 1, **muon}, {"params": fused_qkv, "parts": 3, **muon}]
        self.adamw = adamw
        super().__init__([*adamw.param_groups, *groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            raise ValueError("Muon takes no closure")
        muon_groups = [group for group in self.param_groups if "parts" in group]
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        self.adamw.step()

        updates: dict[Any, list[Tensor]] = defaultdict(list)  # of the matrices of each shape
        places: dict[Any, list[tuple[Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in muon_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)  # Nesterov's
                for weight, part in zip(parameter.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    updates[part.shape].append(part)
                    places[part.shape].append((weight, group))
        for (height, width), parts in updates.items():
            scale = math.sqrt(max(1, height / width))  # longer updates for tall matrices, as torch's "original"
            for (weight, group), update in zip(places[height, width], orthogonalize(torch.stack(parts)), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.view_as(weight), alpha=group["lr"] * scale)


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Matrices (n, height, width) with the same singular vectors, and singular values of roughly 0.7 to 1.2.

    Singular values below about a thousandth of the norm stay smaller, and zeros stay zero.

    This is Muon's Newton-Schulz iteration, X <- (a + b XX' + c (XX')^2) X, from X of norm 1. The factors in brackets
    are polynomials of the first XX', so they commute: X is multiplied only once, by their product, which takes 56 % of
    the arithmetic for a matrix four times as wide as high.
    """
    height, width = matrices.shape[-2:]
    if height > width:
        return orthogonalize(matrices.mT, num_steps).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram, product = x @ x.mT, None
    for steps_left in reversed(range(num_steps)):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        if width > height:
            product = factor if product is None else factor @ product
        else:
            x = factor @ x
        if steps_left:
            gram = factor @ gram @ factor if width > height else x @ x.mT
    return x if product is None else product @ x
