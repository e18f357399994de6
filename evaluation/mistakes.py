"""Which images to show: the most confident mistakes, one of each kind first, and some right answers."""

from collections import Counter

import torch
from torch import Tensor

NUM_WRONG = 2  # mistakes among the examples


def most_confident(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Indices of the images where `chosen` (n,) is true, in falling order of their highest probability.

    `probabilities` is (n, num_classes).
    """
    order = probabilities.amax(dim=1).argsort(descending=True, stable=True)
    return order[chosen[order]]


def varied_mistakes(probabilities: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Indices of at most `limit` mistakes: the most confident of each pair (true class, predicted class), most
    confident first, then the second of each pair, and so on.
    """
    predicted = probabilities.argmax(dim=1)
    order = most_confident(probabilities, predicted != labels)
    count: Counter[tuple[int, int]] = Counter()
    ranks = []  # of each mistake among those of its pair of classes
    for pair in zip(labels[order].tolist(), predicted[order].tolist(), strict=True):
        ranks.append(count[pair])
        count[pair] += 1
    return order[torch.tensor(ranks, dtype=torch.long).argsort(stable=True)[:limit]]


def pick_examples(probabilities: Tensor, labels: Tensor, number: int) -> Tensor:
    """Indices of at most `number` images: right answers of different classes, then NUM_WRONG mistakes."""
    predicted = probabilities.argmax(dim=1)
    wrong = varied_mistakes(probabilities, labels, min(NUM_WRONG, number)).tolist()
    right: dict[int, int] = {}
    for index in most_confident(probabilities, predicted == labels).tolist():
        right.setdefault(int(labels[index]), index)  # the most confident of its class
    return torch.tensor([*list(right.values())[: number - len(wrong)], *wrong], dtype=torch.long)
