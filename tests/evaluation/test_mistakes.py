"""Which images are shown: the most confident mistakes, one of each kind first, and right answers of several classes."""

import pytest
import torch

from evaluation.mistakes import most_confident, pick_examples, varied_mistakes

# (true class, predicted class, confidence) of each image
IMAGES = [(0, 0, 0.5), (0, 1, 0.6), (0, 1, 0.9), (0, 2, 0.7), (1, 1, 0.95), (1, 0, 0.65), (0, 1, 0.8), (1, 1, 0.99)]
LABELS = torch.tensor([true for true, _, _ in IMAGES])
PROBABILITIES = torch.zeros(len(IMAGES), 3)
for i, (_, predicted, confidence) in enumerate(IMAGES):
    PROBABILITIES[i] = (1 - confidence) / 2
    PROBABILITIES[i, predicted] = confidence


def test_the_most_confident_come_first_and_only_those_that_are_chosen():
    assert most_confident(PROBABILITIES, torch.tensor([i % 2 == 0 for i in range(8)])).tolist() == [4, 2, 6, 0]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [2]), (2, [2, 3]), (3, [2, 3, 5]), (4, [2, 3, 5, 6]), (5, [2, 3, 5, 6, 1]), (9, [2, 3, 5, 6, 1])],
)
def test_each_pair_of_classes_has_its_first_mistake_before_any_has_its_second(limit, expected):
    assert varied_mistakes(PROBABILITIES, LABELS, limit).tolist() == expected


@pytest.mark.parametrize(
    ("number", "expected"), [(1, [2]), (2, [2, 3]), (3, [7, 2, 3]), (4, [7, 0, 2, 3]), (9, [7, 0, 2, 3])]
)
def test_examples_are_right_answers_of_several_classes_then_two_mistakes_of_different_pairs(number, expected):
    assert pick_examples(PROBABILITIES, LABELS, number).tolist() == expected


def test_without_mistakes_all_examples_are_right():
    right = PROBABILITIES.argmax(dim=1)
    assert varied_mistakes(PROBABILITIES, right, 5).tolist() == []
    assert pick_examples(PROBABILITIES, right, 9).tolist() == [7, 3, 5]
