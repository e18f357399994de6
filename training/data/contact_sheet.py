"""A picture of what the augmentation does to a few training images."""

from dataclasses import replace
from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as tv
from torchvision.utils import make_grid

from training.data.augment import Augmentation
from training.data.loader import ImageLoader
from training.files import write_atomically

ROWS, COLUMNS = 8, 8  # tiles of the sheet
SMALL, LARGE = 64, 128  # pixels: smaller tiles are drawn at twice their size, larger ones are made that small


def save_contact_sheet(loader: ImageLoader, path: Path) -> None:
    """Save a PNG with a row for each image: first the original, then its augmentation in the first epochs, unmixed.

    Without augmentation there is nothing to show and nothing is written.
    """
    augmentation, seed = loader.augmentation, loader.shuffle_seed
    if augmentation is None or seed is None or replace(augmentation, magnitude=0) == Augmentation(magnitude=0):
        return  # no augmentation, or one with all of it off, whatever the magnitude
    index = torch.linspace(0, len(loader.images) - 1, ROWS).long()
    images = loader.images[index.to(loader.images.device)].cpu()
    columns = [images]
    for epoch in range(COLUMNS - 1):
        draws = augmentation.draw(seed, epoch, len(loader.images))
        columns.append(augmentation(images, {name: values[index] for name, values in draws.items()}))
    tiles = torch.stack(columns, dim=1).flatten(0, 1)  # (ROWS * COLUMNS, 3, H, W)
    size = tiles.shape[-1]
    if size <= SMALL:
        tiles = tiles.repeat_interleave(2, 2).repeat_interleave(2, 3)
    elif size > LARGE:
        tiles = tv.resize(tiles, [LARGE, LARGE], antialias=True)
    sheet = tv.to_pil_image(make_grid(tiles, nrow=COLUMNS, padding=4, pad_value=255))
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))
