"""report.html: one page with the figures inside, that needs nothing else to be shown."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.checkpoint import write_atomically
from training.console import format_time
from training.history import History, monitored_split

FIGURES = {  # file: heading, how to read it
    "training_curves.png": (
        "Training",
        "Loss should fall and accuracy rise on both splits. Where the solid lines get worse while the dashed ones get "
        "better, the model has begun to learn the training images by heart. Augmentation makes the training images the "
        "harder ones, so the dashed lines are often the worse.",
    ),
    "confusion_matrix.png": (
        "Confusion matrix",
        "A row holds the images of one class, a column what the model took them for; the diagonal is right.",
    ),
    "per_class_accuracy.png": (
        "Accuracy by class",
        "Of each class's images, the share that the model recognized; the dashed line is the share over all of them.",
    ),
    "predictions.png": (
        "Predictions",
        "Images drawn at random, with the model's answer and its probability; mistakes are red and name the truth.",
    ),
}


def write_report(path: Path, evaluation: dict[str, Any], saved: dict[str, Any], records: History) -> None:
    """Make the page from what the evaluator found; the figures are read from the page's own folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    figures = [
        {"name": name, "heading": heading, "reading": reading, "data": encode(path.with_name(name))}
        for name, (heading, reading) in FIGURES.items()
    ]
    split = monitored_split(records)
    cost = {
        "epochs": len(records["epoch"]),
        "time": format_time(sum(records["epoch_time"])),
        "images_per_second": sum(records["images_per_second"]) / len(records["epoch"]),
        "last_acc": records[f"{split}_acc"][-1],
    }
    page = environment.get_template("report.html.j2").render(
        evaluation=evaluation, config=saved["config"], precision=saved["precision"], figures=figures, cost=cost
    )
    write_atomically(path, lambda file: file.write(page.encode()))


def encode(figure: Path) -> str:
    return base64.b64encode(figure.read_bytes()).decode()
