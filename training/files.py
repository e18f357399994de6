"""Files that are whole or not there: written beside their place, flushed to the disk, renamed."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from training.errors import RunError, first_line

SEAL = b"\nsha256 "  # followed by the digest, 64 hexadecimal digits
BLOCK = 1 << 20  # bytes


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


class DigestingFile:
    """A file to write to that keeps the digest of what has been written."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_sealed(path: Path, content: Any, previous: Path | None = None) -> None:
    """Write what torch.save makes of `content`, and its seal; `previous` is where the file that stood there is kept."""

    def write(file: IO[bytes]) -> None:
        digesting = DigestingFile(file)
        torch.save(content, digesting)  # pyright: ignore[reportArgumentType]
        file.write(SEAL + digesting.digest.hexdigest().encode())

    write_atomically(path, write, previous)


def read_sealed(path: Path) -> Any:
    """What write_sealed wrote, on the CPU; an exception of any kind for a file that is not whole, to the last bit."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size - len(SEAL) - 2 * digest.digest_size
        while left > 0 and (block := file.read(min(left, BLOCK))):
            digest.update(block)
            left -= len(block)
        if file.read() != SEAL + digest.hexdigest().encode():
            raise ValueError("the seal is missing or broken")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


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
