"""The tables of the README and docs/, written from the runs in results/.

    python -m evaluation.tables README.md docs/*.md          # writes them anew; a test fails where they are old

A page has a table between two comments, which name the runs and the columns of compare_runs.py's table:

    <!-- table of results/presets/*/*: run, epochs, test (%), time -->
    <!-- end of table -->
"""

import re
import sys
from pathlib import Path

from evaluation.comparison import group, read_run, to_markdown
from training.errors import UsageError, exit_codes
from training.files import write_atomically

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table of (\S+): (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page's text with its tables made anew. UsageError names a table that can't be."""
    return TABLE.sub(lambda match: f"{match[1]}\n{table(match[2], match[3].split(', '))}\n{match[4]}", page)


def table(runs: str, columns: list[str]) -> str:
    """The Markdown table of the runs that match, such as results/presets/*/*, with these columns."""
    folders = sorted(path for path in ROOT.glob(runs) if (path / "config.json").exists())
    if not folders:
        raise UsageError(f"no runs in {runs}")
    return to_markdown(group([read_run(folder) for folder in folders]), columns)


def main(pages: list[str]) -> None:
    for page in map(Path, pages):
        text = with_tables(page.read_text())
        write_atomically(page, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
