"""How fast recipes reach which accuracy: held-out accuracy against minutes on two cores, of runs that are there.

    python benchmarks/time_to_accuracy.py results/time/*      # results/time_to_accuracy.png and a table

A run with one thread counts half of its minutes. The runs must have been alone on their cores.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from evaluation.comparable import require_comparable
from evaluation.run_record import RunRecord, read_run
from training.cli import parse
from training.errors import UsageError, exit_codes

LEVELS = (40, 50, 60, 70, 75, 80, 85)  # percent, for the table


@dataclass(frozen=True)
class TimeConfig:
    """Which runs to draw, and where."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of the runs"""
    output: str = "results/time_to_accuracy.png"
    """PNG file"""


def main(config: TimeConfig) -> None:
    """Print when each run passed each level, and draw the curves."""
    if not config.runs:
        raise UsageError("name the folders of the runs, such as results/time/*")
    runs = [read_run(Path(folder)) for folder in config.runs]
    require_comparable(runs)
    print(f"{'minutes on two cores until':<28}" + "".join(f"{level:>7} %" for level in LEVELS))
    for run in runs:
        times, accuracies = minutes(run), run.accuracies
        passed = [next((t for t, acc in zip(times, accuracies, strict=True) if acc >= level), None) for level in LEVELS]
        print(f"{Path(run.name).name:<28}" + "".join(f"{'-' if t is None else f'{t:.1f}':>9}" for t in passed))
    draw(runs, Path(config.output))


def minutes(run: RunRecord) -> np.ndarray:
    """Minutes on two cores from the first step to the end of each epoch's evaluation."""
    return np.cumsum(run.history["epoch_time"]) / 60 * run.about["threads"] / 2


def draw(runs: list[RunRecord], path: Path) -> None:
    from matplotlib import pyplot as plt

    from training.plots import save_figure

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for i, run in enumerate(runs):
        times = minutes(run)
        axes.plot(times, run.accuracies, "o-", markersize=4, color=f"C{i}", label=Path(run.name).name)
        axes.annotate(
            f"{run.accuracies[-1]:.1f} %", (times[-1], run.accuracies[-1]), (6, -3), textcoords="offset points"
        )
    axes.margins(x=0.1)
    axes.set(xlabel="minutes on two cores", ylabel="held-out accuracy (%)", xlim=(0, None))
    axes.legend(loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    with exit_codes():
        main(parse(TimeConfig, __doc__ or ""))
