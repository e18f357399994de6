"""The tables of the README and docs/, written from the runs in results/.

    python -m evaluation.tables README.md docs/*.md          # writes them anew; a test fails where they are old

A page has a table between two comments, which name the runs and the columns of compare_runs.py's table:

    <!-- table of results/presets/*/*: run, epochs, test (%), time -->
    <!-- end of table -->

Or they name a reference, or `the row before`, and the accuracy whose differences from it the table has:

    <!-- differences of results/ladder/* from results/ladder/1-baseline: test (%) of 10,000 images -->
    <!-- end of table -->

Or they name accuracies, in percent, and the table has the minutes until the runs, on as many threads, reached them:

    <!-- minutes of results/time/*: 40, 50, 60 -->
    <!-- end of table -->
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.comparable import require_comparable
from evaluation.comparison import Row, group, markdown, to_markdown
from evaluation.differences import ACCURACIES, compare, to_cells
from evaluation.run_record import RunRecord, read_run
from training.errors import RunError, UsageError, exit_codes
from training.files import write_atomically

ROOT = Path(__file__).parents[1]
BEGIN, END = r"(<!-- (table|differences|minutes) of ([^:\n]+): ([^\n]+) -->\n)", r"(<!-- end of table -->)"
TABLE = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)


def with_tables(page: str) -> str:
    """The page's text with its tables made anew. UsageError names a table that can't be."""
    kinds = {"table": table, "differences": differences, "minutes": minutes}
    if len(TABLE.findall(page)) != page.count("<!--") / 2:
        raise UsageError("a comment is not one of the two around a table: see the example in evaluation/tables.py")
    return TABLE.sub(lambda match: f"{match[1]}\n{kinds[match[2]](match[3], match[4])}\n{match[5]}", page)


def read_runs(patterns: str) -> list[RunRecord]:
    """The runs in the folders that match, such as results/presets/*/* or several such patterns."""
    paths = {path for pattern in patterns.split() for path in ROOT.glob(pattern)}
    folders = sorted((path for path in paths if (path / "config.json").exists()), key=by_number)
    if not folders:
        raise UsageError(f"no runs in {patterns}")
    return [read_run(folder) for folder in folders]


def by_number(path: Path) -> list[tuple[int, str]]:
    """A key by which 9-b comes before 10-a."""
    return [(int("0" + re.split(r"\D", part)[0]), part) for part in path.parts]


def table(runs: str, columns: str) -> str:
    """The Markdown table of the runs that match, with these columns."""
    return to_markdown(group(read_runs(runs)), columns.split(", "))


def differences(runs: str, what: str) -> str:
    """The Markdown table of how runs differ from others; docs/newer-recipe.md says how to read its intervals.

    `runs` and `what` are as in the example above; the accuracy is a share of so many images.
    """
    patterns, _, reference = runs.partition(" from ")
    found = re.fullmatch(r"(last|test) \(%\) of ([\d,]+) images", what)
    if not (reference and found):
        raise UsageError(f"differences of {runs}: {what}: write RUNS from REFERENCE: test (%) of N images, or last (%)")
    in_turn = reference == "the row before"
    records = read_runs(patterns if in_turn else f"{patterns} {reference}")
    require_comparable(records)
    rows, accuracy, num_images = group(records), found[1], int(found[2].replace(",", ""))
    refuse_other_shares(records, accuracy, num_images)
    base = None if in_turn else rows[index_of(reference, rows)]
    others = [None, *rows[:-1]] if in_turn else [None if row is base else base for row in rows]
    compared = compare(rows, others, accuracy, num_images)
    lines = to_cells(compared, accuracy, "the first" if in_turn else "the reference")
    return markdown(lines)


def refuse_other_shares(records: Sequence[RunRecord], accuracy: str, num_images: int) -> None:
    """UsageError where an accuracy is not a share of so many images."""
    for run in records:
        value = ACCURACIES[accuracy](run)
        known = run.config["val_size"] if accuracy == "last" and run.split == "val" else run.num_test_images
        if known not in (None, num_images):
            raise UsageError(f"{run.name}: its {accuracy} accuracy is of {known:,} images, not of {num_images:,}")
        if value is not None and abs(value * num_images / 100 - round(value * num_images / 100)) > 1e-6 * num_images:
            raise UsageError(f"{run.name}: {value:g} % is not the accuracy on {num_images:,} images")


def minutes(runs: str, levels: str) -> str:
    """The Markdown table of the minutes until the runs that match first reached each of these accuracies."""
    try:
        percentages = [float(level) for level in levels.split(", ")]
    except ValueError:
        raise UsageError(f"minutes of {runs}: {levels}: write percentages, such as 40, 50, 60") from None
    return minutes_table(group(read_runs(runs)), percentages)


def minutes_table(rows: Sequence[Row], levels: Sequence[float]) -> str:
    """The Markdown table of the minutes, a line for each run: "-" where no epoch ended with that accuracy."""
    require_comparable([run for row in rows for run in row.runs])
    threads_of(rows)  # refuses runs on other ones
    lines = []
    for name, run in (pair for row in rows for pair in row.named_runs.items()):
        ends = list(zip(run.minutes, run.accuracies, strict=True))
        first = {level: next((time for time, accuracy in ends if accuracy >= level), None) for level in levels}
        cells = {f"{level:g} %": "-" if time is None else f"{time:.1f}" for level, time in first.items()}
        lines.append({"run": name, **cells})
    return markdown(lines)


def threads_of(rows: Sequence[Row]) -> str:
    """The threads that the runs had, such as "2 threads (AMD EPYC)". RunError where they differ or are not known."""
    first, *others = [run for row in rows for run in row.runs]
    for run in others:
        if run.threads != first.threads:
            raise UsageError(
                f"{run.name} ran on {run.threads}, {first.name} on {first.threads}: their minutes can't be compared"
            )
    return first.threads


def index_of(pattern: str, rows: list[Row]) -> int:
    """The place of the row that has the runs in the folders that match. UsageError where they are not one row."""
    names = {run.name for run in read_runs(pattern)}
    for i, row in enumerate(rows):
        if {run.name for run in row.runs} == names:
            return i
    raise UsageError(f"{pattern} is not one row of runs that differ only in the seed")


def main(pages: list[str]) -> None:
    texts = {}
    for page in map(Path, pages):
        try:
            texts[page] = with_tables(page.read_text())
        except (RunError, OSError) as error:
            raise UsageError(f"{page}: {error}") from None
    for page, text in texts.items():
        write_atomically(page, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
