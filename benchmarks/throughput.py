"""How fast a whole training step is: this repository's ViT against timm's, in fp32 and bf16, in one run.

    python benchmarks/throughput.py                           # a table, about two minutes on two cores
    python benchmarks/throughput.py --json                    # the same as JSON

A step is forward, loss, backward and AdamW on a batch in memory; both have dropout 0.1. The candidates take turns, so
that a machine that gets slower or faster does so for all, and the median counts. Run it with nothing else running.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from training.cli import parse
from training.device import autocast, select_device
from training.errors import exit_codes
from training.optim import create_optimizer
from vit import create_vit_tiny_cifar10


@dataclass(frozen=True)
class BenchmarkConfig:
    """How to measure."""

    batch_size: int = 64
    """images a step"""
    rounds: int = 12
    """steps of each candidate that are timed; one before them is not"""
    json: bool = False
    """print JSON in place of the table"""

    def __post_init__(self):
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def create_timm_vit() -> nn.Module:
    """timm's model of the same shape, with dropout in the same places."""
    return TimmVisionTransformer(
        img_size=32, patch_size=4, embed_dim=192, depth=12, num_heads=3, num_classes=10,
        pos_drop_rate=0.1, proj_drop_rate=0.1,
    )  # fmt: skip


def create_step(model: nn.Module, batch_size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A function that does one training step."""
    model.to(device).train()
    optimizer = create_optimizer(model, "adamw", learning_rate=1e-3, weight_decay=0.05)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch_size,), device=device)

    def step() -> None:
        with autocast(device, dtype):
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()

    return step


def main(config: BenchmarkConfig) -> None:
    """Time every candidate in turn, and print what came out."""
    device = select_device("auto")
    candidates = {
        f"{name} {precision}": create_step(create(), config.batch_size, dtype, device)
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for name, create in (("timm", create_timm_vit), ("ours", create_vit_tiny_cifar10))
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(config.rounds + 1):
        for name, step in candidates.items():
            start = time.perf_counter()
            step()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "images_per_second": config.batch_size / statistics.median(times),
            "slowest": config.batch_size / max(times),
            "fastest": config.batch_size / min(times),
        }
        for name, times in seconds.items()
    }
    best_peer = max(row["images_per_second"] for name, row in rows.items() if not name.startswith("ours"))
    threads = torch.get_num_threads()
    if config.json:
        about = {"device": str(device), "threads": threads, "torch": str(torch.__version__), **vars(config)}
        print(json.dumps({**about, "results": rows}, indent=2))
        return
    print(f"ViT-Tiny training step, batch {config.batch_size}, dropout 0.1, {device}, {threads} threads\n")
    print("| candidate | images/s (median) | slowest to fastest | over timm's best |\n|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['images_per_second']:.1f} | {row['slowest']:.1f} to {row['fastest']:.1f} "
            f"| {row['images_per_second'] / best_peer:.2f} |"
        )


if __name__ == "__main__":
    with exit_codes():
        main(parse(BenchmarkConfig, __doc__ or ""))
