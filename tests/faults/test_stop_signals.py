"""Ctrl-C and SIGTERM, from a terminal to fresh processes: saved, an exit code, and the command that goes on.

The terminal shows the bar of an evaluation as soon as it begins, which tells when to send a signal.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import PATIENCE, ROOT, wait_until
from runs import TRAIN, assert_same_run, content_of, position

# Steps and batches of evaluation of a tenth of a second or more: time for a signal in each.
SLOW = [
    "--preset=demo", "--num-epochs=2", "--warmup-epochs=1", "--depth=1", "--embed-dim=24", "--dropout=0.1",
    "--max-train-images=128", "--batch-size=64", "--img-size=48", "--save-every=2", "--device=cpu",
    "--precision=fp32", "--save-minutes=0",
]  # fmt: skip
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
TRAINING, EVALUATING = "Epoch [2/2]", "evaluating on the test images"


class Fresh:
    """`python ARGV` in a new process, whose stdout and stderr are a terminal."""

    def __init__(self, *argv: object, cwd: Path):
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (40, 200))  # a bar on a terminal of no width does not say what it is of
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, *map(str, argv)], cwd=cwd, stdin=its_end, stdout=its_end, stderr=its_end,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background process would ignore it
        )  # fmt: skip
        os.close(its_end)
        self.reader = threading.Thread(target=self.read, args=[terminal])
        self.reader.start()

    def read(self, terminal: int) -> None:
        try:
            while data := os.read(terminal, 4096):
                self.text += data.decode(errors="replace").replace("\r\n", "\n")
        except OSError:  # nobody has the other end any more
            pass
        finally:
            os.close(terminal)

    def send_when(self, condition: Callable[[], bool], number: signal.Signals) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None)
        self.process.send_signal(number)

    def send_at(self, text: str, number: signal.Signals) -> None:
        """Send a signal when it has said something."""
        self.send_when(lambda: text in self.text, number)

    def wait(self) -> int:
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.reader.join()
        assert "Traceback" not in self.text
        return code


@pytest.fixture(scope="module")
def unstopped(launcher, tmp_path_factory) -> Path:
    """The slow run, that nothing happened to."""
    folder = tmp_path_factory.mktemp("unstopped") / "run"
    assert launcher.run(TRAIN, *SLOW, "--output-dir", folder).code == 0
    return folder


def train(cwd: Path) -> Fresh:
    return Fresh(ROOT / TRAIN, *SLOW, "--output-dir=run", cwd=cwd)


def in_a_shell(command: str, cwd: Path) -> tuple[int, str]:
    """Exit code and stderr of a command as a user would type it, with the virtual environment active."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_stopped_run_goes_on_with_the_command_it_prints(launcher, unstopped, folder, trying, number, code):
    with trying("SIGINT or SIGTERM in training"):
        run = train(folder.parent)
        run.send_at(TRAINING, number)
        assert run.wait() == code
        assert position(folder) == (1, 1)
        [command] = re.findall(r"^stopped\. saved in run\. Go on with: (.+)$", run.text, re.MULTILINE)
        if number == signal.SIGINT:  # once will do: a new process takes five seconds
            assert in_a_shell(command, folder.parent) == (0, "")
        else:
            assert launcher.run(TRAIN, *SLOW, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unstopped)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_run_stopped_in_its_evaluation_ends_with_the_same_bits(launcher, unstopped, folder, trying, number, code):
    with trying("SIGINT or SIGTERM in its evaluation"):
        run = train(folder.parent)
        run.send_at(EVALUATING, number)
        assert run.wait() == code
        assert run.text.count("\nstopped. saved in run. Go on with: ") == 1
        assert position(folder) == (0, 2)
        assert launcher.run(TRAIN, *SLOW, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unstopped)


@pytest.mark.parametrize("moment", ["Epoch [1/2]", EVALUATING], ids=["training", "evaluation"])
def test_a_second_interrupt_stops_at_once_without_saving(launcher, unstopped, folder, trying, moment):
    with trying("SIGINT twice"):
        run = train(folder.parent)
        run.send_at(moment, signal.SIGINT)
        run.send_at("stops at once, without saving", signal.SIGINT)
        assert run.wait() == 130
        assert run.text.count("\nstopped. ") == 1
        assert position(folder) == (0, 0) or "saved in" in run.text  # the second may come when all is saved
        assert launcher.run(TRAIN, *SLOW, "--output-dir", folder, "--resume").code == 0
        assert_same_run(folder, unstopped)


def is_whole(name: str, content: bytes) -> bool:
    return json.loads(content) is not None if name.endswith(".json") else content.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("moment", ["evaluating", "drawing"])
def test_a_stopped_evaluator_says_one_line_and_leaves_no_half_file(unstopped, tmp_path, trying, moment, number, code):
    with trying("SIGINT or SIGTERM in evaluate_vit.py"):
        argv = ["--device=cpu", "--checkpoint", unstopped / "best_model.pth", "--output-dir=evaluation"]
        run = Fresh(ROOT / "evaluate_vit.py", *argv, cwd=tmp_path)
        evaluation = tmp_path / "evaluation" / "evaluation.json"
        run.send_when(evaluation.exists if moment == "drawing" else lambda: EVALUATING in run.text, number)
        assert run.wait() == code
        assert run.text.count("stopped.") == 1
        assert run.text.endswith("\nstopped.\n")
        files = content_of(tmp_path)
        assert len(files) == (moment == "drawing")
        assert all(is_whole(name, content) for name, content in files.items())
