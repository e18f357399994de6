"""predictions.csv: what a model says of each test image, so that two models can be compared image by image later."""

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from training.data import Dataset
from training.errors import RunError
from training.files import write_atomically

HEADER = "label,predicted,confidence"


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the test images and labels, in their order. It differs for another image size."""
    digest = hashlib.sha256(dataset.test_labels.numpy().tobytes())
    digest.update(dataset.test_images.numpy().tobytes())
    return digest.hexdigest()


def write(path: Path, logits: Tensor, labels: Tensor) -> None:
    """Write a line for each image, in order: label, predicted class and its probability; classes as numbers from 0."""
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    columns = np.column_stack([labels.numpy(), logits.argmax(dim=1).numpy(), confidence.numpy()])
    write_atomically(
        path, lambda file: np.savetxt(file, columns, ["%d", "%d", "%.6f"], ",", header=HEADER, comments="")
    )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the predicted classes (n,) in the file. RunError where it is missing or damaged."""
    try:
        header, *lines = path.read_text().split()
        if header != HEADER or not lines:
            raise ValueError("another header, or no image")
        labels, predicted, _ = np.loadtxt(lines, delimiter=",", ndmin=2).T
    except (OSError, ValueError):
        raise RunError(f"{path} is missing or damaged: run evaluate_vit.py again") from None
    return labels.astype(int), predicted.astype(int)
