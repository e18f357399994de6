"""The figures an evaluation can have: their names, which are those of the files, how to read each, and drawing them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import attention, mistakes
from evaluation.trained import Trained
from training.data import Dataset

FIGURES = {  # name: heading, how to read it
    "training_curves": (
        "Training",
        "Loss should fall and accuracy rise on both splits; where the solid lines get worse while the dashed ones get "
        "better, the model has begun to learn the training images by heart. Augmentation makes the training images the "
        "harder ones, so the dashed lines are often the worse.",
    ),
    "confusion_matrix": (
        "Confusion matrix",
        "A row holds the images of one class, a column what the model took them for; the diagonal is right. A cell "
        "says how many images it holds and which share of its row they are.",
    ),
    "per_class_accuracy": (
        "Accuracy by class",
        "Of each class's images, the share that the model recognized; the dashed line is the share over all of them.",
    ),
    "reliability": (
        "How sure, and how right",
        "Each bar holds the answers of one range of confidence: where bars end below the diagonal the model is surer "
        "than it should be, above it less sure. The expected calibration error is their mean distance from it, "
        "weighted by their images.",
    ),
    "confidence": (
        "Confidence by class",
        "How sure the model was of its answers for the images of each class; a good model has its wrong answers on the "
        "left, where it is unsure.",
    ),
    "predictions": (
        "Predictions",
        "Images drawn at random, with the model's answer and its probability; mistakes are red, marked ✗, and name the "
        "truth.",
    ),
    "mistakes": (
        "The surest mistakes",
        "The wrong answers that the model was surest of: look for wrong labels, for images that could be both, and for "
        "what they have in common.",
    ),
    "attention": (
        "Attention",
        "Which patches the class token's answer draws on: rollout follows the attention through all blocks, the others "
        "show single heads of the last block. Bright patches get the most; each map has a scale of its own.",
    ),
    "position_embeddings": (
        "Position embeddings",
        "One small map for each patch: how similar its learned position is to every other's. Bright spots that wander "
        "with the patch, with its row and column, show that the model has learned where its patches lie.",
    ),
    "patch_filters": (
        "Patch filters",
        "The principal components of the learned patch embedding, with their share of the variance: in a well trained "
        "model the first ones are flat colours and edges, in an untrained one all are noise.",
    ),
    "corruptions": (
        "Robustness",
        "Accuracy on the same images made noisier, blurred, brighter, compressed or shifted; the flatter a line, the "
        "less the model minds. These figures stand beside the headline and change nothing in it.",
    ),
    "comparison_curves": (
        "Both runs",
        "The monitored loss and accuracy of both runs over their epochs, and their accuracy over the time they took.",
    ),
    "comparison_classes": (
        "Both models by class",
        "A line joins the two models' accuracy on a class; the longer it is, the more they differ.",
    ),
    "comparison_images": (
        "Images that only one model gets right",
        "First images that only the first model (A) recognizes, then those that only the second (B) does: of each the "
        "ones that it was surest of.",
    ),
}
NUM_PREDICTIONS = 32  # images in the grid, drawn with a fixed seed
NUM_MISTAKES = 24  # in the gallery
NUM_LOOKS = 5  # images whose attention is shown
NUM_ONLY_ONE = 8  # images that only one of two models gets right, for each of them

Drawing = Callable[[Path], object]  # draws a figure to that file


@dataclass(frozen=True)
class Results:
    """What an evaluation found: evaluation.json's content, and the logits (n, num_classes) of one or two models."""

    evaluation: dict[str, Any]
    dataset: Dataset
    subject: Trained
    logits: Tensor
    other: Trained | None = None
    other_logits: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        return self.dataset.test_labels

    @cached_property
    def probabilities(self) -> Tensor:
        return self.logits.double().softmax(dim=1)  # in double, so that logits that differ do not become equal


def draw_figures(folder: Path, results: Results, skip: tuple[str, ...]) -> dict[str, str]:
    """Draw what there is of FIGURES, but for those to skip, as "<name>.png"; those of an evaluation before are removed.

    Returns why each of the others is left out, by its name; what belongs to an option that was not given is no figure.
    """
    ways = prepare(results)
    left_out = {name: way for name, way in ways.items() if isinstance(way, str)}
    left_out |= dict.fromkeys(skip, "left out by --skip")
    for name in FIGURES:
        path, way = folder / f"{name}.png", ways.get(name)
        if way is None or isinstance(way, str) or name in left_out:
            path.unlink(missing_ok=True)
        else:
            way(path)
    return {name: left_out[name] for name in FIGURES if name in left_out}


def prepare(results: Results) -> dict[str, Drawing | str]:
    """A way to draw each figure, or the reason why it can't be."""
    from evaluation import evaluation_plots  # here, because it takes seconds: after what can fail
    from training import plots

    evaluation, dataset, subject = results.evaluation, results.dataset, results.subject
    names = dataset.class_names

    def draw_images(index: Tensor, title: str) -> Drawing:
        return lambda path: evaluation_plots.plot_predictions(
            dataset.test_images[index], results.labels[index], results.probabilities[index], names, path, title
        )

    some = torch.randperm(len(results.labels), generator=torch.Generator().manual_seed(0))[:NUM_PREDICTIONS]
    wrong = mistakes.surest(results.probabilities, results.logits.argmax(dim=1) != results.labels)[:NUM_MISTAKES]
    title = f"{evaluation['model_name']} on {evaluation['dataset']}"
    ways: dict[str, Drawing | str] = {
        "training_curves": (
            partial(plots.plot_training_curves, subject.records, title=title)
            if subject.records
            else "the run has no finished epoch, or its history is gone"
        ),
        "confusion_matrix": partial(
            evaluation_plots.plot_confusion_matrix, np.array(evaluation["confusion_matrix"]), names
        ),
        "per_class_accuracy": partial(
            evaluation_plots.plot_per_class_accuracy, evaluation["per_class"], evaluation["accuracy"]
        ),
        "reliability": partial(evaluation_plots.plot_reliability, evaluation["calibration"]),
        "confidence": partial(evaluation_plots.plot_confidence, evaluation["per_class"]),
        "predictions": draw_images(some, "Predictions on images drawn at random"),
        "mistakes": draw_images(wrong, "The surest mistakes") if len(wrong) else "there is no mistake to show",
    }
    if "corruptions" in evaluation:
        ways["corruptions"] = partial(
            evaluation_plots.plot_corruptions, evaluation["corruptions"], evaluation["accuracy"]
        )
    return ways | prepare_inside(results) | prepare_comparison(results)


def prepare_inside(results: Results) -> dict[str, Drawing | str]:
    """The same for the figures of the model's inside."""
    from evaluation import attention_plots, evaluation_plots

    model, dataset = results.subject.model, results.dataset
    if not attention.has_attention(model):
        reason = f"{results.evaluation['model_name']} has no patches, positions and attention"
        return dict.fromkeys(("attention", "position_embeddings", "patch_filters"), reason)

    def draw_attention(path: Path) -> None:
        index = mistakes.to_look_into(results.probabilities, results.labels, NUM_LOOKS)
        images, labels, probabilities = dataset.test_images[index], results.labels[index], results.probabilities[index]
        captions, _ = evaluation_plots.caption(labels, probabilities, dataset.class_names)
        maps = attention.class_token_attention(model, results.subject.normalize(images))
        attention_plots.plot_attention(images, captions, *maps, path)

    return {
        "attention": draw_attention,
        "position_embeddings": partial(attention_plots.plot_position_embeddings, attention.position_similarity(model)),
        "patch_filters": partial(attention_plots.plot_patch_filters, model),
    }


def prepare_comparison(results: Results) -> dict[str, Drawing | str]:
    """The same for the figures that hold two models side by side."""
    subject, other = results.subject, results.other
    if other is None or results.other_logits is None:
        return {}
    from evaluation import evaluation_plots
    from training import plots

    evaluation, dataset, labels = results.evaluation, results.dataset, results.labels
    names = (subject.title, other.title)
    chances = (results.probabilities, results.other_logits.double().softmax(dim=1))
    right = [chance.argmax(dim=1) == labels for chance in chances]
    index = torch.cat([mistakes.surest(chances[i], right[i] & ~right[1 - i])[:NUM_ONLY_ONE] for i in (0, 1)])
    histories = {trained.title: trained.records for trained in (subject, other) if trained.records}
    same_run = subject.path.parent.resolve() == other.path.parent.resolve()
    return {
        "comparison_curves": (
            "both models are of the same run"
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
                [chance[index] for chance in chances], dataset.class_names, names,
            )
            if len(index)
            else "both models get the same images right"
        ),
    }  # fmt: skip
