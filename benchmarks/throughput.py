"""How fast a training step of ViT-Tiny is: this repository's model against four libraries' models, in one run.

    python benchmarks/throughput.py                           # tables for fp32 and bf16, 20 minutes on two cores
    python benchmarks/throughput.py --no-compiled             # only the steps without torch.compile: shorter
    python benchmarks/throughput.py --json > throughput.json  # the same as JSON

A step is forward, loss, backward and fused AdamW on a batch in memory. All models have the same shape, and dropout 0.1
in the same places; two libraries' models are changed for that (below). "Compiled" means torch.compile with its
defaults; of this repository's model, as in training: for one batch size, with the plain model's random numbers.
"Products alone" is an upper bound: only the matrix products of a step, each at the shape it has in the model.
The last rows are whole trainings by command, data path included. bf16 is left out where the hardware does not have it.

The candidates take turns, so that a change in the machine's speed meets all of them, and the medians are reported. Run
it with nothing else running: all candidates stay in memory during the trainings.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from evaluation.comparison import markdown
from resnet import ResNet18
from training.cli import parse
from training.device import Compiled, autocast, select_device, select_precision, why_no_compiling
from training.errors import RunError, UsageError, exit_codes
from training.optim import create_optimizer
from training.provenance import cpu_name
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
    """rounds of all steps and then all trainings"""
    rounds: int = 4
    """timed steps of each candidate in a turn, after two untimed ones"""
    epochs: int = 1
    """timed epochs of each training in a turn, of 1,437 images each, after an untimed one"""
    compiled: bool = True
    """time the steps with torch.compile too; compiling takes half a minute a candidate"""
    json: bool = False
    """print JSON instead of the tables"""

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
        """The model, returning its logits instead of transformers' output object."""

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
    activations = [name for name, _ in model.named_modules() if name.endswith(".activation_fn")]
    assert len(activations) == DEPTH
    for name in activations:  # add the dropout inside the MLP, which this model lacks
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
    for attention in attentions:  # remove the dropout of the attention weights, which the others lack
        attention.dropout = nn.Identity()
    return model


PEERS = {
    "timm": create_timm,
    "torchvision": create_torchvision,
    "transformers": create_transformers,
    "vit-pytorch": create_vit_pytorch,
}


NUM_TRAIN, NUM_TEST = 1437, 360  # images of the digits
TRAININGS = {"whole training": ["--no-compile"], "whole training compiled": ["--compile"]}  # name: flags


def create_step(
    model: nn.Module, batch_size: int, dtype: torch.dtype, device: torch.device, *, ours: bool, compiled: bool = False
) -> Callable[[], None]:
    """A function that does one training step; `ours` has this repository's parameter groups and way to compile."""
    model.to(device).train()
    if ours:
        optimizer = create_optimizer(model, "adamw", learning_rate=1e-3, weight_decay=0.05)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch_size,), device=device)
    step_model: Any = model
    if compiled:
        step_model = Compiled(model, batch_size, device) if ours else torch.compile(model)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(device, dtype):
            logits = step_model(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def create_products(batch_size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """A function that computes only the matrix products of a step's blocks, forward and backward."""

    def products_of_block(queries: int) -> list[tuple[Tensor, Tensor]]:
        """Pairs of factors; `queries` of an image's tokens attend, and go on to the MLP."""
        n, heads, width = batch_size * queries, (batch_size * HEADS,), WIDTH // HEADS
        products = [((), batch_size * TOKENS, WIDTH, 3 * WIDTH)]
        products += [(heads, queries, width, TOKENS), (heads, queries, TOKENS, width)]
        products += [((), n, WIDTH, WIDTH), ((), n, WIDTH, HIDDEN), ((), n, HIDDEN, WIDTH)]
        pairs: list[Any] = []
        for batch, rows, inner, columns in products:  # the product, then the gradients of its two factors
            for shape in ((rows, inner, columns), (rows, columns, inner), (inner, rows, columns)):
                sizes = (*batch, *shape[:2]), (*batch, *shape[1:])
                pairs.append(tuple(torch.randn(size, dtype=dtype, device=device) for size in sizes))
        return pairs

    whole, last = products_of_block(TOKENS), products_of_block(queries=1)  # the head needs the class token only

    def step() -> None:
        for left, right in (DEPTH - 1) * whole + last:
            torch.matmul(left, right)

    return step


def take_turns(candidates: Mapping[str, Callable[[], object]], rounds: int, untimed: int = 2) -> dict[str, list[float]]:
    """Seconds of each timed step, by candidate; the candidates step in turn, and first some rounds untimed."""
    if rounds < 1:
        raise UsageError(f"rounds must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(untimed + rounds):
        for name, step in candidates.items():
            start = time.perf_counter()
            step()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if round_number >= untimed:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(rates: list[float]) -> dict[str, float]:
    """Median, lowest and highest of some rates in images per second."""
    return {"images_per_second": statistics.median(rates), "slowest": min(rates), "fastest": max(rates)}


@dataclass
class TrainingTimes:
    """What was measured of the trainings by one command."""

    rates: list[float] = field(default_factory=list)  # images per second of each timed epoch
    evaluation_rates: list[float] = field(default_factory=list)
    peak_memory: int = 0  # bytes: the highest of samples two seconds apart

    def summarize(self) -> dict[str, float]:
        evaluated = statistics.median(self.evaluation_rates)
        return {
            **summarize(self.rates), "evaluated_per_second": evaluated, "peak_memory_mib": self.peak_memory / 2**20,
        }  # fmt: skip


def train_by_command(flags: list[str], epochs: int, times: TrainingTimes) -> None:
    """Run train_vit_cifar10.py with its defaults and `flags`, and add its speed and memory to `times`.

    It trains on scikit-learn's digits at CIFAR's size, so that nothing is downloaded. The first epoch, which also
    warms up and compiles, is not counted.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train_vit_cifar10.py", "--dataset", "digits", "--output-dir", folder, *flags]
        command += ["--num-epochs", str(epochs + 1), "--warmup-epochs", "1"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                times.peak_memory = max(times.peak_memory, resident_memory(process.pid))
                time.sleep(2)
        if process.returncode:
            raise RunError(f"the training command failed: {shlex.join(command)}")
        history = json.loads((Path(folder) / "training_history.json").read_text())
    rates = history["images_per_second"][1:]
    times.rates += rates
    for epoch_time, rate in zip(history["epoch_time"][1:], rates, strict=True):
        times.evaluation_rates.append(NUM_TEST / (epoch_time - NUM_TRAIN / rate))


def resident_memory(pid: int) -> int:
    """Bytes that a process and its main thread's children hold. Shared memory counts once. 0 without Linux's /proc."""
    own, files = 0, 0
    pids = [pid]
    while pids:
        folder = Path(f"/proc/{pids.pop()}")
        try:
            pids += [int(child) for child in (folder / "task" / folder.name / "children").read_text().split()]
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            sizes = (folder / "smaps_rollup").read_text().splitlines()[1:]
            kib = {name: int(size.split()[0]) for name, size in (line.split(":", 1) for line in sizes)}
            own += kib["Pss_Anon"] + kib["Pss_Shmem"]  # Pss: a page that n processes share counts 1/n in each
            files = max(files, int(status["RssFile"].split()[0]))
        except (OSError, KeyError):  # the process has just ended, or this is not Linux
            continue
    return 1024 * (own + files)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the rates depend on beside the code."""
    names = {"cpu": cpu_name(), "device": str(device), "torch": str(torch.__version__)}
    return {**names, "threads": torch.get_num_threads()}


def main(config: BenchmarkConfig) -> None:
    """Time every candidate in turn, and print the rates and their ratios."""
    device = select_device("auto")
    best_dtype, _ = select_precision("auto", device)
    precisions = {name: dtype for name, dtype in PRECISIONS.items() if dtype in (torch.float32, best_dtype)}
    candidates: dict[str, Callable[[], object]] = {}
    problem = why_no_compiling(device, best_dtype)
    if problem:
        print(f"the compiled rows are left out: {problem}", file=sys.stderr)
    with_compiled = config.compiled and not problem
    for compiled in (False, True) if with_compiled else (False,):
        for precision, dtype in precisions.items():
            for name, create in {**PEERS, "ours": create_vit_tiny_cifar10}.items():
                label = f"{name} {precision}{' compiled' if compiled else ''}"
                candidates[label] = create_step(
                    create(), config.batch_size, dtype, device, ours=name == "ours", compiled=compiled
                )
    for precision, dtype in precisions.items():
        candidates[f"products alone {precision}"] = create_products(config.batch_size, dtype, device)
    plain = ResNet18().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    candidates["ResNet-18 plain fp32"] = create_step(plain, config.batch_size, torch.float32, device, ours=False)
    for precision, dtype in precisions.items():
        candidates[f"ResNet-18 ours {precision}"] = create_step(ResNet18(), config.batch_size, dtype, device, ours=True)
    commands = {name: flags for name, flags in TRAININGS.items() if with_compiled or "--compile" not in flags}

    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    trainings = {name: TrainingTimes() for name in commands}
    for _ in range(config.turns):
        for name, times in take_turns(candidates, config.rounds).items():
            seconds[name] += times
        for name, flags in commands.items():
            flags = [*flags, "--batch-size", str(config.batch_size)]
            train_by_command(flags, config.epochs, trainings[name])
    rows = {name: summarize([config.batch_size / time for time in times]) for name, times in seconds.items()}
    rows |= {f"ours {name}": times.summarize() for name, times in trainings.items()}
    report = {**describe_machine(device), **vars(config), "images_per_second": rows, "ratios": ratios(rows)}
    print(json.dumps(report, indent=2) if config.json else table(report))


def ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """The like-for-like ratios first (eager against eager), then what compiling adds, then the whole trainings."""
    rate = {name: row["images_per_second"] for name, row in rows.items()}
    result: dict[str, float] = {}
    precisions = [precision for precision in ("bf16", "fp32") if f"ours {precision}" in rate]
    for precision in precisions:
        best = max((f"{peer} {precision}" for peer in PEERS), key=rate.__getitem__)
        result[f"step, eager: ours {precision} over the best peer ({best})"] = rate[f"ours {precision}"] / rate[best]
    for precision in precisions:
        if (compiled := f"ours {precision} compiled") in rate:
            result[f"step, {precision}: ours compiled over ours eager"] = rate[compiled] / rate[f"ours {precision}"]
    best = max((name for name in rate if name.split()[0] in PEERS), key=rate.__getitem__)
    for training in (name for name in rate if name.startswith("ours whole training")):
        result[f"{training} over the best peer's step ({best})"] = rate[training] / rate[best]
        result[f"{training} over the products alone in {precisions[0]}"] = (
            rate[training] / rate[f"products alone {precisions[0]}"]
        )
    for precision in precisions:
        result[f"ResNet-18: ours in {precision}, channels last, over plain fp32"] = (
            rate[f"ResNet-18 ours {precision}"] / rate["ResNet-18 plain fp32"]
        )
    return result


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = report["images_per_second"]
    steps = [
        {
            "training step": name, "images/s (median)": f"{row['images_per_second']:.1f}",
            "slowest to fastest": f"{row['slowest']:.1f} to {row['fastest']:.1f}",
        }
        for name, row in rows.items()
    ]  # fmt: skip
    trainings = [
        {
            "whole training": name, "evaluated images/s": f"{row['evaluated_per_second']:.1f}",
            "highest memory seen, MiB": f"{row['peak_memory_mib']:.0f}",
        }
        for name, row in rows.items()
        if "evaluated_per_second" in row
    ]  # fmt: skip
    ratios = [{"ratio": name, "times": f"{value:.2f}"} for name, value in report["ratios"].items()]
    about = f"{report['cpu']}, {report['device']}, {report['threads']} threads, torch {report['torch']}"
    tables = "\n".join(map(markdown, (steps, trainings, ratios)))
    return f"Batch {report['batch_size']}, dropout {DROPOUT}, {about}\n\n{tables}"


if __name__ == "__main__":
    with exit_codes():
        main(parse(BenchmarkConfig, __doc__ or ""))
