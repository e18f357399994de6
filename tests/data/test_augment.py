"""Crop, flip and erasing are right and come at their rates; an image's draws depend on seed, epoch and index alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torchvision.transforms.v2 import RandomErasing
from torchvision.transforms.v2.functional import erase

from training.data.augment import ERASING_ATTEMPTS, POLICIES, Augmentation, random_crop, random_erasing

LARGEST_DRAW = 1 - 2**-24  # of torch.rand in fp32
EVERYTHING = Augmentation(crop_padding=4, horizontal_flip=True, policy="cifar10", erasing=0.5)


def random_images(num_images: int, size: int = 32) -> Tensor:
    return torch.randint(256, (num_images, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def draw(name: str, num_images: int) -> Tensor:
    return EVERYTHING.draw(0, 0, num_images)[name]


def assert_rate(count: int, total: int, probability: float) -> None:
    standard_error = math.sqrt(probability * (1 - probability) / total)
    assert count / total == pytest.approx(probability, abs=4 * standard_error)


@pytest.mark.parametrize("padding", [1, 4])
def test_random_crop_is_padding_with_black_and_slicing(padding):
    side, height, width = 2 * padding + 1, 8, 10
    positions = np.indices((side, side)).reshape(2, -1).T  # each (top, left) once
    images = torch.randint(1, 256, (len(positions), 3, height, width), dtype=torch.uint8)
    cropped = random_crop(images, torch.from_numpy((positions + 0.5) / side), padding)
    for image, crop, (top, left) in zip(images.numpy(), cropped.numpy(), positions, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        np.testing.assert_array_equal(crop, padded[:, top : top + height, left : left + width])


def test_random_crop_chooses_every_position_equally_often():
    num_images, padding = 50_000, 4
    numbered = torch.arange(81, dtype=torch.uint8).view(1, 1, 9, 9).expand(num_images, 1, 9, 9)
    cropped = random_crop(numbered, draw("crop", num_images), padding)
    positions = cropped[:, 0, padding, padding].long()  # the number of the pixel that was at (top, left)
    counts = torch.bincount(positions, minlength=81)
    assert len(counts) == 81
    for count in counts.tolist():
        assert_rate(count, num_images, 1 / 81)


def test_the_smallest_and_largest_draws_stay_in_range():
    image = torch.full((1, 1, 9, 9), 255, dtype=torch.uint8)
    for padding in range(1, 9):
        for value, corner in ((0.0, (-1, -1)), (LARGEST_DRAW, (0, 0))):
            cropped = random_crop(image, torch.tensor([[value, value]]), padding)
            assert cropped.count_nonzero() == (9 - padding) ** 2
            assert cropped[0, 0][corner] == 255
    for policy in POLICIES:
        augment, draws = Augmentation(policy=policy), {"auto_augment": torch.full((1, 5), LARGEST_DRAW)}
        assert augment(image.expand(1, 3, 9, 9), draws).shape == (1, 3, 9, 9)


def test_flip_mirrors_half_of_the_images_and_keeps_the_others():
    images = random_images(2000, 4)
    flipped = Augmentation(horizontal_flip=True)(images, {"flip": draw("flip", len(images))})
    mirrored = [np.array_equal(new, old[..., ::-1]) for new, old in zip(flipped.numpy(), images.numpy(), strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert_rate(sum(mirrored), len(images), 0.5)


def boxes_of(erased: Tensor) -> Tensor:
    """Top, left, height and width of the black box in each image (n, 1, H, W)."""
    black = erased[:, 0] == 0
    rows, columns = black.any(dim=2).int(), black.any(dim=1).int()
    return torch.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], dim=1)


def test_a_box_is_erased_as_torchvision_erases_it():
    images = random_images(200).clamp(min=1)
    erased = random_erasing(images, draw("erasing", len(images)), 1.0)
    for image, found, box in zip(images, erased, boxes_of(erased).tolist(), strict=True):
        assert torch.equal(found, erase(image, *box, v=torch.zeros(1, 1, 1)))
        assert 0 < box[2] < 32
        assert 0 < box[3] < 32


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 48)])
def test_erased_boxes_have_torchvisions_positions_areas_and_aspects(height, width):
    white = torch.full((20_000, 1, height, width), 255, dtype=torch.uint8)
    top, left, box_height, box_width = boxes_of(random_erasing(white, draw("erasing", len(white)), 1.0)).double().T
    torch.manual_seed(0)
    drawn = [RandomErasing().make_params([white[0]]) for _ in range(4000)]
    theirs = {key: np.array([box[key] for box in drawn if box["v"] is not None]) for key in "ijhw"}
    for mine, other in [
        (top, theirs["i"]), (left, theirs["j"]), (box_height, theirs["h"]), (box_width, theirs["w"]),
        (box_height * box_width, theirs["h"] * theirs["w"]), (box_height / box_width, theirs["h"] / theirs["w"]),
    ]:  # fmt: skip
        assert kstest(mine[box_height > 0], other).pvalue > 0.001


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_images_are_erased_at_the_given_probability(probability):
    white = torch.full((100_000, 1, 8, 8), 255, dtype=torch.uint8)
    erased = random_erasing(white, draw("erasing", len(white)), probability)
    assert_rate(int((erased == 0).any(dim=3).any(dim=2).sum()), len(white), probability)


def test_the_largest_draws_put_a_whole_box_into_the_far_corner():
    white, sizes = torch.full((500, 3, 16, 16), 255, dtype=torch.uint8), torch.rand(500, 2 * ERASING_ATTEMPTS)
    near = random_erasing(white, torch.cat([torch.zeros(500, 3), sizes], dim=1), 1.0)
    far = random_erasing(white, torch.cat([torch.full((500, 3), LARGEST_DRAW), sizes], dim=1), 1.0)
    assert near[:, :, 0, 0].max() == 0
    assert torch.equal(far, near.flip(2, 3))


def test_an_empty_augmentation_changes_no_pixel():
    images = random_images(50)
    assert torch.equal(Augmentation()(images, EVERYTHING.draw(0, 0, 50)), images)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_gets_the_same_pixels_in_any_chunk_and_the_input_is_not_changed(policy):
    images, augment = random_images(100), replace(EVERYTHING, policy=policy)
    source, draws = images.clone(), augment.draw(1, 2, len(images))
    whole = augment(images, draws)
    for size in (1, 7, 99):
        pieces = [
            augment(images[index], {name: values[index] for name, values in draws.items()})
            for index in torch.arange(len(images)).split(size)
        ]
        assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(images, source)
    assert not torch.equal(whole, source)


def test_draws_are_pinned():
    """A change of the draws changes every result of this repository: make it on purpose only."""
    draws = {name: (values[7] * 2**24).tolist() for name, values in EVERYTHING.draw(42, 3, 50_000).items()}
    assert draws["crop"] == [248804, 5234006]
    assert draws["flip"] == [558397]
    assert draws["auto_augment"] == [12025985, 14234417, 882069, 5630284, 2138960]
    assert draws["erasing"][:5] == [15464950, 10271242, 16519722, 13067769, 14374689]


def test_an_images_draws_depend_on_seed_epoch_and_index_alone():
    many = EVERYTHING.draw(42, 3, 50_000)
    torch.manual_seed(1)  # the global generator does not matter
    for num_images in (1, 8, 1437):
        few = EVERYTHING.draw(42, 3, num_images)
        assert few.keys() == many.keys()
        assert all(torch.equal(few[name], many[name][:num_images]) for name in many)
    for seed, epoch in ((42, 4), (43, 3), (3, 42)):
        others = EVERYTHING.draw(seed, epoch, 8)
        assert not any(torch.isin(others[name], many[name][:8]).any() for name in many)


def test_a_purpose_added_or_removed_does_not_change_the_draws_of_the_others():
    many, few = EVERYTHING.draw(42, 3, 100), Augmentation().draw(42, 3, 100)
    assert few.keys() == {"crop", "flip", "auto_augment"}
    assert all(torch.equal(few[name], many[name]) for name in few)
    columns = torch.cat([*many.values()], dim=1)
    assert len(columns.unique()) > 0.99 * columns.numel()  # no two purposes share numbers
