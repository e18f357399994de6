"""The optimizer with its parameter groups, and the learning rate's course: linear warmup, then cosine decay to 0."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


def create_optimizer(model: nn.Module, name: str, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9; weight decay on the weights of linear and convolutional layers only.

    Biases, norms, the class token and the position embedding have no decay, as in timm and DeiT.
    """
    decayed, rest = [], []
    for parameter_name, parameter in model.named_parameters():
        spared = parameter.ndim <= 1 or parameter_name.split(".")[-1] in ("cls_token", "pos_embed")
        (rest if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True, fused=True)


def lr_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of a step (from 0), over its peak: (step + 1) / warmup_steps, then half a cosine down to 0.

    The cosine is SGDR's without restarts (Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def create_scheduler(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, steps_done: int = 0
) -> LambdaLR:
    """Sets the learning rate of each step; call its step() after the optimizer's.

    For an optimizer whose state was loaded, `steps_done` is where in the schedule it goes on: it needs no other state.
    """
    return LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps, total_steps), last_epoch=steps_done - 1)
