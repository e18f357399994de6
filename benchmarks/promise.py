"""The accuracy of runs of the classic recipe, epoch by epoch, beside what the recipe promises.

    python benchmarks/promise.py results/default-100 --output results/default-100/promise.png

A run need not be finished. The recipe does not say whether its 10 and 50 epochs are the first ones of a longer run, as
they are drawn here, or a run of their own, whose learning rate has fallen to 0 by then.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))  # the repository's root, wherever this is started from

from evaluation.run_record import RunRecord, read_run
from training.cli import parse
from training.errors import UsageError, exit_codes
from training.files import create_folder

PROMISE = {10: (40, 50), 50: (70, 75), 100: (75, 80)}  # percent of the test images, by epoch


@dataclass(frozen=True)
class PromiseConfig:
    """Which runs to draw, and where."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """folders of the runs"""
    output: str = "checkpoints/promise.png"
    """PNG file"""


def main(config: PromiseConfig) -> None:
    """Print the last accuracy of each run, and draw the curves."""
    if not config.runs:
        raise UsageError("name the folders of the runs, such as results/default-100")
    create_folder(Path(config.output).parent, "--output")
    runs = [read_run(Path(folder)) for folder in config.runs]
    for run in runs:
        print(f"{run.name}: {run.accuracies[-1]:.2f} % after {len(run.accuracies)} epochs")
    draw(runs, Path(config.output))


def draw(runs: list[RunRecord], path: Path) -> None:
    from matplotlib import pyplot as plt

    from training.plots import marker_for, save_figure

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for run in runs:
        epochs = run.history["epoch"]
        axes.plot(epochs, run.accuracies, marker=marker_for(epochs), markersize=4, label=f"{run.name} ({run.split})")
    for epoch, (low, high) in PROMISE.items():
        label = "the recipe's promise" if epoch == 100 else None
        axes.errorbar(epoch, (low + high) / 2, (high - low) / 2, color="0.4", capsize=6, linewidth=3, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy (%)", xlim=(0, 103), ylim=(0, 100))
    axes.legend(loc="lower right")
    save_figure(figure, path)


if __name__ == "__main__":
    with exit_codes():
        main(parse(PromiseConfig, __doc__ or ""))
