"""The folder of a run: locked by one process, checked before the first step; a failing disk does not end the run."""

import contextlib
import copy
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from torch import nn

from training import checkpoint
from training.console import say
from training.distributed import PARENT
from training.errors import RunError, UsageError, first_line
from training.files import DiskError, create_folder, remove_temporary_files

MARKS = ("*.pth", "config.json", "training_history.json", "test_result.json")  # of a run, or of what is left of one
EVALUATION_FILES = ("evaluation.json", "predictions.csv", "report.html")  # of evaluate_vit.py --output-dir RUN_FOLDER
RUN_FILES = (*MARKS, *EVALUATION_FILES, "*.png", "evaluation", "tensorboard")
LOCK, OWNER = ".lock", ".lock-owner"
LOCK_TIMEOUT = 1  # seconds that a second process waits for the first to leave
SUITE_TIMEOUT = 90  # the same for a run of a suite: one of a suite that was killed ends with its step
FIGURES_SIZE = 8 << 20  # bytes, ample, for the pictures and the JSON files of a run


class RunFolder:
    """A run's folder, locked by this process inside `with`. It is created, and removed again if it stays empty.

    Entering it raises RunError where another process has locked it, or where nothing can be written to it.
    """

    def __init__(self, path: Path, warn: Callable[[str], object] = print):
        self.path, self.warn = path, warn
        self.lock = FileLock(path / LOCK, timeout=SUITE_TIMEOUT if PARENT in os.environ else LOCK_TIMEOUT)
        self.unsaved: dict[str, dict[str, Any]] = {}  # what a full disk did not take: the next save tries again
        self.saved_at = time.monotonic()
        self.needed = 0  # bytes, once require_space knows
        self.keep_previous = True  # whether last.pth is fit to become last.prev.pth

    def __enter__(self) -> Self:
        self.made = [folder for folder in (self.path, *self.path.parents) if not os.path.exists(folder)]
        self.claim()
        remove_temporary_files(self.path)
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):
            if self.holds_lock():
                for name in (OWNER, LOCK):
                    (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                for folder in self.made:
                    folder.rmdir()
        self.lock.release()

    def claim(self) -> None:
        """Create the folder and lock it. The system drops the lock of a process that died."""
        create_folder(self.path)
        owner = self.path / OWNER
        try:
            self.lock.acquire()
            owner.write_text(
                f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
            )
            self.owner_file = identity(owner)
        except Timeout:
            holder = "another process"
            with contextlib.suppress(OSError):  # it may just have left
                holder = owner.read_text()
            raise RunError(
                f"{self.path} is in use by {holder}: wait for it, stop it, or choose another --output-dir"
            ) from None
        except OSError as error:
            raise DiskError(f"can't lock the folder {self.path}: {first_line(error)}") from None

    def holds_lock(self) -> bool:
        """Whether it has the lock of the folder that is there: another run may have removed and created it again."""
        try:
            return self.lock.is_locked and identity(self.path / OWNER) == self.owner_file
        except OSError:  # it is not there, or the disk is not
            return False

    def holds_run(self) -> bool:
        """Whether the folder holds files of a run."""
        return any(path for pattern in MARKS for path in self.path.glob(pattern))

    def refuse_used(self) -> None:
        """UsageError where the folder holds a run already."""
        if self.holds_run():
            raise UsageError(
                f"{self.path} holds a run, or its weights: go on with --resume, start anew with --overwrite, or change "
                "--output-dir"
            )

    def load_last(self) -> dict[str, Any]:
        """The newest checkpoint that can be read (checkpoint.load_last), with a warning for a newer damaged one."""
        problems: list[str] = []
        content = checkpoint.load_last(self.path, problems.append)
        for problem in problems:
            self.warn(problem)
        self.keep_previous = not problems  # else the next save would replace the good last.prev.pth
        return content

    def move_aside(self) -> None:
        """Move the files of the run to `old-<time>` in the same folder, to make place for a new run."""
        if not self.holds_run():
            return
        aside = self.path / f"old-{time.strftime('%Y%m%d-%H%M%S')}"
        while aside.exists():
            aside = aside.with_name(f"{aside.name}+")
        try:
            aside.mkdir()
            for path in [path for pattern in RUN_FILES for path in self.path.glob(pattern)]:
                path.rename(aside / path.name)
        except OSError as error:
            raise RunError(f"can't move the run in {self.path} aside: {first_line(error)}") from None
        say(f"The run that was in {self.path} is now in {aside}")

    def require_space(self, model: nn.Module, num_states: int, num_kept: int, resumed: bool) -> None:
        """RunError where the disk has no room for a run: `num_kept` files of weights, and three to resume from.

        The three (last.pth, last.prev.pth, the one being written) also hold `num_states` numbers of the optimizer for
        each weight. For a `resumed` run its own files count as room.
        """
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        self.needed = needed = (num_kept + 3 * (1 + num_states)) * size + FIGURES_SIZE
        there = sum(path.stat().st_size for path in self.path.glob("*.pth")) if resumed else 0
        free = shutil.disk_usage(self.path).free
        if free + there < needed:
            raise RunError(
                f"a run of these settings needs {needed / 2**20:,.0f} MiB in {self.path}, where {free / 2**20:,.0f} "
                "MiB are free: make room, choose another --output-dir, or raise --save-every"
            )

    def save_due(self, minutes: float) -> bool:
        """Whether the last save was more than so many minutes ago; with 0, never."""
        return minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes

    def save(self, files: dict[str, dict[str, Any]]) -> bool:
        """Write checkpoints, given by file name. Returns whether all of them are written.

        What a full disk does not take is kept in memory for the next call, with a warning: the run goes on. `last.pth`,
        from which a run resumes, is written last and only when no other file is missing: so a run that dies in between
        writes the missing files when it is resumed.
        """
        self.saved_at = time.monotonic()
        self.unsaved |= files
        with self.tolerating_disk_errors():
            if not self.holds_lock():
                with contextlib.suppress(OSError):
                    self.lock.release(force=True)
                self.claim()
            for name in sorted(self.unsaved, key=lambda name: name == "last.pth"):  # False, so the others, first
                keeps = name == "last.pth" and self.keep_previous
                previous = self.path / "last.prev.pth" if keeps else None
                checkpoint.save(self.path / name, self.unsaved[name], previous)
                del self.unsaved[name]
                self.keep_previous |= name == "last.pth"
        complete = not self.unsaved
        self.unsaved = copy.deepcopy({name: self.unsaved[name] for name in self.unsaved if name != "last.pth"})
        return complete

    @contextlib.contextmanager
    def tolerating_disk_errors(self) -> Iterator[None]:
        """Inside it, a file that can't be written is a warning and not the end of the run."""
        try:
            yield
        except DiskError as error:
            with contextlib.suppress(OSError):  # the console may be a file on the same disk
                self.warn(
                    f"{error}. The run needs {self.needed / 2**20:,.0f} MiB there in all; it goes on, and tries again "
                    "at its next save"
                )


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from another one of the same path: inode and time of change."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
