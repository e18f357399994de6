"""Folders of runs as training and the evaluator leave them, written without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from config_vit_cifar10 import TrainConfig, ViTConfig
from training.history import new_history

NAMES = ["cat", "dog"]


def write_run(
    folder: Path, accuracies: list[float], split: str = "test", model_name: str = "VisionTransformer",
    about: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **settings: Any,
) -> str:  # fmt: skip
    """A run with an epoch of half an hour for each accuracy; finished unless `settings` has another num_epochs."""
    config = ViTConfig() if model_name == "VisionTransformer" else TrainConfig(output_dir="x")
    config = {**config.to_dict(), "num_epochs": len(accuracies), "output_dir": str(folder), **settings}
    history = {name: [1.0] * len(accuracies) for name in new_history(split)}
    history |= {"epoch": list(range(1, len(accuracies) + 1)), f"{split}_acc": accuracies}
    history[f"{split}_loss"] = [2.3 - accuracy / 50 for accuracy in accuracies]
    history |= {"epoch_time": [1800.0] * len(accuracies), "images_per_second": [100.0] * len(accuracies)}
    content = {
        "model_name": model_name, "config": config, "extended_from": [], "split": split, "precision": "float32",
        "num_parameters": 1234, "flops": 2_050_000_000,
        "data": {"class_names": NAMES, "num_train_images": 500, "mean": [0.5] * 3, "std": [0.25] * 3, **(data or {})},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training_history.json").write_text(json.dumps(history))
    (folder / "config.json").write_text(json.dumps(content | (about or {})))
    return str(folder)


def write_evaluation(folder: str, labels: list[int], predicted: list[int], **changes: Any) -> None:
    """evaluation.json and predictions.csv of the run's best epoch."""
    history = json.loads((Path(folder) / "training_history.json").read_text())
    split = "val" if "val_acc" in history else "test"
    best = history["epoch"][int(np.argmax(history[f"{split}_acc"]))]
    evaluation = {
        "model_name": json.loads((Path(folder) / "config.json").read_text())["model_name"],
        "dataset": "cifar10", "split": "test", "chosen_on": split, "epoch": best, "num_images": len(labels),
        "accuracy": 100 * sum(a == b for a, b in zip(labels, predicted, strict=True)) / len(labels),
        "test_images_sha256": "abc",
    }  # fmt: skip
    path = Path(folder) / "evaluation"
    path.mkdir()
    (path / "evaluation.json").write_text(json.dumps(evaluation | changes))
    lines = [f"{label},{answer},0.9" for label, answer in zip(labels, predicted, strict=True)]
    (path / "predictions.csv").write_text("\n".join(["label,predicted,confidence", *lines, ""]))
