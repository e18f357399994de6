"""The optimizer with its parameter groups, and the learning rate's course: linear warmup, then decay to 0."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR


def create_optimizer(
    model: nn.Module, name: str, learning_rate: float, weight_decay: float, muon_learning_rate: float = 0.02
) -> torch.optim.Optimizer:
    """AdamW, SGD with Nesterov momentum 0.9, or Muon; weight decay on the weights of linear and conv layers only.

    Biases, norms, the class token and the position embedding have no decay, as in timm and DeiT. Muon takes the weights
    of the hidden layers; the first and the last layer's, and all that have no decay, get AdamW.
    """
    decayed, rest = {}, []
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or parameter_name.split(".")[-1] in ("cls_token", "pos_embed"):
            rest.append(parameter)
        else:
            decayed[parameter_name] = parameter
    hidden = list(decayed)[1:-1] if name == "muon" else []
    fused_qkv = [decayed.pop(name) for name in hidden if name.endswith("qkv.weight")]
    hidden = [decayed.pop(name) for name in hidden if name in decayed]
    groups = [{"params": [*decayed.values()], "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
    return Muon(hidden, fused_qkv, adamw, muon_learning_rate, weight_decay)


class Muon(torch.optim.Optimizer):
    """Muon for the hidden layers' weights, and an AdamW for the other parameters, as one optimizer.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) makes the momentum of each matrix orthogonal
    before the step. The numbers are those of torch.optim.Muon(lr, weight_decay, momentum=0.95), up to rounding. Two
    things differ: matrices of the same shape go through the products together and in the weights' own precision (torch
    takes bf16, which is 40 times as slow on a CPU without bf16 instructions), and the queries', keys' and values' parts
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
        """Take a step, or none where train_one_epoch has set `found_inf` to a tensor that is not 0."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        muon_groups = [group for group in self.param_groups if "parts" in group]
        self.adamw.state, self.adamw.found_inf = self.state, found_inf  # pyright: ignore[reportAttributeAccessIssue]
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
                buffer, gradient = state["momentum_buffer"], parameter.grad
                if found_inf is not None:
                    gradient = torch.where(found_inf > 0, buffer, gradient)  # which leaves the buffer as it is
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(buffer, group["momentum"]).flatten(1)  # Nesterov's
                for weight, part in zip(parameter.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    updates[part.shape].append(part)
                    places[part.shape].append((weight, group))
        for (height, width), parts in updates.items():
            scale = math.sqrt(max(1, height / width))  # "original" in torch: the update of a tall matrix is longer
            for (weight, group), update in zip(places[height, width], orthogonalize(torch.stack(parts)), strict=True):
                new = weight * (1 - group["lr"] * group["weight_decay"])
                new.sub_(update.view_as(weight), alpha=group["lr"] * scale)
                weight.copy_(new if found_inf is None else torch.where(found_inf > 0, weight, new))


def orthogonalize(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Matrices (n, height, width) with the same singular vectors, and singular values of roughly 0.7 to 1.2.

    This is Muon's Newton-Schulz iteration, X <- (a + b XX' + c (XX')^2) X, from X of norm 1. The factors in brackets
    are polynomials of the first XX', so they commute: a wide X can wait until their product is known, which takes half
    of the arithmetic for a matrix of four times its height.
    """
    height, width = matrices.shape[-2:]
    if height > width:
        return orthogonalize(matrices.mT, num_steps).mT
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    gram, product = x @ x.mT, torch.eye(height, dtype=x.dtype, device=x.device)
    for _ in range(num_steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        if width > height:
            gram, product = factor @ gram @ factor, factor @ product
        else:
            x = factor @ x
            gram = x @ x.mT
    return product @ x if width > height else x


def lr_factor(step: int, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """The learning rate of a step (from 0), over its peak: (step + 1) / warmup_steps, then down to 0.

    "cosine" is half a cosine, SGDR without restarts (Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983);
    "linear" is a straight line (https://arxiv.org/abs/2310.07831).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def create_scheduler(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, steps_done: int = 0, schedule: str = "cosine"
) -> LambdaLR:
    """Sets the learning rate of each step; call its step() after the optimizer's.

    For an optimizer whose state was loaded, `steps_done` is where in the schedule it goes on: it needs no other state.
    """
    return LambdaLR(
        optimizer, lambda step: lr_factor(step, warmup_steps, total_steps, schedule), last_epoch=steps_done - 1
    )
