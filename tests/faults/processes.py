"""Real processes to kill: runs forked by the launcher, and what they said and left."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds, for what should take two


class Result(NamedTuple):
    code: int  # negative: the signal that ended it
    out: str
    err: str


class Run:
    """A run at work, forked by the launcher."""

    def __init__(self, launcher: "Launcher", pid: int, out: Path, err: Path):
        self.launcher, self.pid, self.out, self.err = launcher, pid, out, err
        self.descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def wait_for_pause(self) -> None:
        """Until it has stopped itself with SIGSTOP."""
        wait_until(lambda: Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1][0] in "TZ")
        assert not self.ends_within(0), f"it ended: {self.err.read_text()}"

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def wait(self) -> Result:
        if not self.ends_within(PATIENCE):
            self.send(signal.SIGKILL)
        code = self.launcher.ask(wait=self.pid)
        os.close(self.descriptor)
        self.launcher.running.remove(self)
        return Result(code, self.out.read_text(), self.err.read_text())


class Launcher:
    """The launcher's process; see launcher.py."""

    def __init__(self, folder: Path):
        self.folder, self.running = folder, []

    def __enter__(self) -> Self:
        command = [sys.executable, str(Path(__file__).with_name("launcher.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        return self

    def __exit__(self, *_) -> None:
        for run in list(self.running):
            run.send(signal.SIGKILL)
            run.wait()
        self.process.communicate()

    def ask(self, **request: Any) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self, *argv: Any, sabotages: Iterable[tuple] = (), file_size: int | None = None, user: int | None = None
    ) -> Run:
        """Start `python ARGV`, the first of which is a script of the repository."""
        script, *arguments = map(str, argv)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        out, err = folder / "out", folder / "err"
        pid = self.ask(
            argv=[str(ROOT / script), *arguments],
            **{"out": str(out), "err": str(err), "cwd": str(folder)},
            **{"sabotages": list(sabotages), "file_size": file_size, "user": user},
        )
        self.running.append(run := Run(self, pid, out, err))
        return run

    def run(self, *argv: Any, **options: Any) -> Result:
        """The same to its end."""
        return self.start(*argv, **options).wait()


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
