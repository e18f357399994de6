"""The curves of runs, and what all figures share. Import it late: matplotlib and seaborn take seconds to import."""

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to files, so it needs no display

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.files import write_atomically
from training.history import History, monitored_split

sns.set_theme(style="whitegrid", palette="colorblind", font="DejaVu Sans")  # comes with matplotlib, and has ✓
plt.rcParams["text.parse_math"] = False  # a $ in the name of a class or folder is just a $
warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks are drawn as boxes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file and close it. DiskError if the file can't be written."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches="tight"))
    plt.close(figure)


def picture_grid(rows: int, columns: int, tile: float, caption: float, title: str) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns) for square pictures under captions. Lengths are in inches.

    The layout is computed here, because matplotlib's own takes a second for 32 pictures.
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
    """Shorten a name to one line of at most `length` characters by leaving out its middle."""
    text = " ".join(text.encode(errors="replace").decode().split())
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"


def marker_for(epochs: list[float]) -> str | None:
    """Mark the epochs with points if there are few enough. A single epoch would be invisible without."""
    return "o" if len(epochs) <= 20 else None


def elapsed(*histories: History) -> tuple[list[np.ndarray], str]:
    """The time at the end of each epoch of each run, and its unit: hours, minutes or seconds, by the longest run."""
    seconds = [np.cumsum(history["epoch_time"]) for history in histories]
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if max(run[-1] for run in seconds) >= 2 * length:
            return [run / length for run in seconds], unit
    return seconds, "seconds"


def whole_epochs(*several: Axes) -> None:
    """Put ticks at whole epochs only. A single epoch gets half an epoch of room on both sides."""
    for axes in several:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        lines = [np.asarray(line.get_xdata()) for line in axes.lines]
        if max(len(np.unique(x)) for x in lines) == 1:
            axes.set_xlim(lines[0][0] - 0.5, lines[0][0] + 0.5)


def plot_training_curves(history: History, path: Path, title: str) -> None:
    """Loss, accuracy and learning rate against the epoch, and accuracy against time. The best epoch is marked."""
    split, epochs = monitored_split(history), history["epoch"]
    marker = marker_for(epochs)
    [time], unit = elapsed(history)
    margins = {"left": 0.07, "right": 0.985, "top": 0.9, "bottom": 0.13, "hspace": 0.36, "wspace": 0.17}
    figure, grid = plt.subplots(2, 2, figsize=(10.5, 7), gridspec_kw=margins)  # a computed layout takes twice as long
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
    figure.legend(*acc_axes.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.suptitle(short(title, 90))
    save_figure(figure, path)
