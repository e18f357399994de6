"""The metrics equal those of scikit-learn and scipy, or formulas by hand, on random cases and at the edges."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from evaluation import metrics


def random_case(seed: int, num_classes: int, n: int = 200, scale: float = 2.0) -> tuple[Tensor, Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, num_classes, generator=generator)
    labels = torch.randint(num_classes, (n,), generator=generator)
    return logits, labels, [f"class {i}" for i in range(num_classes)]


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_equal_scikit_learns(seed, num_classes):
    logits, labels, names = random_case(seed, num_classes)
    found = metrics.measure(logits, labels, names)
    predicted, numbers = logits.argmax(dim=1), list(range(num_classes))
    assert found["accuracy"] == pytest.approx(100 * sklearn_metrics.accuracy_score(labels, predicted))
    probabilities = logits.double().softmax(dim=1).numpy()
    assert found["loss"] == pytest.approx(sklearn_metrics.log_loss(labels, probabilities, labels=numbers))
    if num_classes > 3:
        top3 = sklearn_metrics.top_k_accuracy_score(labels, probabilities, k=3, labels=numbers)
        assert found["top3_accuracy"] == pytest.approx(100 * top3)
    else:
        assert found["top3_accuracy"] == 100
    assert found["confusion_matrix"] == sklearn_metrics.confusion_matrix(labels, predicted, labels=numbers).tolist()
    assert [row["name"] for row in found["per_class"]] == names
    options = {"labels": numbers, "average": None, "zero_division": 0}
    for name, score in (("precision", "precision_score"), ("recall", "recall_score"), ("f1", "f1_score")):
        expected = getattr(sklearn_metrics, score)(labels, predicted, **options)
        assert [row[name] for row in found["per_class"]] == pytest.approx(expected.tolist()), name
    for i, row in enumerate(found["per_class"]):
        assert row["num_images"] == int((labels == i).sum())
        assert row["num_correct"] == int(((labels == i) & (predicted == i)).sum())
        assert row["accuracy"] == pytest.approx(100 * row["recall"])
    assert found["num_images"] == 200


@pytest.mark.parametrize(
    ("num_correct", "num_images"), [(0, 1), (1, 1), (0, 360), (357, 360), (360, 360), (4550, 10_000)]
)
def test_the_interval_is_wilsons(num_correct, num_images):
    found = metrics.wilson_interval(num_correct, num_images)
    for bound in found:  # Wilson's bounds are the shares from which the observed one is 1.96 standard errors away
        distance = (num_correct / num_images - bound) ** 2
        assert distance == pytest.approx(1.959964**2 * bound * (1 - bound) / num_images, rel=1e-5, abs=1e-9)
    assert 0 <= found[0] <= num_correct / num_images <= found[1] <= 1


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_error_is_that_of_guo_et_al_with_15_equal_bins(seed):
    logits, labels, names = random_case(seed, 7, n=500)
    found = metrics.measure(logits, labels, names)["calibration"]
    probabilities = logits.double().softmax(dim=1).numpy()
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels.numpy()
    error, sizes = 0.0, []
    for i in range(15):  # (i / 15, (i + 1) / 15], as in the paper
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        sizes.append(int(inside.sum()))
        if inside.any():
            error += inside.sum() / 500 * abs(correct[inside].mean() - confidence[inside].mean())
    assert found["expected_calibration_error"] == pytest.approx(error)
    assert [row["num_images"] for row in found["bins"]] == sizes
    assert found["mean_confidence"] == pytest.approx(confidence.mean())
    assert [(row["low"], row["high"]) for row in found["bins"]] == [(i / 15, (i + 1) / 15) for i in range(15)]
    for row in found["bins"]:
        assert (row["confidence"] is None) == (row["accuracy"] is None) == (row["num_images"] == 0)
        assert row["confidence"] is None or row["low"] < row["confidence"] <= row["high"]


def test_a_number_on_an_edge_is_in_the_bin_below_and_zero_in_the_first():
    confidence = torch.tensor([0.0, 0.1, 0.1 + 1e-9, 0.95, 1.0], dtype=torch.float64)
    assert metrics.bin_of(confidence, 10).tolist() == [0, 0, 1, 9, 9]


def test_the_histograms_count_each_image_once_where_its_confidence_is():
    logits, labels, names = random_case(0, 4)
    probabilities = logits.double().softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    for i, row in enumerate(metrics.measure(logits, labels, names)["per_class"]):
        for kind, chosen in (("correct", predicted == labels), ("wrong", predicted != labels)):
            expected, _ = np.histogram(confidence[(labels == i) & chosen], bins=10, range=(0, 1))
            assert row["confidence_histogram"][kind] == expected.tolist()


def test_the_most_confused_pairs_are_the_largest_counts_off_the_diagonal():
    matrix = np.array([[50, 3, 0], [9, 40, 1], [0, 3, 7]])
    found = metrics.most_confused(matrix, ["a", "b", "c"])
    assert [(row["true"], row["predicted"], row["num_images"]) for row in found] == [
        ("b", "a", 9), ("a", "b", 3), ("c", "b", 3), ("b", "c", 1),
    ]  # fmt: skip
    assert [row["share"] for row in found] == pytest.approx([9 / 50, 3 / 53, 3 / 10, 1 / 50])
    assert metrics.most_confused(np.diag([3, 4]), ["a", "b"]) == []


def test_a_constant_predictor_gets_the_first_class_and_strict_json():
    labels = torch.tensor([0, 0, 1, 2, 3])
    found = metrics.measure(torch.zeros(5, 5), labels, list("abcde"))
    assert (found["accuracy"], found["top3_accuracy"]) == (40.0, 80.0)  # of equal logits the first counts, for both
    assert found["loss"] == pytest.approx(math.log(5))
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(0.4 - 0.2)
    assert [row["precision"] for row in found["per_class"]] == pytest.approx([0.4, 0, 0, 0, 0])
    assert (found["per_class"][4]["num_images"], found["per_class"][4]["f1"]) == (0, 0.0)  # a class without an image
    json.dumps(found, allow_nan=False)


def test_a_confidence_of_1_gives_strict_json():
    logits = torch.tensor([[1000.0, -1000.0], [1000.0, -1000.0]])
    found = metrics.measure(logits, torch.tensor([0, 1]), ["a", "b"])
    assert found["loss"] == pytest.approx(1000)
    assert found["calibration"]["bins"][-1] == {
        "low": 14 / 15, "high": 1.0, "num_images": 2, "confidence": 1.0, "accuracy": 0.5,
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_a_calibrated_model_is_called_overconfident_as_seldom_as_said():
    generator = torch.Generator().manual_seed(0)
    wrong_calls = 0
    for _ in range(400):
        confidence = 0.5 + 0.5 * torch.rand(1000, generator=generator, dtype=torch.float64)
        found = metrics.calibration(confidence, torch.rand(1000, generator=generator) < confidence)
        low, high = found["overconfidence_interval"]
        wrong_calls += not low <= 0 <= high
    assert 5 < wrong_calls < 40  # 5 % of 400 is 20


@pytest.mark.parametrize("seed", range(3))
def test_two_models_are_compared_image_by_image(seed):
    generator = torch.Generator().manual_seed(seed)
    one, other, labels = (torch.randint(3, (400,), generator=generator) for _ in range(3))
    found = metrics.compare(one == labels, other == labels)
    right = [(int(a == c), int(b == c)) for a, b, c in zip(one, other, labels, strict=True)]
    counts = ("num_both_right", "num_only_this_right", "num_only_other_right", "num_both_wrong")
    assert [found[name] for name in counts] == [right.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))]
    gains = np.array([a - b for a, b in right])
    assert found["difference"] == pytest.approx(100 * gains.mean())
    half = 1.96 * gains.std() / len(gains) ** 0.5
    about = [100 * (gains.mean() - half), 100 * (gains.mean() + half)]  # by the normal distribution
    assert found["difference_interval"] == pytest.approx(about, abs=0.5)
    only, n = right.count((1, 0)), right.count((1, 0)) + right.count((0, 1))
    likely = math.comb(n, only)  # McNemar's exact test: all splits of the n images that are no likelier than this one
    expected = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) <= likely) / 2**n
    assert found["mcnemar_p"] == pytest.approx(expected)


@pytest.mark.parametrize("num_other", [0, 2])
def test_the_interval_of_a_difference_leaves_out_0_where_the_test_says_so(num_other):
    shares = []
    for num_this in range(16):
        right = [1] * num_this + [0] * (100 - num_this)
        other = [0] * (100 - num_other) + [1] * num_other
        found = metrics.compare(right, other)
        low, high = found["difference_interval"]
        assert low <= found["difference"] <= high
        shares.append(found["mcnemar_p"] < 0.05)
        assert (low > 0 or high < 0) == shares[-1]
    assert set(shares) == {True, False}


@pytest.mark.parametrize(
    ("right", "other", "difference", "interval", "p"),
    [
        ([1, 0], [1, 0], 0, [0, 0], 1), ([1], [1], 0, [0, 0], 1),
        ([0], [1], -100, [-100, 95], 1),  # one image: its share is in 0 to 0.975
        ([1, 1], [0, 0], 100, [200 * 0.025**0.5 - 100, 100], 0.5),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_models_that_differ_on_all_images_or_on_none(right, other, difference, interval, p):
    found = metrics.compare(right, other)
    assert found["difference"] == difference
    assert found["difference_interval"] == pytest.approx(interval)
    assert found["mcnemar_p"] == pytest.approx(p)
    json.dumps(found, allow_nan=False)
