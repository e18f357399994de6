"""Datasets as uint8 tensors in memory, their splits and their loaders."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as tv

from training.console import say
from training.data.augment import Augmentation, random_stream
from training.data.image_folder import read_image_folder
from training.data.loader import ImageLoader, chunk_size
from training.data.mix import Mixing
from training.data.official import read_cifar, read_fashion_mnist, read_svhn
from training.errors import UsageError

EVAL_BATCH_SIZE = 128  # the same in training and in evaluate_vit.py, so that both compute the same bits
DEFAULT_AUGMENTATION = Augmentation(crop_padding=4, horizontal_flip=True, policy="cifar10")  # of the recipe


@dataclass(frozen=True)
class Dataset:
    """Images in memory and the names of their classes. Labels are indices into `class_names`."""

    class_names: list[str]
    train_images: Tensor  # uint8 (n, 3, img_size, img_size)
    train_labels: Tensor  # int64 (n,)
    test_images: Tensor
    test_labels: Tensor
    mirrorable: bool = True  # False where a mirrored image may be of another class, as with digits


def load_dataset(name: str, data_dir: str, img_size: int, data_url: str = "", cache: bool = True) -> Dataset:
    """Read a dataset, named as in READERS, at img_size x img_size pixels.

    `data_url` is a mirror of the official files; `cache` keeps the decoded pictures of an image folder on disk.
    RunError for what is missing or can't be read.
    """
    dataset = READERS[name](Path(data_dir), img_size, data_url, cache)
    train, test = (resize(images, img_size) for images in (dataset.train_images, dataset.test_images))
    return replace(dataset, train_images=train, test_images=test)


def load_digits() -> Dataset:
    """Read scikit-learn's 1,797 handwritten digits of 8x8 pixels; the test split is always the same 360."""
    from sklearn.datasets import load_digits as read_digits  # here, because the import takes a second

    pixels, labels = read_digits(return_X_y=True)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(labels).long()
    order = stratified_order(labels, seed=0)
    test, train = order[:360], order[360:]
    return Dataset(list("0123456789"), images[train], labels[train], images[test], labels[test], mirrorable=False)


READERS: dict[str, Callable[[Path, int, str, bool], Dataset]] = {  # of (root, img_size, data_url, cache)
    "cifar10": lambda root, _, url, __: Dataset(**read_cifar(datasets.CIFAR10, root, url)),
    "cifar100": lambda root, _, url, __: Dataset(**read_cifar(datasets.CIFAR100, root, url)),
    "svhn": lambda root, _, url, __: Dataset(**read_svhn(root, url)),
    "fashion-mnist": lambda root, _, url, __: Dataset(**read_fashion_mnist(root, url)),
    "digits": lambda *_: load_digits(),
    "image-folder": lambda root, img_size, _, cache: Dataset(**read_image_folder(root, img_size, cache)),
}


def resize(images: Tensor, img_size: int) -> Tensor:
    """uint8 images (n, 3, H, H) as (n, 3, img_size, img_size), antialiased."""
    if images.shape[-1] == img_size:
        return images
    size, resized = chunk_size(images), images.new_empty(*images.shape[:2], img_size, img_size)
    for chunk, place in zip(images.split(size), resized.split(size), strict=True):
        place.copy_(tv.resize(chunk, [img_size, img_size], antialias=True))
    return resized


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order whose first k labels, for any k, hold each class in about the proportion of all labels."""
    order = torch.randperm(len(labels), generator=random_stream(seed, 0, "split"))
    position = torch.empty(len(labels), dtype=torch.float64)  # of an image within its own class, in (0, 1)
    for label in labels.unique():
        members = order[labels[order] == label]
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return position.argsort(stable=True)


def channel_stats(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, in 0..1, from the histogram of its 256 levels."""
    counts = torch.stack([images[:, channel].flatten().bincount(minlength=256) for channel in range(images.shape[1])])
    levels, count = torch.arange(256), images.numel() // images.shape[1]
    mean, mean_square = ((counts * power).sum(1).double() / count for power in (levels, levels**2))
    std = (mean_square - mean**2).clamp(min=1).sqrt()  # at least one level, or a constant channel would divide by 0
    return (mean / 255).tolist(), (std / 255).tolist()


def get_cifar10_dataloaders(
    dataset: Dataset | None = None,
    data_dir: str = "data",
    batch_size: int = 64,
    num_workers: int = 0,
    *,
    augmentation: Augmentation = DEFAULT_AUGMENTATION,
    mixing: Mixing | None = None,
    max_train_images: int = 0,
    val_size: int = 0,
    small_epochs: int = 0,
    seed: int = 42,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> tuple[ImageLoader, ImageLoader]:
    """Create the training loader and the evaluation loader: of the test images, or of `val_size` training images.

    `dataset` is what load_dataset returns; by default it is CIFAR-10 from `data_dir`. Both loaders normalize with the
    mean and standard deviation of all training images. UsageError for sizes that do not fit the data.
    """
    dataset = dataset or load_dataset("cifar10", data_dir, img_size=32)
    total, num_classes = len(dataset.train_images), len(dataset.class_names)
    if val_size and total < 2 * num_classes:
        raise UsageError(f"val_size must be 0: {total} training images are too few to hold any out")
    if val_size and not num_classes <= val_size <= total - num_classes:
        raise UsageError(f"val_size must be 0 or between {num_classes} and {total - num_classes} here, got {val_size}")
    if max_train_images > total - val_size:
        raise UsageError(
            f"max_train_images {max_train_images} is more than {total - val_size}: {val_size} of {total} are held out"
        )
    mean, std = channel_stats(dataset.train_images)
    order = stratified_order(dataset.train_labels, seed)
    held_out, kept = order[:val_size], order[val_size:][: max_train_images or None].sort().values
    # where none is left out, no copy is needed
    images, labels = (x[kept] if len(kept) < total else x for x in (dataset.train_images, dataset.train_labels))
    if rank == 0 and (num_lost := num_classes - len(labels.unique())):
        say(f"note: no training images are left of {num_lost} of {num_classes} classes")
    augmentation = replace(augmentation, horizontal_flip=augmentation.horizontal_flip and dataset.mirrorable)
    train_loader = ImageLoader(
        images, labels, mean, std, batch_size, shuffle_seed=seed, augmentation=augmentation, mixing=mixing,
        small_epochs=small_epochs, num_workers=num_workers, device=device, rank=rank, world_size=world_size,
        split="train",
    )  # fmt: skip
    images, labels, split = dataset.test_images, dataset.test_labels, "test"
    if val_size:
        images, labels, split = dataset.train_images[held_out], dataset.train_labels[held_out], "val"
    return train_loader, create_eval_loader(images, labels, split, train_loader.stats, device, rank, world_size)


def create_eval_loader(
    images: Tensor, labels: Tensor, split: str, stats: dict[str, Any], device: torch.device | str = "cpu",
    rank: int = 0, world_size: int = 1,
) -> ImageLoader:  # fmt: skip
    """Create a loader of a split's images in their own order, normalized with the training images' `stats`."""
    return ImageLoader(
        images, labels, **stats, batch_size=EVAL_BATCH_SIZE, device=device, rank=rank, world_size=world_size,
        split=split,
    )  # fmt: skip
