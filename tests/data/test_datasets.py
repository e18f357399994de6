"""Datasets are read whole, in the right layout and splits, and their loaders have the settings asked for."""

import zlib
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from config_vit_cifar10 import TrainConfig
from training.data import Dataset, channel_stats, get_cifar10_dataloaders, load_dataset
from training.data.augment import Augmentation
from training.data.datasets import READERS
from training.data.loader import normalize
from training.data.mix import Mixing
from training.errors import UsageError


def random_images(num_images: int, size: int = 8) -> Tensor:
    return torch.randint(256, (num_images, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def pil_resized(image: Tensor, size: int) -> np.ndarray:
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.array(pixels.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def test_the_config_offers_exactly_the_datasets_that_can_be_read():
    assert sorted(get_args(get_type_hints(TrainConfig)["dataset"])) == sorted(READERS)


# --- digits ---


def test_digits_are_scikit_learns_images_in_a_fixed_stratified_split():
    dataset = load_dataset("digits", "", img_size=8)
    assert (len(dataset.train_images), len(dataset.test_images)) == (1437, 360)
    pixels, labels = load_digits(return_X_y=True)
    greys = np.rint(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    expected = sorted((image.repeat(3, 0).tobytes(), label) for image, label in zip(greys, labels, strict=True))
    images = torch.cat([dataset.train_images, dataset.test_images])
    found = torch.cat([dataset.train_labels, dataset.test_labels]).tolist()
    assert sorted((image.numpy().tobytes(), label) for image, label in zip(images, found, strict=True)) == expected
    share = np.bincount(labels) * 360 / 1797
    assert np.abs(np.bincount(dataset.test_labels) - share).max() < 1
    assert zlib.crc32(dataset.test_images.numpy().tobytes()) == 576879485
    assert dataset.test_labels[:10].tolist() == [3, 1, 5, 4, 6, 9, 7, 0, 2, 8]


def test_digits_are_resized_as_pillow_does_it():
    small, large = (load_dataset("digits", "", img_size=size).test_images[:50] for size in (8, 32))
    expected = np.stack([pil_resized(image, 32) for image in small])
    np.testing.assert_allclose(large.numpy(), expected, atol=1)


@pytest.mark.parametrize("mirrorable", [False, True])
def test_digits_are_never_flipped_and_mirrorable_images_are_half_of_the_time(mirrorable):
    digits = load_dataset("digits", "", img_size=8)
    if mirrorable:
        digits = replace(digits, mirrorable=True)
    loader, _ = get_cifar10_dataloaders(digits, augmentation=Augmentation(horizontal_flip=True))
    mean, std = (torch.tensor(loader.stats[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.cat([((images * std + mean) * 255).round().byte() for images, _ in loader])
    originals = as_set(digits.train_images)
    unchanged = sum(image.numpy().tobytes() in originals for image in pixels)
    if mirrorable:
        assert 600 < unchanged < 850
    else:
        assert unchanged == 1437


# --- CIFAR; its download is tested in test_download.py ---


@pytest.mark.parametrize("cifar", ["cifar10", "cifar100"], indirect=True)
def test_an_archive_is_read_as_red_green_and_blue_planes(cifar):
    folder = str(cifar.path.parent)
    dataset = load_dataset(cifar.name, folder, img_size=32)
    images = torch.cat([dataset.train_images, dataset.test_images])
    assert images.dtype == torch.uint8
    # "The first 1024 entries contain the red channel values, the next 1024 the green, and the final 1024 the blue",
    # in row-major order (https://www.cs.toronto.edu/~kriz/cifar.html)
    for image, row in zip(images.numpy(), cifar.rows, strict=True):
        for channel in range(3):
            for y in (0, 1, 31):
                start = 1024 * channel + 32 * y
                assert image[channel, y].tolist() == row[start : start + 32].tolist()
    assert (dataset.train_labels.tolist(), dataset.test_labels.tolist()) == (cifar.labels[:20], cifar.labels[20:])
    assert dataset.class_names == cifar.class_names
    assert load_dataset(cifar.name, folder, img_size=16).train_images.shape == (20, 3, 16, 16)


def test_get_cifar10_dataloaders_reads_cifar10_by_default(cifar):
    train_loader, test_loader = get_cifar10_dataloaders(data_dir=str(cifar.path.parent), batch_size=8)
    assert (len(train_loader.images), len(test_loader.images)) == (20, 6)


# --- normalization ---


def test_channel_stats_are_numpys():
    images = random_images(30)
    images[:, 1] //= 3
    mean, std = channel_stats(images)
    pixels = images.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)).tolist(), rel=1e-12)


def test_a_constant_channel_normalizes_to_zero():
    images = torch.full((4, 3, 8, 8), 77, dtype=torch.uint8)
    assert normalize(images, *channel_stats(images)).abs().max() < 1e-4


# --- splits ---


def ten_classes(num_train: int = 300, num_test: int = 40) -> Dataset:
    images, labels = random_images(num_train + num_test), torch.arange(num_train + num_test) % 10
    names = [str(label) for label in range(10)]
    return Dataset(names, images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])


def test_by_default_all_training_images_and_the_test_split():
    dataset = ten_classes()
    train_loader, eval_loader = get_cifar10_dataloaders(dataset)
    assert torch.equal(train_loader.images, dataset.train_images)
    assert torch.equal(train_loader.labels, dataset.train_labels)
    assert (train_loader.split, eval_loader.split) == ("train", "test")
    [(images, labels)] = eval_loader
    assert torch.equal(images, normalize(dataset.test_images, **train_loader.stats))
    assert torch.equal(labels, dataset.test_labels)


def test_the_validation_split_is_stratified_apart_from_training_and_never_augmented():
    dataset = ten_classes()
    train_loader, val_loader = get_cifar10_dataloaders(dataset, val_size=50)
    assert val_loader.split == "val"
    assert val_loader.labels.bincount().tolist() == [5] * 10
    assert train_loader.labels.bincount().tolist() == [25] * 10
    train, val = as_set(train_loader.images), as_set(val_loader.images)
    assert not train & val
    assert train | val == as_set(dataset.train_images)
    number = {image.numpy().tobytes(): label for image, label in zip(dataset.train_images, range(300), strict=True)}
    for loader in (train_loader, val_loader):
        index = [number[image.numpy().tobytes()] for image in loader.images]
        assert torch.equal(dataset.train_labels[index], loader.labels)
    for epoch in (0, 1):
        val_loader.set_epoch(epoch)
        [(images, labels)] = val_loader
        assert torch.equal(images, normalize(val_loader.images, **train_loader.stats))
        assert torch.equal(labels, val_loader.labels)


def test_fewer_training_images_keep_the_classes_shares_and_the_validation_split():
    dataset = ten_classes()
    _, val_of_all = get_cifar10_dataloaders(dataset, val_size=50)
    train_loader, val_loader = get_cifar10_dataloaders(dataset, val_size=50, max_train_images=100)
    assert train_loader.labels.bincount().tolist() == [10] * 10
    assert torch.equal(val_loader.images, val_of_all.images)
    assert not as_set(train_loader.images) & as_set(val_loader.images)
    mean, std = channel_stats(dataset.train_images)
    assert train_loader.stats == {"mean": mean, "std": std}  # those of all training images


def test_unequal_classes_keep_their_shares():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    dataset = Dataset(["a", "b", "c"], random_images(1000), labels, random_images(3), torch.arange(3))
    train_loader, val_loader = get_cifar10_dataloaders(dataset, val_size=100, max_train_images=200)
    np.testing.assert_allclose(val_loader.labels.bincount(), [60, 30, 10], atol=1)
    np.testing.assert_allclose(train_loader.labels.bincount(), [120, 60, 20], atol=2)


@pytest.mark.parametrize("sizes", [{"max_train_images": 30}, {"val_size": 90}, {}])
def test_a_class_that_loses_all_its_training_images_is_warned_of(sizes, capsys):
    labels = torch.tensor([0] * 99 + [1])
    dataset = Dataset(["common", "rare"], random_images(100), labels, random_images(2), torch.tensor([0, 1]))
    train_loader, _ = get_cifar10_dataloaders(dataset, **sizes)
    lost = "no training images are left of 1 of 2 classes" in capsys.readouterr().out
    assert lost == bool(sizes) == (1 not in train_loader.labels)


def test_the_split_is_a_function_of_the_seed():
    splits = [get_cifar10_dataloaders(ten_classes(), val_size=50, seed=seed)[1].images for seed in (1, 1, 2)]
    assert torch.equal(splits[0], splits[1])
    assert as_set(splits[0]) != as_set(splits[2])


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"val_size": 9}, "val_size"),  # fewer than one of each class
        ({"val_size": 291}, "val_size"),  # fewer than one of each class would be left
        ({"val_size": 301}, "val_size"),
        ({"max_train_images": 301}, "max_train_images"),
        ({"max_train_images": 251, "val_size": 50}, "max_train_images 251 is more than 250: 50 of 300 are held out"),
    ],
)
def test_sizes_that_do_not_fit_the_data_are_refused_by_name(sizes, named):
    with pytest.raises(UsageError, match=named):
        get_cifar10_dataloaders(ten_classes(), **sizes)


def test_images_too_few_to_hold_any_out_are_called_so():
    few = replace(ten_classes(), train_images=ten_classes().train_images[:19])
    with pytest.raises(UsageError, match="val_size must be 0: 19 training images are too few"):
        get_cifar10_dataloaders(few, val_size=10)


@pytest.mark.parametrize("sizes", [{"val_size": 10}, {"val_size": 290}, {"max_train_images": 250, "val_size": 50}])
def test_the_largest_and_smallest_sizes_that_fit_are_accepted(sizes):
    train_loader, val_loader = get_cifar10_dataloaders(ten_classes(), **sizes)
    assert len(val_loader.images) == sizes["val_size"]
    assert set(val_loader.labels.tolist()) == set(train_loader.labels.tolist()) == set(range(10))


# --- loaders ---


def test_by_default_the_training_images_have_the_recipes_augmentation():
    train_loader, eval_loader = get_cifar10_dataloaders(ten_classes())
    assert train_loader.augmentation == Augmentation(crop_padding=4, horizontal_flip=True, policy="cifar10")
    assert eval_loader.augmentation is None


def test_training_settings_reach_the_training_loader_only():
    settings: dict[str, Any] = {
        "augmentation": Augmentation(erasing=0.5), "mixing": Mixing(10, mixup_alpha=0.2), "num_workers": 2,
        "batch_size": 20, "rank": 1, "world_size": 2,
    }  # fmt: skip
    train_loader, eval_loader = get_cifar10_dataloaders(ten_classes(), seed=7, **settings)
    for name, value in {**settings, "shuffle_seed": 7}.items():
        assert getattr(train_loader, name) == value
    [(images, labels)] = eval_loader  # this rank's half, without mixing or augmentation
    assert images.shape == (20, 3, 8, 8)
    assert labels.ndim == 1


def test_the_ranks_shares_of_the_evaluation_images_interleave_to_all_of_them():
    whole = torch.cat([images for images, _ in get_cifar10_dataloaders(ten_classes())[1]])
    merged = torch.empty_like(whole)
    for rank in range(3):
        _, eval_loader = get_cifar10_dataloaders(ten_classes(), rank=rank, world_size=3)
        merged[rank::3] = torch.cat([images for images, _ in eval_loader])
    assert torch.equal(merged, whole)
