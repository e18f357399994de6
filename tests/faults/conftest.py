"""The launcher of real runs, the runs that nothing happened to, and the table of what was tried and what survived.

FAULT_KILLS=200 sets how often runs are killed at a random moment (30), FAULT_TABLE=file writes the table as Markdown.
"""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from processes import Launcher
from runs import COMPILED, NEVER, NUM_PICTURES, OFTEN, ON_DIGITS, ON_PICTURES, PICTURES, TINY, TRAIN, TWO_RANKS
from sklearn.datasets import load_sample_images

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # they need /proc, pidfd_open and prlimit

KILLS = int(os.environ.get("FAULT_KILLS", "30"))
FLIPS = max(1, KILLS // 10)  # bits that are flipped, each in a test of its own
TERMINAL = f"{ON_DIGITS}, in a terminal"
ROWS = [  # of the table: the fault, and the setting of the runs
    ("killed at a random moment", ON_DIGITS),
    ("killed at a random moment", ON_PICTURES),
    ("killed in the middle of an epoch", COMPILED),
    ("both ranks and torchrun killed in the middle of an epoch", TWO_RANKS),
    ("the first rank killed in the middle of an epoch", TWO_RANKS),
    ("the second rank killed in the middle of an epoch", TWO_RANKS),
    ("killed in a save: temporary file just opened", ON_DIGITS),
    ("killed in a save: half written", ON_DIGITS),
    ("killed in a save: before fsync", ON_DIGITS),
    ("killed in a save: before the renames", ON_DIGITS),
    ("killed in a save: between the renames", ON_DIGITS),
    ("killed in a save: after them, before the folder's fsync", ON_DIGITS),
    ("killed before stale temporary files are removed", ON_DIGITS),
    ("stopped at a boundary", ON_DIGITS),
    ("resumed with another number of workers", ON_DIGITS),
    ("SIGINT, SIGTERM or SIGHUP in training", TERMINAL),
    ("SIGINT or SIGTERM in its evaluation", TERMINAL),
    ("SIGINT twice", TERMINAL),
    ("a reader of its output that is gone", ON_DIGITS),
    ("SIGINT or SIGTERM in evaluate_vit.py", TERMINAL),
    ("a second run in the folder", ON_DIGITS),
    ("full disk, or a limit on files, in mid-run", ON_DIGITS),
    ("full disk, or a limit on files, at the start", ON_DIGITS),
    ("a folder that can't be written to", ON_DIGITS),
    ("folder removed in mid-run", ON_DIGITS),
    ("last.pth truncated", ON_DIGITS),
    ("last.pth with a flipped bit", ON_DIGITS),
    ("last.pth of another version, run or model", ON_DIGITS),
    ("last.pth that runs code", ON_DIGITS),
    ("both checkpoints damaged", ON_DIGITS),
    ("training_history.json damaged", ON_DIGITS),
    ("damaged checkpoint for evaluate_vit.py", ON_DIGITS),
]
Trying = Callable[..., AbstractContextManager[None]]
tried = [0] * len(ROWS)  # in this process: pytest-xdist has several, see below
survived = [0] * len(ROWS)


@pytest.fixture(scope="session")
def trying() -> Trying:
    """`with trying(fault, times, setting):` counts the block as tried, and as survived if it raises nothing."""

    @contextmanager
    def try_it(fault: str, times: int = 1, setting: str = "") -> Iterator[None]:
        [row] = [i for i, row in enumerate(ROWS) if row[0] == fault and setting in ("", row[1])]
        tried[row] += times
        yield
        survived[row] += times

    return try_it


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add up what a worker of pytest-xdist has counted."""
    for total, counts in zip((tried, survived), getattr(node, "workeroutput", {}).get("faults", ([], [])), strict=True):
        total[:] = [a + b for a, b in zip(total, counts or [0] * len(ROWS), strict=True)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts over to the main process, which writes the table if each fault was tried and survived."""
    if hasattr(session.config, "workeroutput"):  # a worker of pytest-xdist
        session.config.workeroutput["faults"] = tried, survived  # pyright: ignore[reportAttributeAccessIssue]
    elif (path := os.environ.get("FAULT_TABLE")) and (session.exitstatus or not all(tried)):
        print(f"\n{path} stays as it was: a test failed, or did not run")
    elif path:
        lines = [
            f"{KILLS} random kills, half of them in each setting; {FLIPS} flipped bits. Their seeds count from 0.",
            "",
            "| fault | setting | tried | survived |",
            "|---|---|---|---|",
        ]
        lines += [f"| {fault} | {setting} | {tried[i]} | {survived[i]} |" for i, (fault, setting) in enumerate(ROWS)]
        Path(path).write_text("\n".join(lines) + "\n")


class Undisturbed(NamedTuple):
    """A run that nothing happened to."""

    setting: str
    flags: list[str]
    folder: Path
    seconds: float  # that such a run takes if it saves often


def run_undisturbed(launcher: Launcher, place: Path, setting: str, flags: list[str]) -> Undisturbed:
    result = launcher.run(TRAIN, *flags, NEVER, "--output-dir", place / "run")
    assert (result.code, result.err) == (0, "")
    start = time.monotonic()
    assert launcher.run(TRAIN, *flags, OFTEN, "--output-dir", place / "timed" / "run").code == 0
    return Undisturbed(setting, flags, place / "run", time.monotonic() - start)


@pytest.fixture(scope="session")
def on_digits(launcher, tmp_path_factory) -> Undisturbed:
    return run_undisturbed(launcher, tmp_path_factory.mktemp("digits"), ON_DIGITS, TINY)


@pytest.fixture(scope="session")
def on_pictures(launcher, tmp_path_factory, pictures) -> Undisturbed:
    flags = [*PICTURES, "--batch-size=16", "--data-dir", str(pictures)]
    return run_undisturbed(launcher, tmp_path_factory.mktemp("pictures"), ON_PICTURES, flags)


@pytest.fixture(scope="session")
def unbroken(on_digits) -> Path:
    """The folder of a run that nothing happened to."""
    return on_digits.folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """An image folder: parts of the two photographs that come with scikit-learn, in many sizes, as JPEG and PNG."""
    root, rng = tmp_path_factory.mktemp("images"), random.Random(0)
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    for split, count in (("train", NUM_PICTURES), ("test", 40)):
        for i in range(count):
            photograph = photographs[i % 2]
            width, height = rng.randint(16, 120), rng.randint(16, 120)
            left, top = rng.randint(0, photograph.width - width), rng.randint(0, photograph.height - height)
            path = root / split / ("temple", "flower")[i % 2] / f"{i}.{rng.choice(['jpg', 'png'])}"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph.crop((left, top, left + width, top + height)).save(path)
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    """Where a run is to write. The figures show the folder's name, so it is that of the undisturbed run."""
    return tmp_path / "run"


@pytest.fixture
def finished(unbroken, folder) -> Path:
    """A copy of the undisturbed run: its last.pth has all three epochs, its last.prev.pth two."""
    return shutil.copytree(unbroken, folder)
