"""Faults that a run is told to cause itself: a signal at a chosen call, death at a chosen point of a save."""

import builtins
import importlib
import itertools
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import files
from training.data import loader


def signal_at(target: str, call: int, number: int) -> None:
    """Send this process a signal at the `call`th call of `target`, "module:name" or "module:Class.name".

    After a pause (SIGSTOP) it waits for the signal that ended the pause to arrive: another thread may have got it.
    """

    def act(*_) -> None:
        os.kill(os.getpid(), number)
        if number == signal.SIGSTOP:
            time.sleep(0.2)

    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for parent in classes:
        owner = getattr(owner, parent)
    patch(owner, name, before=at(call, act))


def kill_in_save(point: str, name: str, save: int, size: int) -> None:
    """Kill this process at a point of the `save`th save of the file `name`; `size` is half of the file's bytes.

    It patches what training.files calls. "between the renames" is after the first rename, whichever file that is of.
    """
    saves, now = itertools.count(1), False

    def open_file(path: Path, mode: str) -> Any:
        nonlocal now
        file = builtins.open(path, mode)  # noqa: SIM115
        now = path.name.startswith(f".{name}.") and next(saves) == save
        if now and point == "opened":
            die()
        return DiesHalfWay(file, size) if now and point == "half written" else file

    def before_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if now and point == ("after them" if is_folder else "before fsync"):
            die()

    setattr(files, "open", open_file)  # noqa: B010
    patch(os, "fsync", before=before_fsync)
    patch(
        os, "replace",
        before=lambda *_: now and point == "before the renames" and die(),
        after=lambda *_: now and point == "between the renames" and die(),
    )  # fmt: skip


def small_chunks() -> None:
    """Prepare two batches of 16 images at a time, so that workers have many chunks to prepare ahead."""
    loader.CHUNK_PIXELS = 2 * 16 * 16 * 16


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(call: int, act: Callable[..., object]) -> Callable[..., None]:
    """Return a function that calls `act` when it is called for the `call`th time."""
    calls = itertools.count(1)

    def counted(*args, **kwargs) -> None:
        if next(calls) == call:
            act()

    return counted


def patch(owner: Any, name: str, before: Callable[..., object], after: Callable[..., object] = lambda *_: None) -> None:
    """Call `before` and `after` around each call of a function, with the call's arguments."""
    original = getattr(owner, name)

    def patched(*args, **kwargs) -> Any:
        before(*args, **kwargs)
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(owner, name, patched)


class DiesHalfWay:
    """A file whose process dies once `size` bytes are written to it."""

    def __init__(self, file: Any, size: int):
        self.file, self.left = file, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "DiesHalfWay":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        part = bytes(data)[: self.left]
        self.left -= self.file.write(part)
        if self.left == 0:
            self.file.flush()
            die()
        return len(part)
