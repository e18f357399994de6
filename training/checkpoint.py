"""Checkpoints: tensors and plain values, sealed with a digest, read with weights_only=True.

A run goes on from `last.pth`, in mid-epoch too; `last.prev.pth` is the one before it. The other files hold the weights
and what rebuilds the model. A file is what torch.save writes and then a line, the seal, with the SHA-256 of all bytes
before it. `torch.load(path, weights_only=True)` reads the file too and ignores the seal.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training import distributed
from training.engine import EpochSums
from training.errors import GENTLER, RunError, first_line, is_out_of_memory
from training.files import read_sealed, write_sealed
from training.history import History, append

FORMAT_VERSION = 2


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint to `path`; RunError for weights that are not finite, DiskError where it can't be written."""
    for name, tensor in content["model"].items():
        if not tensor.isfinite().all():
            raise RunError(f"{name} is not finite any more, so {path} stays as it was: start anew with {GENTLER}")
    write_sealed(path, {"format_version": FORMAT_VERSION, **content}, previous)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. RunError for a file that is missing, damaged or of another kind."""
    if not path.exists():
        raise RunError(f"no checkpoint {path}: train first, or name another file")
    if not os.access(path, os.R_OK):
        raise RunError(f"no permission to read the checkpoint {path}")
    try:
        content = read_sealed(path)
    except Exception as error:  # of any type, in a damaged file; torch's own message would advise to load it unsafely
        if is_out_of_memory(error):
            raise
        raise RunError(f"{path} is damaged, or no checkpoint of this project: name another, or train anew") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} is no checkpoint of this project's format version {FORMAT_VERSION}")
    return content


def load_last(folder: Path, warn: Callable[[str], object]) -> dict[str, Any]:
    """The newest checkpoint that can be read; `warn` of a newer one that can't. RunError where there is none."""
    problems, paths = [], [folder / "last.pth", folder / "last.prev.pth"]
    if not any(path.exists() for path in paths):
        raise RunError(f"nothing to resume in {folder}: it holds no run")
    for path in paths:
        try:
            if not path.exists():  # a run that was killed between the renames of a save
                raise RunError(f"there is no {path}")
            content = load(path)
            if "epoch_sums" not in content or "machine" not in content:
                raise RunError(f"{path} holds only weights: no run can go on from it")
        except RunError as error:
            problems.append(str(error))
            continue
        if problems:
            warn(f"{problems[0]}; going on from {path.name}, epoch {content['epoch']}")
        return content
    raise RunError(f"nothing to resume in {folder}: {'; '.join(problems)}")


@dataclass
class TrainingState:
    """All that changes during a run. Saved between two steps and loaded again, the run goes on to the same bits."""

    model: nn.Module  # that is evaluated and saved
    optimizer: torch.optim.Optimizer
    device: torch.device
    history: History  # of the finished epochs
    sums: EpochSums = field(default_factory=EpochSums)  # of the unfinished one
    startup_seconds: list[float] = field(default_factory=list)  # until the first step, of each process that trained it

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["epoch"])

    def finish_epoch(self, metrics: dict[str, float]) -> None:
        """Put an epoch's metrics into the history, and begin the next epoch."""
        append(self.history, metrics)
        self.sums = EpochSums()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. A collective call: all ranks make it."""
        return {
            "epoch": self.epoch,
            "epoch_sums": asdict(self.sums),
            "history": self.history,
            "startup_seconds": self.startup_seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random_states": distributed.gather(get_random_state(self.device)),  # one for each rank
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what state_dict returned; RunError where it does not fit this model and run."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if distributed.rank() < len(state["random_states"]):
                set_random_state(state["random_states"][distributed.rank()], self.device)
            self.history, self.sums = state["history"], EpochSums(**state["epoch_sums"])
            self.startup_seconds = list(state.get("startup_seconds", []))  # early runs did not save it
            if state["epoch"] != self.epoch:
                raise ValueError("epochs are missing in its history")
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"the checkpoint is whole, but not of a run that can be gone on with: {first_line(error)}"
            ) from None


def get_random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random generators: the CPU's, and the device's if that is not the CPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what get_random_state returned."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[device.type])
