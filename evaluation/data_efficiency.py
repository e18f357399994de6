"""Test accuracy against the number of training images: which rows of a comparison make a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from evaluation.comparison import Row

ROUNDING = 0.02  # images seen that differ by less are as many: a share of the training images is a whole number


@dataclass(frozen=True)
class DataLine:
    """Rows that differ in the number of their training images, but not in how often they saw them, or how many in all.

    `points` has for each row the training images, the test accuracy's mean over the runs in percent, and its standard
    deviation (0 for one run).
    """

    name: str  # of the row with the most training images
    equal: Literal["epochs", "images seen"]
    points: list[tuple[int, float, float]]


def data_lines(rows: Sequence[Row]) -> list[DataLine]:
    """The lines through finished rows, each up to a row that has the most images of its like.

    Rows of the same images and epochs, as a run and its repetition are, have the place of the first.
    """
    alike: dict[object, list[Row]] = {}
    for row in rows:
        run = row.runs[0]
        if run.finished and run.num_train_images and accuracy(row)[0] is not None:
            warmup = bool(run.settings.get("warmup_epochs"))  # its length goes with the number of epochs
            settings = {**run.settings, "max_train_images": None, "num_epochs": None, "warmup_epochs": warmup}
            like = alike.setdefault((run.model_name, *sorted(settings.items())), [])
            if size(row) not in map(size, like):
                like.append(row)
    lines = []
    for group in alike.values():
        most = max(map(size, group))[0]
        for full in (row for row in group if size(row)[0] == most):
            equal_epochs = [row for row in group if size(row)[1] == size(full)[1]]
            equal_seen = [row for row in group if abs(prod(size(row)) / prod(size(full)) - 1) < ROUNDING]
            lines += [line_of(full.name, "epochs", equal_epochs), line_of(full.name, "images seen", equal_seen)]
    return [line for line in lines if len(line.points) > 1]


def line_of(name: str, equal: Literal["epochs", "images seen"], rows: list[Row]) -> DataLine:
    points = [(size(row)[0], *accuracy(row)) for row in rows]
    return DataLine(name, equal, sorted((images, mean or 0.0, std or 0.0) for images, mean, std in points))


def size(row: Row) -> tuple[int, int]:
    """Training images and epochs."""
    return row.runs[0].num_train_images or 0, row.runs[0].epochs_done


def accuracy(row: Row) -> tuple[float | None, float | None]:
    return row.summary(lambda run: run.test_accuracy)
