"""What a run does to itself, from outside the product: signals at a chosen call, death at a chosen point of a save."""

import builtins
import importlib
import itertools
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import files
from training.data import loader

SAVE_POINTS = ("opened", "half written", "before fsync", "before the renames", "between the renames", "after them")


def signal_at(target: str, call: int, number: int) -> None:
    """Have this process send itself a signal at the `call`th call of `target`, "module:name" or "module:Class.name"."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for parent in classes:
        owner = getattr(owner, parent)
    patch(owner, name, before=at(call, lambda *_: os.kill(os.getpid(), number)))


def kill_in_save(point: str, name: str, save: int, size: int) -> None:
    """Kill this process at a point of the `save`th time that the file `name` is written; `size` is half of its bytes.

    It acts on what training.files calls; a file that is not written for the `save`th time is written as ever.
    """
    saves, now, kept = itertools.count(1), False, False  # kept: the file before has become last.prev.pth

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

    def before_rename(source: Path, target: Path) -> None:
        nonlocal kept
        if now and point == ("between the renames" if kept else "before the renames"):
            die()
        kept = now and target.name == "last.prev.pth"

    setattr(files, "open", open_file)  # noqa: B010
    patch(os, "fsync", before_fsync)
    patch(os, "replace", before_rename)


def small_chunks() -> None:
    """Prepare two batches of 16 images at a time: workers then have many chunks to be ahead with."""
    loader.CHUNK_PIXELS = 2 * 16 * 16 * 16


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(call: int, act: Callable[..., object]) -> Callable[..., None]:
    """A function that acts the `call`th time it is called."""
    calls = itertools.count(1)

    def counted(*args, **kwargs) -> None:
        if next(calls) == call:
            act()

    return counted


def patch(owner: Any, name: str, before: Callable[..., object]) -> None:
    """Have `before` called before each call of a function, with what the call has."""
    original = getattr(owner, name)

    def patched(*args, **kwargs) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


class DiesHalfWay:
    """A file to write to, whose process dies when `size` bytes have arrived in it."""

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
