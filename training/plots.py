"""Every figure. This imports matplotlib and seaborn, which takes seconds: import it when a figure is due."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works with no display

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from torch import Tensor

from training.files import write_atomically
from training.history import History, monitored_split

sns.set_theme(style="whitegrid", palette="colorblind", font="DejaVu Sans")  # matplotlib brings it, and it has ✓
plt.rcParams["text.parse_math"] = False  # a $ in a class or folder name is a $


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches="tight"))
    plt.close(figure)


def plot_training_curves(history: History, path: Path, title: str) -> None:
    """Loss, accuracy and learning rate over the epochs, with the best epoch marked."""
    split = monitored_split(history)
    epochs = history["epoch"]
    marker = "o" if len(epochs) <= 20 else None
    figure, (loss_axes, acc_axes, lr_axes) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for axes, kind in ((loss_axes, "loss"), (acc_axes, "acc")):
        axes.plot(epochs, history[f"train_{kind}"], "--", marker=marker, label="train")
        axes.plot(epochs, history[f"{split}_{kind}"], "-", marker=marker, label=split)
    best = int(np.argmax(history[f"{split}_acc"]))
    best_acc = history[f"{split}_acc"][best]
    acc_axes.plot(
        epochs[best], best_acc, "*", color="black", markersize=13, label=f"best: {best_acc:.2f} %, epoch {epochs[best]}"
    )
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    acc_axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    lr_axes.plot(epochs, history["lr"], marker=marker, color="C2")
    lr_axes.set(title="Learning rate", xlabel="epoch", ylabel="at the end of the epoch", ylim=(0, None))
    for axes in (loss_axes, acc_axes, lr_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss_axes.legend()
    acc_axes.legend()
    figure.suptitle(title)
    save_figure(figure, path)


def plot_confusion_matrix(matrix: np.ndarray, class_names: list[str], path: Path) -> None:
    """Rows are true classes, columns predictions; numbers are images, colours the share of the row."""
    size = min(16.0, max(5.0, 0.62 * len(class_names) + 2.5))
    figure, axes = plt.subplots(figsize=(size + 1, size))
    share = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    few, named = len(class_names) <= 20, len(class_names) <= 100
    sns.heatmap(
        100 * share, annot=matrix if few else False, fmt="d", cmap="Blues", vmin=0, vmax=100, square=True, ax=axes,
        xticklabels=class_names if named else False, yticklabels=class_names if named else False,
        cbar_kws={"label": "share of the true class (%)", "shrink": 0.8},
    )  # fmt: skip
    axes.set(title="Confusion matrix", xlabel="predicted class", ylabel="true class")
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    save_figure(figure, path)


def plot_per_class_accuracy(per_class: list[dict], accuracy: float, path: Path) -> None:
    """A bar for each class, best first, and a line at the accuracy over all images."""
    ordered = sorted(per_class, key=lambda row: -row["accuracy"])
    figure, axes = plt.subplots(figsize=(8, max(3.0, 0.34 * len(ordered) + 1.2)))
    bars = axes.barh([row["name"] for row in ordered], [row["accuracy"] for row in ordered], color="C0")
    axes.bar_label(bars, fmt="%.1f", padding=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.axvline(accuracy, color="black", linestyle="--", label=f"all images: {accuracy:.2f} %")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(title="Accuracy by class", xlabel="accuracy (%)", xlim=(0, 113), xticks=range(0, 101, 20))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.4 / len(ordered)), frameon=False)
    save_figure(figure, path)


def plot_predictions(images: Tensor, labels: Tensor, probabilities: Tensor, class_names: list[str], path: Path) -> None:
    """A grid of uint8 images (n, 3, H, W) with predicted class and probability; mistakes also name the truth."""
    columns = 8
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(1.7 * columns, 2.15 * rows), squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, label, row in zip(grid.flat, images, labels.tolist(), probabilities, strict=False):
        guess = int(row.argmax())
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        text = f"{class_names[guess]}: {100 * row[guess]:.0f} %"
        right = guess == label
        axes.set_title(
            f"✓ {text}" if right else f"✗ {text}\n(is {class_names[label]})", fontsize=9, pad=3,
            color="black" if right else "#b3261e", fontweight="normal" if right else "bold",
        )  # fmt: skip
    figure.suptitle("Predictions on images drawn at random")
    figure.tight_layout()
    save_figure(figure, path)


def plot_comparison(histories: dict[str, History], path: Path) -> None:
    """Monitored loss and accuracy of several runs over the epochs, and accuracy over the hours they took."""
    figure, (loss_axes, acc_axes, time_axes) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for name, history in histories.items():
        split = monitored_split(history)
        marker = "o" if len(history["epoch"]) <= 20 else None
        hours = np.cumsum(history["epoch_time"]) / 3600
        loss_axes.plot(history["epoch"], history[f"{split}_loss"], marker=marker, label=f"{name} ({split})")
        acc_axes.plot(history["epoch"], history[f"{split}_acc"], marker=marker)
        time_axes.plot(hours, history[f"{split}_acc"], marker=marker)
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    acc_axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    time_axes.set(title="Accuracy against time", xlabel="hours", ylabel="accuracy (%)")
    for axes in (loss_axes, acc_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False)
    save_figure(figure, path)
