"""A run killed anywhere in a save leaves a good checkpoint, resumes to the same bits, and leaves no temporary file."""

import shutil
import signal

import pytest
from runs import EACH_STEP, NEVER, TINY, TRAIN, assert_same_run, can_resume

from training import checkpoint

ROWS = {
    "opened": "killed in a save: temporary file just opened",
    "half written": "killed in a save: half written",
    "before fsync": "killed in a save: before fsync",
    "before the renames": "killed in a save: before the renames",
    "between the renames": "killed in a save: between the renames",
    "after them": "killed in a save: after them, before the folder's fsync",
}
# A file, which of its saves, and half of its bytes; the first last.pth has no optimizer state yet.
FIRST, LATER = ("last.pth", 1, 22_000), ("last.pth", 7, 70_000)
OTHERS = [("best_model.pth", 1, 22_000), ("training_history.json", 3, 250)]


def complain(text: str) -> None:
    pytest.fail(text)


def resume(launcher, folder, **options):
    """Resume a run, or start it again if it has not saved anything yet."""
    return launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, *["--resume"] * can_resume(folder), **options)


@pytest.mark.parametrize(
    ("name", "save", "half", "point"),
    [
        *((*LATER, point) for point in ROWS),
        *((*FIRST, point) for point in ROWS if point != "between the renames"),
        *((*save, point) for save in OTHERS for point in ("half written", "before the renames")),
    ],
)
def test_a_run_killed_in_a_save_ends_with_the_same_bits(launcher, unbroken, folder, trying, name, save, half, point):
    with trying(ROWS[point]):
        killed = launcher.run(
            TRAIN, *TINY, EACH_STEP, "--output-dir", folder, sabotages=[("kill_in_save", point, name, save, half)]
        )
        assert killed.code == -signal.SIGKILL
        if (name, save) != ("last.pth", 1):
            checkpoint.load_last(folder, print if point == "between the renames" else complain)
        result = resume(launcher, folder)
        assert result.code == 0, result.err
        assert_same_run(folder, unbroken)


def test_a_run_killed_before_it_removes_stale_files_ends_with_the_same_bits(launcher, unbroken, folder, trying):
    with trying("killed before stale temporary files are removed"):
        half = ("kill_in_save", "half written", "last.pth", 7, 70_000)
        assert launcher.run(TRAIN, *TINY, EACH_STEP, "--output-dir", folder, sabotages=[half]).code == -9
        at_start = ("signal_at", "training.run_folder:remove_temporary_files", 1, signal.SIGKILL)
        assert resume(launcher, folder, sabotages=[at_start]).code == -9
        assert list(folder.glob(".*.tmp"))
        assert resume(launcher, folder).code == 0
        assert_same_run(folder, unbroken)


@pytest.mark.parametrize("save", [1, 2])
def test_a_run_that_fell_back_on_last_prev_keeps_a_good_checkpoint_all_along(launcher, unbroken, folder, trying, save):
    """The damaged last.pth must not take the place of the good last.prev.pth."""
    shutil.copytree(unbroken, folder)
    (folder / "last.pth").write_bytes(b"")
    with trying(ROWS["between the renames"]):
        kill = ("kill_in_save", "between the renames", "last.pth", save, 0)
        killed = launcher.run(TRAIN, *TINY, EACH_STEP, "--output-dir", folder, "--resume", sabotages=[kill])
        assert killed.code == -signal.SIGKILL, killed.err
        assert checkpoint.load_last(folder, lambda warning: None)["epoch"] == 2
        assert resume(launcher, folder).code == 0
        assert_same_run(folder, unbroken)
