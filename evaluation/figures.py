"""All figures of an evaluation by name: how to read each, which ones can be drawn, and drawing them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import attention, mistakes
from evaluation.trained import TrainedModel
from training.data import Dataset

FIGURES = {  # name, which is also that of the file: heading, how to read the figure
    "training_curves": (
        "Training",
        "Loss should fall and accuracy rise on both splits. Where the solid lines get worse while the dashed ones get "
        "better, the model overfits. Augmentation makes the training images harder, so the dashed lines are often the "
        "worse ones.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "Each row is a true class, each column a predicted one; the diagonal is correct. A cell gives the number of "
        "images and their share of the row.",
    ),
    "per_class_accuracy": (
        "Accuracy by class",
        "The share of each class's images that the model classified correctly; the dashed line is the share of all "
        "images.",
    ),
    "reliability": (
        "Reliability",
        "Each bar is the accuracy of the predictions in one range of confidence, the probability of the predicted "
        "class. Below the diagonal the model is overconfident, above it underconfident. The expected calibration error "
        "is the mean distance from the diagonal, weighted by the number of images.",
    ),
    "confidence": (
        "Confidence by class",
        "How confident the model is on the images of each class. A good model has its wrong predictions on the left, "
        "where confidence is low.",
    ),
    "predictions": (
        "Predictions",
        "Test images chosen at random, with the predicted class and its probability. Mistakes are red, marked ✗, and "
        "name the true class.",
    ),
    "mistakes": (
        "Most confident mistakes",
        "The wrong predictions with the highest probability. Look for wrong labels, ambiguous images, and what the "
        "mistakes have in common.",
    ),
    "attention": (
        "Attention",
        "Which patches the class token looks at (without one: all patches on average). Rollout follows the attention "
        "through all blocks; the other maps show single heads of the last block. Bright patches get the most "
        "attention; each map has its own scale.",
    ),
    "position_embeddings": (
        "Position embeddings",
        "One small map for each patch: how similar its position embedding is to all others. Where the bright spot "
        "follows the patch's row and column, the model has learned where its patches are.",
    ),
    "patch_filters": (
        "Patch filters",
        "The principal components of the learned patch embedding, with their share of the variance. In a well trained "
        "model the first ones are plain colours and edges; in an untrained one all are noise.",
    ),
    "corruptions": (
        "Robustness",
        "Accuracy on the same images made noisier, blurred, brighter, compressed or shifted. The flatter a line, the "
        "more robust the model. The accuracy at the top of the page is that of the plain images.",
    ),
    "comparison_curves": (
        "Both runs",
        "Loss and accuracy of both runs against the epoch, and accuracy against the training time.",
    ),
    "comparison_classes": (
        "Both models by class",
        "A line joins the two models' accuracy on a class: the longer it is, the more they differ.",
    ),
    "comparison_images": (
        "Images that only one model gets right",
        "First images that only model A gets right, then images that only model B gets right; most confident first.",
    ),
}
NUM_PREDICTIONS = 32  # images in predictions.png, chosen with a fixed seed
NUM_MISTAKES = 24  # images in mistakes.png
NUM_EXAMPLES = 5  # images in attention.png
NUM_ONLY_ONE = 8  # images in comparison_images.png that only one of the models gets right, for each model

DrawFigure = Callable[[Path], object]  # draws a figure to a file


@dataclass(frozen=True)
class Results:
    """What an evaluation found: the content of evaluation.json and the logits (n, num_classes) of one or two models."""

    evaluation: dict[str, Any]
    dataset: Dataset
    subject: TrainedModel
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
    prepared = prepare(results)
    left_out = {name: reason for name, reason in prepared.items() if isinstance(reason, str)}
    belongs_to_run = drawn_by_training(folder)
    if belongs_to_run and folder.resolve() != results.subject.path.parent.resolve():
        left_out |= dict.fromkeys(belongs_to_run, "the folder holds another run and its own figure")
    left_out |= dict.fromkeys(skip, "left out by --skip")
    for name in FIGURES:
        path, draw = folder / f"{name}.png", prepared.get(name)
        if name in belongs_to_run:
            continue
        if draw is None or isinstance(draw, str) or name in left_out:
            path.unlink(missing_ok=True)
        else:
            draw(path)
    return {name: left_out[name] for name in FIGURES if name in left_out}


def drawn_by_training(folder: Path) -> set[str]:
    """The FIGURES in a folder that a training run drew there: the evaluator leaves them alone."""
    is_run = any((folder / name).exists() for name in ("config.json", "training_history.json"))
    return {"training_curves"} if is_run and (folder / "training_curves.png").exists() else set()


def prepare(results: Results) -> dict[str, DrawFigure | str]:
    """A function that draws each figure, or the reason why it can't be drawn."""
    from evaluation import evaluation_plots  # its import takes seconds: after what can fail
    from training import plots

    evaluation, dataset, subject = results.evaluation, results.dataset, results.subject
    names = dataset.class_names

    def draw_images(index: Tensor, title: str) -> DrawFigure:
        return lambda path: evaluation_plots.plot_predictions(
            dataset.test_images[index], results.labels[index], results.probabilities[index], names, path, title
        )

    some = torch.randperm(len(results.labels), generator=torch.Generator().manual_seed(0))[:NUM_PREDICTIONS]
    is_wrong = results.logits.argmax(dim=1) != results.labels
    wrong = mistakes.most_confident(results.probabilities, is_wrong)[:NUM_MISTAKES]
    title = f"{evaluation['model_name']} on {evaluation['dataset']}"
    prepared: dict[str, DrawFigure | str] = {
        "training_curves": (
            partial(plots.plot_training_curves, subject.records, title=title)
            if subject.records
            else "the run has no finished epoch, or its history is missing"
        ),
        "confusion_matrix": partial(
            evaluation_plots.plot_confusion_matrix, np.array(evaluation["confusion_matrix"]), names
        ),
        "per_class_accuracy": partial(
            evaluation_plots.plot_per_class_accuracy, evaluation["per_class"], evaluation["accuracy"]
        ),
        "reliability": partial(evaluation_plots.plot_reliability, evaluation["calibration"]),
        "confidence": partial(evaluation_plots.plot_confidence, evaluation["per_class"]),
        "predictions": draw_images(some, "Predictions on images chosen at random"),
        "mistakes": draw_images(wrong, "Most confident mistakes") if len(wrong) else "the model makes no mistake",
    }
    if "corruptions" in evaluation:
        prepared["corruptions"] = partial(
            evaluation_plots.plot_corruptions, evaluation["corruptions"], evaluation["accuracy"]
        )
    return prepared | prepare_inside(results) | prepare_comparison(results)


def prepare_inside(results: Results) -> dict[str, DrawFigure | str]:
    """The same for the figures of what a Vision Transformer has learned."""
    from evaluation import attention_plots, evaluation_plots

    model, dataset = results.subject.model, results.dataset
    if not attention.has_attention(model):
        reason = f"{results.evaluation['model_name']} is not a Vision Transformer"
        return dict.fromkeys(("attention", "position_embeddings", "patch_filters"), reason)

    def draw_attention(path: Path) -> None:
        index = mistakes.pick_examples(results.probabilities, results.labels, NUM_EXAMPLES)
        images, labels, probabilities = dataset.test_images[index], results.labels[index], results.probabilities[index]
        captions, _ = evaluation_plots.caption(labels, probabilities, dataset.class_names)
        maps = attention.class_token_attention(model, results.subject.normalize(images))
        attention_plots.plot_attention(images, captions, *maps, path)

    return {
        "attention": draw_attention,
        "position_embeddings": partial(attention_plots.plot_position_embeddings, attention.position_similarity(model)),
        "patch_filters": partial(attention_plots.plot_patch_filters, model),
    }


def prepare_comparison(results: Results) -> dict[str, DrawFigure | str]:
    """The same for the figures that compare two models."""
    subject, other = results.subject, results.other
    if other is None or results.other_logits is None:
        return {}
    from evaluation import evaluation_plots
    from training import plots

    evaluation, dataset, labels = results.evaluation, results.dataset, results.labels
    names = (subject.title, other.title)
    probabilities = (results.probabilities, results.other_logits.double().softmax(dim=1))
    right = [of_model.argmax(dim=1) == labels for of_model in probabilities]
    only_one = [mistakes.most_confident(probabilities[i], right[i] & ~right[1 - i]) for i in (0, 1)]
    index = torch.cat([images[:NUM_ONLY_ONE] for images in only_one])
    histories = {trained.title: trained.records for trained in (subject, other) if trained.records}
    same_run = subject.path.parent.resolve() == other.path.parent.resolve()
    return {
        "comparison_curves": (
            "both models are from the same run"
            if same_run
            else partial(plots.plot_comparison, histories)
            if len(histories) == 2
            else "one of the runs has no history"
        ),
        "comparison_classes": partial(
            evaluation_plots.plot_class_differences, evaluation["per_class"], evaluation["comparison"]["per_class"],
            names,
        ),
        "comparison_images": (
            partial(
                evaluation_plots.plot_two_models, dataset.test_images[index], labels[index],
                [of_model[index] for of_model in probabilities], dataset.class_names, names,
            )
            if len(index)
            else "both models get the same images right"
        ),
    }  # fmt: skip
