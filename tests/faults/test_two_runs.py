"""Two runs never write to one folder: the second is told who holds it, and a dead process holds nothing."""

import shutil
import signal
import time

import pytest
from runs import NEVER, OFTEN, STEPS, TINY, TRAIN, assert_one_line, assert_same_run, content_of

ROW = "a second run in the folder"
PAUSE = ("signal_at", "training.console:TrainProgress.update", STEPS + 5, signal.SIGSTOP)


@pytest.fixture
def first(launcher, folder):
    """A run that has paused in its second epoch."""
    run = launcher.start(TRAIN, *TINY, OFTEN, "--output-dir", folder, sabotages=[PAUSE])
    run.wait_for_pause()
    return run


@pytest.mark.parametrize("flags", [["--resume"], ["--overwrite"], []], ids=["resume", "overwrite", "neither"])
def test_a_second_run_is_refused_at_once_and_the_first_does_not_notice(
    launcher, unbroken, folder, trying, first, flags
):
    before = content_of(folder)
    with trying(ROW):
        start = time.monotonic()
        second = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, *flags)
        assert time.monotonic() - start < 15  # it takes 2 s; a busy machine has to make do with less than a core
        assert (second.code, second.out) == (1, "")
        assert_one_line(second.err, f"process {first.pid} ", str(folder))
        assert content_of(folder) == before
        first.go_on()
        result = first.wait()
        assert (result.code, result.err) == (0, "")
        assert_same_run(folder, unbroken)


def test_a_run_that_was_killed_holds_its_folder_no_more(launcher, unbroken, folder, trying, first):
    with trying(ROW):
        first.send(signal.SIGKILL)
        assert first.wait().code == -9
        second = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, "--resume")
        assert (second.code, second.err) == (0, "")
        assert_same_run(folder, unbroken)


def test_a_run_whose_folder_was_removed_keeps_off_the_one_that_another_run_made_there(
    launcher, unbroken, folder, trying, first
):
    with trying(ROW):
        shutil.rmtree(folder)
        second = launcher.start(TRAIN, *TINY, OFTEN, "--output-dir", folder, sabotages=[PAUSE])
        second.wait_for_pause()
        before = content_of(folder)
        first.go_on()
        result = first.wait()
        assert content_of(folder) == before
        assert result.code == 1
        assert str(second.pid) in result.err
        second.go_on()
        assert second.wait().code == 0
        assert_same_run(folder, unbroken)
