"""Show what a trained model does on the test images: figures, a table of the classes, evaluation.json and report.html.

    python evaluate_vit.py                                    # the best model of the default run
    python evaluate_vit.py --checkpoint checkpoints/resnet18_cifar10/best_model.pth
    python evaluate_vit.py --images cat.jpg dog.png           # the five likeliest classes of pictures of your own

The model is rebuilt from the checkpoint's own settings; nothing has to be said again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from resnet import ResNet18
from training import checkpoint, history
from training.cli import parse
from training.data import Dataset, create_eval_loader, load_dataset
from training.device import autocast, select_device
from training.engine import predict
from training.errors import RunError, exit_codes
from training.files import create_folder, first_line
from training.image_folder import read_image
from training.loader import normalize
from vit import VisionTransformer

MODELS = {model.__name__: model for model in (VisionTransformer, ResNet18)}
NUM_PREDICTIONS = 32  # images in the grid, drawn with a fixed seed


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, on what, and where to write it."""

    checkpoint: str = "checkpoints/vit_tiny_cifar10/best_model.pth"
    """file that train_vit_cifar10.py or train_resnet_cifar10.py wrote, or the folder of a run for its best model"""
    output_dir: str = ""
    """folder for what is written; by default `evaluation` beside the checkpoint"""
    dataset: Literal["", "cifar10", "cifar100", "digits", "image-folder"] = ""
    """whose test images; by default the dataset that the checkpoint was trained on"""
    data_dir: str = ""
    """folder of the dataset; by default the one that the checkpoint was trained on"""
    images: tuple[str, ...] = ()
    """classify these pictures in place of the test images"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes a GPU if there is one"""


def main(config: EvaluateConfig) -> None:
    """From the checkpoint to the report."""
    path = Path(config.checkpoint)
    if path.is_dir():
        path = path / "best_model.pth"
    saved = checkpoint.load(path)
    device = select_device(config.device)
    model = rebuild_model(saved, path).to(device)
    dtype = getattr(torch, saved["precision"])
    if config.images:
        classify_files(model, saved, config.images, device, dtype)
        return

    dataset_name = config.dataset or saved["config"]["dataset"]
    settings = saved["config"]
    same_data = dataset_name == settings["dataset"]
    data_dir = config.data_dir or (settings["data_dir"] if same_data else "data")
    data_url = settings["data_url"] if same_data else ""
    if dataset_name == "image-folder":  # another folder holds other images
        same_data = same_data and Path(data_dir).resolve() == Path(settings["data_dir"]).resolve()
    dataset = load_dataset(dataset_name, data_dir, settings["img_size"], data_url, settings.get("cache", True))
    names = saved["data"]["class_names"]
    if dataset.class_names != names:
        raise RunError(
            f"{path} knows the classes {', '.join(names)}; {dataset_name} has {', '.join(dataset.class_names)}"
        )
    stats = {name: saved["data"][name] for name in ("mean", "std")}
    logits, labels = predict(model, create_eval_loader(dataset, "test", stats, device), dtype)

    records = history.read(path.parent / "training_history.json") or saved["history"]
    evaluation = {
        "checkpoint": path.as_posix(),
        "model_name": saved["model_name"],
        "epoch": saved["epoch"],
        "dataset": dataset_name,
        "split": "test",
        "chosen_on": saved.get("chosen_on") if same_data else None,
        **measure(logits, labels, names),
    }
    folder = Path(config.output_dir) if config.output_dir else path.parent / "evaluation"
    create_folder(folder)
    history.write_json(folder / "evaluation.json", evaluation)
    draw_figures(folder, evaluation, records, dataset, logits.softmax(dim=1))
    from training.report import write_report  # reads the figures just drawn

    write_report(folder / "report.html", evaluation, saved, records)
    print_table(evaluation)
    print(f"\nReport: {folder / 'report.html'}")


def rebuild_model(saved: dict[str, Any], path: Path) -> nn.Module:
    """The model that a checkpoint describes, with its weights."""
    try:
        model = MODELS[saved["model_name"]](**saved["model_args"])
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} holds no model that can be rebuilt: {first_line(error)}") from None
    return model.eval()


def measure(logits: Tensor, labels: Tensor, class_names: list[str]) -> dict[str, Any]:
    """Figures of logits (n, num_classes) against labels (n,): accuracies in percent, loss in nats, the rest in 0..1.

    `confusion_matrix` has a row for each true class and a column for each predicted one.
    """
    predicted, numbers = logits.argmax(dim=1), list(range(len(class_names)))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)  # pyright: ignore
    precision, recall, f1, support = map(np.asarray, scores)
    per_class = [
        {
            "name": name,
            "num_images": int(support[i]),
            "num_correct": int(matrix[i, i]),
            "accuracy": 100 * float(recall[i]),  # of a class's images, the share that is recognized: its recall
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, name in enumerate(class_names)
    ]
    return {
        "accuracy": 100 * int(matrix.trace()) / len(labels),
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "num_images": len(labels),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def draw_figures(
    folder: Path, evaluation: dict[str, Any], records: history.History, dataset: Dataset, probabilities: Tensor
) -> None:
    from training import plots  # takes seconds to import: after what can fail

    title = f"{evaluation['model_name']} on {evaluation['dataset']}"
    plots.plot_training_curves(records, folder / "training_curves.png", title)
    plots.plot_confusion_matrix(
        np.array(evaluation["confusion_matrix"]), dataset.class_names, folder / "confusion_matrix.png"
    )
    plots.plot_per_class_accuracy(evaluation["per_class"], evaluation["accuracy"], folder / "per_class_accuracy.png")
    some = torch.randperm(len(probabilities), generator=torch.Generator().manual_seed(0))[:NUM_PREDICTIONS]
    plots.plot_predictions(
        dataset.test_images[some], dataset.test_labels[some], probabilities[some], dataset.class_names,
        folder / "predictions.png",
    )  # fmt: skip


def print_table(evaluation: dict[str, Any]) -> None:
    """Overall and per-class accuracy, for the terminal."""
    width = max(len("all images"), *(len(row["name"]) for row in evaluation["per_class"]))
    print(f"\n{'class':<{width}}  images  correct  accuracy\n{'-' * (width + 27)}")
    for row in evaluation["per_class"]:
        print(f"{row['name']:<{width}}  {row['num_images']:>6}  {row['num_correct']:>7}  {row['accuracy']:>7.2f}%")
    correct = sum(row["num_correct"] for row in evaluation["per_class"])
    print("-" * (width + 27))
    print(f"{'all images':<{width}}  {evaluation['num_images']:>6}  {correct:>7}  {evaluation['accuracy']:>7.2f}%")
    print(f"\nTest loss {evaluation['loss']:.4f}; {evaluation['model_name']} of epoch {evaluation['epoch']}.")
    if evaluation["chosen_on"] == "test":
        print("That epoch was chosen on these same images, which flatters it a little: --val-size avoids this.")


@torch.inference_mode()
def classify_files(
    model: nn.Module, saved: dict[str, Any], files: tuple[str, ...], device: torch.device, dtype: torch.dtype
) -> None:
    """Print the likeliest classes of picture files, of any size and mode."""
    names = saved["data"]["class_names"]
    images = torch.stack([read_image(file, saved["config"]["img_size"]) for file in files]).to(device)
    with autocast(device, dtype):
        logits = model(normalize(images, saved["data"]["mean"], saved["data"]["std"]))
    top = logits.float().softmax(dim=1).cpu().topk(min(5, len(names)), dim=1)
    for file, chances, classes in zip(files, top.values.tolist(), top.indices.tolist(), strict=True):
        guesses = ", ".join(f"{names[c]} {100 * p:.1f}%" for p, c in zip(chances, classes, strict=True))
        print(f"{file}: {guesses}")


if __name__ == "__main__":
    with exit_codes():
        main(parse(EvaluateConfig, __doc__ or ""))
