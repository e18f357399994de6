"""The numbers of evaluation.json: accuracy and its interval, scores of each class, calibration, confusions.

Accuracies and their intervals are in percent, losses in nats; all else, calibration too, is a share in 0..1 or a
number of images.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

NUM_BINS = 15  # equal bins of confidence, as in Guo et al., 2017 (https://arxiv.org/abs/1706.04599)
HISTOGRAM_BINS = 10  # the same for a single class, which has fewer images
NUM_CONFUSIONS = 20  # pairs of classes that are listed


def measure(logits: Tensor, labels: Tensor, class_names: list[str]) -> dict[str, Any]:
    """All metrics of logits (n, num_classes) in fp32 against labels (n,), as plain values.

    accuracy, accuracy_interval    share of the images whose top class is the true one, and its 95 % confidence interval
    top3_accuracy                  share whose true class is among the top three
    loss                           mean cross-entropy
    num_images
    per_class                      a list: name, num_images, num_correct, accuracy, precision, recall, f1, and
                                   confidence_histogram: the numbers of correct and of wrong predictions for images of
                                   the class, by confidence, in HISTOGRAM_BINS equal bins of 0..1
    confusion_matrix               a row for each true class, a column for each predicted one
    calibration                    see `calibration`
    most_confused                  see `most_confused`
    """
    probabilities = logits.double().softmax(dim=1)
    predicted, numbers = logits.argmax(dim=1), list(range(len(class_names)))
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    scores = precision_recall_fscore_support(labels, predicted, labels=numbers, zero_division=0)  # pyright: ignore
    precision, recall, f1, support = map(np.asarray, scores)
    confidence, correct = probabilities.amax(dim=1), predicted == labels
    per_class = [
        {
            "name": name, "num_images": int(support[i]), "num_correct": int(matrix[i, i]),
            "accuracy": 100 * float(recall[i]),  # within one class, accuracy and recall are the same share
            "precision": float(precision[i]), "recall": float(recall[i]), "f1": float(f1[i]),
            "confidence_histogram": {
                "correct": histogram(confidence[(labels == i) & correct]),
                "wrong": histogram(confidence[(labels == i) & ~correct]),
            },
        }
        for i, name in enumerate(class_names)
    ]  # fmt: skip
    return {
        **headline(logits, labels),
        "num_images": len(labels),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
        "calibration": calibration(confidence, correct),
        "most_confused": most_confused(matrix, class_names),
    }


def headline(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """accuracy, accuracy_interval, top3_accuracy and loss, as in `measure`. Log-probabilities will do as logits."""
    order = logits.argsort(dim=1, descending=True, stable=True)  # of equal logits the first counts, as in argmax
    correct = order[:, :3] == labels[:, None]
    num_correct = int(correct[:, 0].sum())
    return {
        "accuracy": 100 * num_correct / len(labels),
        "accuracy_interval": [100 * bound for bound in wilson_interval(num_correct, len(labels))],
        "top3_accuracy": 100 * int(correct.sum()) / len(labels),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }


def wilson_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """The 95 % score interval of a share, in 0..1 (Wilson, 1927, https://doi.org/10.1080/01621459.1927.10502953).

    It covers the choice of the test images only. Training again with another seed may change the accuracy by more.
    """
    interval = binomtest(num_correct, num_images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def bin_of(confidence: Tensor, num_bins: int) -> Tensor:
    """The index of each number among `num_bins` equal bins of 0..1. The upper edge is in the bin, as in Guo et al."""
    edges = torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)[1:-1]
    return torch.bucketize(confidence, edges)


def histogram(confidence: Tensor) -> list[int]:
    """How many of the numbers are in each of HISTOGRAM_BINS equal bins of 0..1."""
    return torch.bincount(bin_of(confidence, HISTOGRAM_BINS), minlength=HISTOGRAM_BINS).tolist()


def calibration(confidence: Tensor, correct: Tensor) -> dict[str, Any]:
    """How well confidence (n,) predicts which answers are correct (n,): Guo et al., 2017.

    expected_calibration_error is the mean distance between the confidence and the accuracy of a bin, weighted by the
    number of its images. overconfidence_interval is the 95 % confidence interval of mean_confidence less the accuracy,
    a share too, by the normal distribution. `bins` lists NUM_BINS equal bins: low, high, num_images, and the mean
    confidence and accuracy in 0..1 (None in an empty bin).
    """
    bins: list[dict[str, Any]] = []
    index = bin_of(confidence, NUM_BINS)
    for i in range(NUM_BINS):
        inside = index == i
        count = int(inside.sum())
        bins.append({
            "low": i / NUM_BINS, "high": (i + 1) / NUM_BINS, "num_images": count,
            "confidence": confidence[inside].mean().item() if count else None,
            "accuracy": correct[inside].double().mean().item() if count else None,
        })  # fmt: skip
    gaps = [row["num_images"] * abs(row["confidence"] - row["accuracy"]) for row in bins if row["num_images"]]
    error = sum(gaps) / len(confidence)
    excess = confidence - correct.double()
    middle, half = excess.mean().item(), 1.96 * excess.std(correction=0).item() / len(excess) ** 0.5
    return {
        "expected_calibration_error": error, "mean_confidence": confidence.mean().item(),
        "overconfidence_interval": [middle - half, middle + half], "bins": bins,
    }  # fmt: skip


def most_confused(matrix: np.ndarray, class_names: list[str]) -> list[dict[str, Any]]:
    """The NUM_CONFUSIONS pairs of classes with the most mistakes: true, predicted, num_images, share of the true class.

    Pairs without a mistake are left out. `matrix` has a row for each true class, a column for each predicted one.
    """
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:NUM_CONFUSIONS]
    pairs = zip(*np.unravel_index(order, mistakes.shape), strict=True)
    return [
        {
            "true": class_names[true],
            "predicted": class_names[predicted],
            "num_images": int(mistakes[true, predicted]),
            "share": float(mistakes[true, predicted] / matrix[true].sum()),
        }
        for true, predicted in pairs
        if mistakes[true, predicted]
    ]


def compare(right: ArrayLike, other_right: ArrayLike) -> dict[str, Any]:
    """Compare two models on the same images, given which of them (n,) each model gets right.

    Counts the images that both, one or none of the models get right. `difference` is the accuracy of the first minus
    that of the other, in percentage points. mcnemar_p is the p-value of McNemar's exact test: of the images that only
    one model gets right, each model would get half if both were equally good (https://doi.org/10.1007/BF02295996).
    difference_interval holds the differences that go with the 95 % confidence interval (Clopper and Pearson, 1934) of
    the first's share of these images, their number taken as fixed: it is without 0 where the p-value is below 0.05, and
    only there.
    """
    right, other_right = np.asarray(right, dtype=bool), np.asarray(other_right, dtype=bool)
    both, only, other_only = (
        int(images.sum()) for images in (right & other_right, right & ~other_right, ~right & other_right)
    )
    n, discordant = len(right), only + other_only
    interval, p = [0.0, 0.0], 1.0
    if discordant:
        test = binomtest(only, discordant)
        share = test.proportion_ci(0.95, method="exact")
        interval, p = [100 * discordant / n * float(2 * end - 1) for end in (share.low, share.high)], float(test.pvalue)
    return {
        "num_both_right": both, "num_only_this_right": only, "num_only_other_right": other_only,
        "num_both_wrong": n - both - discordant, "difference": 100 * (only - other_only) / n,
        "difference_interval": interval, "mcnemar_p": p,
    }  # fmt: skip
