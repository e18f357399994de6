"""Which images are worth showing: the surest mistakes, some of every kind, and some that are right."""

from collections import Counter

import torch
from torch import Tensor

NUM_WRONG_LOOKS = 2  # mistakes among the images whose attention is shown


def surest(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Indices of the images where `chosen` (n,) is true, those with the likeliest answer (n, num_classes) first."""
    order = probabilities.amax(dim=1).argsort(descending=True, stable=True)
    return order[chosen[order]]


def of_every_kind(probabilities: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Indices of at most `limit` mistakes, surest first; the surest of every (true, predicted) come before the next."""
    predicted = probabilities.argmax(dim=1)
    order = surest(probabilities, predicted != labels)
    count: Counter[tuple[int, int]] = Counter()
    turns = []  # how many of its kind are surer
    for kind in zip(labels[order].tolist(), predicted[order].tolist(), strict=True):
        turns.append(count[kind])
        count[kind] += 1
    kept = torch.tensor(turns, dtype=torch.long).argsort(stable=True)[:limit].sort().values
    return order[kept]


def to_look_into(probabilities: Tensor, labels: Tensor, number: int) -> Tensor:
    """Indices of `number` images whose attention is worth a look: right answers of different classes, and mistakes."""
    predicted = probabilities.argmax(dim=1)
    wrong = of_every_kind(probabilities, labels, len(labels))[:NUM_WRONG_LOOKS].tolist()
    right: dict[int, int] = {}
    for index in surest(probabilities, predicted == labels).tolist():
        right.setdefault(int(labels[index]), index)  # the surest of its class
    return torch.tensor([*list(right.values())[: number - len(wrong)], *wrong], dtype=torch.long)
