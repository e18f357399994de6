"""How fast a whole training step of ViT-Tiny is: this repository's against the libraries', in one run.

    python benchmarks/throughput.py                           # tables for fp32 and bf16, 20 minutes on two cores
    python benchmarks/throughput.py --no-compiled             # the steps without torch.compile, which is sooner done
    python benchmarks/throughput.py --json > throughput.json  # the same as JSON

A step is forward, loss, backward and AdamW on a batch in memory; all have the same shape and dropout 0.1 in the same
places, two libraries after a change to their model (below). The candidates take turns, steps and whole trainings too,
so that a machine that gets slower or faster does so for all, and the median counts. Compiled candidates are
torch.compile's, as it is by default. The ceiling is the step's matrix products alone, in bf16, each at the shape it has
in the model. Run it with nothing else running; all candidates stay in memory beside the trainings.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from resnet import ResNet18
from training.cli import parse
from training.device import Compiled, autocast, select_device, why_no_compiling
from training.errors import RunError, exit_codes
from training.optim import create_optimizer
from vit import create_vit_tiny_cifar10

ROOT = Path(__file__).parents[1]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
DROPOUT = 0.1
TOKENS, WIDTH, HIDDEN, HEADS, DEPTH = 65, 192, 768, 3, 12  # of ViT-Tiny on 32x32 images with patches of 4x4


@dataclass(frozen=True)
class BenchmarkConfig:
    """How to measure."""

    batch_size: int = 64
    """images a step"""
    turns: int = 3
    """how often the steps and then the whole trainings are timed"""
    rounds: int = 4
    """steps of each candidate that are timed in a turn; two before them are not"""
    epochs: int = 1
    """epochs of each whole training that are timed in a turn, 23 steps each"""
    compiled: bool = True
    """bare steps with torch.compile too, which takes half a minute a candidate"""
    json: bool = False
    """print JSON in place of the tables"""

    def __post_init__(self):
        for name in ("batch_size", "turns", "rounds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def create_timm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=10,
        pos_drop_rate=DROPOUT, proj_drop_rate=DROPOUT,
    )  # fmt: skip


def create_torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=4, num_layers=DEPTH, num_heads=HEADS, hidden_dim=WIDTH, mlp_dim=HIDDEN,
        dropout=DROPOUT, num_classes=10,
    )  # fmt: skip


def create_transformers() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    class Logits(nn.Module):
        """The model without the record that it wraps its logits in."""

        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images).logits

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=HIDDEN,
        hidden_dropout_prob=DROPOUT, image_size=32, patch_size=4, num_labels=10,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    model = ViTForImageClassification(config)
    places = [name for name, _ in model.named_modules() if name.endswith(".activation_fn")]
    assert len(places) == DEPTH
    for name in places:  # it has no dropout inside its MLP
        model.set_submodule(name, nn.Sequential(model.get_submodule(name), nn.Dropout(DROPOUT)))
    return Logits(model)


def create_vit_pytorch() -> nn.Module:
    from vit_pytorch import ViT

    model = ViT(
        image_size=32, patch_size=4, num_classes=10, dim=WIDTH, depth=DEPTH, heads=HEADS, mlp_dim=HIDDEN,
        dim_head=WIDTH // HEADS, dropout=DROPOUT, emb_dropout=DROPOUT,
    )  # fmt: skip
    attentions = [module for module in model.modules() if hasattr(module, "attend")]
    assert len(attentions) == DEPTH
    for attention in attentions:  # it has one dropout more, of the attention's weights
        attention.dropout = nn.Identity()
    return model


PEERS = {
    "timm": create_timm,
    "torchvision": create_torchvision,
    "transformers": create_transformers,
    "vit-pytorch": create_vit_pytorch,
}


TRAINED, EVALUATED = 1437, 360  # images of the digits in an epoch
WHOLE_TRAININGS = {
    "1 process": ["--num-processes", "1", "--no-compile"],
    "2 processes": ["--num-processes", "2", "--no-compile"],
    "2 processes, compiled": ["--num-processes", "2", "--compile"],  # what a long run on a CPU does by itself
}


def create_step(
    model: nn.Module, batch_size: int, dtype: torch.dtype, device: torch.device, *, ours: bool, compiled: bool = False
) -> Callable[[], None]:
    """A function that does one training step; `ours` is with this repository's optimizer, else with torch's default."""
    model.to(device).train()
    if ours:
        optimizer = create_optimizer(model, "adamw", learning_rate=1e-3, weight_decay=0.05)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch_size,), device=device)
    compiling = (lambda: Compiled(model, batch_size, device)) if ours else (lambda: torch.compile(model))
    step_model: Any = compiling() if compiled else model

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            logits = step_model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()

    return step


def create_products(batch_size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A function that does the matrix products of a step, forward and backward, and nothing else."""
    n = batch_size * TOKENS
    linear = [(n, WIDTH, 3 * WIDTH), (n, WIDTH, WIDTH), (n, WIDTH, HIDDEN), (n, HIDDEN, WIDTH)]
    pairs = []
    for rows, inner, columns in linear:  # the product, and those for the gradients of its two factors
        for shape in ((rows, inner, columns), (rows, columns, inner), (inner, rows, columns)):
            pairs.append(matrices((), *shape, dtype, device))
    heads = (batch_size * HEADS,)
    for inner, columns in ((WIDTH // HEADS, TOKENS), (TOKENS, WIDTH // HEADS)):
        for shape in ((TOKENS, inner, columns), (TOKENS, columns, inner), (inner, TOKENS, columns)):
            pairs.append(matrices(heads, *shape, dtype, device))

    def step() -> None:
        for _ in range(DEPTH):
            for left, right in pairs:
                torch.matmul(left, right)
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()

    return step


def matrices(
    batch: tuple[int, ...], rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two factors for a product of (rows, inner) with (inner, columns)."""
    return tuple(torch.randn(*batch, *shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))  # pyright: ignore


def take_turns(candidates: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each candidate."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 2):
        for name, step in candidates.items():
            start = time.perf_counter()
            step()
            if round_number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(rates: list[float]) -> dict[str, float]:
    """The median of some rates in images per second, and their ends."""
    return {"images_per_second": statistics.median(rates), "slowest": min(rates), "fastest": max(rates)}


@dataclass
class Trainings:
    """What was measured of some whole trainings."""

    rates: list[float] = field(default_factory=list)  # images per second in each epoch
    evaluation_rates: list[float] = field(default_factory=list)
    peak_memory: int = 0  # bytes, of all processes together

    def figures(self) -> dict[str, float]:
        evaluated = statistics.median(self.evaluation_rates)
        return {**spread(self.rates), "evaluated_per_second": evaluated, "peak_memory_mib": self.peak_memory / 2**20}


def train_by_command(flags: list[str], epochs: int, measured: Trainings) -> None:
    """Measure train_vit_cifar10.py with its defaults: its rate by epoch, that of its evaluation too, and its memory.

    Data path and all, on scikit-learn's digits at CIFAR's size, so that nothing has to be downloaded. The first epoch,
    which also warms up and compiles, does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_vit_cifar10.py", "--dataset", "digits", "--output-dir", folder, *flags]
        length = ["--num-epochs", str(epochs + 1), "--warmup-epochs", "1"]
        with subprocess.Popen([*command, *length], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                measured.peak_memory = max(measured.peak_memory, resident_memory(process.pid))
                time.sleep(2)
        if process.returncode:
            raise RunError(f"the training command failed: {shlex.join(command)}")
        history = json.loads((Path(folder) / "training_history.json").read_text())
    rates = history["images_per_second"][1:]
    measured.rates += rates
    for epoch_time, rate in zip(history["epoch_time"][1:], rates, strict=True):
        measured.evaluation_rates.append(EVALUATED / (epoch_time - TRAINED / rate))


def resident_memory(pid: int) -> int:
    """Bytes that a process and its children hold, what they have in common counted once; 0 where no Linux tells."""
    own, files = 0, 0
    waiting = [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            waiting += [int(child) for child in (folder / "task" / folder.name / "children").read_text().split()]
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            shares = (folder / "smaps_rollup").read_text().splitlines()[1:]  # a process's own, and its part of others'
            held = {name: int(size.split()[0]) for name, size in (line.split(":", 1) for line in shares)}
            own += held["Pss_Anon"] + held["Pss_Shmem"]
            files = max(files, int(status["RssFile"].split()[0]))
        except (OSError, KeyError):  # it has just ended, or there is no such file here
            continue
    return 1024 * (own + files)


def main(config: BenchmarkConfig) -> None:
    """Time every candidate in turn, and print what came out."""
    device = select_device("auto")
    candidates: dict[str, Callable[[], None]] = {}
    for compiled in (False, True) if config.compiled else (False,):
        for precision, dtype in PRECISIONS.items():
            for name, create in {**PEERS, "ours": create_vit_tiny_cifar10}.items():
                label = f"{name} {precision}{' compiled' if compiled else ''}"
                candidates[label] = create_step(
                    create(), config.batch_size, dtype, device, ours=name == "ours", compiled=compiled
                )
    for precision, dtype in PRECISIONS.items():
        candidates[f"products alone {precision}"] = create_products(config.batch_size, dtype, device)
    plain = ResNet18().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    candidates["ResNet-18 plain fp32"] = create_step(plain, config.batch_size, torch.float32, device, ours=False)
    candidates["ResNet-18 ours bf16"] = create_step(ResNet18(), config.batch_size, torch.bfloat16, device, ours=True)
    commands = WHOLE_TRAININGS
    if why_no_compiling(device):
        commands = {name: flags for name, flags in commands.items() if "--compile" not in flags}

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    trainings = {name: Trainings() for name in commands}
    for _ in range(config.turns):
        for name, times in take_turns(candidates, config.rounds).items():
            seconds[name] += times
        for name, flags in commands.items():
            train_by_command(flags, config.epochs, trainings[name])
    rows = {name: spread([config.batch_size / time for time in times]) for name, times in seconds.items()}
    rows |= {f"ours, whole training, {name}": measured.figures() for name, measured in trainings.items()}
    about = {"device": str(device), "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    report = {**about, **vars(config), "images_per_second": rows, "ratios": ratios(rows)}
    print(json.dumps(report, indent=2) if config.json else table(report))


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the issue is: how many times the peers, and which share of what the products alone would allow."""
    rate = {name: row["images_per_second"] for name, row in rows.items()}
    best_peer = max((name for name in rate if name.split()[0] in PEERS), key=rate.__getitem__)
    ours = max(rate[name] for name in rate if name.startswith("ours, whole training"))
    return {
        f"whole training over the best peer's bare step ({best_peer})": ours / rate[best_peer],
        "whole training over timm's step in fp32": ours / rate["timm fp32"],
        "whole training over the products alone in bf16": ours / rate["products alone bf16"],
        "ResNet-18, bf16 and channels last over plain fp32": rate["ResNet-18 ours bf16"] / rate["ResNet-18 plain fp32"],
    }


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"Batch {report['batch_size']}, dropout {DROPOUT}, {report['device']}, {report['threads']} threads, "
        f"torch {report['torch']}\n",
        "| training step of | images/s (median) | slowest to fastest |\n|---|---|---|",
    ]
    for name, row in report["images_per_second"].items():
        lines.append(f"| {name} | {row['images_per_second']:.1f} | {row['slowest']:.1f} to {row['fastest']:.1f} |")
    lines.append("\n| whole training | evaluated images/s | peak memory, MiB |\n|---|---|---|")
    for name, row in report["images_per_second"].items():
        if "evaluated_per_second" in row:
            lines.append(f"| {name} | {row['evaluated_per_second']:.1f} | {row['peak_memory_mib']:.0f} |")
    lines.append("\n| ratio | |\n|---|---|")
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_codes():
        main(parse(BenchmarkConfig, __doc__ or ""))
