"""What makes two runs the same: their histories, but for the times, and the bits of their checkpoints."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from training import checkpoint

TIMES = {"epoch_time", "images_per_second"}  # of a history
SAVED = ("epoch", "epoch_sums", "history", "model", "optimizer", "random_states")


def history_of(folder: Path) -> dict[str, list[float]]:
    """Return a run's history without its times."""
    history = json.loads((folder / "training_history.json").read_text())
    return {name: values for name, values in history.items() if name not in TIMES}


def bits(value: Any) -> Any:
    """Return a value that == compares bit by bit: tensors as their bytes, dictionaries without times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items() if key not in TIMES | {"seconds"}}
    return [bits(part) for part in value] if isinstance(value, list | tuple) else value


def assert_same_bits(folder: Path, expected: Path, names: Iterable[str]) -> None:
    """Assert that two runs have the same history, and in these checkpoints the same of all that they go on from."""
    one, other = history_of(folder), history_of(expected)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name
    for name in names:
        saved, expected_saved = (checkpoint.load(path / name) for path in (folder, expected))
        for key in SAVED:
            assert bits(saved.get(key)) == bits(expected_saved.get(key)), f"{key} in {name}"
