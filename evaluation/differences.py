"""How far the accuracies of rows of runs are apart: points, 95 % interval, verdict."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scipy.stats import ttest_ind

from evaluation.comparison import Row, to_cells
from evaluation.metrics import wilson_interval
from evaluation.run_record import RunRecord

ACCURACIES: dict[str, Callable[[RunRecord], float | None]] = {
    "last": lambda run: run.accuracies[-1] if run.finished else None,
    "test": lambda run: run.test_accuracy if run.finished else None,
}
NOTES = (
    "Where both sides have one seed, the interval is that of two shares of {} images: **what other seeds would give is "
    "not in it**.",
    "Where one side has several seeds, the other's single run is taken to vary as much (Student's interval).",
    "Where both sides have several seeds, the interval is Welch's, over the seeds.",
)


@dataclass(frozen=True)
class Difference:
    """A mean accuracy minus another, in points, and its 95 % interval (nan: not known)."""

    points: float
    low: float
    high: float
    num_several: int  # sides, of the two, that have several seeds

    @property
    def verdict(self) -> str:
        """What the interval says; one of single runs says nothing about another training of the two."""
        if self.low <= 0 <= self.high or math.isnan(self.low):
            return "not decided"
        return f"{'better' if self.low > 0 else 'worse'}{', one seed each' * (not self.num_several)}"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its ends; None where it is not known."""
        return None if math.isnan(self.low) else (self.low, self.high)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Points, interval and verdict, as text."""
        interval = "{:+.2f} to {:+.2f}".format(*self.interval) if self.interval else "not known"
        return f"{self.points:+.2f}", interval, self.verdict


def difference(values: Sequence[float], others: Sequence[float], num_images: int | None) -> Difference:
    """The mean of accuracies, a value for each seed, minus that of others. Each is a share of `num_images` if known."""
    num_several = sum(len(side) > 1 for side in (values, others))
    low, high = math.nan, math.nan
    if num_several:
        low, high = seeds_interval(values, others)
    elif num_images:
        count, other = (round(fmean(side) * num_images / 100) for side in (values, others))
        low, high = (100 * bound for bound in shares_interval(count, other, num_images))
    return Difference(fmean(values) - fmean(others), low, high, num_several)


def differences(
    rows: Sequence[Row], accuracy: str, bases: Sequence[int | None], num_images: int | None
) -> list[Difference | None]:
    """Of each row from the row at the index in `bases`. None without such a row, or where one of them isn't measured.

    `accuracy` is "test", or "last" on the monitored split.
    """
    known = [[ACCURACIES[accuracy](run) for run in row.runs] for row in rows]
    measured = [[value for value in values if value is not None] for values in known]
    whole = [values if len(values) == len(row.runs) else [] for values, row in zip(measured, rows, strict=True)]
    return [
        difference(whole[i], whole[base], num_images) if base is not None and whole[i] and whole[base] else None
        for i, base in enumerate(bases)
    ]


def to_difference_cells(
    rows: Sequence[Row], accuracy: str, bases: Sequence[int | None], found: Sequence[Difference | None], base_name: str
) -> list[dict[str, str]]:
    """The text of each row's cells by column; a row without a base is called `base_name`."""
    lines = []
    for cells, base, one in zip(to_cells(rows), bases, found, strict=True):
        texts = ("", "", base_name) if base is None else one.cells if one else ("-", "-", "not measured")
        line: dict[str, Any] = {name: cells[name] for name in ("run", "seeds", f"{accuracy} (%)")}
        lines.append(line | dict(zip(("points", "95 % interval", "verdict"), texts, strict=True)))
    return lines


def notes(found: Sequence[Difference | None], num_images: int | None) -> list[str]:
    """Sentences that say what the intervals among `found` are."""
    kinds = {one.num_several for one in found if one and not math.isnan(one.low)}
    return [note.format(f"{num_images or 0:,}") for kind, note in enumerate(NOTES) if kind in kinds]


def shares_interval(num_correct: int, other_correct: int, num_images: int) -> tuple[float, float]:
    """The 95 % interval of a share of `num_images` minus another of as many, in -1..1: method 10 of Newcombe, 1998.

    It is for two independent samples (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I);
    for models on the same images it is wider than that of metrics.compare, which needs the single predictions.
    """
    share, other = num_correct / num_images, other_correct / num_images
    low, high = wilson_interval(num_correct, num_images)
    other_low, other_high = wilson_interval(other_correct, num_images)
    below, above = math.hypot(share - low, other_high - other), math.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


def seeds_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean minus another, of which one at least has several values.

    Where both have, their variances may be unequal (Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28). A single
    value is taken to vary as the others do (Student). Where no side has a variance the interval is not known: nan.
    """
    if all(len(set(side)) == 1 for side in (values, others)):
        return math.nan, math.nan
    single = 1 in (len(values), len(others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "precision loss", where one side has no variance
        interval = ttest_ind(values, others, equal_var=single).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
