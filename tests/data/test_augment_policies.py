"""In a chunk, each image gets the pixels that torchvision gives it alone; operations come at their papers' rates."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from training.data.augment import OPERATIONS, POLICIES, SIGNED, Augmentation, apply_operations, magnitude_table

TORCHVISION: dict[str, tuple] = {  # torchvision's transform for each policy, and its number of levels
    "cifar10": (v2.AutoAugment(AutoAugmentPolicy.CIFAR10), 10),
    "imagenet": (v2.AutoAugment(AutoAugmentPolicy.IMAGENET), 10),
    "svhn": (v2.AutoAugment(AutoAugmentPolicy.SVHN), 10),
    "randaugment": (v2.RandAugment(), 31),
    "trivialaugment": (v2.TrivialAugmentWide(), 31),
}
SPACES = ["cifar10", "randaugment", "trivialaugment"]  # AutoAugment's policies have the same operations and levels
NUM_DRAWS = 100_000


def draw(num_images: int) -> Tensor:
    return Augmentation().draw(0, 0, num_images)["auto_augment"]


def sample_images(num_random: int, size: int = 32) -> Tensor:
    """Random images and extremes: black, white, one colour, one grey level, few levels, a ramp, a single pixel."""
    generator = torch.Generator().manual_seed(0)
    special = torch.zeros(7, 3, size, size, dtype=torch.uint8)
    special[1] = 255
    special[2] = torch.tensor([250, 3, 128], dtype=torch.uint8).view(3, 1, 1)
    special[3] = 127
    special[4] = torch.randint(100, 104, (3, size, size), generator=generator)
    special[5] = torch.linspace(0, 255, size)
    special[6, :, 1, 2] = 255
    return torch.cat([torch.randint(256, (num_random, 3, size, size), generator=generator, dtype=torch.uint8), special])


def by_torchvision(policy: str, image: Tensor, name: str, level: int, negative: bool) -> Tensor:
    """A single image transformed by torchvision, with the magnitude of torchvision's table."""
    transform, num_levels = TORCHVISION[policy]
    table, signed = transform._AUGMENTATION_SPACE[name]
    values = table(num_levels, *image.shape[-2:])
    value = 0.0 if values is None else float(values[level])
    value = -value if signed and negative else value
    nearest = InterpolationMode.NEAREST
    return transform._apply_image_or_video_transform(image, name, value, nearest, transform._fill)


@pytest.mark.parametrize("size", [8, 32, 33, 224])
@pytest.mark.parametrize("policy", SPACES)
def test_operations_magnitudes_and_signs_are_those_of_torchvisions_tables(policy, size):
    transform, num_levels = TORCHVISION[policy]
    magnitudes = magnitude_table(num_levels, size, wide=policy == "trivialaugment")
    for name, (table, signed) in transform._AUGMENTATION_SPACE.items():
        values = table(num_levels, size, size)
        assert magnitudes.pop(name) == ([0.0] if values is None else [float(value) for value in values]), name
        assert (name in SIGNED) == signed
    assert magnitudes == ({"Identity": [0.0]} if policy == "cifar10" else {"Invert": [0.0]})


@pytest.mark.parametrize("policy", SPACES)
def test_a_chunk_of_every_operation_level_and_sign_has_the_pixels_of_torchvision(policy):
    transform, num_levels = TORCHVISION[policy]
    magnitudes, images = magnitude_table(num_levels, 32, wide=policy == "trivialaugment"), sample_images(2)
    names = list(magnitudes)
    cases = [
        (name, level, negative, number)
        for name, (table, signed) in transform._AUGMENTATION_SPACE.items()
        for level in range(num_levels if table(num_levels, 32, 32) is not None else 2)  # levels have no effect there
        for negative in (False, True)
        for number in range(len(images))
    ]
    cases = [cases[i] for i in torch.randperm(len(cases), generator=torch.Generator().manual_seed(0))]
    columns = zip(*((names.index(name), *rest) for name, *rest in cases), strict=True)
    operation, level, negative, number = map(torch.tensor, columns)
    found = apply_operations(images[number], magnitudes, operation, level, negative)
    for (name, level, negative, number), image in zip(cases, found, strict=True):
        expected = by_torchvision(policy, images[number], name, level, negative)
        assert torch.equal(image, expected), (name, level, negative, number)


def steps(policy: str, row: list[float], magnitude: int) -> list[tuple[str, int, bool]]:
    """The operations applied to an image with these draws: name, level, whether the sign is negative."""
    transform, num_levels = TORCHVISION[policy]
    names = list(transform._AUGMENTATION_SPACE)
    if policy == "trivialaugment":
        return [(names[int(14 * row[0])], int(num_levels * row[1]), row[2] < 0.5)]
    if policy == "randaugment":
        return [(names[int(14 * row[i])], magnitude, row[i + 1] < 0.5) for i in (0, 2)]
    pair = zip(transform._policies[int(25 * row[0])], row[1::2], row[2::2], strict=True)
    return [(name, level or 0, sign < 0.5) for (name, probability, level), chance, sign in pair if chance < probability]


@pytest.mark.parametrize(("policy", "size", "magnitude"), [(policy, 32, 9) for policy in POLICIES] + [
    ("cifar10", 24, 9), ("randaugment", 24, 30), ("randaugment", 24, 0), ("trivialaugment", 24, 9),
])  # fmt: skip
def test_a_policy_gives_each_image_the_pixels_of_torchvision(policy, size, magnitude):
    images = sample_images(393, size)
    draws = draw(len(images))
    augmented = Augmentation(policy=policy, magnitude=magnitude)(images, {"auto_augment": draws})
    for image, row, found in zip(images, draws.tolist(), augmented, strict=True):
        for step in steps(policy, row, magnitude):
            image = by_torchvision(policy, image, *step)
        assert torch.equal(found, image), row


def assert_rate(count: int, total: int, probability: float) -> None:
    standard_error = math.sqrt(probability * (1 - probability) / total)
    assert count / total == pytest.approx(probability, abs=4 * standard_error)


@pytest.fixture
def recorded(monkeypatch) -> Counter[tuple[str, float]]:
    """The number of images that each operation is called for, by name and magnitude; the images are not changed."""
    counts: Counter[tuple[str, float]] = Counter()
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda x, m, name=name: counts.update({(name, m): len(x)}) or x)
    return counts


def rates(policy: str, name: str, level: int, rate: float) -> Counter[tuple[str, float]]:
    """The rate of each (name, magnitude), for an operation that is drawn at `rate`, on images of one pixel."""
    transform, num_levels = TORCHVISION[policy]
    table, signed = transform._AUGMENTATION_SPACE[name]
    values = table(num_levels, 1, 1)
    value = 0.0 if values is None else float(values[level])
    signs = (1, -1) if signed and value else (1,)
    return Counter({(name, sign * value): rate / len(signs) for sign in signs})  # pyright: ignore[reportArgumentType]


def assert_called_at(expected: Counter, recorded: Counter, policy: str, draws: Tensor) -> None:
    recorded.clear()
    POLICIES[policy](torch.zeros(len(draws), 3, 1, 1, dtype=torch.uint8), draws, 9)
    assert recorded.keys() <= expected.keys()
    for call, rate in expected.items():
        assert_rate(recorded[call], len(draws), rate)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_autoaugments_pairs_operations_and_signs_come_at_the_policys_rates(policy, recorded):
    draws = draw(NUM_DRAWS)
    for number, pair in enumerate(TORCHVISION[policy][0]._policies):
        rows = draws[(25 * draws[:, 0]).long() == number]
        assert_rate(len(rows), NUM_DRAWS, 1 / 25)
        for step, (name, probability, level) in enumerate(pair):
            alone = rows.clone()
            alone[:, 3 - 2 * step] = 1.0  # the other operation is never applied
            assert_called_at(rates(policy, name, level or 0, probability), recorded, policy, alone)


def test_randaugments_operations_and_signs_come_equally_often(recorded):
    operations = list(TORCHVISION["randaugment"][0]._AUGMENTATION_SPACE)[1:]
    expected = sum((rates("randaugment", name, 9, 1 / 14) for name in operations), Counter())
    for other in (2, 0):
        alone = draw(NUM_DRAWS)
        alone[:, other] = 0.0  # the other operation is Identity, which is never called
        assert_called_at(expected, recorded, "randaugment", alone)


def test_trivialaugments_operations_levels_and_signs_come_equally_often(recorded):
    operations = list(TORCHVISION["trivialaugment"][0]._AUGMENTATION_SPACE)[1:]
    calls = [(name, level) for name in operations for level in range(31)]
    expected = sum((rates("trivialaugment", *call, 1 / 14 / 31) for call in calls), Counter())
    assert_called_at(expected, recorded, "trivialaugment", draw(NUM_DRAWS))
