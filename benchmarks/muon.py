"""What Muon costs in a training step: this repository's against torch.optim.Muon, and AdamW for scale, in one run.

    python benchmarks/muon.py                                 # a table, and results/muon.json; two minutes on two cores

The model is that of --preset cpu-1h. The optimizers step in turn; the medians are reported. Both Muons have the same
matrices, queries, keys and values apart, and AdamW for the other parameters. torch's iterates in bf16, this
repository's in fp32.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from throughput import ROOT, describe_machine, take_turns
from torch import nn

from config_vit_cifar10 import ViTConfig
from training.cli import parse
from training.device import autocast, select_device, select_precision
from training.errors import exit_codes
from training.files import create_folder
from training.history import write_json
from training.optim import create_optimizer
from vit import VisionTransformer


@dataclass(frozen=True)
class MuonConfig:
    """How to measure."""

    rounds: int = 10
    """timed steps of each optimizer, after two untimed ones"""
    output: str = str(ROOT / "results" / "muon.json")
    """file for the medians"""


def main(config: MuonConfig) -> None:
    """Time forward and backward at both image sizes, and each optimizer's step, in turn."""
    create_folder(Path(config.output).parent, "--output")
    device = select_device("auto")
    dtype, _ = select_precision("auto", device)
    settings = ViTConfig.from_preset("cpu-1h")
    model = VisionTransformer(num_classes=10, **settings.model_args).to(device)
    small, large = (passes(model, size, settings.batch_size, dtype, device) for size in (16, 32))
    candidates: dict[str, Callable[[], object]] = {
        "forward and backward, 16x16": small,
        "forward and backward, 32x32": large,
        "AdamW": create_optimizer(model, "adamw", 1e-3, 0.05).step,
        "Muon": create_optimizer(model, "muon", 1e-3, 0.05).step,
        "torch.optim.Muon": torch_muon(create_optimizer(model, "muon", 1e-3, 0.05)),
    }
    seconds = take_turns(candidates, config.rounds)
    medians = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    for name, milliseconds in medians.items():
        print(f"{name:<28} {milliseconds:8.1f} ms, {milliseconds / medians['Muon']:6.2f} times Muon's step")
    about = {**describe_machine(device), "precision": str(dtype)}
    write_json(Path(config.output), {**about, "batch_size": settings.batch_size, "milliseconds": medians})


def passes(
    model: nn.Module, size: int, batch_size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """A function that computes the gradients of a batch of images of that size."""
    images = torch.randn(batch_size, 3, size, size, device=device)
    labels = torch.randint(10, (batch_size,), device=device)

    def step() -> None:
        model.zero_grad()
        with autocast(device, dtype):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()

    return step


def torch_muon(ours: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that does the step of `ours` with torch's own Muon, on copies of its matrices, and torch's AdamW."""
    hidden: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for group in ours.param_groups:
        if "parts" not in group:  # AdamW's
            outer += group["params"]
            continue
        for weight in group["params"]:
            hidden += [nn.Parameter(part.detach().clone()) for part in weight.chunk(group["parts"])]
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.05, momentum=0.95, adjust_lr_fn="original")
    adamw = torch.optim.AdamW(outer, lr=1e-3, fused=True)
    for weight in hidden:
        weight.grad = torch.randn_like(weight)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


if __name__ == "__main__":
    with exit_codes():
        main(parse(MuonConfig, __doc__ or ""))
