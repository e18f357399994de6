"""Checkpoints: tensors and plain values, written atomically, read with weights_only=True.

A file is whole or not there: it is written beside its place, flushed to the disk and renamed. `last.pth` is what a run
goes on from, `last.prev.pth` the one before it; the others carry weights and what rebuilds the model, no more.
"""

import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from training.errors import RunError, UsageError

FORMAT_VERSION = 1
RUN_FILES = ("*.pth", "config.json", "training_history.json", "test_result.json", "*.png", "evaluation")


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
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
        raise RunError(f"can't write {path}: {first_line(error)}; what was saved before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint to `path`; `previous` is where the one that stood there is kept."""
    content = {"format_version": FORMAT_VERSION, **content}
    write_atomically(path, lambda file: torch.save(content, file), previous)


def save_last(
    folder: Path,
    weights: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    device: torch.device,
) -> None:
    """Write last.pth, from which --resume goes on to the same bits; the one before it stays as last.prev.pth."""
    state = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random_state": get_random_state(device),
    }
    save(folder / "last.pth", {**weights, **state}, previous=folder / "last.prev.pth")


def load_verified(path: Path) -> Any:
    """What torch.save wrote, on the CPU; an exception of any kind for a file that is not whole, to the last bit."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():  # torch.load does not look at the checksums
            raise zipfile.BadZipFile
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. RunError for a file that is missing, damaged or of another kind."""
    if not path.exists():
        raise RunError(f"no checkpoint {path}: train first, or name another file")
    if not os.access(path, os.R_OK):
        raise RunError(f"no permission to read the checkpoint {path}")
    try:
        content = load_verified(path)
    except Exception:  # whatever a damaged file leads to; torch's own words would advise to load it unsafely
        raise RunError(f"{path} is damaged, or no checkpoint of this project: name another, or train anew") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} is no checkpoint of this project's format version {FORMAT_VERSION}")
    return content


def load_last(folder: Path, warn: Callable[[str], object] = print) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, with a loud line for one that can't; None for a run without any yet."""
    problems, names = [], ("last.pth", "last.prev.pth")
    if not any((folder / name).exists() for name in names):
        if (folder / "config.json").exists():
            return None
        raise RunError(f"nothing to resume in {folder}: it holds no run")
    for name in names:
        try:
            content = load(folder / name)
        except RunError as error:
            problems.append(str(error))
            continue
        if problems:
            warn(f"WARNING: {problems[0]}; going on from {name}, epoch {content['epoch']}")
        return content
    raise RunError(f"nothing to resume in {folder}: {problems[0]}")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def holds_run(folder: Path) -> bool:
    """Whether a run has begun to write its files there."""
    return any((folder / name).exists() for name in ("config.json", "last.pth", "last.prev.pth", "best_model.pth"))


def refuse_used_folder(folder: Path) -> None:
    """UsageError where the folder holds a run already."""
    if holds_run(folder):
        raise UsageError(
            f"{folder} holds a run: go on with --resume, start anew with --overwrite, or change --output-dir"
        )


def move_aside(folder: Path) -> None:
    """Move the files of the run in a folder to a folder `old-<time>` in it, so that a new run can have their places."""
    if not holds_run(folder):
        return
    aside = folder / f"old-{time.strftime('%Y%m%d-%H%M%S')}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}+")
    try:
        aside.mkdir()
        for path in [path for pattern in RUN_FILES for path in folder.glob(pattern)]:
            path.rename(aside / path.name)
    except OSError as error:
        raise RunError(f"can't move the run in {folder} aside: {first_line(error)}") from None
    print(f"The run that was in {folder} is now in {aside}")


def create_folder(folder: Path) -> None:
    """Make the folder for a run's files, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(f"can't write to the folder {folder}: {error.strerror}; choose another --output-dir") from None


def get_random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's generators: the CPU's, and the device's where it is another."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what get_random_state returned."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
