"""How fast recipes reach which accuracy: held-out accuracy against minutes, of runs that are there.

    python benchmarks/time_to_accuracy.py checkpoints/a checkpoints/b    # checkpoints/time_to_accuracy.png and a table

All runs must have had as many threads of the same processor. Work beside a run on its cores counts too.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from evaluation.comparison import group
from evaluation.run_record import RunRecord, read_run
from evaluation.tables import minutes_table, threads_of
from training.cli import parse
from training.errors import UsageError, exit_codes
from training.files import create_folder

LEVELS = (30, 40, 50, 60, 70, 75, 80, 85)  # percent, for the table


@dataclass(frozen=True)
class TimeConfig:
    """Which runs to draw, and where."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of the runs"""
    output: str = "checkpoints/time_to_accuracy.png"
    """PNG file"""


def main(config: TimeConfig) -> None:
    """Print when each run passed each level, and draw the curves."""
    if not config.runs:
        raise UsageError("name the folders of the runs, such as results/time/*")
    create_folder(Path(config.output).parent, "--output")
    rows = group([read_run(Path(folder)) for folder in config.runs])
    print(minutes_table(rows, LEVELS))
    runs = {name: run for row in rows for name, run in row.named_runs.items()}
    draw(runs, threads_of(rows), Path(config.output))


def draw(runs: dict[str, RunRecord], threads: str, path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    from training.plots import save_figure

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, run in runs.items():
        axes.plot(run.minutes, run.accuracies, "o-", markersize=4, label=f"{name}  {run.accuracies[-1]:.1f} %")
    split = {"val": "held-out accuracy (%)", "test": "test accuracy (%)"}[next(iter(runs.values())).split]
    axes.set(xlabel=f"minutes on {threads}, logarithmic", ylabel=split, xscale="log")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    axes.legend(loc="best", title="in the last epoch")
    save_figure(figure, path)


if __name__ == "__main__":
    with exit_codes():
        main(parse(TimeConfig, __doc__ or ""))
