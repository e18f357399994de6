"""Files that are whole or not there: written beside their place, flushed to the disk, renamed."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from training.errors import RunError, first_line


class DiskError(RunError):
    """A file could not be written: the disk is full, gone or not ours. What was there before is untouched."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Have `write` fill a temporary file in the same folder, then rename it to `path`; nothing is left if it fails.

    `previous` is where the file that stood at `path` is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two runs may write the same cache
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
        raise DiskError(f"can't write {path}: {first_line(error)}; what was saved before is untouched") from error
    finally:
        with contextlib.suppress(OSError):  # the disk may be gone with all that was on it
            temporary.unlink(missing_ok=True)


def create_folder(folder: Path) -> None:
    """Make the folder for files, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(f"can't write to the folder {folder}: {error.strerror}; choose another --output-dir") from None


def flush_folder(folder: Path) -> None:
    """Have the renames in a folder reach the disk, where the file system can be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a process that was killed left half written."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
