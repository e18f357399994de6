"""What size costs: the time of a training step for other numbers of tokens, blocks, features and images.

    python benchmarks/cost.py                                 # results/cost_by_size.json and .png, four minutes

Each point is ViT-Tiny with one thing changed. The dashed line is ViT-Tiny's time, scaled by the number of
floating-point operations. Run it with nothing else running.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughput import ROOT, create_step, describe_machine, take_turns

from training.cli import parse
from training.device import select_device, select_precision
from training.errors import exit_codes
from training.files import create_folder
from training.history import write_json
from training.provenance import count_flops
from vit import VisionTransformer, create_vit_tiny_cifar10

VARIED: dict[str, list[tuple[str, dict[str, int], int]]] = {  # axis: (label, changed model arguments, batch size)
    "tokens (patch 8, 4, 2)": [(str((32 // p) ** 2 + 1), {"patch_size": p}, 64) for p in (8, 4, 2)],
    "depth": [(str(depth), {"depth": depth}, 64) for depth in (3, 6, 12, 24)],
    "width": [(str(width), {"embed_dim": width}, 64) for width in (96, 192, 384)],
    "images a step": [(str(batch), {}, batch) for batch in (16, 32, 64, 128)],
}


@dataclass(frozen=True)
class CostConfig:
    """How to measure."""

    rounds: int = 5
    """timed steps of each size, after an untimed one"""
    output_dir: str = str(ROOT / "results")
    """folder for cost_by_size.json and cost_by_size.png"""


def main(config: CostConfig) -> None:
    """Time every size in turn, then write and draw the times."""
    create_folder(Path(config.output_dir))
    device = select_device("auto")
    dtype, _ = select_precision("auto", device)
    points = [(axis, *point) for axis, sizes in VARIED.items() for point in sizes]
    steps = {
        f"{axis} {label}": create_step(create_vit_tiny_cifar10(**args), batch, dtype, device, ours=True)
        for axis, label, args, batch in points
    }
    seconds = take_turns(steps, config.rounds, untimed=1)
    rows: list[dict[str, Any]] = []
    for axis, label, args, batch in points:
        flops = count_flops(VisionTransformer, 32, **args)
        milliseconds = 1000 * statistics.median(seconds[f"{axis} {label}"]) / batch
        rows.append({"axis": axis, "label": label, "ms_per_image": milliseconds, "gflop_per_image": flops / 1e9})
    about = {**describe_machine(device), "precision": str(dtype), "rounds": config.rounds}
    write_json(Path(config.output_dir) / "cost_by_size.json", {**about, "rows": rows})
    draw(rows, Path(config.output_dir) / "cost_by_size.png")
    for row in rows:
        print(
            f"{row['axis']} {row['label']}: {row['ms_per_image']:.2f} ms, {row['gflop_per_image']:.3g} GFLOP an image"
        )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    from training.plots import save_figure

    tiny = next(row for row in rows if row["axis"] == "depth" and row["label"] == "12")
    figure, all_axes = plt.subplots(1, len(VARIED), figsize=(15, 3.8), layout="constrained", sharey=True)
    for axes, axis in zip(all_axes, VARIED, strict=True):
        here = [row for row in rows if row["axis"] == axis]
        labels = [row["label"] for row in here]
        axes.plot(labels, [row["ms_per_image"] for row in here], "o-", label="measured")
        scale = tiny["ms_per_image"] / tiny["gflop_per_image"]
        axes.plot(labels, [scale * row["gflop_per_image"] for row in here], "s--", label="as the arithmetic grows")
        axes.set(xlabel=axis, yscale="log")
        axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
    all_axes[0].set_ylabel("ms an image (log scale)")
    all_axes[0].legend()
    figure.suptitle("What a training step of ViT-Tiny costs with one thing changed")
    save_figure(figure, path)


if __name__ == "__main__":
    with exit_codes():
        main(parse(CostConfig, __doc__ or ""))
