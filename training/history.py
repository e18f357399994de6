"""training_history.json: the metrics of each epoch, as equally long lists in one object of strict JSON."""

import json
import math
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from training.files import write_atomically

History = dict[str, list[float]]


def new_history(split: str) -> History:
    """Empty lists for each epoch's metrics; `split` names the monitored images, "test" or "val"."""
    names = f"epoch train_loss train_acc {split}_loss {split}_acc lr epoch_time images_per_second"
    return {name: [] for name in names.split()}


def append(history: History, metrics: dict[str, float]) -> None:
    """Add an epoch's metrics, one to each list: losses in nats, accuracies in percent, times in seconds."""
    if metrics.keys() != history.keys():
        raise KeyError(f"an epoch's metrics are {sorted(history)}, got {sorted(metrics)}")
    for name, value in metrics.items():
        history[name].append(value)


def monitored_split(history: History) -> str:
    """The split that the best checkpoint was chosen on."""
    return "val" if "val_acc" in history else "test"


def mean_speed(history: History) -> float:
    """Training images a second over all epochs: each has as many images, so it is the harmonic mean of theirs."""
    return harmonic_mean(history["images_per_second"])


def write_json(path: Path, content: Any) -> None:
    """Strict JSON (no NaN), written so that the file is never half there."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number: True is none, nor is NaN."""
    return type(value) in (int, float) and math.isfinite(value)


def is_history(value: Any) -> bool:
    """Whether it is a History, of no epochs too."""
    if not isinstance(value, dict) or not any(value.keys() >= new_history(split).keys() for split in ("test", "val")):
        return False
    whole = all(isinstance(numbers, list) and all(map(is_number, numbers)) for numbers in value.values())
    return whole and len({len(numbers) for numbers in value.values()}) == 1


def read(path: Path) -> History | None:
    """The history in a run's folder, or None where it is missing, damaged or of no epochs."""
    history = read_object(path)
    return history if is_history(history) and history["epoch"] else None
