"""Figures of an evaluation: which images are right and wrong, how confident the model is, how two models compare."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from training.plots import picture_grid, save_figure, short

WRONG = "#b3261e"  # red; a ✗ says the same without colour
NUM_NAMED = 100  # classes whose names still fit along an axis
NUM_BARS = 40  # classes that fit as bars; of more, the best and the worst are shown
NUM_HISTOGRAMS = 20  # classes that fit as histograms; of more, the worst are shown


def plot_confusion_matrix(matrix: np.ndarray, class_names: list[str], path: Path) -> None:
    """A row for each true class, a column for each predicted one. Colours and percentages are shares of the row."""
    share = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    title, number = "Confusion matrix", len(class_names)
    if number > NUM_NAMED:  # the cells would be smaller than pixels
        mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
        chosen = np.sort(np.argsort(-mistakes, kind="stable")[:NUM_BARS])
        matrix, share = matrix[np.ix_(chosen, chosen)], share[np.ix_(chosen, chosen)]
        class_names = [class_names[i] for i in chosen]
        title = f"Confusion matrix of the {NUM_BARS} classes with most mistakes (of {number:,})"
    few = len(class_names) <= 20
    size = min(16.0, max(5.0, (0.66 if few else 0.25) * len(class_names) + 2.5))
    label_size = 11 if few else 9 if len(class_names) <= NUM_BARS else 6
    figure, axes = plt.subplots(figsize=(size + 1, size))
    pairs = zip(matrix.flat, share.flat, strict=True)
    cells = [f"{count}\n{percent:.0f} %" if count else "" for count, percent in pairs]
    names = [short(name) for name in class_names]
    sns.heatmap(
        share, annot=np.reshape(cells, matrix.shape) if few else False, fmt="", annot_kws={"size": 8}, cmap="Blues",
        vmin=0, vmax=100, square=True, ax=axes, xticklabels=names, yticklabels=names,
        cbar_kws={"label": "share of the true class (%)", "shrink": 0.8},
    )  # fmt: skip
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    axes.tick_params(axis="x", rotation=90, labelsize=label_size)
    axes.tick_params(axis="y", rotation=0, labelsize=label_size)
    save_figure(figure, path)


def plot_per_class_accuracy(per_class: list[dict[str, Any]], accuracy: float, path: Path) -> None:
    """A bar for each class, best first, and a line at the accuracy over all images."""
    ordered = sorted(per_class, key=lambda row: -row["accuracy"])
    title = "Accuracy by class"
    if len(ordered) > NUM_BARS:
        title += f": the {NUM_BARS // 2} best and the {NUM_BARS // 2} worst of {len(ordered):,} classes"
        ordered = ordered[: NUM_BARS // 2] + ordered[-NUM_BARS // 2 :]
    figure, axes = plt.subplots(figsize=(8, max(3.0, 0.32 * len(ordered) + 1.2)))
    places = range(len(ordered))  # not the names: two of them may be shortened to the same
    bars = axes.barh(places, [row["accuracy"] for row in ordered], color="C0")
    axes.set_yticks(places, [short(row["name"], 32) for row in ordered])
    axes.bar_label(bars, fmt="%.1f", padding=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.axvline(accuracy, color="black", linestyle="--", label=f"all images: {accuracy:.2f} %")
    if len(ordered) < len(per_class):
        axes.axhline(NUM_BARS / 2 - 0.5, color="grey", linewidth=1)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set(title=title, xlabel="accuracy (%)", xlim=(0, 113), xticks=range(0, 101, 20))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.4 / len(ordered)), frameon=False)
    save_figure(figure, path)


def answers(labels: Tensor, probabilities: Tensor, class_names: list[str]) -> list[str]:
    """For each image a ✓ or ✗, the predicted class and its probability."""
    top = probabilities.max(dim=1)
    return [
        f"{'✓' if guess == label else '✗'} {short(class_names[guess], 13)}: {100 * probability:.0f} %"
        for label, guess, probability in zip(labels.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def captions(labels: Tensor, probabilities: Tensor, class_names: list[str]) -> list[str]:
    """The answer above each image; that of a mistake also names the true class."""
    pairs = zip(answers(labels, probabilities, class_names), labels.tolist(), strict=True)
    return [text if text[0] == "✓" else f"{text}\n(is {short(class_names[label], 15)})" for text, label in pairs]


def plot_images(images: Tensor, captions: list[str], path: Path, title: str) -> None:
    """A grid of uint8 images (n, 3, H, W) under their captions; a caption that begins with ✗ is bold and red."""
    columns = min(8, max(4, len(images)))
    figure, grid = picture_grid(-(-len(images) // columns), columns, tile=1.6, caption=0.38, title=title)
    for axes, image, caption in zip(grid.flat, images, captions, strict=False):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        style = {"color": WRONG, "fontweight": "bold"} if caption[0] == "✗" else {}
        axes.set_title(caption, fontsize=9, pad=3, **style)
    save_figure(figure, path)


def plot_reliability(calibration: dict[str, Any], path: Path) -> None:
    """Accuracy in each bin of confidence, compared with the diagonal; below it, the number of images in each bin."""
    bins = [row for row in calibration["bins"] if row["num_images"]]
    width = calibration["bins"][0]["high"] - calibration["bins"][0]["low"]
    left = np.array([row["low"] for row in bins])
    accuracy, confidence = ([row[name] for row in bins] for name in ("accuracy", "confidence"))
    shape = {"sharex": True, "height_ratios": [3, 1]}
    figure, (axes, count_axes) = plt.subplots(2, figsize=(5.6, 6.6), layout="constrained", **shape)
    axes.bar(left, accuracy, width, align="edge", color="#9ecae9", edgecolor="0.3", linewidth=0.8, label="accuracy")
    axes.plot(confidence, accuracy, "o", color="black", markersize=4, label="at the mean confidence")
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1.2, label="perfect calibration")
    error = 100 * calibration["expected_calibration_error"]
    axes.set(title=f"Reliability: expected calibration error {error:.1f} %", ylabel="accuracy", ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=9)
    count_axes.bar(left, [row["num_images"] for row in bins], width, align="edge", color="0.5", edgecolor="white")
    count_axes.set(xlabel="confidence (probability of the predicted class)", ylabel="images", xlim=(0, 1))
    save_figure(figure, path)


def plot_confidence(per_class: list[dict[str, Any]], path: Path) -> None:
    """A histogram of confidence for each true class, right and wrong predictions in different colours."""
    title, shown = "Confidence by true class", per_class
    if len(per_class) > NUM_HISTOGRAMS:
        title += f": the {NUM_HISTOGRAMS} of {len(per_class):,} with the lowest accuracy"
        shown = sorted(per_class, key=lambda row: row["accuracy"])[:NUM_HISTOGRAMS]
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    size = (max(6.0, 2.1 * columns + 1), 1.75 * rows + 1.2)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for axes, row in zip(grid.flat, shown, strict=False):
        correct, wrong = (np.array(row["confidence_histogram"][kind]) for kind in ("correct", "wrong"))
        left = np.arange(len(correct)) / len(correct)
        style = {"width": 1 / len(correct), "align": "edge", "edgecolor": "white", "linewidth": 0.5}
        axes.bar(left, correct, color="C0", label="right", **style)
        axes.bar(left, wrong, bottom=correct, color="C1", hatch="////", label="wrong", **style)
        axes.set_title(short(row["name"], 22), fontsize=10)
        axes.set_xlim(0, 1)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=8)
    figure.suptitle(title)
    figure.supxlabel("confidence", fontsize=11)
    figure.supylabel("images", fontsize=11)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9)
    save_figure(figure, path)


def plot_corruptions(corruptions: dict[str, list[dict[str, float]]], accuracy: float, path: Path) -> None:
    """Accuracy against the strength of each corruption, beginning with the plain images."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for (name, results), marker, line in zip(corruptions.items(), "osD^v", ("-", "--", "-.", ":", "-"), strict=True):
        axes.plot([accuracy, *(row["accuracy"] for row in results)], marker=marker, linestyle=line, label=name)
    axes.set_xticks(range(4), ["plain", "weak", "medium", "strong"])
    axes.set(title="Accuracy on corrupted test images", ylabel="accuracy (%)", ylim=(0, None))
    axes.legend()
    save_figure(figure, path)


def plot_class_differences(
    per_class: list[dict[str, Any]], other: list[dict[str, Any]], names: tuple[str, str], path: Path
) -> None:
    """The accuracy of both models on each class, joined by a line. Where the first leads most is on top."""
    pairs = sorted(zip(per_class, other, strict=True), key=lambda pair: pair[1]["accuracy"] - pair[0]["accuracy"])
    title = "Accuracy by class, sorted by the lead of the first model"
    if len(pairs) > NUM_BARS:
        half = NUM_BARS // 2
        title = f"{half} of {len(pairs):,} classes where the first model leads most, and the last {half}"
        pairs = pairs[:half] + pairs[-half:]
    figure, axes = plt.subplots(figsize=(8, max(3.0, 0.32 * len(pairs) + 1.8)), layout="constrained")
    places = range(len(pairs))
    one, two = ([pair[i]["accuracy"] for pair in pairs] for i in (0, 1))
    axes.hlines(places, one, two, color="0.6", linewidth=2, zorder=1)
    axes.plot(one, places, "oC0", markersize=8, label=short(names[0], 60))
    axes.plot(two, places, "sC1", markersize=8, label=short(names[1], 60), fillstyle="none", markeredgewidth=2)
    axes.set_yticks(places, [short(pair[0]["name"], 32) for pair in pairs])
    axes.set(title=title, xlabel="accuracy (%)", xlim=(-3, 103), ylim=(len(pairs) - 0.4, -0.6))
    figure.legend(loc="outside lower center", frameon=False)
    save_figure(figure, path)
