"""Checkpoints: tensors and plain values, sealed with a digest, read with weights_only=True.

`last.pth` is what a run goes on from, in the middle of an epoch too, and `last.prev.pth` the one before it; the other
files carry weights and what rebuilds the model, no more. A file is what torch.save writes, then a line with the SHA-256
of all bytes before it: the seal. `torch.load(path, weights_only=True)` reads the file too, without looking at the seal.
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
from training.errors import RunError, first_line
from training.files import read_sealed, write_sealed
from training.history import History, append

FORMAT_VERSION = 2


def save(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint to `path`; RunError for weights that are not finite, DiskError where it can't be written."""
    for name, tensor in content["model"].items():
        if not tensor.isfinite().all():
            raise RunError(
                f"{name} is not finite any more, so {path} stays as it was: start anew with a lower --learning-rate, "
                "or --clip-grad-norm 1"
            )
    write_sealed(path, {"format_version": FORMAT_VERSION, **content}, previous)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. RunError for a file that is missing, damaged or of another kind."""
    if not path.exists():
        raise RunError(f"no checkpoint {path}: train first, or name another file")
    if not os.access(path, os.R_OK):
        raise RunError(f"no permission to read the checkpoint {path}")
    try:
        content = read_sealed(path)
    except Exception:  # whatever a damaged file leads to; torch's own words would advise to load it unsafely
        raise RunError(f"{path} is damaged, or no checkpoint of this project: name another, or train anew") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} is no checkpoint of this project's format version {FORMAT_VERSION}")
    return content


def load_last(folder: Path, warn: Callable[[str], object]) -> dict[str, Any]:
    """The newest checkpoint that can be read, with a loud line for one that can't; RunError where there is none."""
    problems, paths = [], [folder / "last.pth", folder / "last.prev.pth"]
    if not any(path.exists() for path in paths):
        raise RunError(f"nothing to resume in {folder}: it holds no run")
    for path in paths:
        try:
            content = load(path)
            if "epoch_sums" not in content or "machine" not in content:
                raise RunError(f"{path} holds weights only, which no run can go on from")
        except RunError as error:
            problems.append(str(error))
            continue
        if problems:
            warn(f"{problems[0]}; going on from {path.name}, epoch {content['epoch']}")
        return content
    raise RunError(f"nothing to resume in {folder}: {'; '.join(problems)}")


@dataclass
class TrainingState:
    """All that changes while a run is at work. Saved and loaded between two steps, it goes on to the same bits."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    history: History  # of the epochs that are done
    sums: EpochSums = field(default_factory=EpochSums)  # of the epoch that is not

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["epoch"])

    def finish_epoch(self, figures: dict[str, float]) -> None:
        """Put an epoch's figures into the history, and begin the next one."""
        append(self.history, figures)
        self.sums = EpochSums()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors; with several processes, all of them have to ask for it."""
        return {
            "epoch": self.epoch,
            "epoch_sums": asdict(self.sums),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random_states": distributed.gather(get_random_state(self.device)),  # one for each rank
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what was saved; RunError where it is not of such a model and run."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if distributed.rank() < len(state["random_states"]):
                set_random_state(state["random_states"][distributed.rank()], self.device)
            self.history, self.sums = state["history"], EpochSums(**state["epoch_sums"])
            if state["epoch"] != self.epoch:
                raise ValueError("epochs are missing in its history")
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"the checkpoint is whole, but not of a run that can be gone on with: {first_line(error)}"
            ) from None


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
