"""Compare runs: print a table, and draw their curves in one figure.

    python compare_runs.py checkpoints/vit_tiny_cifar10 checkpoints/resnet18_cifar10
    python compare_runs.py checkpoints/a checkpoints/b --markdown table.md --csv table.csv --json table.json

Takes the output folders of train_vit_cifar10.py and train_resnet_cifar10.py, also of runs that are not finished. Runs
that differ only in the seed become one row: mean ± standard deviation. Where a row has several seeds, a second table
says how far the test accuracies of finished rows are from the first one's. The difference of two runs that
evaluate_vit.py has evaluated on the same images is tested image by image.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from evaluation import comparable, comparison
from evaluation.console import print_difference
from evaluation.data_efficiency import data_lines
from evaluation.run_record import RunRecord, read_run
from training.cli import parse
from training.console import print_warning
from training.errors import RunError, UsageError, exit_codes
from training.files import create_folder, write_atomically
from training.history import write_json


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare, and where to write the results."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """output folders of the runs"""
    output: str = "checkpoints/comparison.png"
    """PNG file for the curves"""
    markdown: str = ""
    """also write the table to this file, as Markdown"""
    csv: str = ""
    """also write the table to this file, as CSV, with exact numbers"""
    json: str = ""
    """also write the table and the differences to this file, as JSON, with exact numbers"""

    def __post_init__(self):
        if Path(self.output).suffix != ".png":
            raise ValueError(f"output must name a .png file, got {self.output!r}")


def main(config: CompareConfig) -> None:
    """Read the runs, print the table, write the files, draw the figure. RunError at the end for broken runs."""
    if not config.runs:
        raise UsageError("name at least one folder of a run, such as checkpoints/vit_tiny_cifar10")
    records, problems = read_runs(config.runs)
    left_out = [f"left out: {problem}" for problem in problems]
    if records:
        try:
            comparable.require_comparable(records)
        except UsageError as error:
            raise UsageError("\nerror: ".join([str(error), *left_out])) from None
        write_results(config, records)
    if left_out:
        raise RunError("\nerror: ".join(left_out))


def read_runs(folders: tuple[str, ...]) -> tuple[list[RunRecord], list[str]]:
    """The runs in the folders, each folder once, and for each that can't be read the reason."""
    records, problems = [], []
    for folder in {os.path.realpath(folder): Path(folder) for folder in folders}.values():
        try:
            records.append(read_run(folder))
        except RunError as error:
            problems.append(str(error))
    return records, problems


def write_results(config: CompareConfig, records: list[RunRecord]) -> None:
    """Print the table and the differences, write the files, draw the figure."""
    for flag in ("output", "markdown", "csv", "json"):
        if name := getattr(config, flag):
            create_folder(Path(name).parent, f"--{flag}")
    rows = comparison.group(records)
    print(comparison.to_table(comparison.to_cells(rows)), flush=True)
    if warning := comparable.other_choice(records):
        print_warning(warning)
    difference = compare_two(records) if len(records) == 2 else None
    over_seeds = compare_rows(rows) if len(records) > len(rows) else []
    for name, text in ((config.markdown, comparison.to_markdown(rows)), (config.csv, comparison.to_csv(rows))):
        if name:
            write_atomically(Path(name), lambda file, text=text: file.write(text.encode()))
    if config.json:
        write_json(
            Path(config.json), {"rows": comparison.to_plain(rows), "over_seeds": over_seeds, "difference": difference}
        )
    from evaluation.comparison_plots import Curves, plot_comparison  # its import takes seconds: after what can fail

    curves = [
        Curves(row.name, [run.history for run in row.runs], row.runs[0].num_train_images, row.timed) for row in rows
    ]
    num_grey = plot_comparison(curves, Path(config.output), data_lines(rows))
    grey = f" ({num_grey} of {len(curves)}, those with the lowest accuracies, are grey)" if num_grey else ""
    print(f"\nCurves: {config.output}{grey}")


def compare_rows(rows: list[comparison.Row]) -> list[dict[str, Any]]:
    """Print and return how far the test accuracy of each row is from that of the first one that has it, in points."""
    from evaluation import differences  # its import takes seconds

    measured = [row for row in rows if differences.values_of(row, "test")]
    if len(measured) < 2:
        return []
    reference = measured[0]
    num_images = next((run.num_test_images for row in rows for run in row.runs if run.num_test_images), None)
    others = [None if row is reference else reference for row in measured]
    compared = differences.compare(measured, others, "test", num_images)
    print(f"\n{comparison.to_table(differences.to_cells(compared, 'test', 'the reference'))}")
    print(*differences.notes(compared, num_images), sep="\n")
    if any(run.split == "test" for row in measured for run in row.runs):
        print(
            "The epochs were chosen on these same test images, which favours runs of more epochs. --val-size avoids it."
        )
    return [
        {
            "name": one.row.name,
            "from": reference.name,
            "points": one.difference.points,
            "interval": one.difference.interval,
            "verdict": one.difference.verdict,
        }
        for one in compared
        if one.difference
    ]


def compare_two(records: list[RunRecord]) -> dict[str, Any] | None:
    """Print and return how two runs differ on the same test images, or print why this is not known."""
    print()
    try:
        found = comparison.compare_predictions(*records)
    except RunError as reason:
        print(f"The difference was not tested: {reason}.")
        return None
    print_difference(found)
    return {"first": records[0].name, "second": records[1].name, **found}


if __name__ == "__main__":
    with exit_codes():
        main(parse(CompareConfig, __doc__ or ""))
