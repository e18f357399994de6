"""Compare several runs: print a table, and draw their curves in one figure.

    python compare_runs.py checkpoints/vit_tiny_cifar10 checkpoints/resnet18_cifar10

Takes the output folders of train_vit_cifar10.py and train_resnet_cifar10.py, also of runs that are still going on.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from training import history
from training.cli import parse
from training.console import format_time
from training.errors import RunError, UsageError, exit_codes
from training.files import create_folder


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare, and where to write the figure."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """output folders of the runs"""
    output: str = "checkpoints/comparison.png"
    """PNG file for the figure"""

    def __post_init__(self):
        if Path(self.output).suffix != ".png":
            raise ValueError(f"output must name a .png file, got {self.output!r}")


def main(config: CompareConfig) -> None:
    """Read the histories of the runs, print the table, draw the figure."""
    if not config.runs:
        raise UsageError("name at least one folder of a run, such as checkpoints/vit_tiny_cifar10")
    runs = [read_run(Path(folder)) for folder in config.runs]
    print_table(runs)
    from training.plots import plot_comparison  # its import takes seconds: after what can fail

    create_folder(Path(config.output).parent)
    plot_comparison({run["name"]: run["history"] for run in runs}, Path(config.output))
    print(f"\nCurves: {config.output}")


def read_run(folder: Path) -> dict[str, Any]:
    """Read the name of the model and the history from a run's folder. RunError if they are missing or damaged."""
    records = history.read(folder / "training_history.json")
    if records is None:
        raise RunError(f"{folder} holds no run with a finished epoch: training_history.json is missing or damaged")
    try:
        model_name = json.loads((folder / "config.json").read_text())["model_name"]
    except (OSError, ValueError, TypeError, KeyError):
        raise RunError(f"{folder / 'config.json'} is missing or damaged") from None
    return {"name": folder.as_posix(), "model_name": model_name, "history": records}


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print a line for each run: its best and last accuracy in percent, its speed and its time."""
    width = max(len("run"), *(len(run["name"]) for run in runs))
    heading = f"{'run':<{width}}  {'model':<17}  epochs  best on     best  epoch    last  images/s        time"
    print(f"{heading}\n{'-' * len(heading)}")
    for run in runs:
        records = run["history"]
        split = history.monitored_split(records)
        accuracies, rate = records[f"{split}_acc"], records["images_per_second"]
        best = max(accuracies)
        print(
            f"{run['name']:<{width}}  {run['model_name']:<17}  {len(accuracies):>6}  {split:<7}  {best:>6.2f}%  "
            f"{records['epoch'][accuracies.index(best)]:>5}  {accuracies[-1]:>6.2f}%  {sum(rate) / len(rate):>8.0f}  "
            f"{format_time(sum(records['epoch_time'])):>10}"
        )


if __name__ == "__main__":
    with exit_codes():
        main(parse(CompareConfig, __doc__ or ""))
