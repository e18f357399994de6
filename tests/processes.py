"""Real processes to kill: runs forked by the launcher, and commands in fresh processes, torchrun's among them."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]
SABOTAGED = Path(__file__).with_name("sabotaged.py")
PATIENCE = 240  # seconds, for what takes two; a busy machine may be much slower
SLOW_PATIENCE = 600  # seconds, for torch.compile, which takes twenty


class Result(NamedTuple):
    code: int  # negative: the signal that ended it
    out: str
    err: str


class Run:
    """A running script, forked by the launcher."""

    def __init__(self, launcher: "Launcher", pid: int, out: Path, err: Path):
        self.launcher, self.pid, self.out, self.err = launcher, pid, out, err
        self.descriptor = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        return bool(select.select([self.descriptor], [], [], seconds)[0])

    def wait_for_pause(self) -> None:
        """Wait until it has stopped itself with SIGSTOP."""
        wait_until(lambda: is_paused(self.pid) or self.ends_within(0))
        assert not self.ends_within(0), f"it ended: {self.wait()}"

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def wait(self) -> Result:
        code = self.wait_for_code()
        return Result(code, self.out.read_text(), self.err.read_text())

    def wait_for_code(self) -> int:
        if not self.ends_within(PATIENCE):
            self.send(signal.SIGKILL)
        code = self.launcher.ask(wait=self.pid)
        os.close(self.descriptor)
        self.launcher.running.remove(self)
        return code


class TerminalRun(Run):
    """A running script whose stdout and stderr are a terminal of its own."""

    def __init__(self, launcher: "Launcher", pid: int, terminal: "Terminal"):
        super().__init__(launcher, pid, terminal.path, terminal.path)
        self.terminal = terminal

    def wait(self) -> Result:
        code = self.wait_for_code()
        self.terminal.close()
        return Result(code, self.terminal.text, "")


class Terminal:
    """A terminal, and the text that it has shown."""

    def __init__(self):
        shown, self.descriptor = pty.openpty()
        termios.tcsetwinsize(self.descriptor, (40, 200))  # a progress bar on a terminal of no width has no label
        self.path = Path(os.ttyname(self.descriptor))
        self.text = ""
        self.reader = threading.Thread(target=self.read, args=[shown])
        self.reader.start()

    def read(self, shown: int) -> None:
        try:
            while data := os.read(shown, 4096):
                self.text += data.decode(errors="replace").replace("\r\n", "\n")
        except OSError:  # no process has it open any more
            pass
        finally:
            os.close(shown)

    def close(self) -> None:
        """Read what is left."""
        os.close(self.descriptor)
        self.reader.join()


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

    def start(self, *argv: Any, cwd: Path | None = None, **options: Any) -> Run:
        """Start `python ARGV`, the first of which is a script of the repository; `sabotages` are done to it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        out, err = folder / "out", folder / "err"
        pid = self.fork(*argv, out=out, err=err, cwd=cwd or folder, **options)
        self.running.append(run := Run(self, pid, out, err))
        return run

    def start_in_terminal(self, *argv: Any, cwd: Path, **options: Any) -> TerminalRun:
        """Do the same in a new terminal."""
        terminal = Terminal()
        pid = self.fork(*argv, out=terminal.path, err=terminal.path, cwd=cwd, **options)
        self.running.append(run := TerminalRun(self, pid, terminal))
        return run

    def fork(
        self, script: Any, *argv: Any, out: Path, err: Path, cwd: Path, sabotages: Iterable = (),
        env: Mapping[str, str] | None = None, file_size: int | None = None, user: int | None = None,
    ) -> int:  # fmt: skip
        """Have the launcher fork such a run. Returns its process id."""
        return self.ask(
            argv=[str(ROOT / script), *map(str, argv)], out=str(out), err=str(err), cwd=str(cwd),
            sabotages=list(sabotages), env=dict(env or {}), file_size=file_size, user=user,
        )  # fmt: skip

    def run(self, *argv: Any, **options: Any) -> Result:
        """Start it and wait for its end."""
        return self.start(*argv, **options).wait()


class Command:
    """`python ARGV` in a fresh process, in a process group of its own; the processes that it starts may have others."""

    def __init__(self, folder: Path, *argv: Any, env: Mapping[str, str]):
        self.out, self.err = folder / "out", folder / "err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, argv)], cwd=folder, env=os.environ | env, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.seen = {self.process.pid}

    def family(self) -> list[int]:
        """Return the process ids of the command and of all that it has started, those that are alive.

        A process that has lost its parent is still found if an earlier call has seen it.
        """
        parents = {pid: parent for pid, (state, parent) in processes().items() if state not in "ZX"}
        while more := {pid for pid, parent in parents.items() if parent in self.seen} - self.seen:
            self.seen |= more
        return sorted(self.seen & parents.keys())

    def workers(self) -> dict[int, int]:
        """Return the process ids of torchrun's workers by rank, or of the command itself as rank 0 if it has none."""
        children = [pid for pid, (_, parent) in processes().items() if parent == self.process.pid]
        ranks = {rank: pid for pid in children if (rank := rank_of(pid)) is not None}
        return ranks or {0: self.process.pid}

    def wait_for_pause(self, ranks: int) -> dict[int, int]:
        """Wait until as many ranks have stopped themselves with SIGSTOP. Returns their process ids."""

        def paused() -> bool:
            workers = self.workers()
            return len(workers) == ranks and all(map(is_paused, workers.values()))

        wait_until(lambda: paused() or self.process.poll() is not None, SLOW_PATIENCE)
        assert self.process.poll() is None, f"it ended: {self.result()}"
        self.family()
        return self.workers()

    def wait_for(self, text: str) -> None:
        """Wait until it has printed that."""
        wait_until(lambda: text in self.out.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, f"it ended: {self.result()}"

    def wait(self, seconds: float = SLOW_PATIENCE) -> Result:
        """Wait until it and all that it has started have ended."""
        self.family()
        try:
            self.process.wait(seconds)
            wait_until(lambda: not self.family())
        finally:
            self.end()
        return self.result()

    def end(self) -> None:
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def result(self) -> Result:
        return Result(self.process.returncode, self.out.read_text(), self.err.read_text())


def processes() -> dict[int, tuple[str, int]]:
    """Return the state and the parent of every process of this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            found[int(path.name)] = state_of(int(path.name))
    return found


def state_of(pid: int) -> tuple[str, int]:
    """Return a process's state, a letter, and its parent."""
    state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[:2]
    return state, int(parent)


def is_paused(pid: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended
        return state_of(pid)[0] == "T"
    return False


def rank_of(pid: int) -> int | None:
    """Return the rank that torchrun gave a process."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                return int(variable[5:])
    return None


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
