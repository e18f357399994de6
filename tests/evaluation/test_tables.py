"""The tables of the README and docs/ are those of the runs in results/."""

import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from evaluation import tables
from evaluation.differences import seeds_interval
from evaluation.tables import TABLE, with_tables
from tests.run_folders import write_run
from training.errors import RunError, UsageError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_is_up_to_date(page):
    text = page.read_text()
    assert with_tables(text) == text, "make them anew: .venv/bin/python -m evaluation.tables README.md docs/*.md"


@pytest.mark.parametrize(
    ("whole", "damaged"), [("<!-- end of table -->\nbetween", "between"), ("<!-- table of", "<!-- tables of")]
)
def test_a_misspelled_comment_is_an_error_and_costs_no_text(whole, damaged):
    table = "<!-- table of results/demo: run -->\n<!-- end of table -->\n"
    page = f"{table}between\n{table}"
    assert with_tables(page).count("between") == 1
    with pytest.raises(UsageError, match="a comment is not one of the two around a table"):
        with_tables(page.replace(whole, damaged, 1))


def test_the_pages_have_tables():
    kinds = [kind for page in PAGES for _, kind, *_ in TABLE.findall(page.read_text())]
    assert kinds.count("table") >= 2
    assert kinds.count("differences") >= 1


@pytest.mark.parametrize(
    ("runs", "columns", "problem"),
    [
        ("results/nothing/*", "run", "no runs in results/nothing"),
        ("results/demo", "run, beauty", "no column 'beauty'"),
    ],
)
def test_a_table_that_cannot_be_made_is_named(runs, columns, problem):
    with pytest.raises(UsageError, match=problem):
        with_tables(f"<!-- table of {runs}: {columns} -->\n<!-- end of table -->\n")


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of a Markdown table's lines, by the first cell."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in cells[2:]}


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """A baseline and a better run with three seeds each, and with one seed runs that are much, little and no better."""
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for name, depth, accuracies in (
        ("a-baseline", 1, [70.0, 72.0, 71.0]), ("b-seeds", 2, [73.0, 74.0, 75.5]), ("c-noisy", 3, [60.0, 72.0, 84.0]),
        ("d-little", 4, [71.5]), ("e-worse", 5, [60.0]),
    ):  # fmt: skip
        for seed, accuracy in enumerate(accuracies, 1):
            write_run(tmp_path / name / f"seed-{seed}", [80.0, accuracy], seed=seed, depth=depth)
    write_run(tmp_path / "g-stopped" / "seed-1", [80.0], num_epochs=2, depth=7)
    return tmp_path


def test_differences_from_a_baseline_have_an_interval_and_a_verdict(runs):
    text = tables.differences("*/* from a-baseline/*", "last (%) of 1,000 images")
    rows = rows_of(text)
    assert rows["a-baseline"][-3:] == ["", "", "the reference"]
    welch = ttest_ind([73.0, 74.0, 75.5], [70.0, 72.0, 71.0], equal_var=False).confidence_interval(0.95)
    assert rows["b-seeds"] == [
        "3 (1, 2, 3)",
        "74.17 ± 1.26",
        "+3.17",
        f"{welch.low:+.2f} to {welch.high:+.2f}",
        "better",
    ]
    assert rows["c-noisy"][-3::2] == ["+1.00", "not decided"]
    interval = seeds_interval([71.5], [70.0, 72.0, 71.0])
    assert interval
    assert rows["d-little"][-3:] == ["+0.50", "{:+.2f} to {:+.2f}".format(*interval), "not decided"]
    assert rows["e-worse"][-3::2] == ["-11.00", "worse"]
    assert rows["g-stopped"][-3:] == ["-", "-", "not measured"]


def test_differences_from_the_row_before(runs):
    text = tables.differences("[de]*/* from the row before", "test (%) of 1,000 images")
    assert rows_of(text) == {
        "d-little": ["1 (1)", "80.00", "", "", "the first"],
        "e-worse": ["1 (1)", "80.00", "+0.00", "-3.51 to +3.51", "not decided"],
    }


def test_runs_are_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for name in ("10-b", "9-a", "1-c"):
        write_run(tmp_path / name, [70.0])
    assert [Path(run.name).name for run in tables.read_runs("*")] == ["1-c", "9-a", "10-b"]


def test_a_page_that_is_not_there_is_named():
    with pytest.raises(UsageError, match=r"READM\.md"):
        tables.main(["READM.md"])


@pytest.mark.parametrize(
    ("marker", "problem"),
    [
        ("*/*: last (%) of 1,000 images", "write RUNS from REFERENCE"),
        ("*/* from a-baseline/*: best (%) of 1,000 images", "write RUNS from REFERENCE"),
        ("*/* from a-baseline/*: last (%)", "write RUNS from REFERENCE"),
        ("*/* from [ab]*/*: last (%) of 1,000 images", "not one row"),
        ("*/* from a-baseline/seed-1: last (%) of 1,000 images", "not one row"),
        ("*/* from nothing: last (%) of 1,000 images", "no runs in nothing"),
        ("*/* from a-baseline/*: last (%) of 7 images", "70 % is not the accuracy on 7 images"),
        (
            "held-out from held-out: last (%) of 10,000 images",
            "last accuracy is of 1,000 images, not of 10,000",
        ),
    ],
)
def test_differences_that_cannot_be_made_are_named(runs, marker, problem):
    write_run(runs / "held-out", [70.0], split="val", val_size=1000)
    with pytest.raises(UsageError, match=problem):
        with_tables(f"<!-- differences of {marker} -->\n<!-- end of table -->\n")


def test_runs_that_cannot_be_compared_have_no_difference(runs):
    write_run(runs / "x", [80.0], dataset="digits")
    with pytest.raises(UsageError, match="can't be compared"):
        tables.differences("*/* x from a-baseline/*", "last (%) of 1,000 images")


TWO_THREADS = {"device": "cpu", "cpu": "AMD EPYC", "threads": 2, "world_size": 1}


def test_the_minutes_until_an_accuracy_is_first_reached(runs):
    write_run(runs / "time" / "i-threads", [40.0, 60.5, 60.0], about=TWO_THREADS)  # epochs of half an hour
    write_run(runs / "time" / "j-ranks", [50.0], about=TWO_THREADS | {"threads": 1, "world_size": 2})
    assert rows_of(tables.minutes("time/*", "40, 60, 60.5, 61")) == {
        "i-threads": ["30.0", "60.0", "60.0", "-"],
        "j-ranks": ["30.0", "-", "-", "-"],
    }
    write_run(runs / "seeds" / "seed-1", [70.0], about=TWO_THREADS, seed=1)
    write_run(runs / "seeds" / "seed-2", [60.0], about=TWO_THREADS, seed=2)
    assert rows_of(tables.minutes("seeds/*", "65")) == {"seeds, seed 1": ["30.0"], "seeds, seed 2": ["-"]}
    with pytest.raises(UsageError, match="write percentages"):
        tables.minutes("time/*", "40 and 60")


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"device": "NVIDIA H100"}, RunError, "k ran on NVIDIA H100"),
        ({"cpu": None}, RunError, r"k: config.json does not say on which processor"),
        ({"threads": None}, RunError, r"k: config.json does not say on which"),
        ({"threads": 1}, UsageError, r"k ran on 1 thread \(AMD EPYC\), .*i on 2 threads \(AMD EPYC\)"),
        ({"cpu": "Intel Xeon"}, UsageError, r"k ran on 2 threads \(Intel Xeon\), .*i on 2 threads \(AMD EPYC\)"),
    ],
)
def test_minutes_on_other_threads_can_not_be_compared(runs, change, error, problem):
    write_run(runs / "time" / "i", [40.0], about=TWO_THREADS)
    write_run(runs / "time" / "k", [40.0], about=TWO_THREADS | change)
    with pytest.raises(error, match=problem):
        tables.minutes("time/*", "40")


def test_a_damaged_run_is_an_error_and_not_a_missing_row():
    with pytest.raises(RunError, match=r"training_history\.json is missing"):
        with_tables("<!-- table of tests/run_of_format_2: run -->\n<!-- end of table -->\n")


def test_the_command_writes_the_tables_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    marker = "<!-- table of results/demo: run, epochs, last (%) -->"
    page.write_text(f"before\n{marker}\nold\n<!-- end of table -->\nafter\n")
    command = [sys.executable, "-m", "evaluation.tables", str(page)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text() == (
        f"before\n{marker}\n\n"
        "| run | epochs | last (%) |\n| --- | --- | --- |\n| demo | 100 | 98.33 |\n\n<!-- end of table -->\nafter\n"
    )
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text().count("| demo |") == 1
