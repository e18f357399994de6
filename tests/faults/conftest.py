"""A launcher of real runs, the run that nothing happened to, and the tally of what was tried and what survived.

FAULT_KILLS=200 sets how often a run is killed at a random moment (30), FAULT_TABLE=file writes the tally as Markdown.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from processes import Launcher
from runs import NEVER, OFTEN, TINY, TRAIN

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # they need /proc, pidfd_open and prlimit

KILLS = int(os.environ.get("FAULT_KILLS", "30"))
FLIPS = 20
ROWS = (
    "killed at a random moment",
    "killed in a save: temporary file just opened",
    "killed in a save: half written",
    "killed in a save: before fsync",
    "killed in a save: before the renames",
    "killed in a save: between the renames",
    "killed in a save: after them, before the folder's fsync",
    "killed before stale temporary files are removed",
    "stopped at a boundary",
    "resumed with another number of workers",
    "SIGINT or SIGTERM in training",
    "SIGINT or SIGTERM in its evaluation",
    "SIGINT twice",
    "SIGINT or SIGTERM in evaluate_vit.py",
    "a second run in the folder",
    "full disk, or a limit on files, in mid-run",
    "full disk, or a limit on files, at the start",
    "a folder that can't be written to",
    "folder removed in mid-run",
    "last.pth truncated",
    "last.pth with a flipped bit",
    "last.pth of another version, run or model",
    "last.pth that runs code",
    "both checkpoints damaged",
    "training_history.json damaged",
    "damaged checkpoint for evaluate_vit.py",
)
Trying = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def trying() -> Iterator[Trying]:
    """`with trying(row, times):` counts the block as tried, and as survived if it raises nothing."""
    counts = {row: [0, 0] for row in ROWS}

    @contextmanager
    def try_it(row: str, times: int = 1) -> Iterator[None]:
        counts[row][0] += times
        yield
        counts[row][1] += times

    yield try_it
    if path := os.environ.get("FAULT_TABLE"):
        lines = [f"{KILLS} random kills, seeds 0 to n of the runs; {FLIPS} flipped bits, seeds 0 to {FLIPS - 1}.", ""]
        lines += ["| fault | tried | survived |", "|---|---|---|"]
        lines += [f"| {row} | {tried} | {survived} |" for row, (tried, survived) in counts.items()]
        Path(path).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def launcher(tmp_path_factory) -> Iterator[Launcher]:
    with Launcher(tmp_path_factory.mktemp("launched")) as started:
        yield started


@pytest.fixture(scope="session")
def unbroken(launcher, tmp_path_factory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder)
    assert (result.code, result.err) == (0, "")
    return folder


@pytest.fixture(scope="session")
def seconds(launcher, unbroken, tmp_path_factory) -> float:
    """How long a run takes that saves often."""
    start = time.monotonic()
    assert launcher.run(TRAIN, *TINY, OFTEN, "--output-dir", tmp_path_factory.mktemp("timed") / "run").code == 0
    return time.monotonic() - start


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where a run is to write; the figures bear the folder's name, so it is that of the unbroken run."""
    return tmp_path / "run"


@pytest.fixture
def finished(unbroken, folder) -> Path:
    """A copy of the unbroken run: its last.pth has all three epochs, its last.prev.pth two."""
    return shutil.copytree(unbroken, folder)
