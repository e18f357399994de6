"""The figures of an evaluation: their names, which of them can be drawn, and drawing them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import attention, mistakes
from evaluation.trained import TrainedModel
from training.data import Dataset

INSIDE = ("attention", "position_embeddings", "patch_filters")  # what a Vision Transformer has learned
COMPARISON = ("comparison_curves", "comparison_classes", "comparison_images")  # of two models
FIGURES = (  # also the names of their files; report.html.j2 says how to read each
    "training_curves", "confusion_matrix", "per_class_accuracy", "reliability", "confidence", "predictions", "mistakes",
    *INSIDE, "corruptions", *COMPARISON,
)  # fmt: skip
NUM_PREDICTIONS = 32  # images in predictions.png, chosen with a fixed seed
NUM_MISTAKES = 24  # images in mistakes.png
NUM_EXAMPLES = 5  # images in attention.png
NUM_ONLY_ONE = 8  # images in comparison_images.png that only one of the models gets right, for each model


@dataclass(frozen=True)
class Results:
    """What an evaluation found: the content of evaluation.json and the logits (n, num_classes) of one or two models."""

    evaluation: dict[str, Any]
    dataset: Dataset
    trained: TrainedModel
    logits: Tensor
    other: TrainedModel | None = None
    other_logits: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        return self.dataset.test_labels

    @cached_property
    def probabilities(self) -> Tensor:
        return self.logits.double().softmax(dim=1)  # in double: in single precision, unlike logits may become equal


def draw_figures(folder: Path, results: Results, skip: tuple[str, ...]) -> dict[str, str]:
    """Draw the FIGURES as "<name>.png", except those to skip. Remove what an earlier evaluation drew of the others.

    Returns the figures that are left out, each with the reason. Figures of options that were not given don't count.
    """
    is_run = any((folder / name).exists() for name in ("config.json", "training_history.json"))
    left_out: dict[str, str] = {}
    for name in FIGURES:
        path = folder / f"{name}.png"
        of_training = name == "training_curves" and is_run and path.exists()  # it stays as it is
        if not of_training:
            path.unlink(missing_ok=True)
        if name in skip:
            left_out[name] = "left out by --skip"
        elif not of_training and (reason := draw_figure(name, path, results)):
            left_out[name] = reason
    return left_out


def draw_figure(name: str, path: Path, results: Results) -> str | None:
    """Draw one of the FIGURES, or return the reason why it can't be drawn. Does nothing if its option was not given."""
    from evaluation import attention_plots, evaluation_plots  # their import takes seconds: after what can fail
    from training import plots

    evaluation, dataset, trained, other = results.evaluation, results.dataset, results.trained, results.other
    images, labels, class_names = dataset.test_images, results.labels, dataset.class_names
    probabilities, per_class = results.probabilities, evaluation["per_class"]
    if name in INSIDE and not attention.has_attention(trained.model):
        return f"{evaluation['model_name']} is not a Vision Transformer"

    def draw_images(index: Tensor, title: str) -> None:
        captions = evaluation_plots.captions(labels[index], probabilities[index], class_names)
        evaluation_plots.plot_images(images[index], captions, path, title)

    match name:
        case "training_curves":
            if not trained.records:
                return "the run has no finished epoch, or its history is missing"
            plots.plot_training_curves(trained.records, path, f"{evaluation['model_name']} on {evaluation['dataset']}")
        case "confusion_matrix":
            evaluation_plots.plot_confusion_matrix(np.array(evaluation[name]), class_names, path)
        case "per_class_accuracy":
            evaluation_plots.plot_per_class_accuracy(per_class, evaluation["accuracy"], path)
        case "reliability":
            evaluation_plots.plot_reliability(evaluation["calibration"], path)
        case "confidence":
            evaluation_plots.plot_confidence(per_class, path)
        case "predictions":
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            draw_images(order[:NUM_PREDICTIONS], "Predictions on images chosen at random")
        case "mistakes":
            wrong = mistakes.most_confident(probabilities, results.logits.argmax(dim=1) != labels)
            if not len(wrong):
                return "the model makes no mistake"
            draw_images(wrong[:NUM_MISTAKES], "Most confident mistakes")
        case "attention":
            index = mistakes.pick_examples(probabilities, labels, NUM_EXAMPLES)
            captions = evaluation_plots.captions(labels[index], probabilities[index], class_names)
            maps = attention.attention_maps(trained.model, trained.normalize(images[index]))
            attention_plots.plot_attention(images[index], captions, *maps, path)
        case "position_embeddings":
            if trained.model.pos_embed is None:
                attention_plots.plot_position_biases(attention.position_biases(trained.model), path)
            else:
                attention_plots.plot_position_embeddings(attention.position_similarity(trained.model), path)
        case "patch_filters":
            attention_plots.plot_patch_filters(trained.model, path)
        case "corruptions" if name in evaluation:
            evaluation_plots.plot_corruptions(evaluation[name], evaluation["accuracy"], path)
        case _ if name in COMPARISON and other:
            return draw_comparison(name, path, results, other)
    return None


def draw_comparison(name: str, path: Path, results: Results, other: TrainedModel) -> str | None:
    """Draw one of the figures of two models, or return the reason why there is nothing to draw."""
    from evaluation import comparison_plots, evaluation_plots

    trained, evaluation = results.trained, results.evaluation
    if name == "comparison_curves":
        if trained.path.parent.resolve() == other.path.parent.resolve():
            return "both models are from the same run"
        if not trained.records or not other.records:
            return "one of the runs has no history"
        both = [
            comparison_plots.Curves(one.title, [records], one.saved["data"].get("num_train_images"))
            for one, records in ((trained, trained.records), (other, other.records))
        ]
        comparison_plots.plot_comparison(both, path)
    elif name == "comparison_classes":
        classes = evaluation["per_class"], evaluation["comparison"]["per_class"]
        evaluation_plots.plot_class_differences(*classes, (trained.title, other.title), path)
    elif results.other_logits is not None:
        return draw_only_one_right(path, results, results.other_logits, (trained.title, other.title))
    return None


def draw_only_one_right(path: Path, results: Results, other_logits: Tensor, titles: tuple[str, str]) -> str | None:
    """Draw the images that only one of the two models gets right, or return the reason why there is nothing to draw."""
    from evaluation import evaluation_plots
    from training.plots import short

    dataset, labels = results.dataset, results.labels
    both = (results.probabilities, other_logits.double().softmax(dim=1))
    right = [probabilities.argmax(dim=1) == labels for probabilities in both]
    only_one = [mistakes.most_confident(both[i], right[i] & ~right[1 - i])[:NUM_ONLY_ONE] for i in (0, 1)]
    index = torch.cat(only_one)
    if not len(index):
        return "both models get the same images right"
    answers = [evaluation_plots.answers(labels[index], of_one[index], dataset.class_names) for of_one in both]
    captions = [f"A {one}\nB {two}" for one, two in zip(*answers, strict=True)]
    one, two = (short(title, 70) for title in titles)
    title = f"Images that only one of two models gets right\nA: {one}\nB: {two}"
    evaluation_plots.plot_images(dataset.test_images[index], captions, path, title)
    return None
