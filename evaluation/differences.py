"""How far the accuracies of rows of runs are apart: points, 95 % confidence interval, verdict."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import ttest_ind

from evaluation import comparison
from evaluation.comparison import Row
from evaluation.metrics import wilson_interval
from evaluation.run_record import RunRecord

ACCURACIES: dict[str, Callable[[RunRecord], float | None]] = {
    "last": lambda run: run.accuracies[-1] if run.finished else None,
    "test": lambda run: run.test_accuracy if run.finished else None,
}
NOTES = {  # by the number of sides that have several seeds
    0: "Where both sides have one seed, the interval is that of two proportions of {} images: what other seeds would "
    "give is not in it.",
    1: "Where one side has several seeds, the other's single run is taken to vary as much (Student's interval).",
    2: "Where both sides have several seeds, the interval is Welch's, over the seeds.",
}

MANY = "Each of the {} intervals is for one comparison; the chance that none misses the true difference is below 95 %."


@dataclass(frozen=True)
class Difference:
    """A mean accuracy minus another, in points."""

    points: float
    interval: tuple[float, float] | None  # 95 %; None where it is not known
    num_several: int  # of the two sides: those that have several seeds

    @property
    def verdict(self) -> str:
        """What the interval says; one of single runs says nothing about another training of the two."""
        if not self.interval or self.interval[0] <= 0 <= self.interval[1]:
            return "not decided"
        word = "better" if self.points > 0 else "worse"
        return word if self.num_several else f"{word}, one seed each"

    @property
    def cells(self) -> tuple[str, str, str]:
        """Points, interval and verdict, as text."""
        interval = "{:+.2f} to {:+.2f}".format(*self.interval) if self.interval else "not known"
        return f"{self.points:+.2f}", interval, self.verdict


def difference(values: Sequence[float], others: Sequence[float], num_images: int | None) -> Difference:
    """The mean of accuracies, a value for each seed, minus that of others. Each is a share of `num_images` if known."""
    num_several = sum(len(side) > 1 for side in (values, others))
    interval = None
    if num_several:
        interval = seeds_interval(values, others)
    elif num_images:
        count, other = (round(fmean(side) * num_images / 100) for side in (values, others))
        low, high = proportions_interval(count, other, num_images)
        interval = 100 * low, 100 * high
    return Difference(fmean(values) - fmean(others), interval, num_several)


@dataclass(frozen=True)
class Compared:
    """A row beside another one. `other` is None where there is none, `difference` where either is not measured."""

    row: Row
    other: Row | None
    difference: Difference | None


def values_of(row: Row, accuracy: str) -> list[float]:
    """The accuracy of each run: "test", or "last" on the monitored split. Empty where one is not known."""
    values = [ACCURACIES[accuracy](run) for run in row.runs]
    return [value for value in values if value is not None] if None not in values else []


def compare(rows: Sequence[Row], others: Sequence[Row | None], accuracy: str, num_images: int | None) -> list[Compared]:
    """Each row beside the one in the same place of `others`; accuracies are shares of `num_images` if known."""
    compared = []
    for row, other in zip(rows, others, strict=True):
        values, base = values_of(row, accuracy), values_of(other, accuracy) if other else []
        compared.append(Compared(row, other, difference(values, base, num_images) if values and base else None))
    return compared


def to_cells(compared: Sequence[Compared], accuracy: str, alone: str) -> list[dict[str, str]]:
    """The text of each row's cells by column; `alone` is the verdict of a row without another."""
    lines = []
    for one, cells in zip(compared, comparison.to_cells([one.row for one in compared]), strict=True):
        texts = one.difference.cells if one.difference else ("-", "-", "not measured") if one.other else ("", "", alone)
        line = {name: cells[name] for name in ("run", "seeds", f"{accuracy} (%)")}
        lines.append(line | dict(zip(("points", "95 % confidence interval", "verdict"), texts, strict=True)))
    return lines


def notes(compared: Sequence[Compared], num_images: int | None) -> list[str]:
    """Sentences that say what the intervals are."""
    known = [one.difference.num_several for one in compared if one.difference and one.difference.interval]
    said = [NOTES[num_several].format(f"{num_images or 0:,}") for num_several in sorted({*known})]
    return said + [MANY.format(len(known))] * (len(known) > 1)


def proportions_interval(num_correct: int, other_correct: int, num_images: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `num_images` minus another of as many, in -1..1.

    It is Newcombe's method 10, of 1998, for two independent samples (https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I);
    for models on the same images it is wider than that of metrics.compare, which needs the single predictions.
    """
    share, other = num_correct / num_images, other_correct / num_images
    low, high = wilson_interval(num_correct, num_images)
    other_low, other_high = wilson_interval(other_correct, num_images)
    below, above = math.hypot(share - low, other_high - other), math.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


def seeds_interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean minus another, of which one at least has several values.

    Where both have, their variances may be unequal (Welch, 1947, https://doi.org/10.1093/biomet/34.1-2.28). A single
    value is taken to vary as the others do (Student). Where no side has a variance the interval is not known: None.
    """
    if all(len(set(side)) == 1 for side in (values, others)):
        return None
    single = 1 in (len(values), len(others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "precision loss", where one side has no variance
        interval = ttest_ind(values, others, equal_var=single).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
