"""Shuffled, augmented and normalized batches of images that lie in memory as uint8."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from training.data.augment import Augmentation, Draws, random_stream
from training.data.mix import Mixing

# Pixels that are prepared at once: those of 4,096 images of 32x32. One core augments 13,400 images/s in chunks of 64,
# 29,300 in chunks of 512, 39,700 of 4,096 and 29,300 of 16,384, which no longer fit its cache
# (results/augment_benchmark.json).
CHUNK_PIXELS = 4096 * 32 * 32


def chunk_size(images: Tensor) -> int:
    """The number of images in a chunk, for images (n, 3, H, W)."""
    return max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images (n, 3, H, W) as floats, with `mean` subtracted and divided by `std` (per channel, in 0..1)."""
    return tv.normalize(images.float(), [255 * value for value in mean], [255 * value for value in std], inplace=True)


class ImageLoader:
    """Yields batches of normalized float images (n, 3, H, W) and their labels (n,).

    Images' order and pixels depend on (shuffle_seed, epoch), mixed ones on the step too: a run goes on in mid-epoch.

    Args:
        images, labels: uint8 (n, 3, H, W) and int64 (n,); moved to `device`.
        mean, std: per channel, in 0..1.
        batch_size: images a step, of all ranks together.
        shuffle_seed: shuffles every epoch anew; None keeps the images' own order.
        augmentation: of the uint8 images; what an image draws depends on (shuffle_seed, epoch, index).
        mixing: of the normalized batch, across all ranks; labels of a mixed batch are targets (n, num_classes).
        small_epochs: the first so many epochs yield batches (n, 3, H/2, W/2), means of 2 x 2 pixels.
        num_workers: threads that prepare the next chunks; their number does not change the batches.
        rank, world_size: this process yields every world_size-th image of each batch, starting at image `rank`.
        split: which images these are: "train", "val" or "test".
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
        mixing: Mixing | None = None,
        small_epochs: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        split: str,
    ):
        if shuffle_seed is None and (augmentation is not None or mixing is not None):
            raise ValueError("augmentation and mixing need a shuffle_seed, which their random numbers come from")
        self.stats: dict[str, Any] = {"mean": mean, "std": std}
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.augmentation, self.mixing = augmentation, mixing
        self.small_epochs, self.num_workers = small_epochs, num_workers
        self.rank, self.world_size = rank, world_size
        self.split = split
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        """Steps in a whole epoch; the last batch may be smaller."""
        return -(-len(self.images) // self.batch_size)

    def images_in_step(self, step: int) -> int:
        """Images in step `step` (from 0), of all ranks together."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration and the step it begins with, both counted from 0."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed, mixing, num_images = self.shuffle_seed, self.mixing, len(self.images)
        order, draws = torch.arange(num_images), None
        if seed is not None:
            order = torch.randperm(num_images, generator=random_stream(seed, self.epoch, "order"))
            draws = self.augmentation.draw(seed, self.epoch, num_images) if self.augmentation else None
        share = slice(self.rank, None, self.world_size)
        batches = list(order.split(self.batch_size)[self.start_step :])
        if mixing is None:  # mixing needs the whole batch: it pairs images of different ranks' shares
            batches = [batch[share] for batch in batches]
        largest = max([1, *map(len, batches)])  # a rank's share of a batch may be empty
        per_chunk = max(1, chunk_size(self.images) // largest)  # batches
        chunks = [batches[i : i + per_chunk] for i in range(0, len(batches), per_chunk)]
        step = self.start_step
        for chunk, (images, labels) in zip(chunks, self._prepare(chunks, draws), strict=True):
            sizes = [len(batch) for batch in chunk]
            for batch, targets in zip(images.split(sizes), labels.split(sizes), strict=True):
                batch = normalize(batch, **self.stats)
                if seed is not None and mixing is not None:
                    batch, targets = mixing(batch, targets, seed, self.epoch, step)
                    batch, targets = batch[share].contiguous(), targets[share].contiguous()
                if self.epoch < self.small_epochs:
                    batch = F.avg_pool2d(batch, 2)
                yield batch, targets
                step += 1

    def _prepare(self, chunks: list[list[Tensor]], draws: Draws | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each chunk's augmented uint8 images and labels; worker threads prepare the next chunks meanwhile."""

        def prepare(chunk: list[Tensor]) -> tuple[Tensor, Tensor]:
            index = torch.cat(chunk)
            device_index = index.to(self.images.device)
            images = self.images[device_index]
            if self.augmentation is not None and draws is not None:
                images = self.augmentation(images, {name: values[index] for name, values in draws.items()})
            return images, self.labels[device_index]

        if self.num_workers == 0:
            yield from map(prepare, chunks)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            pending = deque()
            for chunk in chunks:
                pending.append(pool.submit(prepare, chunk))
                if len(pending) > self.num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
