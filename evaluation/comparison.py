"""Several runs side by side: rows of runs that differ only in the seed, and tables.

records = [read_run(Path(folder)) for folder in folders]  # of evaluation/run_record.py
require_comparable(records)  # of evaluation/comparable.py
rows = group(records)
print(to_table(to_cells(rows)))
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from evaluation import predictions
from evaluation.run_record import RunRecord
from training.console import format_time
from training.errors import RunError, UsageError

COSTS_BEGIN = "images seen"  # the column of a table from which on they say what a run cost
SEED = r"[/ _.=-]*seed[/ _.=-]*\d+$"  # at the end of a folder's name


@dataclass(frozen=True)
class Row:
    """A run, or finished runs that differ only in the seed."""

    name: str
    runs: list[RunRecord]

    @property
    def named_runs(self) -> dict[str, RunRecord]:
        """Each run by the row's name, with its seed where there are several."""
        return {f"{self.name}, seed {run.seed}" if len(self.runs) > 1 else self.name: run for run in self.runs}

    @property
    def timed(self) -> bool:
        """Whether the times of its runs have a mean: all are of one machine, as far as is known, or it has one run."""
        machines = {run.machine for run in self.runs}
        return len(self.runs) == 1 or (len(machines) == 1 and None not in machines)

    def summary(self, value: Callable[[RunRecord], float | None]) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation over the runs. The first is None where the value of a run is not known."""
        values = [number for number in map(value, self.runs) if number is not None]
        if len(values) < len(self.runs):
            return None, None
        return fmean(values), stdev(values) if len(values) > 1 else None


def group(records: Sequence[RunRecord]) -> list[Row]:
    """Put finished runs that differ only in the seed into one row, by seed; the rows are in the order of the records.

    An unfinished run, a repetition with the same seed, and one of another number of images get their own rows.
    """
    groups: dict[Any, list[RunRecord]] = {}
    for record in records:
        key = (record.model_name, *sorted(record.settings.items()), "" if record.finished else record.name)
        while any(other.seed == record.seed or has_other_number(record, other) for other in groups.get(key, [])):
            key = (*key, "again")
        groups.setdefault(key, []).append(record)
    paths = [os.path.abspath(record.name) for record in records]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = {record.name: Path(path).relative_to(root).as_posix() for record, path in zip(records, paths, strict=True)}
    rows = [sorted(runs, key=lambda run: run.seed) for runs in groups.values()]
    named = [[names[run.name] for run in runs] for runs in rows]
    short = [name_row(row) or os.path.basename(root) * (len(named) == 1) for row in named]
    full = [row[0] if len(row) == 1 else f"{row[0]} and {len(row) - 1} more" for row in named]
    unique = [one if one and short.count(one) == 1 else other for one, other in zip(short, full, strict=True)]
    return [Row(name, runs) for name, runs in zip(unique, rows, strict=True)]


def has_other_number(run: RunRecord, other: RunRecord) -> bool:
    """Whether the runs are known to have learned from different numbers of images; early runs did not save it."""
    return len({run.num_train_images, other.num_train_images} - {None}) > 1


def name_row(names: list[str]) -> str:
    """The folder of a row's runs without the seed at its end: "patch8" for "patch8/seed-1" and "patch8/seed-2".

    Of several runs a plain number is the seed too: "runs" for "runs/1" and "runs/2". Empty where they have no name left
    in common.
    """
    end = SEED if len(names) == 1 else rf"{SEED}|(?:[/ _.=-]+|^)\d+$"
    stems = {re.sub(end, "", name, flags=re.IGNORECASE) for name in names}
    return stems.pop() if len(stems) == 1 else ""


def compare_predictions(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """Compare two runs on the same test images, as metrics.compare does. RunError with the reason where it can't be."""
    right = []
    for run in (one, other):
        if not run.own_evaluation.get("test_images_sha256"):
            raise RunError(f"{run.name}: its best epoch is not evaluated: run evaluate_vit.py --checkpoint {run.name}")
        labels, predicted = predictions.read(run.predictions)
        right.append(labels == predicted)
        if 100 * right[-1].sum() / len(labels) != run.own_evaluation["accuracy"]:
            raise RunError(f"{run.predictions} is of another evaluation: run evaluate_vit.py again")
    if one.own_evaluation["test_images_sha256"] != other.own_evaluation["test_images_sha256"]:
        raise RunError("the images have another size: evaluate_vit.py --compare compares the two models")
    from evaluation import metrics  # its import takes seconds

    return metrics.compare(*right)


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """The settings that are not the same in all rows. One that only some models have is compared among those."""
    all_settings = [row.runs[0].settings for row in rows]
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    values = {name: {settings[name] for settings in all_settings if name in settings} for name in names}
    return [name for name in names if len(values[name]) > 1 and name != "num_epochs"]


def to_plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, for JSON: accuracies in percent, times in seconds, None for what is not known."""
    different = differing_settings(rows)
    plain = []
    for row in rows:
        run = row.runs[0]
        content: dict[str, Any] = {"name": row.name, "model_name": run.model_name}
        content |= {name: run.settings.get(name) for name in different}
        content |= {"seeds": [one.seed for one in row.runs], "runs": [one.name for one in row.runs]}
        content |= {"epochs": run.epochs_done, "num_epochs": run.config["num_epochs"], "finished": run.finished}
        content |= {"chosen_on": run.split}
        for name, value in (
            ("best_accuracy", lambda run: max(run.accuracies)),
            ("last_accuracy", lambda run: run.accuracies[-1]),
            ("test_accuracy", lambda run: run.test_accuracy),
        ):
            content[name], content[f"{name}_std"] = row.summary(value)
        content["images_seen"] = run.images_seen
        content["seconds"] = row.summary(lambda run: run.seconds)[0] if row.timed else None
        content["images_per_second"] = row.summary(lambda run: run.images_per_second)[0] if row.timed else None
        plain.append({**content, "num_parameters": run.num_parameters, "flops": run.flops})
    return plain


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, with the names and values of `to_plain`; a list is JSON."""
    lines = [
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in to_plain(rows)
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The text of each row's cells by column: means with standard deviations, rounded; "-" for what is not known."""
    different, cells = differing_settings(rows), []

    def spread(row: dict[str, Any], name: str) -> str:
        std = row[f"{name}_std"]
        return show(row[name], ".2f") + (f" ± {std:.2f}" if std is not None else "")

    for row in to_plain(rows):
        seeds = ", ".join(map(str, row["seeds"]))
        done = f"{row['epochs']}" if row["finished"] else f"{row['epochs']} of {row['num_epochs']}, unfinished"
        cells.append({
            "run": row["name"], "model": row["model_name"],
            "seeds": f"{len(row['seeds'])} ({seeds})" if len(row["seeds"]) <= 3 else str(len(row["seeds"])),
            "epochs": done, "chosen on": row["chosen_on"],
            "best (%)": spread(row, "best_accuracy"), "last (%)": spread(row, "last_accuracy"),
            "test (%)": spread(row, "test_accuracy"),
            **{name: show(row[name]) for name in different},
            COSTS_BEGIN: show(row["images_seen"], ","),
            "time": "-" if row["seconds"] is None else format_time(row["seconds"]),
            "images/s": show(row["images_per_second"], ".0f"), "parameters": show(row["num_parameters"], ","),
            "GFLOP/image": show(row["flops"] and row["flops"] / 1e9, ".3g"),
        })  # fmt: skip
    return cells


def show(value: Any, spec: str = "") -> str:
    """A value as text: "-" for None and the empty text, yes or no for a truth value."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, spec or ("g" if isinstance(value, float) else ""))


def to_markdown(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """The rows as a Markdown table, with all columns or those. UsageError names a column that is not there.

    It depends on nothing but the JSON files of the runs and the folders' names.
    """
    cells = to_cells(rows)
    columns = columns or list(cells[0])
    if unknown := [name for name in columns if name not in cells[0]]:
        raise UsageError(f"the table has no column {unknown[0]!r}: it has {', '.join(cells[0])}")
    return markdown([{name: row[name] for name in columns} for row in cells])


def markdown(cells: Sequence[dict[str, str]]) -> str:
    """A Markdown table of rows with the same columns."""
    columns = list(cells[0])
    lines = [columns, ["---"] * len(columns), *[[text.replace("|", "\\|") for text in row.values()] for row in cells]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_table(cells: Sequence[dict[str, str]], width: int = 120) -> str:
    """A table for a terminal. Columns that don't fit go into further tables below, beside those of the first."""
    columns = [[name, *(row[name] for row in cells)] for name in cells[0]]
    widths = [max(map(len, column)) for column in columns]
    blocks, used = [[0]], widths[0]
    for i in range(1, len(columns)):
        together = widths[i:] if columns[i][0] == COSTS_BEGIN else widths[i : i + 1]  # the costs stay in one table
        if len(blocks[-1]) > 1 and used + sum(2 + one for one in together) > width:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + widths[i]
    tables = []
    for block in blocks:
        lines = [
            "  ".join(columns[i][line].rjust(widths[i]) if i else columns[i][line].ljust(widths[i]) for i in block)
            for line in range(len(cells) + 1)
        ]
        tables.append("\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]))
    return "\n\n".join(tables)
