"""results/faults.md, which `make faults` writes, has the faults that are tried here, and each was survived."""

import os
import re
from pathlib import Path

import pytest
from conftest import ROWS

pytestmark = pytest.mark.skipif("FAULT_TABLE" in os.environ, reason="the table is being written")

LINES = (Path(__file__).parents[2] / "results" / "faults.md").read_text().splitlines()
CELLS = [re.findall(r"[^|]+", line.replace(" | ", "|").strip("| ")) for line in LINES[4:]]


def test_the_table_has_all_faults():
    assert [(fault, setting) for fault, setting, *_ in CELLS] == ROWS


@pytest.mark.parametrize("cells", CELLS, ids=lambda cells: f"{cells[0]}, {cells[1]}")
def test_each_fault_was_tried_and_survived(cells):
    assert int(cells[2]) == int(cells[3]) > 0
