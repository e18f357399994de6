"""A run stopped between any two of its parts resumes there, with any number of workers, to the same bits."""

import signal

import pytest
from runs import EVAL_BATCHES, NEVER, STEPS, TINY, TRAIN, assert_same_run, content_of, position

STEP = "training.run:Run.after_sync"
BATCH = "training.engine:autocast"  # of training and of evaluation
AN_EPOCH = STEPS + EVAL_BATCHES


@pytest.mark.parametrize(
    ("target", "call", "number", "stopped_at"),
    [
        pytest.param("training.console:TrainProgress", 1, signal.SIGKILL, (0, 0), id="before the first step"),
        pytest.param(STEP, STEPS + 5, signal.SIGTERM, (1, 5), id="amid an epoch"),
        pytest.param(STEP, 2 * STEPS, signal.SIGTERM, (1, STEPS), id="in the last step of an epoch"),
        pytest.param("training.engine:evaluate", 2, signal.SIGTERM, (1, STEPS), id="between training and evaluation"),
        pytest.param(BATCH, AN_EPOCH + STEPS + 2, signal.SIGINT, (1, STEPS), id="in an evaluation"),
        pytest.param("training.console:print_summary", 2, signal.SIGKILL, (2, 0), id="at the end of an epoch"),
        pytest.param("training.console:print_epoch_header", 2, signal.SIGTERM, (1, 1), id="before an epoch"),
        pytest.param(STEP, 3 * STEPS, signal.SIGTERM, (2, STEPS), id="in the last step of the run"),
        pytest.param(BATCH, 3 * AN_EPOCH, signal.SIGTERM, (2, STEPS), id="in the last evaluation"),
        pytest.param("training.console:print_summary", 3, signal.SIGKILL, (3, 0), id="at the end of the run"),
    ],
)
def test_a_run_stopped_at_a_boundary_ends_with_the_same_bits(
    launcher, unbroken, folder, trying, target, call, number, stopped_at
):
    command = [TRAIN, *TINY, NEVER, "--output-dir", folder]
    with trying("stopped at a boundary"):
        stopped = launcher.run(*command, sabotages=[("signal_at", target, call, number)])
        expected = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
        assert (stopped.code, position(folder)) == (expected, stopped_at)
        resumed = launcher.run(*command, "--resume")
        assert (resumed.code, resumed.err) == (0, "")
        assert_same_run(folder, unbroken)


def test_resuming_a_finished_run_changes_no_byte(launcher, finished, trying):
    before = content_of(finished)
    with trying("stopped at a boundary"):
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", finished, "--resume")
        assert (result.code, result.err) == (0, "")
        assert content_of(finished) == before


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_run_resumed_with_another_number_of_workers_ends_with_the_same_bits(
    launcher, unbroken, folder, trying, before, after
):
    command = [TRAIN, *TINY, NEVER, "--output-dir", folder]
    stop = ("signal_at", STEP, STEPS + 5, signal.SIGTERM)
    with trying("resumed with another number of workers"):
        stopped = launcher.run(*command, f"--num-workers={before}", sabotages=[("small_chunks",), stop])
        assert (stopped.code, position(folder)) == (143, (1, 5))
        resumed = launcher.run(*command, f"--num-workers={after}", "--resume", sabotages=[("small_chunks",)])
        assert (resumed.code, resumed.err) == (0, "")
        assert_same_run(folder, unbroken)
