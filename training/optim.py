"""The optimizer with its parameter groups, and the learning rate's course: linear warmup, then decay to 0."""

import math
from collections import defaultdict

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from training.muon import Muon

WSD_DECAY = 0.3  # of the steps after the warmup
REL_POS = "relative_position_bias_table"
NOT_DECAYED = ("cls_token", "pos_embed", REL_POS)  # nor are biases and norms


def create_optimizer(
    model: nn.Module, name: str, learning_rate: float, weight_decay: float, muon_learning_rate: float = 0.02
) -> torch.optim.Optimizer:
    """AdamW, SGD with Nesterov momentum 0.9, or Muon; weight decay on the weights of linear and conv layers only.

    Biases, norms, the class token and the positions have no decay, as in timm and DeiT. Muon takes the weights
    of the hidden layers; the first and the last layer's, and all that have no decay, get AdamW.
    None keeps more than run.NUM_STATES numbers for a weight: the check of the disk's room counts on it.
    """
    decayed, rest = {}, []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # a frozen backbone
            continue
        if parameter.ndim <= 1 or parameter_name.split(".")[-1] in NOT_DECAYED:
            rest.append(parameter)
        else:
            decayed[parameter_name] = parameter
    inner = list(decayed)[1:-1] if name == "muon" else []  # in the model's order: without the patches' and the head's
    fused_qkv = [decayed.pop(key) for key in inner if key.endswith("qkv.weight")]
    hidden = [decayed.pop(key) for key in inner if key in decayed]
    groups = [{"params": [*decayed.values()], "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if name == "muon":
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)  # as GPT-3 (2005.14165)
        return Muon(hidden, fused_qkv, adamw, muon_learning_rate, weight_decay)
    raise ValueError(f"optimizer must be adamw, sgd or muon, got {name}")


def scale_learning_rates(optimizer: torch.optim.Optimizer, factors: dict[nn.Parameter, float]) -> None:
    """Multiply the parameters' learning rates by their `factors`, where there is one; before the scheduler is made."""
    groups = []
    for group in optimizer.param_groups:
        by_factor = defaultdict(list)
        for parameter in group["params"]:
            by_factor[factors.get(parameter, 1.0)].append(parameter)
        groups += [  # those of factor 1 first: the history has the learning rate of the first group
            {**group, "params": parameters, "lr": group["lr"] * factor}
            for factor, parameters in sorted(by_factor.items(), key=lambda item: (item[0] != 1, -item[0]))
        ]
    optimizer.param_groups = groups


def scale_relative_positions(optimizer: torch.optim.Optimizer, model: nn.Module, scale: float) -> None:
    """Multiply the learning rate of a ViT's relative positions: they are added to attention scores."""
    tables = [parameter for name, parameter in model.named_parameters() if name.endswith(REL_POS)]
    scale_learning_rates(optimizer, dict.fromkeys(tables, scale))


def lr_factor(step: int, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """The learning rate of a step (from 0), over its peak: up to 1 in `warmup_steps`, then down to 0 after the last.

    "cosine" is half a cosine, SGDR without restarts (Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983);
    "linear" is a straight line (https://arxiv.org/abs/2310.07831); "wsd", warmup-stable-decay, stays at the peak and
    falls in a line in the last 30 % of the steps after the warmup (https://arxiv.org/abs/2405.18392).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (1 - progress) / (WSD_DECAY if schedule == "wsd" else 1.0))


def create_scheduler(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, steps_done: int = 0, schedule: str = "cosine"
) -> LambdaLR:
    """Sets the learning rate of each step; call its step() after the optimizer's.

    For an optimizer whose state was loaded, `steps_done` is where in the schedule it goes on: it needs no other state.
    """
    return LambdaLR(
        optimizer, lambda step: lr_factor(step, warmup_steps, total_steps, schedule), last_epoch=steps_done - 1
    )
