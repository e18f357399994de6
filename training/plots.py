"""Figures of runs, and what all figures share. Imports matplotlib and seaborn, which takes seconds: import it late."""

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works with no display

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.files import write_atomically
from training.history import History, monitored_split

sns.set_theme(style="whitegrid", palette="colorblind", font="DejaVu Sans")  # matplotlib brings it, and it has ✓
plt.rcParams["text.parse_math"] = False  # a $ in a class or folder name is a $
warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name in letters that the font lacks shows boxes


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches="tight"))
    plt.close(figure)


def picture_grid(rows: int, columns: int, tile: float, caption: float, title: str) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns), without ticks, for square pictures under captions; lengths in inches.

    Laid out by arithmetic: matplotlib's own layout takes a second for 32 pictures.
    """
    title_height = 0.15 + 0.22 * len(title.splitlines())
    width, height = columns * 1.06 * tile, title_height + rows * (caption + tile)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False,
        gridspec_kw={
            "left": 0, "right": 1, "wspace": 0.06, "bottom": 0, "top": 1 - (title_height + caption) / height,
            "hspace": caption / tile,
        },
    )  # fmt: skip
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(title, fontsize=12, y=1, verticalalignment="top")
    return figure, grid


def short(text: str, length: int = 24) -> str:
    """A name on one line of at most `length` characters, its middle left out where it is longer."""
    text = " ".join(text.encode(errors="replace").decode().split())
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"


def marker_for(epochs: list[float]) -> str | None:
    """Points where they can be told apart, and where a single epoch would else leave nothing to see."""
    return "o" if len(epochs) <= 20 else None


def elapsed(*histories: History) -> tuple[list[np.ndarray], str]:
    """Time at the end of each epoch of each run, and the unit that suits the longest."""
    seconds = [np.cumsum(history["epoch_time"]) for history in histories]
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if max(run[-1] for run in seconds) >= 2 * length:
            return [run / length for run in seconds], unit
    return seconds, "seconds"


def whole_epochs(*several: Axes) -> None:
    """Ticks at whole epochs only, and half an epoch of room where there is a single one."""
    for axes in several:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        lines = [np.asarray(line.get_xdata()) for line in axes.lines]
        if max(len(np.unique(x)) for x in lines) == 1:
            axes.set_xlim(lines[0][0] - 0.5, lines[0][0] + 0.5)


def plot_training_curves(history: History, path: Path, title: str) -> None:
    """Loss, accuracy and learning rate over the epochs, accuracy over time; the best epoch is marked."""
    split, epochs = monitored_split(history), history["epoch"]
    marker = marker_for(epochs)
    [time], unit = elapsed(history)
    figure, grid = plt.subplots(2, 2, figsize=(10.5, 7), layout="constrained")
    (loss_axes, acc_axes), (lr_axes, time_axes) = grid
    for axes, kind, x in ((loss_axes, "loss", epochs), (acc_axes, "acc", epochs), (time_axes, "acc", time)):
        axes.plot(x, history[f"train_{kind}"], "--", marker=marker, label="train")
        axes.plot(x, history[f"{split}_{kind}"], "-", marker=marker, label=split)
    best = int(np.argmax(history[f"{split}_acc"]))
    best_acc = history[f"{split}_acc"][best]
    for axes, x in ((acc_axes, epochs), (time_axes, time)):
        label = f"best: {best_acc:.2f} %, epoch {epochs[best]}"
        axes.plot(x[best], best_acc, "*", color="black", markersize=13, zorder=3, label=label)
    loss_axes.axvline(epochs[best], color="black", linestyle=":", linewidth=1.2)
    lr_axes.plot(epochs, history["lr"], marker=marker, color="C2")
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    acc_axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    lr_axes.set(title="Learning rate", xlabel="epoch", ylabel="at the end of the epoch", ylim=(0, None))
    time_axes.set(title="Accuracy against time", xlabel=f"{unit} of training", ylabel="accuracy (%)", xlim=(0, None))
    whole_epochs(loss_axes, acc_axes, lr_axes)
    figure.legend(*acc_axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(short(title, 90))
    save_figure(figure, path)


def plot_comparison(histories: dict[str, History], path: Path) -> None:
    """Monitored loss and accuracy of several runs over the epochs, and accuracy over the time they took."""
    times, unit = elapsed(*histories.values())
    figure, (loss_axes, acc_axes, time_axes) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    for i, ((name, history), time) in enumerate(zip(histories.items(), times, strict=True)):
        split = monitored_split(history)
        style = {"marker": marker_for(history["epoch"]), "linestyle": ["-", "--", "-.", ":"][i % 4]}
        loss_axes.plot(history["epoch"], history[f"{split}_loss"], **style, label=f"{name} ({split})")
        acc_axes.plot(history["epoch"], history[f"{split}_acc"], **style)
        time_axes.plot(time, history[f"{split}_acc"], **style)
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    acc_axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    time_axes.set(title="Accuracy against time", xlabel=f"{unit} of training", ylabel="accuracy (%)")
    whole_epochs(loss_axes, acc_axes)
    figure.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False)
    save_figure(figure, path)
