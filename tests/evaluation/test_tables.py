"""The tables of the README and docs/ are those of the runs in results/."""

import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.tables import TABLE, with_tables
from training.errors import RunError, UsageError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_is_up_to_date(page):
    text = page.read_text()
    assert with_tables(text) == text, "make them anew: .venv/bin/python -m evaluation.tables README.md docs/*.md"
    assert text.count("<!-- table of ") == len(TABLE.findall(text)), "a table's first or last line is misspelled"


def test_the_pages_have_tables():
    assert sum(len(TABLE.findall(page.read_text())) for page in PAGES) >= 2


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
