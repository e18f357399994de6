"""Datasets as uint8 tensors in memory, and loaders that yield augmented, normalized batches from them."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms.v2 import functional as tv
from tqdm import tqdm

from training.augment import Augmentation, Draws, random_stream
from training.errors import RunError, UsageError

# Images prepared at once. On one core: 10,000 images/s in chunks of 64, 22,000 of 512, 40,000 of 4,096.
CHUNK_SIZE = 4096
EVAL_BATCH_SIZE = 500  # one for training and evaluator alike, so that both compute the same bits


@dataclass(frozen=True)
class Dataset:
    """Images in memory, with what a model trained on them has to know. Labels are indices into `class_names`."""

    class_names: list[str]
    train_images: Tensor  # uint8 (n, 3, img_size, img_size)
    train_labels: Tensor  # int64 (n,)
    test_images: Tensor
    test_labels: Tensor
    mirrorable: bool = True  # False where a mirrored image would be another class, or none


def load_dataset(name: str, data_dir: str, img_size: int, data_url: str = "") -> Dataset:
    """Read a dataset: cifar10, cifar100, digits or image-folder. RunError for what is missing or can't be read."""
    if name == "digits":
        dataset = load_digits()
    elif name == "image-folder":
        return load_image_folder(Path(data_dir), img_size)
    else:
        dataset = load_cifar(name, data_dir, data_url)
    return replace(
        dataset,
        train_images=resize(dataset.train_images, img_size),
        test_images=resize(dataset.test_images, img_size),
    )


def load_cifar(name: str, data_dir: str, data_url: str) -> Dataset:
    """The official archive, read by torchvision, which downloads it where it is missing and checks its md5."""
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if data_url:
        source = type(source.__name__, (source,), {"url": data_url})
    try:
        train, test = (source(data_dir, train=train, download=True) for train in (True, False))
    except Exception as error:  # a bad address alone can raise any of five kinds
        raise RunError(
            f"could not get {name} ({str(error).rstrip('.')}): put {source.filename} into {data_dir} by hand, "
            "give a mirror with --data-url, or use --dataset digits or image-folder, which need no download"
        ) from None
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test)]
    return Dataset(train.classes, images[0], torch.tensor(train.targets), images[1], torch.tensor(test.targets))


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels and 17 greys; a fixed fifth is the test split."""
    from sklearn.datasets import load_digits as read_digits  # takes a second to import, and only this needs it

    pixels, labels = read_digits(return_X_y=True)
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8).repeat(1, 3, 1, 1)
    labels = torch.from_numpy(labels).long()
    order = stratified_order(labels, seed=0)
    test, train = order[:360], order[360:]
    names = [str(digit) for digit in range(10)]
    return Dataset(names, images[train], labels[train], images[test], labels[test], mirrorable=False)


def load_image_folder(root: Path, img_size: int) -> Dataset:
    """DIR/train/<class>/* and DIR/test/<class>/*, of any size and mode, as RGB of img_size x img_size pixels."""
    parts = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise RunError(
                f"no folder {root / split}: --data-dir must hold train/<class>/ and test/<class>/ with images"
            )
        try:
            parts[split] = datasets.ImageFolder(root / split)
        except (OSError, RuntimeError) as error:  # no class folder, or one without images
            raise RunError(f"{root / split} is no image folder: {error}".splitlines()[0]) from None
    names = parts["train"].classes
    if names != parts["test"].classes:
        lonely = ", ".join(sorted(set(names) ^ set(parts["test"].classes)))
        raise RunError(f"classes that are not in both {root / 'train'} and {root / 'test'}: {lonely}")
    images, labels = {}, {}
    for split, part in parts.items():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda sample: read_image(sample[0], img_size), part.samples)
            bar = tqdm(decoded, f"reading {split} images", len(part.samples), disable=None, leave=False)
            images[split] = torch.stack(list(bar))
        labels[split] = torch.tensor(part.targets)
    return Dataset(names, images["train"], labels["train"], images["test"], labels["test"])


def read_image(path: str | Path, img_size: int) -> Tensor:
    """One picture of any size and mode as uint8 (3, img_size, img_size). RunError, naming the file, if it is none."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I;16"):  # 16-bit grey, which Pillow would clip to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB")
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise RunError(f"can't read the image {path}: {str(error) or type(error).__name__}") from None
    if image.size != (img_size, img_size):
        image = image.resize((img_size, img_size), Image.Resampling.BILINEAR)  # with antialiasing
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize(images: Tensor, img_size: int) -> Tensor:
    if images.shape[-1] == img_size:
        return images
    return torch.cat([tv.resize(chunk, [img_size, img_size], antialias=True) for chunk in images.split(CHUNK_SIZE)])


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order in which every beginning holds each class in about its share of the whole."""
    order = torch.randperm(len(labels), generator=random_stream(seed, 0, "split"))
    place = torch.empty(len(labels), dtype=torch.float64)  # how far through its class an image comes, in (0, 1)
    for label in labels.unique():
        members = order[labels[order] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return place.argsort(stable=True)


def channel_stats(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images, in 0..1, from exact sums."""
    count = images.numel() // images.shape[1]
    mean = images.sum((0, 2, 3)).double() / count
    squares = [chunk.int().square().sum((0, 2, 3)) for chunk in images.split(CHUNK_SIZE)]
    mean_square = torch.stack(squares).sum(0).double() / count
    std = (mean_square - mean**2).clamp(min=1).sqrt()  # at least one grey level, so that a constant channel divides too
    return (mean / 255).tolist(), (std / 255).tolist()


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images to floats of mean 0 and standard deviation 1 in each channel; `mean` and `std` are in 0..1."""
    return tv.normalize(images.float(), [255 * value for value in mean], [255 * value for value in std], inplace=True)


class ImageLoader:
    """Yields normalized float batches (images, labels) from uint8 images, prepared a chunk at a time.

    Args:
        mean, std: per channel, in 0..1.
        shuffle_seed: the order of an epoch is a function of it and the epoch; None keeps the images' own order.
        augmentation: applied to the uint8 images; its draws are a function of (shuffle_seed, epoch, index).
        num_workers: threads that prepare coming chunks; the batches are the same for any number.
        split: what the images are: "train", "val" or "test".
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: list[float],
        std: list[float],
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        split: str,
    ):
        if augmentation is not None and shuffle_seed is None:
            raise ValueError("augmentation draws its numbers from shuffle_seed: give one")
        self.stats: dict[str, Any] = {"mean": mean, "std": std}
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.augmentation = augmentation
        self.num_workers = num_workers
        self.split = split
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)  # a last smaller batch counts

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, whose order and augmentation the next iteration has."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        num_images = len(self.images)
        order, draws = torch.arange(num_images), None
        if self.shuffle_seed is not None:
            order = torch.randperm(num_images, generator=random_stream(self.shuffle_seed, self.epoch, "order"))
            draws = Draws.of_epoch(self.shuffle_seed, self.epoch, num_images)
        chunk_size = max(1, CHUNK_SIZE // self.batch_size) * self.batch_size
        for images, labels in self._prepared(order.split(chunk_size), draws):
            for batch, batch_labels in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
                yield normalize(batch, **self.stats), batch_labels

    def _prepared(self, chunks: tuple[Tensor, ...], draws: Draws | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The chunks' augmented uint8 images and labels, in order; with workers, prepared while others are used."""

        def prepare(index: Tensor) -> tuple[Tensor, Tensor]:
            place = index.to(self.images.device)
            images = self.images[place]
            if self.augmentation is not None and draws is not None:
                images = self.augmentation(images, draws[index])
            return images, self.labels[place]

        if self.num_workers == 0:
            yield from map(prepare, chunks)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            coming, pending = iter(chunks), deque()
            while True:
                while len(pending) <= self.num_workers and (index := next(coming, None)) is not None:
                    pending.append(pool.submit(prepare, index))
                if not pending:
                    return
                yield pending.popleft().result()


def get_cifar10_dataloaders(
    dataset: Dataset | None = None,
    data_dir: str = "data",
    batch_size: int = 64,
    num_workers: int = 0,
    *,
    auto_augment: bool = True,
    crop_padding: int = 4,
    horizontal_flip: bool = True,
    max_train_images: int = 0,
    val_size: int = 0,
    seed: int = 42,
    device: torch.device | str = "cpu",
) -> tuple[ImageLoader, ImageLoader]:
    """A training loader and one for the monitored split: the test images, or with `val_size` held-out training images.

    `dataset` is what load_dataset returns; by default CIFAR-10 from `data_dir`. Both loaders normalize with the mean
    and std of all training images, measured. UsageError for sizes that do not fit the data.
    """
    dataset = dataset or load_dataset("cifar10", data_dir, img_size=32)
    total, num_classes = len(dataset.train_images), len(dataset.class_names)
    if val_size and not num_classes <= val_size <= total - num_classes:
        raise UsageError(f"val_size must be 0 or between {num_classes} and {total - num_classes} here, got {val_size}")
    if max_train_images > total - val_size:
        raise UsageError(f"max_train_images {max_train_images} is more than the {total - val_size} there are")
    mean, std = channel_stats(dataset.train_images)
    order = stratified_order(dataset.train_labels, seed)
    held_out, kept = order[:val_size], order[val_size:][: max_train_images or None].sort().values
    train_loader = ImageLoader(
        dataset.train_images[kept], dataset.train_labels[kept], mean, std, batch_size, shuffle_seed=seed,
        augmentation=Augmentation(crop_padding, horizontal_flip and dataset.mirrorable, auto_augment),
        num_workers=num_workers, device=device, split="train",
    )  # fmt: skip
    if val_size:
        dataset = replace(
            dataset, test_images=dataset.train_images[held_out], test_labels=dataset.train_labels[held_out]
        )
    return train_loader, create_eval_loader(dataset, "val" if val_size else "test", train_loader.stats, device)


def create_eval_loader(
    dataset: Dataset, split: str, stats: dict[str, Any], device: torch.device | str = "cpu"
) -> ImageLoader:
    """The dataset's test images in their own order, normalized with the training images' `stats`."""
    return ImageLoader(
        dataset.test_images, dataset.test_labels, **stats, batch_size=EVAL_BATCH_SIZE, device=device, split=split
    )
