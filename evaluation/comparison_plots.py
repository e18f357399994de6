"""The curves of several runs in one figure. Import it late: matplotlib and seaborn take seconds to import."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import EngFormatter

from evaluation.data_efficiency import DataLine
from training.history import History, monitored_split
from training.plots import elapsed, marker_for, save_figure, short, whole_epochs

TAB20 = plt.get_cmap("tab20")(np.arange(20)).reshape(10, 2, 4)  # ten hues, each dark and light
COLOURS = [to_hex(colour) for colours in np.delete(TAB20, 7, axis=0).swapaxes(0, 1) for colour in colours]  # no grey
MAX_COLOURED = len(COLOURS)  # curves that can be told apart
STYLES = ["-", "--", "-.", ":"]


@dataclass(frozen=True)
class Curves:
    """The histories of one run, or of runs with the same number of epochs that become a mean and a band."""

    name: str
    histories: list[History]
    num_train_images: int | None = None  # None: not known
    timed: bool = True  # False: their times have no mean

    @property
    def best(self) -> float:
        """Mean over the runs of the best accuracy."""
        return float(np.mean([max(history[f"{monitored_split(history)}_acc"]) for history in self.histories]))


def plot_comparison(curves: Sequence[Curves], path: Path, lines: Sequence[DataLine] = ()) -> int:
    """Draw loss and accuracy against the epoch, and accuracy against the images seen and the training time.

    Below, accuracy against the number of training images, where there are lines. A band, or a bar, is one standard
    deviation over the runs on both sides of their mean. The legend begins with the best accuracy. Returns how many
    curves have no colour: of more than MAX_COLOURED, those with the lowest accuracies.
    """
    curves = sorted(curves, key=lambda one: -one.best)
    num_grey = max(0, len(curves) - MAX_COLOURED)
    ncols = min(3, math.ceil(len(curves) / 4))
    height = 8.5 + 0.25 * math.ceil(min(len(curves), MAX_COLOURED) / ncols)
    layout: list[Any] = [["loss", "accuracy"], ["images", "time"], *([["data", "data"]] if lines else [])]
    size = (13, height + 4.2 * bool(lines))
    figure, panels = plt.subplot_mosaic(layout, figsize=size, layout="constrained")
    loss_axes, acc_axes, images_axes, time_axes = (panels[name] for name in ("loss", "accuracy", "images", "time"))
    times, unit = elapsed(*(history for one in curves for history in one.histories))
    remaining = iter(times)
    for i, one in enumerate(curves):
        split, epochs = monitored_split(one.histories[0]), np.array(one.histories[0]["epoch"])
        loss = np.array([history[f"{split}_loss"] for history in one.histories])
        accuracy = np.array([history[f"{split}_acc"] for history in one.histories])
        time = np.mean([next(remaining) for _ in one.histories], axis=0)
        style = style_of(one, i, split, 140 // ncols - 20)
        draw(loss_axes, epochs, loss, style)
        draw(acc_axes, epochs, accuracy, style)
        if one.timed:
            draw(time_axes, time, accuracy, style)
        if one.num_train_images:
            draw(images_axes, epochs * one.num_train_images, accuracy, style)
    losses = [value for one in curves for run in one.histories for value in run[f"{monitored_split(run)}_loss"]]
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="cross-entropy (nats)")
    top = 3 * float(np.median(losses))  # a first epoch may have a loss of 50: the rest would be flat
    if max(losses) > top:
        loss_axes.set(title=f"Loss (cut off: up to {max(losses):.3g})", ylim=(0, top))
    acc_axes.set(title="Accuracy", xlabel="epoch", ylabel="accuracy (%)")
    images_axes.set(title="Accuracy against images", xlabel="training images seen", ylabel="accuracy (%)")
    images_axes.xaxis.set_major_formatter(EngFormatter(sep=" "))  # 5 M
    untimed = sum(not one.timed for one in curves)
    without = f" (without {untimed} that have no mean time)" if untimed else ""
    time_axes.set(title=f"Accuracy against time{without}", xlabel=f"{unit} of training", ylabel="accuracy (%)")
    whole_epochs(loss_axes, acc_axes)
    if lines:
        draw_lines(panels["data"], lines, {one.name: COLOURS[i] for i, one in enumerate(curves[:MAX_COLOURED])})
    if not any(one.num_train_images for one in curves):
        images_axes.remove()
    if not any(one.timed for one in curves):
        time_axes.remove()
    title = f"grey: {num_grey} more, with lower accuracies" if num_grey else None
    figure.legend(
        *acc_axes.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=ncols, frameon=False
    )
    save_figure(figure, path)
    return num_grey


def style_of(one: Curves, place: int, split: str, length: int) -> dict[str, Any]:
    """How the curve in that place, from 0, is drawn; its name in the legend has at most `length` characters."""
    if place >= MAX_COLOURED:
        return {"color": "0.8", "linewidth": 0.8, "zorder": 1}
    seeds = f", {len(one.histories)} seeds" if len(one.histories) > 1 else ""
    name = short(one.name, length)
    name = f" {name}" if name.startswith("_") else name  # else matplotlib leaves it out of the legend
    return {
        "color": COLOURS[place], "linestyle": STYLES[place % 4], "marker": marker_for(one.histories[0]["epoch"]),
        "label": f"{name} ({split}{seeds})", "zorder": 2,
    }  # fmt: skip


def draw(axes: Axes, x: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> None:
    """Draw the mean of values (runs, n) at x (n,), in a band of one standard deviation if there are several runs."""
    mean = values.mean(axis=0)
    axes.plot(x, mean, **style)
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axes.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.2, linewidth=0)


def draw_lines(axes: Axes, lines: Sequence[DataLine], colours: dict[str, str]) -> None:
    """Draw test accuracy against the number of training images, each line in the colour of its name's curve."""
    for line in lines:
        num_images, means, stds = zip(*line.points, strict=True)
        axes.errorbar(
            num_images, means, stds, color=colours.get(line.name, "0.6"), marker="o", capsize=4,
            linestyle="-" if line.equal == "epochs" else "--", label=f"as many {line.equal} as {short(line.name, 50)}",
        )  # fmt: skip
    axes.set(title="Accuracy against training images", xlabel="training images", ylabel="test accuracy (%)")
    counts = sorted({num_images for line in lines for num_images, _, _ in line.points})
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
