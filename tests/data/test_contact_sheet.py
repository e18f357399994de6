"""The contact sheet shows images as they are, and as training sees them in its first epochs."""

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.augment import Augmentation
from training.data.contact_sheet import COLUMNS, LARGE, ROWS, save_contact_sheet
from training.data.loader import ImageLoader

IMAGES = torch.randint(256, (50, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def loader_of(augmentation: Augmentation | None) -> ImageLoader:
    mean_and_std = [[0.5] * 3] * 2
    return ImageLoader(
        IMAGES, torch.arange(50), *mean_and_std, batch_size=16, shuffle_seed=3, augmentation=augmentation, split="train"
    )


def test_a_row_holds_an_image_and_its_augmentation_in_each_of_the_first_epochs(tmp_path):
    augmentation = Augmentation(crop_padding=2, horizontal_flip=True)
    save_contact_sheet(loader_of(augmentation), tmp_path / "sheet.png")
    sheet = np.array(Image.open(tmp_path / "sheet.png"))
    step = 16 + 4  # with the white lines between the tiles
    for row, index in enumerate(torch.linspace(0, 49, ROWS).long()):
        epochs = [augmentation(IMAGES, augmentation.draw(3, epoch, 50))[index] for epoch in range(COLUMNS - 1)]
        for column, image in enumerate([IMAGES[index], *epochs]):
            tile = sheet[4 + row * step :, 4 + column * step :][:16:2, :16:2]
            np.testing.assert_array_equal(tile, image.permute(1, 2, 0))


@pytest.mark.parametrize(("size", "drawn"), [(64, 128), (65, 65), (128, 128), (384, LARGE)])
def test_the_sheet_of_large_images_stays_small(tmp_path, size, drawn):
    images, mean_and_std = torch.zeros(9, 3, size, size, dtype=torch.uint8), [[0.5] * 3] * 2
    augmentation = Augmentation(horizontal_flip=True)
    loader = ImageLoader(
        images, torch.arange(9), *mean_and_std, batch_size=4, shuffle_seed=3, augmentation=augmentation, split="train"
    )
    save_contact_sheet(loader, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (COLUMNS * (drawn + 4) + 4, ROWS * (drawn + 4) + 4)


@pytest.mark.parametrize("augmentation", [None, Augmentation(), Augmentation(magnitude=5)])
def test_without_augmentation_there_is_no_sheet(tmp_path, augmentation):
    save_contact_sheet(loader_of(augmentation), tmp_path / "sheet.png")
    assert not [*tmp_path.iterdir()]
