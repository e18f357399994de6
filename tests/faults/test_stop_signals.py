"""Ctrl-C and SIGTERM in a terminal: the run saves, ends with an exit code, and prints the command that goes on.

A run pauses itself at a chosen call. A signal that is sent to it then acts at that very place when the run goes on.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Run, wait_until
from runs import EVAL_BATCHES, NEVER, STEPS, TINY, TRAIN, assert_same_run, content_of, position

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
STEP, BATCH = "training.run:Run.after_sync", "training.engine:autocast"  # a BATCH of either kind
ON_A_BAR = "evaluating on the test images"
NOTE = "stops at once, without saving"


def pause(target: str, call: int) -> tuple:
    return "signal_at", target, call, signal.SIGSTOP


@pytest.fixture
def train(launcher, folder):
    """Starts a run in a terminal that pauses as it is told."""

    def start(*pauses: tuple):
        command = [TRAIN, *TINY, NEVER, "--output-dir", folder]
        return launcher.start_in_terminal(*command, cwd=folder.parent, sabotages=pauses)

    return start


def send_at_pause(run, number: signal.Signals) -> None:
    run.wait_for_pause()
    run.send(number)
    run.go_on()


def in_a_shell(command: str, cwd: Path) -> tuple[int, str]:
    """Run a command as a user types it, with the virtual environment active. Returns its exit code and stderr."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "code"), [*CODES, (signal.SIGHUP, 143)])
def test_a_stopped_run_goes_on_with_the_command_it_prints(launcher, train, unbroken, folder, trying, number, code):
    with trying("SIGINT, SIGTERM or SIGHUP in training"):
        run = train(pause(STEP, STEPS + 1))
        send_at_pause(run, number)
        result = run.wait()
        assert result.code == code
        assert "Traceback" not in result.out
        assert position(folder) == (1, 1)
        pattern = rf"^stopped\. saved in {re.escape(str(folder))}\. Go on with: (.+)$"
        [command] = re.findall(pattern, result.out, re.MULTILINE)
        if number == signal.SIGINT:  # once is enough: a fresh process takes seconds
            assert in_a_shell(command, folder.parent) == (0, "")
        else:
            assert launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_a_run_whose_output_nobody_reads_any_more_saves_and_ends(launcher, unbroken, folder, trying, number):
    """As of `2>&1 | tee log`, where Ctrl-C ends tee too, or of `| head`."""
    reader, writer = os.pipe()
    pipe = Path(f"/proc/{os.getpid()}/fd/{writer}")
    with trying("a reader of its output that is gone"):
        flags = [TRAIN, *TINY, NEVER, "--output-dir", folder]
        pid = launcher.fork(*flags, out=pipe, err=pipe, cwd=folder.parent, sabotages=[pause(STEP, STEPS + 1)])
        launcher.running.append(run := Run(launcher, pid, pipe, pipe))
        run.wait_for_pause()
        os.close(reader)
        os.close(writer)
        if number:
            run.send(number)
        run.go_on()
        assert run.wait_for_code() == (130 if number else 1)
        assert position(folder) == ((1, 1) if number else (2, 0))
        assert launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unbroken)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_run_stopped_in_its_evaluation_ends_with_the_same_bits(
    launcher, train, unbroken, folder, trying, number, code
):
    with trying("SIGINT or SIGTERM in its evaluation"):
        run = train(pause(BATCH, STEPS + EVAL_BATCHES - 1))
        send_at_pause(run, number)
        result = run.wait()
        assert result.code == code
        assert "Traceback" not in result.out
        assert ON_A_BAR in result.out
        assert result.out.count(f"\nstopped. saved in {folder}. Go on with: ") == 1
        assert position(folder) == (0, STEPS)
        assert launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unbroken)


@pytest.mark.parametrize(
    ("target", "call", "saved"),
    [
        pytest.param(STEP, 1, (0, 0), id="training"),
        pytest.param(STEP, STEPS + 5, (1, 0), id="training, epoch 2"),
        pytest.param(BATCH, STEPS + EVAL_BATCHES - 1, (0, 0), id="evaluation"),
    ],
)
def test_a_second_interrupt_stops_at_once_without_saving(
    launcher, train, unbroken, folder, trying, target, call, saved
):
    with trying("SIGINT twice"):
        run = train(pause(target, call), pause(target, call))  # twice, at the same call
        send_at_pause(run, signal.SIGINT)
        wait_until(lambda: NOTE in run.terminal.text)
        send_at_pause(run, signal.SIGINT)
        result = run.wait()
        assert result.code == 130
        assert "Traceback" not in result.out
        assert result.out.count("\nstopped. ") == result.out.count("\nstopped. What was saved before stays. ") == 1
        assert position(folder) == saved
        assert launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unbroken)


def is_whole(name: str, content: bytes) -> bool:
    if name.endswith(".json"):
        return json.loads(content) is not None
    return content.endswith(b"\n" if name.endswith(".csv") else b"IEND\xaeB`\x82")


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("moment", ["evaluating", "drawing"])
def test_a_stopped_evaluator_says_one_line_and_leaves_no_half_file(
    launcher, unbroken, tmp_path, trying, moment, number, code
):
    with trying("SIGINT or SIGTERM in evaluate_vit.py"):
        flags = ["--device=cpu", "--checkpoint", unbroken / "best_model.pth", "--output-dir=evaluation"]
        # The first figure is the third file to be renamed to its place, after predictions.csv and evaluation.json.
        pauses = [pause(BATCH, 2) if moment == "evaluating" else pause("os:replace", 3)]
        run = launcher.start_in_terminal("evaluate_vit.py", *flags, cwd=tmp_path, sabotages=pauses)
        send_at_pause(run, number)
        result = run.wait()
        assert result.code == code
        assert "Traceback" not in result.out
        assert result.out.count("stopped.") == 1
        assert result.out.endswith("\nstopped.\n")
        files = content_of(tmp_path)
        written = {"evaluation/evaluation.json", "evaluation/predictions.csv"}
        assert files.keys() == (written if moment == "drawing" else set())
        assert all(is_whole(name, content) for name, content in files.items())
