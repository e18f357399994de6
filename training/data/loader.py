"""Batches of normalized images, from uint8 images in memory, augmented a chunk at a time."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from training.data.augment import Augmentation, Draws, random_stream
from training.data.mix import Mixing
from training.files import write_atomically

# Pixels prepared at once: those of 4,096 images of 32x32. On one core 13,500 images/s in chunks of 64, 29,100 of 512,
# 45,600 of 4,096 and, out of the cache, 33,300 of 16,384 (results/augment_benchmark.json).
CHUNK_PIXELS = 4096 * 32 * 32
SHEET_ROWS, SHEET_COLUMNS, SHEET_SCALE = 8, 8, 2  # of the contact sheet; pixels are shown as squares of SHEET_SCALE


def chunk_size(images: Tensor) -> int:
    """How many of these images (n, 3, H, W) make a chunk."""
    return max(1, CHUNK_PIXELS // (images.shape[-2] * images.shape[-1]))


def normalize(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images to floats of mean 0 and standard deviation 1 in each channel; `mean` and `std` are in 0..1."""
    return tv.normalize(images.float(), [255 * value for value in mean], [255 * value for value in std], inplace=True)


class ImageLoader:
    """Yields normalized float batches (images, labels); images and their order follow from (shuffle_seed, epoch) alone.

    Args:
        mean, std: per channel, in 0..1.
        batch_size: images a step, of all ranks together.
        shuffle_seed: the order of an epoch is a function of it and the epoch; None keeps the images' own order.
        augmentation: applied to the uint8 images; its draws are a function of (shuffle_seed, epoch, index).
        mixing: applied to the normalized batches (of this rank); labels are then targets (n, num_classes).
        small_epochs: in so many epochs, from the first, the batches have half the height and width: each pixel is the
            mean of four.
        num_workers: threads that prepare coming chunks; the batches are the same for any number.
        rank, world_size: this process yields every world_size-th image of each batch, from the rank-th on.
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
        mixing: Mixing | None = None,
        small_epochs: int = 0,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        split: str,
    ):
        if shuffle_seed is None and (augmentation is not None or mixing is not None):
            raise ValueError("augmentation and mixing draw their numbers from shuffle_seed: give one")
        self.stats: dict[str, Any] = {"mean": mean, "std": std}
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.augmentation = augmentation
        self.mixing = mixing
        self.small_epochs = small_epochs
        self.num_workers = num_workers
        self.rank, self.world_size = rank, world_size
        self.split = split
        self.epoch, self.start_step = 0, 0

    def __len__(self) -> int:
        """Steps of a whole epoch; a last smaller batch counts."""
        return -(-len(self.images) // self.batch_size)

    def images_in_step(self, step: int) -> int:
        """Images of a step, counted from 0, in all ranks together."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch that the next iteration has, and the step it begins with, both counted from 0."""
        self.epoch, self.start_step = epoch, start_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order, draws = torch.arange(len(self.images)), None
        if self.shuffle_seed is not None:
            order = torch.randperm(len(order), generator=random_stream(self.shuffle_seed, self.epoch, "order"))
        if self.shuffle_seed is not None and self.augmentation is not None:
            draws = self.augmentation.draw(self.shuffle_seed, self.epoch, len(order))
        batches = [batch[self.rank :: self.world_size] for batch in order.split(self.batch_size)[self.start_step :]]
        per_chunk = max(1, chunk_size(self.images) * self.world_size // self.batch_size)
        chunks = [batches[i : i + per_chunk] for i in range(0, len(batches), per_chunk)]
        step = self.start_step
        for chunk, (images, labels) in zip(chunks, self._prepared(chunks, draws), strict=True):
            sizes = [len(batch) for batch in chunk]
            for batch, targets in zip(images.split(sizes), labels.split(sizes), strict=True):
                batch = normalize(batch, **self.stats)
                if self.shuffle_seed is not None and self.mixing is not None:
                    batch, targets = self.mixing(batch, targets, self.shuffle_seed, self.epoch, step)
                if self.epoch < self.small_epochs:
                    batch = F.avg_pool2d(batch, 2)
                yield batch, targets
                step += 1

    def _prepared(self, chunks: list[list[Tensor]], draws: Draws | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The chunks' augmented uint8 images and labels, in order; with workers, prepared while others are used."""

        def prepare(chunk: list[Tensor]) -> tuple[Tensor, Tensor]:
            index = torch.cat(chunk)
            place = index.to(self.images.device)
            images = self.images[place]
            if self.augmentation is not None and draws is not None:
                images = self.augmentation(images, {name: values[index] for name, values in draws.items()})
            return images, self.labels[place]

        if self.num_workers == 0:
            yield from map(prepare, chunks)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            coming, pending = iter(chunks), deque()
            while True:
                while len(pending) <= self.num_workers and (chunk := next(coming, None)) is not None:
                    pending.append(pool.submit(prepare, chunk))
                if not pending:
                    return
                yield pending.popleft().result()


def save_contact_sheet(loader: ImageLoader, path: Path) -> None:
    """A picture of the augmentation: a row an image, first as it is, then as the first epochs have it (unmixed)."""
    if loader.augmentation is None or loader.shuffle_seed is None:
        return
    index = torch.linspace(0, len(loader.images) - 1, SHEET_ROWS).long()
    images = loader.images[index.to(loader.images.device)].cpu()
    columns = [images]
    for epoch in range(SHEET_COLUMNS - 1):
        draws = loader.augmentation.draw(loader.shuffle_seed, epoch, len(loader.images))
        columns.append(loader.augmentation(images, {name: values[index] for name, values in draws.items()}))
    tiles = torch.stack(columns, dim=1).flatten(0, 1)  # (SHEET_ROWS * SHEET_COLUMNS, 3, H, W)
    tiles = tiles.repeat_interleave(SHEET_SCALE, 2).repeat_interleave(SHEET_SCALE, 3)
    sheet = tv.to_pil_image(make_grid(tiles, nrow=SHEET_COLUMNS, padding=4, pad_value=255))
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))
