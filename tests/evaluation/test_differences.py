"""Differences of rows: their intervals equal formulas and examples from the papers, and say what they are."""

import math
from pathlib import Path
from statistics import fmean, variance

import pytest
from scipy.stats import t

from evaluation.comparison import group
from evaluation.differences import (
    MANY,
    NOTES,
    compare,
    difference,
    notes,
    proportions_interval,
    seeds_interval,
    to_cells,
)
from evaluation.run_record import read_run
from tests.run_folders import write_run


@pytest.mark.parametrize(
    ("num_correct", "other_correct", "num_images", "expected"),
    [(9, 3, 10, (0.1705, 0.8090)), (6, 2, 7, (0.0582, 0.8062))],  # Newcombe's table II, method 10, examples b and c
)
def test_the_interval_of_a_difference_of_shares_is_newcombes(num_correct, other_correct, num_images, expected):
    assert proportions_interval(num_correct, other_correct, num_images) == pytest.approx(expected, abs=1e-4)
    low, high = proportions_interval(other_correct, num_correct, num_images)
    assert (-high, -low) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "others"),
    [([70.0, 72.0, 71.0], [73.0, 74.0]), ([1.0, 2.0], [5.0, 1.0, 9.0, 4.0]), ([60.0, 60.0], [1.0, 2.0])],
)
@pytest.mark.filterwarnings("error")
def test_the_interval_over_seeds_is_welchs(values, others):
    parts = [variance(side) / len(side) for side in (values, others)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(side) - 1) for part, side in zip(parts, (values, others), strict=True)
    )
    half = t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    middle = fmean(values) - fmean(others)
    assert seeds_interval(values, others) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize("single", [68.0, 72.5])
def test_a_single_run_is_taken_to_vary_as_the_others_do(single):
    others = [70.0, 72.0, 71.5]
    half = t.ppf(0.975, 2) * math.sqrt(variance(others) * (1 + 1 / 3))
    middle = single - fmean(others)
    assert seeds_interval([single], others) == pytest.approx((middle - half, middle + half))
    assert seeds_interval(others, [single]) == pytest.approx((-middle - half, -middle + half))


@pytest.mark.parametrize("others", [[84.0], [84.0, 84.0]])
def test_without_any_variance_over_seeds_nothing_is_known(others):
    found = difference([85.0, 85.0], others, 10_000)
    assert (found.interval, found.verdict) == (None, "not decided")
    assert found.cells == ("+1.00", "not known", "not decided")


@pytest.mark.parametrize(
    ("values", "others", "verdict"),
    [
        ([74.0, 75.0, 76.0], [70.0, 71.0, 72.0], "better"),
        ([70.0, 71.0, 72.0], [74.0, 75.0, 76.0], "worse"),
        ([70.0, 80.0], [70.0, 71.0, 72.0], "not decided"),
        ([85.0], [70.0, 71.0, 72.0], "better"),
        ([75.0], [71.0], "better, one seed each"),
        ([71.0], [75.0], "worse, one seed each"),
        ([71.1], [71.0], "not decided"),
    ],
)
def test_the_verdict_says_when_other_seeds_are_not_in_it(values, others, verdict):
    assert difference(values, others, 10_000).verdict == verdict


def test_of_single_runs_on_an_unknown_number_of_images_only_the_points_are_known():
    assert difference([75.0], [71.0], None).cells == ("+4.00", "not known", "not decided")


def test_rows_without_another_or_without_all_their_tests_have_no_difference(tmp_path):
    folders = [write_run(tmp_path / "a" / f"seed-{seed}", [70.0 + seed], seed=seed) for seed in (1, 2)]
    folders += [write_run(tmp_path / "b", [80.0], "val", depth=2), write_run(tmp_path / "c", [90.0], depth=3)]
    rows = group([read_run(Path(folder)) for folder in folders])
    compared = compare(rows, [None, rows[0], rows[0]], "test", None)
    assert [one.difference and one.difference.points for one in compared] == [None, None, pytest.approx(18.5)]
    assert [cells["verdict"] for cells in to_cells(compared, "test", "alone")] == ["alone", "not measured", "better"]
    assert notes(compared, None) == [NOTES[1]]


def test_the_notes_are_of_the_kinds_of_interval_that_there_are(tmp_path):
    folders = [write_run(tmp_path / name / f"seed-{seed}", [70.0 + seed], seed=seed, depth=depth)
               for name, depth, seeds in (("a", 1, (1, 2)), ("b", 2, (1, 2)), ("c", 3, (1,)), ("d", 4, (1,)))
               for seed in seeds]  # fmt: skip
    several, others, single, last = group([read_run(Path(folder)) for folder in folders])
    assert notes(compare([several], [others], "last", None), None) == [NOTES[2]]
    assert notes(compare([single], [last], "last", 5000), 5000) == [NOTES[0].format("5,000")]
    assert notes(compare([others, single], [several, several], "last", None), None) == [
        NOTES[1],
        NOTES[2],
        MANY.format(2),
    ]
