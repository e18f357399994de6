"""Augmentation in groups gives each image what torchvision gives it alone, at the policy's rates, and repeatably."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from training.augment import OPERATIONS, Augmentation, Draws, auto_augment, magnitude, random_crop

TORCHVISION = v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
POLICIES = TORCHVISION._get_policies(AutoAugmentPolicy.CIFAR10)
LARGEST_DRAW = 1 - 2**-24  # of torch.rand in fp32


def sample_images(num_random: int, size: int = 32) -> Tensor:
    """Random ones, and the extremes: black, white, one colour, one grey level, few levels, a ramp, a single pixel."""
    generator = torch.Generator().manual_seed(0)
    special = torch.zeros(7, 3, size, size, dtype=torch.uint8)
    special[1] = 255
    special[2] = torch.tensor([250, 3, 128], dtype=torch.uint8).view(3, 1, 1)
    special[3] = 127
    special[4] = torch.randint(100, 104, (3, size, size), generator=generator)
    special[5] = torch.linspace(0, 255, size)
    special[6, :, 1, 2] = 255
    return torch.cat([torch.randint(256, (num_random, 3, size, size), generator=generator, dtype=torch.uint8), special])


def by_torchvision(image: Tensor, name: str, level: int | None, negative: bool) -> Tensor:
    """torchvision's own transform of a single image, at a level of its own table."""
    table, signed = TORCHVISION._AUGMENTATION_SPACE[name]
    values = table(10, *image.shape[-2:])
    value = 0.0 if values is None else float(values[level])
    value = -value if signed and negative else value
    nearest = InterpolationMode.NEAREST
    result = TORCHVISION._apply_image_or_video_transform(image, name, value, nearest, TORCHVISION._fill)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_at_each_level_and_sign_gives_a_group_what_torchvision_gives_each_image(name):
    images = sample_images(2)
    has_levels = TORCHVISION._AUGMENTATION_SPACE[name][0](10, 32, 32) is not None
    for level in range(10) if has_levels else [None]:
        for negative in (False, True):
            expected = torch.stack([by_torchvision(image, name, level, negative) for image in images])
            assert torch.equal(OPERATIONS[name](images, magnitude(name, level, negative, 32)), expected), level


@pytest.mark.parametrize("size", [32, 24])
def test_auto_augment_gives_each_image_what_torchvisions_policy_gives_it_alone(size):
    images = sample_images(593, size)
    draws = Draws.of_epoch(0, 0, len(images)).auto_augment
    for image, row, augmented in zip(images, draws.tolist(), auto_augment(images, draws), strict=True):
        policy = POLICIES[int(25 * row[0])]
        for (name, probability, level), chance, sign in zip(policy, row[1::2], row[2::2], strict=True):
            if chance < probability:
                image = by_torchvision(image, name, level, negative=sign < 0.5)
        assert torch.equal(augmented, image), policy


def assert_rate(count: int, total: int, probability: float) -> None:
    standard_error = math.sqrt(probability * (1 - probability) / total)
    assert count / total == pytest.approx(probability, abs=4 * standard_error)


def test_sub_policies_their_operations_and_signs_come_at_the_policys_rates(monkeypatch):
    num_images = 100_000
    recorded: Counter[tuple[str, bool]] = Counter()  # images by operation and whether its argument was negative
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda x, m, name=name: recorded.update({(name, m < 0): len(x)}) or x)
    draws = Draws.of_epoch(0, 0, num_images).auto_augment
    for number, policy in enumerate(POLICIES):
        rows = draws[(25 * draws[:, 0]).floor() == number]
        assert_rate(len(rows), num_images, 1 / 25)
        for step, (name, probability, level) in enumerate(policy):
            alone = rows.clone()
            alone[:, 3 - 2 * step] = LARGEST_DRAW  # the other step's chance: it is not applied
            recorded.clear()
            auto_augment(torch.zeros(len(rows), 3, 1, 1, dtype=torch.uint8), alone)
            assert {name for name, _ in recorded} <= {name}
            assert_rate(recorded.total(), len(rows), probability)
            if TORCHVISION._AUGMENTATION_SPACE[name][1] and level:  # level 0 has no sign to see
                assert_rate(recorded[name, True], recorded.total(), 0.5)


@pytest.mark.parametrize("padding", [1, 4])
def test_random_crop_is_padding_with_black_and_slicing(padding):
    side, height, width = 2 * padding + 1, 8, 10
    places = np.indices((side, side)).reshape(2, -1).T  # each top and left once
    images = torch.randint(1, 256, (len(places), 3, height, width), dtype=torch.uint8)
    cropped = random_crop(images, torch.from_numpy((places + 0.5) / side), padding)
    for image, crop, (top, left) in zip(images.numpy(), cropped.numpy(), places, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        np.testing.assert_array_equal(crop, padded[:, top : top + height, left : left + width])


def test_random_crop_takes_every_place_equally_often():
    num_images, padding = 50_000, 4
    numbered = torch.arange(81, dtype=torch.uint8).view(1, 1, 9, 9).expand(num_images, 1, 9, 9)
    cropped = random_crop(numbered, Draws.of_epoch(0, 0, num_images).crop, padding)
    places = cropped[:, 0, padding, padding].long()  # the pixel that stood at (top, left)
    counts = torch.bincount(places, minlength=81)
    assert len(counts) == 81
    for count in counts.tolist():
        assert_rate(count, num_images, 1 / 81)


def test_the_smallest_and_the_largest_draw_stay_inside():
    image = torch.full((1, 1, 9, 9), 255, dtype=torch.uint8)
    for padding in range(1, 9):
        for draw, corner in ((0.0, (-1, -1)), (LARGEST_DRAW, (0, 0))):
            cropped = random_crop(image, torch.tensor([[draw, draw]]), padding)
            assert cropped.count_nonzero() == (9 - padding) ** 2
            assert cropped[0, 0][corner] == 255
    assert auto_augment(image.expand(1, 3, 9, 9), torch.full((1, 5), LARGEST_DRAW)).shape == (1, 3, 9, 9)


def test_flip_mirrors_half_of_the_images_and_changes_nothing_else():
    images = torch.randint(256, (2000, 3, 4, 4), dtype=torch.uint8)
    flipped = Augmentation(0, horizontal_flip=True, auto_augment=False)(images, Draws.of_epoch(0, 0, len(images)))
    mirrored = [np.array_equal(new, old[..., ::-1]) for new, old in zip(flipped.numpy(), images.numpy(), strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert_rate(sum(mirrored), len(images), 0.5)


def test_an_image_gets_the_same_pixels_in_any_chunk_and_the_source_keeps_its_own():
    images = sample_images(293)
    source, draws = images.clone(), Draws.of_epoch(1, 2, len(images))
    augment = Augmentation(crop_padding=4, horizontal_flip=True, auto_augment=True)
    whole = augment(images, draws)
    pieces = [augment(images[index], draws[index]) for index in torch.arange(len(images)).split(7)]
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(images, source)
    assert not torch.equal(whole, source)


def test_draws_are_pinned():
    """A change that moves them changes every result of the repository: it should be meant."""
    draws = Draws.of_epoch(42, 3, 50_000)
    assert (draws.crop[7] * 2**24).tolist() == [248804, 5234006]
    assert (draws.flip[7] * 2**24).tolist() == [558397]
    assert (draws.auto_augment[7] * 2**24).tolist() == [12025985, 14234417, 882069, 5630284, 2138960]


def test_an_images_draws_depend_on_seed_epoch_and_index_only():
    many = Draws.of_epoch(42, 3, 50_000)
    torch.manual_seed(1)  # the global generator has no say
    for num_images in (1, 8, 1437):
        few = Draws.of_epoch(42, 3, num_images)
        for name in ("crop", "flip", "auto_augment"):
            assert torch.equal(getattr(few, name), getattr(many, name)[:num_images])
    for seed, epoch in ((42, 4), (43, 3), (3, 42)):
        assert not torch.isin(Draws.of_epoch(seed, epoch, 8).auto_augment, many.auto_augment[:8]).any()
