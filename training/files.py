"""Files that are never half written: written under another name, flushed to the disk, renamed; some with a digest."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from training.errors import RunError, first_line

SEAL = b"\nsha256 "  # followed by the digest, 64 hexadecimal digits
BLOCK = 1 << 20  # bytes
TEMPORARY = r"\..+\.\d+\.tmp"  # .NAME.PROCESS.tmp, as write_atomically names it


class DiskError(RunError):
    """A file could not be written: the disk is full or gone, or permission is missing. The old file is untouched."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Have `write` fill a temporary file in the same folder, then rename it to `path`. A failure leaves nothing behind.

    The file that stood at `path` is kept as `previous`. DiskError where the disk does not take the file.
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
    except OSError as error:
        raise DiskError(f"can't write {path}: {first_line(error)}; what was saved before is untouched") from error
    finally:
        with contextlib.suppress(OSError):  # the whole disk may be gone
            temporary.unlink(missing_ok=True)


class DigestingFile:
    """A file to write to that keeps the digest of what was written, and the error of the disk if there was one."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_sealed(path: Path, content: Any, previous: Path | None = None) -> None:
    """Write what torch.save makes of `content`, then its seal; the file that stood at `path` is kept as `previous`."""

    def write(file: IO[bytes]) -> None:
        digesting = DigestingFile(file)
        try:
            torch.save(content, digesting)  # pyright: ignore[reportArgumentType]
        except RuntimeError:
            if digesting.error:  # torch makes a RuntimeError of it; one from elsewhere, of a GPU say, stays what it is
                raise digesting.error from None
            raise
        file.write(SEAL + digesting.digest.hexdigest().encode())

    write_atomically(path, write, previous)


def read_sealed(path: Path) -> Any:
    """What write_sealed wrote, on the CPU; an exception of any type if a bit of the file is missing or changed."""
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


def create_folder(folder: Path, flag: str = "--output-dir") -> None:
    """Make the folder for files, and see that it can be written to. DiskError, which advises the flag, where not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(f"can't write to the folder {folder}: {error.strerror}; choose another {flag}") from None


def flush_folder(folder: Path) -> None:
    """Flush the renames in a folder to the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(TEMPORARY, path.name):
            with contextlib.suppress(OSError):
                path.unlink()
